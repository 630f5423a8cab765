"""Rows of the adjacency: one downward pass of the residual stream's gradient for many targets, without autograd.

The frozen model is linear, so what a source adds to a target is the gradient of the target at the place where the
source writes, times what it writes. The gradient G [target, pos, d_model] on the stream is carried down by hand:

    MLP l     reads off G: features, error, bias and bos of layer l;   G += norm^T W_skip^T G   (skip transcoders)
    targets   of layer l join: they read the stream here
    attention reads off G: its biases;                                 G += norm^T W_V^T P^T W_O^T post_norm^T G
    adapter   G = adapter^T G
    bottom    reads off G: embeddings

(a parallel block reads its stream once: its targets join below attention.)

So a row costs one pass through the layers below its target. Targets at position p depend on positions up to p: they are
dealt to sweeps in order of position, and a sweep touches no later position than its last target's. Within a sweep each
target joins at its layer, so nothing is spent on the layers above it.

Cost of a row: (layers below) * positions * d_model * d_head * (n_heads + n_kv_heads) multiplications, d_model^2 more
with a skip path, and d_model for each active feature below. Memory: about 4 * batch * positions * d_model +
batch * nodes numbers (float32), whatever the number of targets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.circuits.nodes import NodeIndex, NodeKind
from interp.circuits.state import FrozenLayer, ReplacementState
from interp.circuits.targets import Targets

_MOST_STRETCH, _LEAST_SWEEP = 1.25, 32
"""A sweep touches at most so many times the positions that its first target needs; small ones are not cut."""


@dataclass(frozen=True, eq=False)
class DenseRows:
    """Dense rows of some targets.

    Attributes:
        which: the targets, by their place in the set that was swept.
        weights: one column for each node.
        values: what each target reads on the prompt: what its row adds up to.
    """

    which: Int[Tensor, "targets"]
    weights: Float[Tensor, "targets nodes"]
    values: Float[Tensor, "targets"]


def all_nodes(state: ReplacementState, logits: Int[Tensor, "logits"]) -> NodeIndex:
    """Every node of a prompt: all active features, none left out."""
    return NodeIndex(state.n_layers, state.n_pos, state.features.index, logits)


@torch.no_grad()
def sweep(state: ReplacementState, nodes: NodeIndex, targets: Targets, batch: int) -> Iterator[DenseRows]:
    """The rows of all targets, at most `batch` at a time. Rows do not depend on the batch they are computed in."""
    layers, positions = targets.layers, targets.positions
    order = torch.argsort(positions * (state.n_layers + 1) + state.n_layers - layers, stable=True)
    for chosen in _near_in_position(order, positions[order].tolist(), batch):
        # Within a sweep the highest layer comes first: targets that have joined are a prefix.
        chosen = chosen[torch.argsort(-layers[chosen], stable=True)]
        yield _Sweep(state, nodes, targets, chosen, layers[chosen], positions[chosen]).run()


def _near_in_position(order: Int[Tensor, "targets"], positions: list[int], batch: int) -> Iterator[Tensor]:
    """Targets in order of position, cut where a sweep is full or its first targets would be carried too far."""
    start = 0
    for stop in range(1, len(order) + 1):
        full = stop == len(order) or stop - start == batch
        if full or (stop - start >= _LEAST_SWEEP and positions[stop] + 1 > _MOST_STRETCH * (positions[start] + 1)):
            yield order[start:stop]
            start = stop


class _Sweep:
    """One pass for one batch of targets, highest layer first."""

    def __init__(
        self, state: ReplacementState, nodes: NodeIndex, targets: Targets, which: Tensor, layers: Tensor, at: Tensor
    ):
        self.state, self.nodes, self.targets = state, nodes, targets
        self.which, self.layers, self.at = which, layers, at.to(state.device)
        self.n_pos = int(at.max()) + 1
        self.rows = torch.zeros(len(which), len(nodes), device=state.device)
        self.values = torch.zeros(len(which), device=state.device)
        self.gradient = torch.zeros(0, self.n_pos, 0, device=state.device)

    def run(self) -> DenseRows:
        for layer in range(int(self.layers[0]), -1, -1):
            if layer == self.state.n_layers:
                self._join(layer)
                continue
            frozen = self.state.layers[layer]
            if len(self.gradient):
                self._mlp(layer, frozen)
            if frozen.block.parallel:
                self._parallel(layer, frozen)
            else:
                self._sequential(layer, frozen)
            if self.state.adapter is not None and self.state.adapter.before == layer:
                self.gradient = self.state.adapter.through(self.gradient)
        self._embeddings()
        return DenseRows(self.which, self.rows.cpu(), self.values.cpu())

    def _sequential(self, layer: int, frozen: FrozenLayer) -> None:
        if len(self.gradient):
            self._add(frozen.through_skip(self.gradient, self.state.constant))
        self._join(layer)
        self._attention_bias(layer, frozen)
        self._add(frozen.through_attention(self.gradient))

    def _parallel(self, layer: int, frozen: FrozenLayer) -> None:
        if len(self.gradient):
            self._attention_bias(layer, frozen)
            skipped = frozen.through_skip(self.gradient, self.state.constant)
            self._add(frozen.through_attention(self.gradient))
            self._add(skipped)
        self._join(layer)

    def _add(self, gradient: Tensor | None) -> None:
        if gradient is not None:
            self.gradient = self.gradient + gradient

    def _join(self, layer: int) -> None:
        """Let the targets of this layer in: each starts with its read vector at its own position."""
        start = len(self.gradient)
        stop = start + int((self.layers == layer).sum())
        if stop == start:
            return
        read = self.targets.read(self.which[start:stop])
        fresh = torch.zeros(stop - start, self.n_pos, read.gradient.shape[1], device=self.state.device)
        fresh[torch.arange(stop - start, device=fresh.device), self.at[start:stop]] = read.gradient
        self.gradient = torch.cat([self.gradient, fresh]) if start else fresh
        self.rows[start:stop, self.nodes.span(NodeKind.READOUT)] = read.bias[:, None]
        self.values[start:stop] = read.value

    def _mlp(self, layer: int, frozen: FrozenLayer) -> None:
        """Read off what this layer's MLP wrote: features, error, decoder bias, constants."""
        rows, gradient, n_pos = self.rows[: len(self.gradient)], self.gradient, self.n_pos
        if frozen.transcoder is not None:
            self._features(layer, frozen.transcoder.W_dec)
        if frozen.mlp_bias is not None:
            free = (~self.state.constant[:n_pos]).float()
            bias = torch.einsum("tpd,p,d->t", gradient, free, frozen.mlp_bias)
            rows[:, self.nodes.layer_span(NodeKind.MLP_BIAS, layer)] = bias[:, None]
        errors = self.nodes.layer_span(NodeKind.ERROR, layer).start
        rows[:, errors : errors + n_pos] = torch.einsum("tpd,pd->tp", gradient, frozen.error[:n_pos])
        if frozen.bos is not None:
            bos = torch.einsum("tpd,pd->t", gradient, frozen.bos[:n_pos])
            rows[:, self.nodes.layer_span(NodeKind.BOS, layer)] = bos[:, None]

    def _features(self, layer: int, decoder: Float[Tensor, "latents d_out"]) -> None:
        features, rows = self.state.features, self.rows[: len(self.gradient)]
        span = slice(features.at(layer, 0).start, features.at(layer, self.n_pos - 1).stop)
        latents = features.latents[span].to(decoder.device)
        written = decoder[latents].float() * features.activations[span].to(decoder.device)[:, None]
        for pos in range(self.n_pos):
            at = features.at(layer, pos)
            if at.stop > at.start:
                here = written[at.start - span.start : at.stop - span.start]
                rows[:, at] += self.gradient[:, pos] @ here.T

    def _attention_bias(self, layer: int, frozen: FrozenLayer) -> None:
        if frozen.attn_bias is None:
            return
        bias = torch.einsum("tpd,pd->t", self.gradient, frozen.attn_bias[: self.n_pos])
        self.rows[: len(self.gradient), self.nodes.layer_span(NodeKind.ATTN_BIAS, layer)] = bias[:, None]

    def _embeddings(self) -> None:
        first = self.nodes.span(NodeKind.TOKEN).start
        products = torch.einsum("tpd,pd->tp", self.gradient, self.state.embeddings[: self.n_pos])
        self.rows[:, first : first + self.n_pos] = products
