"""Rows as they are needed: computed by sweeps that get smaller when memory runs out, and held in memory or on disk.

To choose features, rows over all active features are needed until the last choice is made. `RowStore` holds them
densely, without the columns of features that are not below their target: a sparse row would need two numbers for each
of the others. The graph has sparse rows over the nodes that were kept; `Keeping.table` makes them, and adds up in
`rest` what was left out.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from errno import ENOMEM
from math import isfinite

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.circuits.edges import EdgeTable
from interp.circuits.influence import LEAST_ROW_SUM, counted_sources
from interp.circuits.memory import SweepPlan
from interp.circuits.nodes import NodeIndex
from interp.circuits.spill import Spill, SpilledTensor, loaded
from interp.circuits.state import ReplacementState
from interp.circuits.sweep import DenseRows, Sweeper
from interp.circuits.targets import Targets
from interp.errors import EngineError, ModelError

logger = logging.getLogger(__name__)

_NUMBERS_AT_ONCE = 2**20
_NO_MEMORY = (
    *("can't allocate memory", "Cannot allocate memory", "not enough memory", "out of memory"),
    "CUBLAS_STATUS_ALLOC_FAILED",
)
_SMALL_BLOCK = 2**16
NodeRows = tuple[Int[Tensor, "some"], Float[Tensor, "some nodes"]]
"""Some targets, as nodes, and their rows."""


class RowComputer:
    """Computes rows, and keeps what their targets are on the unchanged model.

    Attributes:
        values: of each node that has a row: what it adds up to.
        residual: how far rows are from adding up to that, at worst.
    """

    def __init__(self, state: ReplacementState, nodes: NodeIndex, plan: SweepPlan):
        self.state, self.batch = state, plan.batch
        self.nodes, self.sweeper = nodes, Sweeper(state, nodes, plan.chunk, plan.keep)
        self.values = torch.zeros(len(nodes))
        self.residual = 0.0

    def of(self, targets: Targets, target_nodes: Int[Tensor, "targets"]) -> Iterator[NodeRows]:
        """The rows of these targets, and which they are, some at a time."""
        for rows in self._sweeps(targets):
            yield self.taken(rows, target_nodes)

    def taken(self, rows: DenseRows, target_nodes: Int[Tensor, "targets"]) -> NodeRows:
        """Rows as a sweep made them, by node, when it is kept what their targets are.

        Raises:
            ModelError: they are not finite.
        """
        nodes = target_nodes[rows.which]
        self.values[nodes] = rows.values
        gap = (_sums(rows.weights) - rows.values.double()).abs() / rows.values.double().abs().clamp(min=1.0)
        self.residual = max(self.residual, _finite(float(gap.max())))
        return nodes, rows.weights

    def _sweeps(self, targets: Targets) -> Iterator[DenseRows]:
        """Each sweep as it was dealt; where memory runs out, in halves, and so all that come after it."""
        todo = deque(self.sweeper.deal(targets, self.batch))
        while todo:
            which = todo.popleft()
            if len(which) > self.batch:
                todo.extendleft(reversed(which.split(self.batch)))
                continue
            rows = self._try(targets, which)
            if rows is not None:
                yield rows
                continue
            self.batch = len(which) // 2
            logger.warning("out of memory with %d targets in a sweep: going on with %d", len(which), self.batch)
            todo.appendleft(which)

    def _try(self, targets: Targets, which: Int[Tensor, "some"]) -> DenseRows | None:
        """One sweep; None if there is no memory for it."""
        try:
            return self.sweeper.rows(targets, which)
        except (MemoryError, RuntimeError, OSError) as error:
            if not out_of_memory(error):
                raise
            if len(which) == 1:
                raise EngineError(
                    "there is no memory for a sweep of a single target",
                    value=str(error).splitlines()[0],
                    remedy="trace a shorter prompt, or free memory: other processes, a lower trace.memory",
                ) from error
        if self.state.device.type == "cuda":
            torch.cuda.empty_cache()
        return None


def out_of_memory(error: BaseException) -> bool:
    """Whether this says that memory could not be had, on whatever device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError) and error.errno == ENOMEM:
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _NO_MEMORY)


def _finite(residual: float) -> float:
    if not isfinite(residual):
        raise ModelError(
            "the model computes numbers that are not finite on this prompt",
            value=residual,
            remedy="load it in float32 or bfloat16; float16 overflows in many models",
        )
    return residual


@dataclass(frozen=True, eq=False)
class _Block:
    """Rows of one level: over the features below it, then over all nodes that are no features."""

    targets: Int[Tensor, "rows"]
    weights: Tensor | SpilledTensor
    sums: Float[Tensor, "rows"]


