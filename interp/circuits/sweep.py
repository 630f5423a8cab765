"""Rows of the adjacency: one downward pass of the residual stream's gradient for many targets, without autograd.

The frozen model is linear, so what a source adds to a target is the gradient of the target at the place where the
source writes, times what it writes. The gradient G [target, pos, d_model] on the stream is carried down by hand:

    MLP l     reads off G: features that write here, error, bias, bos;  G += norm^T W_skip^T G   (skip transcoders)
                                                                        G += norm^T MLP^T G      (MLPs that are kept)
    targets   at height 2 l + 1 join: they read the stream here
    attention reads off G: its biases;                                  G += norm^T W_V^T P^T W_O^T post_norm^T G
    targets   at height 2 l join
    adapter   G = adapter^T G
    bottom    reads off G: embeddings

(a parallel block reads its stream once: its targets are all at height 2 l. Features of a cross-layer transcoder are
read off at every layer that they write to.)

So a row costs one pass through the layers below its target. Targets at position p depend on positions up to p: they are
dealt to sweeps in order of position, and a sweep touches no later position than its last target's. Within a sweep each
target joins at its layer, so nothing is spent on the layers above it. Two attention passes of a row are nearly free:

    the first    a target that has just joined is at one position alone (`interp.circuits.pull`)
    the last     below the lowest attention there are only embeddings: what each of them writes at each position is
                 worked out once for a prompt, and read off above it (`Sweeper.token_paths`; short prompts)

Cost of a row: (layers below - 2) * positions * d_model * d_head * (n_heads + n_kv_heads) multiplications, d_model^2
more a layer and position with a skip path, and d_model for each active feature below. Memory: 6 * batch * positions *
d_model + 8 * batch * nodes bytes, and what `chunk` and `keep` allow (`interp.circuits.memory`).

A sweep is over one prompt. Small sweeps cost what their calls cost: with 6 layers of d 128 and prompts of 8 tokens (one
CPU thread), 1.5 ms for 8 targets, 2.8 ms for 64. Prompts so small are swept together (`interp.circuits.stacked`).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.circuits.descent import DenseRows, Descent
from interp.circuits.nodes import NodeIndex
from interp.circuits.pull import AttentionPull
from interp.circuits.state import ReplacementState
from interp.circuits.targets import Targets

_MOST_STRETCH, _LEAST_SWEEP = 1.25, 32
"""A sweep touches at most so many times the positions that its first target needs; small ones are not cut."""

_FEATURES_AT_ONCE = 4096

CHUNK = 2**23
"""Numbers of the gradients, [target, pos, width], that are worked on at once."""

KEEP = 2**26
"""Numbers of what features write, [feature, d_model], that are kept from sweep to sweep."""

_MOST_TOKEN_PATHS = 2**24
"""Numbers. Longer prompts would spend more on making them than they save."""

_Written = tuple[range, slice, Tensor]
"""Some positions, the features that are active there, and what they write [pos, n, d_out]."""


class Sweeper:
    """Sweeps over one prompt.

    Args:
        chunk: numbers of the gradients that are worked on at once.
        keep: numbers of what features and embeddings write that are kept from sweep to sweep.
    """

    def __init__(self, state: ReplacementState, nodes: NodeIndex, chunk: int = CHUNK, keep: int = KEEP):
        self.state, self.nodes, self.chunk, self.keep = state, nodes, chunk, keep
        self._ranges: dict[int, list[range]] = {}
        self._kept: dict[tuple[int, int, int], Tensor] = {}
        self._kept_numbers = 0
        self.latents = state.features.latents.to(state.device)
        self.activations = state.features.activations.to(state.device)

    def deal(self, targets: Targets, batch: int) -> list[Int[Tensor, "some"]]:
        """All targets, in sweeps of at most `batch`. Rows do not depend on the sweep that they are computed in."""
        positions, top = targets.positions, 2 * self.state.n_layers
        order = torch.argsort(positions * (top + 1) + top - targets.heights, stable=True)
        return list(_near_in_position(order, positions[order].tolist(), batch))

    @torch.no_grad()
    def rows(self, targets: Targets, which: Int[Tensor, "some"]) -> DenseRows:
        """The rows of some targets, by one pass."""
        heights = targets.heights[which]
        # The highest first: targets that have joined are a prefix.
        order = torch.argsort(-heights, stable=True)
        return Descent(self, targets, which[order], heights[order]).run()

    @cached_property
    def token_paths(self) -> Float[Tensor, "query d_model key"] | None:
        """What the embedding at each key writes to the stream at each query, itself and through the lowest attention.

        None where that is more than it saves, or than can be kept: on long prompts, and beside linear paths of a
        parallel block.
        """
        lowest, embeddings, n_pos = self.state.layers[0], self.state.embeddings, self.state.n_pos
        beside = lowest.block.parallel and (lowest.skip is not None or lowest.kept is not None)
        if beside or n_pos * embeddings.numel() > min(_MOST_TOKEN_PATHS, self.keep):
            return None
        self._kept_numbers += n_pos * embeddings.numel()
        paths = AttentionPull.of(lowest, n_pos).paths_of(embeddings)
        along = torch.arange(n_pos, device=paths.device)
        paths[along, :, along] += embeddings
        return paths

    def written(self, source: int, layer: int, positions: range) -> Iterator[_Written]:
        """What the features of `source` write to the MLP output of a layer, for positions that have as many each."""
        starts = self.state.features.starts[source * self.state.n_pos :]
        for some in self._together(source):
            if some.start >= positions.stop or some.stop <= positions.start:
                continue
            begin = starts[some.start]
            vectors = self._vectors(source, layer, slice(begin, starts[some.stop]))
            here = range(max(some.start, positions.start), min(some.stop, positions.stop))
            for alike in _alike(here, starts):
                yield (
                    alike,
                    slice(starts[alike.start], starts[alike.stop]),
                    vectors[starts[alike.start] - begin : starts[alike.stop] - begin].unflatten(0, (len(alike), -1)),
                )

    def _together(self, layer: int) -> list[range]:
        """Positions whose features are looked up at once."""
        if layer not in self._ranges:
            starts, first = self.state.features.starts[layer * self.state.n_pos :], 0
            self._ranges[layer] = made = list[range]()
            for last in range(1, self.state.n_pos + 1):
                if last == self.state.n_pos or starts[last + 1] - starts[first] > _FEATURES_AT_ONCE:
                    made.append(range(first, last))
                    first = last
        return self._ranges[layer]

    def _vectors(self, source: int, layer: int, some: slice) -> Float[Tensor, "features d_out"]:
        """What some features write; looked up once where all that features write can be kept."""
        key = (layer, some.start, some.stop)
        if key not in self._kept:
            decoder = self.state.replacement.decoder(source, layer)
            vectors = decoder[self.latents[some]].float() * self.activations[some, None]
            if self._kept_numbers + vectors.numel() > self.keep:
                return vectors
            self._kept[key] = vectors
            self._kept_numbers += vectors.numel()
        return self._kept[key]


def _alike(positions: range, starts: list[int]) -> Iterator[range]:
    """Consecutive positions with equally many features, but for those that have none."""
    first = positions.start
    for last in range(first + 1, positions.stop + 1):
        count = starts[first + 1] - starts[first]
        if last == positions.stop or starts[last + 1] - starts[last] != count:
            if count:
                yield range(first, last)
            first = last


def _near_in_position(order: Int[Tensor, "targets"], positions: list[int], batch: int) -> Iterator[Tensor]:
    """Targets in order of position, cut where a sweep is full or its first targets would be carried too far."""
    start = 0
    for stop in range(1, len(order) + 1):
        full = stop == len(order) or stop - start == batch
        if full or (stop - start >= _LEAST_SWEEP and positions[stop] + 1 > _MOST_STRETCH * (positions[start] + 1)):
            yield order[start:stop]
            start = stop
