"""One pass down the frozen model for some targets: the steps of `interp.circuits.sweep`, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.circuits.nodes import NodeKind
from interp.circuits.pull import AttentionPull, Shares, Where, mlp_paths
from interp.circuits.state import FrozenAdapter, FrozenLayer
from interp.circuits.targets import Targets

if TYPE_CHECKING:
    from interp.circuits.sweep import Sweeper


@dataclass(frozen=True, eq=False)
class DenseRows:
    """Dense rows of some targets.

    Attributes:
        which: the targets, by their place in the set that was swept: the highest first.
        weights: one column for each node.
        values: what each target reads on the prompt: what its row adds up to.
    """

    which: Int[Tensor, "targets"]
    weights: Float[Tensor, "targets nodes"]
    values: Float[Tensor, "targets"]


class Descent:
    """One pass.

    Of the targets that have joined, the first have their gradient at many positions: they are `wide`. Those that
    joined since the last attention have it at their own position alone, in `fresh`. Those that were fresh one attention
    before are known as sums of few vectors: `recent`.
    """

    def __init__(self, sweeper: Sweeper, targets: Targets, which: Tensor, heights: Tensor):
        self.sweeper, self.state, self.nodes = sweeper, sweeper.state, sweeper.nodes
        self.targets, self.which, self.heights = targets, which, heights
        device, self.positions = self.state.device, targets.positions[which]
        self.n_pos, self.at = int(self.positions.max()) + 1, self.positions.to(device)
        self.rows = torch.zeros(len(which), len(self.nodes), device=device)
        self.values = torch.zeros(len(which), device=device)
        self.gradient = torch.zeros(0, self.n_pos, 0, device=device)
        self.fresh = torch.zeros(0, 0, device=device)
        self._start()

    def _start(self) -> None:
        """Nothing has joined."""
        self.wide, self.new = slice(0, 0), slice(0, 0)
        self.recent: list[tuple[slice, Shares]] = []

    def run(self) -> DenseRows:
        adapter = self.state.adapter
        for layer in range(int(self.heights[0]) // 2, -1, -1):
            if layer < self.state.n_layers:
                self._block(layer, self.state.layers[layer])
            self._join(2 * layer)
            if adapter is not None and adapter.before == layer:
                self._through(adapter)
        self._on_grid(NodeKind.TOKEN, 0, self.state.embeddings)
        return DenseRows(self.which, self.rows.cpu(), self.values.cpu())

    def _join(self, height: int) -> None:
        """Let the targets of this height in: each starts with its read vector at its own position."""
        here = slice(self.new.stop, self.new.stop + int((self.heights == height).sum()))
        if here.stop == here.start:
            return
        read = self.targets.read(self.which[here])
        self.fresh = torch.cat([self.fresh, read.gradient]) if len(self.fresh) else read.gradient
        self.rows[here, self._readout_columns()] = read.bias[:, None]
        self.values[here] = read.value
        self.new = slice(self.new.start, here.stop)

    def _readout_columns(self) -> slice:
        return self.nodes.span(NodeKind.READOUT)

    def _block(self, layer: int, frozen: FrozenLayer) -> None:
        if frozen.skip is not None or frozen.kept is not None:
            self.recent = []
        if self.new.stop:
            self._mlp_sources(layer, frozen)
        if not frozen.block.parallel:
            for some in self._parts(frozen):
                _add(self.gradient[some], self._mlp_paths(frozen, self.gradient[some], self._everywhere(some)))
            if len(self.fresh):
                _add(self.fresh, self._mlp_paths(frozen, self.fresh, self.at[self.new]))
            self._join(2 * layer + 1)
        if self.new.stop:
            self._constant(NodeKind.ATTN_BIAS, layer, frozen.attn_bias)
            paths = self._token_paths() if layer == 0 else None
            if paths is not None:
                self._last_attention(paths)
            else:
                self._attention(frozen)

    def _mlp_sources(self, layer: int, frozen: FrozenLayer) -> None:
        """Read off what writes to the output of an MLP."""
        self._features(layer)
        free = (~self.state.constant).float()[:, None]
        self._constant(NodeKind.MLP_BIAS, layer, None if frozen.mlp_bias is None else frozen.mlp_bias * free)
        self._on_grid(NodeKind.ERROR, layer, frozen.error)
        self._constant(NodeKind.BOS, layer, frozen.bos)

    def _attention(self, frozen: FrozenLayer) -> None:
        """Through attention, and in a parallel block through the MLP's linear paths; nothing is fresh after it."""
        pull, parallel = self._pull_of(frozen), frozen.block.parallel
        recent, self.recent = self.recent, []
        for some in self._parts(frozen, until=recent[0][0].start if recent else self.wide.stop):
            part = self.gradient[some]
            beside = self._mlp_paths(frozen, part, self._everywhere(some)) if parallel else None
            self._pull(pull, some)
            _add(part, beside)
        for where, made_of in recent:
            self._pull(pull, where, made_of)
        if len(self.fresh):
            stays = self.fresh.clone()
            if parallel:
                _add(stays, self._mlp_paths(frozen, self.fresh, self.at[self.new]))
            self._widen(pull, stays)
        self._nothing_is_fresh(self.wide.start)

    def _token_paths(self) -> Tensor | None:
        return self.sweeper.token_paths

    def _pull_of(self, frozen: FrozenLayer) -> AttentionPull:
        return AttentionPull.of(frozen, self.n_pos)

    def _pull(self, pull: AttentionPull, some: slice, made_of: Shares | None = None) -> None:
        pull.add_to(self.gradient[some], made_of)

    def _spread(self, pull: AttentionPull, some: slice, stays: Tensor) -> Shares:
        return pull.spread(self.fresh[some], self.at[self.new][some], stays)

    def _widen(self, pull: AttentionPull, stays: Float[Tensor, "fresh d_model"]) -> None:
        """Let fresh gradients through attention; `stays` is what is left of each at its own position."""
        if not len(self.gradient):
            self.gradient = self.fresh.new_empty(len(self.which), self.n_pos, self.fresh.shape[1])
        step = self._at_once(self.fresh.shape[1])
        for first in range(0, len(self.fresh), step):
            some = slice(first, min(first + step, len(self.fresh)))
            made_of = self._spread(pull, some, stays[some])
            where = slice(self.new.start + some.start, self.new.start + some.stop)
            torch.bmm(made_of.shares, made_of.vectors, out=self.gradient[where])
            if made_of.shares.shape[2] <= self.n_pos // 2:
                self.recent.append((where, made_of))

    def _last_attention(self, paths: Float[Tensor, "query d_model key"]) -> None:
        """Read off what embeddings write through it: there is nothing below."""
        first = self.nodes.span(NodeKind.TOKEN).start
        tokens, n_pos = self.rows[:, first : first + self.n_pos], self.n_pos
        if self.wide.stop:
            flat = self.gradient[self.wide].flatten(1)
            tokens[self.wide] = flat @ paths[:n_pos, :, :n_pos].reshape(flat.shape[1], n_pos)
        fresh, at = self.fresh, self.at[self.new]
        for pos in self.positions[self.new].unique().tolist():
            mine = (at == pos).nonzero().flatten()
            tokens[self.new.start + mine] = fresh[mine] @ paths[pos, :, :n_pos]
        self._nothing_is_fresh(self.new.stop)

    def _nothing_is_fresh(self, first: int) -> None:
        """All that have joined are wide, from the first that is not finished."""
        self.wide, self.new = slice(first, self.new.stop), slice(self.new.stop, self.new.stop)
        self.fresh = self.fresh[:0]

    def _mlp_paths(self, frozen: FrozenLayer, gradient: Tensor, where: Where) -> Tensor | None:
        return mlp_paths(frozen, gradient, where, self.state.constant)

    def _everywhere(self, some: slice) -> Where:
        """The positions of the wide gradients of some targets."""
        return slice(0, self.n_pos)

    def _through(self, adapter: FrozenAdapter) -> None:
        self.recent = []
        if self.wide.stop:
            parts = [adapter.through(self.gradient[some], self._everywhere(some)) for some in self._parts()]
            self.gradient = parts[0].new_empty(len(self.which), self.n_pos, parts[0].shape[2])
            torch.cat(parts, out=self.gradient[self.wide])
        self.fresh = adapter.through(self.fresh, self.at[self.new]) if len(self.fresh) else self.fresh

    def _parts(self, frozen: FrozenLayer | None = None, until: int | None = None) -> Iterator[slice]:
        """The targets with wide gradients, or the first of them, some at a time."""
        stop = self.wide.stop if until is None else until
        width = max(self.gradient.shape[2], 0 if frozen is None or frozen.kept is None else frozen.kept.d_hidden)
        step = self._at_once(width)
        for first in range(self.wide.start, stop, step):
            yield slice(first, min(first + step, stop))

    def _at_once(self, width: int) -> int:
        return max(1, self.sweeper.chunk // (self.n_pos * max(width, 1)))

    def _features(self, layer: int) -> None:
        own, fresh = self.positions[self.new], {}
        for pos in own.unique().tolist():
            fresh[pos] = (own == pos).nonzero().flatten().to(self.fresh.device)
        wide = self.gradient[self.wide]
        needed = range(self.n_pos) if len(wide) else range(min(fresh), max(fresh) + 1)
        for source in self.state.replacement.writers(layer):
            for positions, here, written in self.sweeper.written(source, layer, needed):
                if len(wide):
                    # [pos, target, d] by [pos, d, n]
                    products = wide[:, positions.start : positions.stop].transpose(0, 1) @ written.transpose(1, 2)
                    self.rows[self.wide, here].unflatten(1, written.shape[:2]).add_(products.transpose(0, 1))
                for pos in fresh.keys() & set(positions):
                    start, n = pos - positions.start, written.shape[1]
                    at = slice(here.start + start * n, here.start + (start + 1) * n)
                    self.rows[self.new.start + fresh[pos], at] += self.fresh[fresh[pos]] @ written[start].T

    def _on_grid(self, kind: NodeKind, layer: int, source: Float[Tensor, "pos d_model"]) -> None:
        """Read off what has one node for each position."""
        first = (self.nodes.span(kind) if kind is NodeKind.TOKEN else self.nodes.layer_span(kind, layer)).start
        if self.wide.stop > self.wide.start:
            products = torch.einsum("tpd,pd->tp", self.gradient[self.wide], source[: self.n_pos])
            self.rows[self.wide, first : first + self.n_pos] += products
        if len(self.fresh):
            at = self.at[self.new]
            rows = torch.arange(self.new.start, self.new.stop, device=at.device)
            self.rows[rows, first + at] += (self.fresh * source[at]).sum(-1)

    def _constant(self, kind: NodeKind, layer: int, source: Float[Tensor, "pos d_model"] | None) -> None:
        """Read off what has one node for all positions."""
        if source is None:
            return
        column = self.nodes.layer_span(kind, layer).start
        if self.wide.stop > self.wide.start:
            self.rows[self.wide, column] += self.gradient[self.wide].flatten(1) @ source[: self.n_pos].flatten()
        if len(self.fresh):
            self.rows[self.new, column] += (self.fresh * source[self.at[self.new]]).sum(-1)


def _add(gradient: Tensor, added: Tensor | None) -> None:
    if added is not None:
        gradient += added