class RowStore:
    """Dense rows, by the level of their targets; more than `memory` bytes of them go to disk."""

    def __init__(self, nodes: NodeIndex, memory: int):
        self.nodes, self.memory, self.spill = nodes, memory, Spill()
        self._counted = counted_sources(nodes, constants=False)
        self._levels = nodes.layers
        self._below = torch.bincount(nodes.features[:, 0].long(), minlength=nodes.n_layers + 1).cumsum(0).tolist()
        self._blocks: dict[int, list[_Block]] = {}

    def add(self, targets: Int[Tensor, "rows"], rows: Float[Tensor, "rows nodes"]) -> None:
        """Keep some rows, the highest targets first."""
        levels, counts = self._levels[targets].unique_consecutive(return_counts=True)
        start = 0
        for level, count in zip(levels.tolist(), counts.tolist(), strict=True):
            here = slice(start, start + count)
            below, above = self._spans(level)
            weights = torch.cat([rows[here, below], rows[here, above]], dim=1)
            sums = _absolute_sums(weights, torch.cat([self._counted[below], self._counted[above]]))
            size = weights.numel() * weights.itemsize
            fits = size <= self.memory
            self.memory -= size if fits else 0
            block = _Block(targets[here], weights if fits else self.spill.put(weights), sums)
            self._append(self._blocks.setdefault(level, []), block)
            start += count

    @staticmethod
    def _append(blocks: list[_Block], block: _Block) -> None:
        """Few small rows at a time are put together: each block costs its calls whenever influence is summed."""
        last = blocks[-1].weights if blocks else None
        if isinstance(last, Tensor) and isinstance(block.weights, Tensor) and last.numel() < _SMALL_BLOCK:
            parts = (blocks.pop(), block)
            weights = torch.cat([last, block.weights])
            block = _Block(torch.cat([b.targets for b in parts]), weights, torch.cat([b.sums for b in parts]))
        blocks.append(block)

    def _spans(self, level: int) -> tuple[slice, slice]:
        """The nodes that a row of this level has columns for: features below it, and all that are no features."""
        return slice(0, self._below[level - 1] if level else 0), slice(self.nodes.n_features, len(self.nodes))

    def influence(self, weights: Float[Tensor, "nodes"]) -> Float[Tensor, "nodes"]:
        """I: total influence of each node by the rows that are there (`interp.circuits.influence`)."""
        influence = torch.zeros(len(self.nodes), dtype=torch.float64)
        for level in sorted(self._blocks, reverse=True):
            below, above = self._spans(level)
            pulled = torch.zeros(below.stop + above.stop - above.start, dtype=torch.float64)
            for block in self._blocks[level]:
                reach = (influence[block.targets] + weights[block.targets]) / block.sums
                _add_weighted(pulled, reach, loaded(block.weights))
            influence[below] += pulled[: below.stop]
            influence[above] += pulled[below.stop :] * self._counted[above]
        return influence

    def drain(self) -> Iterator[tuple[Int[Tensor, "rows"], Float[Tensor, "rows columns"], Int[Tensor, "columns"]]]:
        """(targets, weights, columns) of all rows, from the lowest level up; what was given is not held any more."""
        every = torch.arange(len(self.nodes))
        for level in sorted(self._blocks):
            columns = torch.cat([every[span] for span in self._spans(level)])
            blocks = deque(self._blocks.pop(level))
            while blocks:
                block = blocks.popleft()
                yield block.targets, loaded(block.weights), columns


def _rows_at_once(columns: int) -> int:
    return max(1, _NUMBERS_AT_ONCE // max(1, columns))


def _sums(rows: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows"]:
    return torch.cat([part.double().sum(dim=1) for part in rows.split(_rows_at_once(rows.shape[1]))])


def _absolute_sums(weights: Float[Tensor, "rows columns"], counted: Bool[Tensor, "columns"]) -> Float[Tensor, "rows"]:
    ones = counted.double()
    parts = [part.double().abs() @ ones for part in weights.split(_rows_at_once(len(counted)))]
    return torch.cat(parts).clamp(min=LEAST_ROW_SUM)


def _add_weighted(
    total: Float[Tensor, "columns"], reach: Float[Tensor, "rows"], weights: Float[Tensor, "rows columns"]
) -> None:
    """total += reach . |weights|, in single precision within a part: far more digits than are compared."""
    step = _rows_at_once(len(total))
    for some, part in zip(reach.float().split(step), weights.split(step), strict=True):
        total += some @ part.abs()


class Keeping:
    """The graph of some of the features: what is left out is added up in `rest`.

    Args:
        chosen: the features that stay.
    """

    def __init__(self, nodes: NodeIndex, chosen: Bool[Tensor, "features"]):
        self.all_stay = bool(chosen.all())
        self.nodes, self._new_index = (nodes, torch.arange(len(nodes))) if self.all_stay else nodes.keeping(chosen)

    def table(
        self,
        targets: Int[Tensor, "rows"],
        rows: Float[Tensor, "rows columns"],
        columns: Int[Tensor, "columns"] | None = None,
    ) -> EdgeTable:
        """Dense rows over all nodes, or over some of them, as edges of the graph."""
        targets = self._new_index[targets]
        if columns is None and self.all_stay:
            return EdgeTable.from_dense(targets, rows)
        places = self._new_index if columns is None else self._new_index[columns]
        step = _rows_at_once(max(len(places), len(self.nodes)))
        tables = [EdgeTable.empty()]
        for some, part in zip(targets.split(step), rows.split(step), strict=True):
            added = torch.zeros(len(some) * len(self.nodes), dtype=torch.float64)
            place = torch.arange(len(some))[:, None] * len(self.nodes) + places
            added.index_add_(0, place.flatten(), part.flatten().double())
            tables.append(EdgeTable.from_dense(some, added.view(len(some), -1)))
        return EdgeTable.cat(tables)
