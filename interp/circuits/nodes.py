"""Which nodes an attribution graph has, and in which order: the one owner of node indices.

    feature     (layer, pos, latent), sorted so           active latents that have a row
    error       layer-major grid [n_layers, n_pos]        what the MLP writes and its transcoder does not explain
    rest        layer-major grid [n_layers, n_pos]        active latents that were left out by `max_features`, summed
    bos         [n_layers]                                the whole MLP output at a position that is held constant
    attn_bias   [n_layers]                                value, output and norm biases of attention, over all positions
    mlp_bias    [n_layers]                                the transcoder's decoder bias, over all positions
    readout     one                                       the bias of the target's own read-out
    token       [n_pos]                                   embeddings (with learned positions)
    logit       what the graph explains: target logits, most probable first, or other targets

`bos`, biases and `readout` are the constants of the frozen model: nothing flows into them. They are there so that the
incoming edges of a target add up to its pre-activation. They are kept by layer and not by position: a constant has no
causes to be found at a position, and a grid of them would cost more than all features together on a long prompt.

Layers are numbered 0 .. n_layers - 1 over all groups of blocks. A layer without a transcoder has only `error`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cached_property
from math import isqrt

import torch
from jaxtyping import Bool, Int
from torch import Tensor


class NodeKind(IntEnum):
    """Kinds of nodes, in node order."""

    FEATURE = 0
    ERROR = 1
    REST = 2
    BOS = 3
    ATTN_BIAS = 4
    MLP_BIAS = 5
    READOUT = 6
    TOKEN = 7
    LOGIT = 8


CONSTANTS = (NodeKind.BOS, NodeKind.ATTN_BIAS, NodeKind.MLP_BIAS, NodeKind.READOUT)
"""Sources that nothing flows into and that no token causes."""

UNEXPLAINED = (NodeKind.ERROR, NodeKind.REST)
"""What the features of the graph do not account for: errors, for every score."""


@dataclass(frozen=True, eq=False)
class NodeIndex:
    """The nodes of one graph.

    Attributes:
        features: (layer, pos, latent) of each feature, sorted.
        logits: vocabulary index of each target logit; -1, -2, .. for targets that are no token's logit.
        logit_pos: the position that they are read at; None: the last.
    """

    n_layers: int
    n_pos: int
    features: Int[Tensor, "features 3"]
    logits: Int[Tensor, "logits"]
    logit_pos: int | None = None

    @cached_property
    def _starts(self) -> tuple[int, ...]:
        grid = self.n_layers * self.n_pos
        sizes = {
            NodeKind.FEATURE: self.n_features,
            NodeKind.ERROR: grid,
            NodeKind.REST: grid,
            NodeKind.BOS: self.n_layers,
            NodeKind.ATTN_BIAS: self.n_layers,
            NodeKind.MLP_BIAS: self.n_layers,
            NodeKind.READOUT: 1,
            NodeKind.TOKEN: self.n_pos,
            NodeKind.LOGIT: self.n_logits,
        }
        starts = [0]
        for kind in NodeKind:
            starts.append(starts[-1] + sizes[kind])
        return tuple(starts)

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def n_features(self) -> int:
        return len(self.features)

    @property
    def n_logits(self) -> int:
        return len(self.logits)

    def span(self, kind: NodeKind) -> slice:
        """Where the nodes of one kind are."""
        return slice(self._starts[kind], self._starts[kind + 1])

    def layer_span(self, kind: NodeKind, layer: int) -> slice:
        """Where the nodes of one kind and layer are: for `error` and `rest` all positions, for constants one node."""
        width = self.n_pos if kind in UNEXPLAINED else 1
        start = self._starts[kind] + layer * width
        return slice(start, start + width)

    def mask(self, *kinds: NodeKind) -> Bool[Tensor, "nodes"]:
        """Which nodes are of one of these kinds."""
        mask = torch.zeros(len(self), dtype=torch.bool)
        for kind in kinds:
            mask[self.span(kind)] = True
        return mask

    @cached_property
    def kinds(self) -> Int[Tensor, "nodes"]:
        """Kind of each node, as a number of `NodeKind`."""
        sizes = torch.tensor([stop - start for start, stop in zip(self._starts, self._starts[1:], strict=False)])
        return torch.repeat_interleave(torch.arange(len(NodeKind)), sizes)

    @cached_property
    def layers(self) -> Int[Tensor, "nodes"]:
        """Layer of each node: -1 for tokens, n_layers for logits and for the read-out bias."""
        by_layer = torch.arange(self.n_layers)
        grid = by_layer.repeat_interleave(self.n_pos)
        top, bottom = torch.tensor([self.n_layers]), torch.tensor([-1])
        below, above = bottom.expand(self.n_pos), top.expand(self.n_logits)
        return torch.cat([self.features[:, 0].long(), grid, grid, by_layer, by_layer, by_layer, top, below, above])

    @cached_property
    def positions(self) -> Int[Tensor, "nodes"]:
        """Position of each node: 0 for constants."""
        along = torch.arange(self.n_pos)
        grid, none = along.repeat(self.n_layers), torch.zeros(3 * self.n_layers + 1, dtype=torch.long)
        read_at = self.n_pos - 1 if self.logit_pos is None else self.logit_pos
        top = torch.full((self.n_logits,), read_at)
        return torch.cat([self.features[:, 1].long(), grid, grid, none, along, top])

    def keeping(self, kept: Bool[Tensor, "features"]) -> tuple[NodeIndex, Int[Tensor, "nodes"]]:
        """These nodes without some features.

        Returns:
            The nodes that are left, and for each old node its new index; for a feature that is left out, that of the
            `rest` node of its layer and position.
        """
        left = replace(self, features=self.features[kept])
        new_index = torch.arange(len(self)) - (self.n_features - left.n_features)
        cell = self.features[:, 0].long() * self.n_pos + self.features[:, 1]
        new_index[: self.n_features] = torch.where(kept, kept.cumsum(0) - 1, left.span(NodeKind.REST).start + cell)
        return left, new_index


def cantor(layer: int, index: int) -> int:
    """Cantor's pairing of layer and latent: the number by which readers of a graph find a feature's dashboard."""
    return (layer + index) * (layer + index + 1) // 2 + index


def cantor_inverse(paired: int) -> tuple[int, int]:
    """The (layer, index) of a Cantor number."""
    diagonal = (isqrt(8 * paired + 1) - 1) // 2
    index = paired - diagonal * (diagonal + 1) // 2
    return diagonal - index, index
