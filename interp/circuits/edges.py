"""The adjacency of an attribution graph as sparse rows: for each target its sources and their weights.

Compressed sparse rows with 32-bit indices and weights: 8 bytes an edge. A target at layer l and position p has edges
from lower layers and from positions up to p only, so about a quarter of a dense matrix is ever filled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_NUMBERS_AT_ONCE = 2**20
_MOST_NODES = 2**31 - 1


@dataclass(frozen=True, eq=False)
class EdgeTable:
    """Rows of the adjacency.

    Attributes:
        targets: node of each row.
        starts: edges of row r are starts[r] .. starts[r + 1] - 1.
        sources: node of each edge's source, ascending within a row.
        weights: what the source adds to the target's pre-activation.
    """

    targets: Int[Tensor, "rows"]
    starts: Int[Tensor, "rows+1"]
    sources: Int[Tensor, "edges"]
    weights: Float[Tensor, "edges"]

    @classmethod
    def from_dense(cls, targets: Int[Tensor, "rows"], rows: Float[Tensor, "rows nodes"]) -> EdgeTable:
        """The nonzero entries of dense rows."""
        if rows.shape[1] > _MOST_NODES:
            raise ValueError(f"{rows.shape[1]} nodes: an edge has its source as a 32-bit number")
        counts, sources, weights = [torch.zeros(0, dtype=torch.long)], [torch.zeros(0).int()], [torch.zeros(0)]
        # Some rows at a time: indices of nonzero entries take several times the memory of the entries.
        for part in rows.split(max(1, _NUMBERS_AT_ONCE // max(1, rows.shape[1]))):
            row, column = part.nonzero(as_tuple=True)
            counts.append(torch.bincount(row, minlength=len(part)).cpu())
            sources.append(column.int().cpu())
            weights.append(part[row, column].float().cpu())
        return cls(targets.cpu(), _starts(torch.cat(counts)), torch.cat(sources), torch.cat(weights))

    @classmethod
    def empty(cls) -> EdgeTable:
        """No rows."""
        none = torch.zeros(0, dtype=torch.long)
        return cls(none, torch.zeros(1, dtype=torch.long), none.int(), torch.zeros(0))

    @classmethod
    def cat(cls, tables: Sequence[EdgeTable]) -> EdgeTable:
        """The rows of all tables, one after the other."""
        if len(tables) == 1:
            return tables[0]
        counts = torch.cat([table.counts for table in tables])
        return cls(
            torch.cat([table.targets for table in tables]),
            _starts(counts),
            torch.cat([table.sources for table in tables]),
            torch.cat([table.weights for table in tables]),
        )

    @property
    def n_edges(self) -> int:
        return len(self.sources)

    @property
    def nbytes(self) -> int:
        """Bytes of the edges."""
        return self.n_edges * (self.sources.itemsize + self.weights.itemsize)

    @cached_property
    def counts(self) -> Int[Tensor, "rows"]:
        """Number of edges of each row."""
        return self.starts.diff()

    @cached_property
    def row_of_edge(self) -> Int[Tensor, "edges"]:
        """Row of each edge."""
        return torch.repeat_interleave(torch.arange(len(self.targets)), self.counts)

    @property
    def target_of_edge(self) -> Int[Tensor, "edges"]:
        """Target node of each edge."""
        return self.targets[self.row_of_edge]

    def row_sums(self, values: Float[Tensor, "edges"] | None = None) -> Float[Tensor, "rows"]:
        """Sum of the weights, or of one value for each edge, by row, in float64."""
        values = (self.weights if values is None else values).double()
        return torch.segment_reduce(values, "sum", lengths=self.counts, initial=0.0)

    def rows(self, order: Int[Tensor, "some"]) -> EdgeTable:
        """These rows, in this order."""
        counts = self.counts[order]
        starts = _starts(counts)
        sources, weights = self.sources.new_empty(int(starts[-1])), self.weights.new_empty(int(starts[-1]))
        for first, last in _row_groups(starts):
            shift = self.starts[order[first:last]] - starts[first:last]
            here = slice(int(starts[first]), int(starts[last]))
            edges = torch.arange(here.start, here.stop) + torch.repeat_interleave(shift, counts[first:last])
            sources[here], weights[here] = self.sources[edges], self.weights[edges]
        return EdgeTable(self.targets[order], starts, sources, weights)

    def sorted(self) -> EdgeTable:
        """Rows in node order."""
        return self.rows(self.targets.argsort(stable=True))

    @classmethod
    def in_node_order(cls, tables: Sequence[EdgeTable]) -> EdgeTable:
        """The rows of all tables by their targets, with no second copy of the edges on the way."""
        targets = torch.cat([table.targets for table in tables])
        order = targets.argsort(stable=True)
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order))
        counts = torch.cat([table.counts for table in tables])
        starts = _starts(counts[order])
        sources = torch.empty(int(starts[-1]), dtype=torch.int32)
        weights = torch.empty(int(starts[-1]))
        row = 0
        for table in tables:
            bounds = table.starts.tolist()
            for first, last in pairwise(bounds):
                start = int(starts[place[row]])
                sources[start : start + last - first] = table.sources[first:last]
                weights[start : start + last - first] = table.weights[first:last]
                row += 1
        return cls(targets[order], starts, sources, weights)

    def where(self, kept: Bool[Tensor, "edges"]) -> EdgeTable:
        """These edges only; every row stays, if only as an empty one."""
        counts = torch.segment_reduce(kept.double(), "sum", lengths=self.counts, initial=0.0).long()
        return EdgeTable(self.targets, _starts(counts), self.sources[kept], self.weights[kept])

    def relabelled(self, new_index: Int[Tensor, "nodes"], n_nodes: int) -> EdgeTable:
        """Rename all nodes; edges of a row that now share a source are added up."""
        targets = new_index[self.targets]
        tables = [EdgeTable.empty()]
        # Densely, some rows at a time: sorting millions of renamed edges costs several times as much.
        step = max(1, _NUMBERS_AT_ONCE // max(1, n_nodes))
        for first in range(0, len(targets), step):
            last = min(first + step, len(targets))
            span = slice(int(self.starts[first]), int(self.starts[last]))
            row = torch.repeat_interleave(torch.arange(last - first), self.counts[first:last])
            rows = torch.zeros(last - first, n_nodes, dtype=torch.float64)
            place = row * n_nodes + new_index[self.sources[span].long()]
            rows.view(-1).index_add_(0, place, self.weights[span].double())
            tables.append(EdgeTable.from_dense(targets[first:last], rows))
        return EdgeTable.cat(tables)

    def to_sparse(self, n_nodes: int) -> Tensor:
        """A sparse COO matrix [n_nodes, n_nodes], row = target, column = source."""
        ends = torch.stack([self.target_of_edge.long(), self.sources.long()])
        return torch.sparse_coo_tensor(ends, self.weights, (n_nodes, n_nodes), check_invariants=False).coalesce()


def _starts(counts: Int[Tensor, "rows"]) -> Int[Tensor, "rows+1"]:
    return torch.cat([torch.zeros(1, dtype=torch.long), counts.long().cumsum(0)])


def _row_groups(starts: Int[Tensor, "rows+1"]) -> Iterator[tuple[int, int]]:
    """(first, last + 1) of rows that together have not too many edges, in order."""
    bounds, first = starts.tolist(), 0
    for last in range(1, len(bounds)):
        if last == len(bounds) - 1 or bounds[last + 1] - bounds[first] > _NUMBERS_AT_ONCE:
            yield first, last
            first = last
