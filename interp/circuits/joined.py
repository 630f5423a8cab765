"""Several prompts as one frozen model: what they share a sweep through (`interp.circuits.stacked`).

Every prompt is padded to the longest one's positions, and they lie one after another: position p of prompt b is
b * pos + p. What is padded writes nothing and nobody reads it: its pattern is 0, its denominators are 1. Patterns are
[prompt, head, query, key]: prompts do not see one another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.circuits.nodes import NodeIndex, NodeKind
from interp.circuits.state import Features, FrozenLayer, ReplacementState
from interp.circuits.targets import FeatureTargets, Readout, Targets


@torch.no_grad()
def join(states: Sequence[ReplacementState]) -> ReplacementState:
    """The prompts one after another, padded; MLPs that are kept are not carried over, nor is the head."""
    first, n_pos = states[0], max(state.n_pos for state in states)

    def flat(part: Callable[[ReplacementState], Tensor | None], fill: float = 0.0) -> Tensor | None:
        return padded([part(state) for state in states], n_pos, fill)

    def require(found: Tensor | None) -> Tensor:
        if found is None:
            raise ValueError("every prompt has this part")
        return found

    adapter = first.adapter
    if adapter is not None and adapter.mask is not None:
        adapter = replace(adapter, mask=flat(lambda state: None if state.adapter is None else state.adapter.mask))
    ids = require(flat(lambda state: state.ids))
    return replace(
        first,
        ids=ids,
        embeddings=require(flat(lambda state: state.embeddings)),
        layers=tuple(_join_layer([state.layers[layer] for state in states], n_pos) for layer in range(first.n_layers)),
        adapter=adapter,
        features=_join_features([state.features for state in states], n_pos),
        constant=require(flat(lambda state: state.constant)),
    )


def padded(parts: Sequence[Tensor | None], n_pos: int, fill: float = 0.0) -> Tensor | None:
    """[pos, ...] of each prompt as [prompt * pos, ...], `fill` where one has none; None if none has any."""
    like = next((part for part in parts if part is not None), None)
    if like is None:
        return None
    joined = like.new_full((len(parts), n_pos, *like.shape[1:]), fill)
    for place, part in zip(joined, parts, strict=True):
        if part is not None:
            place[: len(part)] = part
    return joined.flatten(0, 1)


def _join_layer(layers: Sequence[FrozenLayer], n_pos: int) -> FrozenLayer:
    fills = {"attn_denominator": 1.0, "attn_post_denominator": 1.0, "mlp_denominator": 1.0}
    names = (*fills, "attn_bias", "mlp_in", "mlp_bias", "error", "bos")
    joined = {name: padded([getattr(layer, name) for layer in layers], n_pos, fills.get(name, 0.0)) for name in names}
    patterns = [layer.pattern for layer in layers]
    together = patterns[0].new_zeros(len(layers), patterns[0].shape[0], n_pos, n_pos)
    for place, pattern in zip(together, patterns, strict=True):
        place[:, : pattern.shape[1], : pattern.shape[2]] = pattern
    changes: dict[str, Any] = {**joined, "held_pattern": together, "kept": None}
    return replace(layers[0], **changes)


def _join_features(features: Sequence[Features], n_pos: int) -> Features:
    shifts = torch.tensor([[0, place * n_pos, 0] for place in range(len(features))], dtype=torch.int32)
    index = torch.cat([each.index + shift for each, shift in zip(features, shifts, strict=True)])
    order = index[:, 0].argsort(stable=True)
    activations = torch.cat([each.activations for each in features])
    return Features(features[0].n_layers, len(features) * n_pos, index[order], activations[order])


@dataclass(frozen=True, eq=False)
class JoinedTargets:
    """Targets of several prompts, one prompt's after another's.

    Attributes:
        parts: of each prompt; None if it has no target. n_pos: positions of a prompt with its padding.
    """

    parts: Sequence[Targets | None]
    n_pos: int

    @property
    def heights(self) -> Int[Tensor, "targets"]:
        return torch.cat([part.heights for part in self.parts if part is not None])

    @property
    def positions(self) -> Int[Tensor, "targets"]:
        places = [(place, part) for place, part in enumerate(self.parts) if part is not None]
        return torch.cat([part.positions + place * self.n_pos for place, part in places])

    def read(self, which: Int[Tensor, "some"]) -> Readout:
        """Targets of one height, prompt by prompt: `which` ascends."""
        found, start = list[Readout](), 0
        for part in self.parts:
            if part is not None:
                stop = start + len(part.positions)
                if len(mine := which[(which >= start) & (which < stop)]):
                    found.append(part.read(mine - start))
                start = stop
        return found[0] if len(found) == 1 else Readout(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def join_targets(state: ReplacementState, parts: Sequence[Targets | None], n_pos: int) -> Targets:
    """Targets of the prompts that a state joins; features are read at once."""
    index = []
    for place, part in enumerate(parts):
        if part is not None:
            if not isinstance(part, FeatureTargets):
                return JoinedTargets(parts, n_pos)
            index.append(part.index + torch.tensor([0, place * n_pos, 0], dtype=part.index.dtype))
    return FeatureTargets(state, torch.cat(index))


@dataclass(frozen=True, eq=False)
class Columns:
    """Where sources are in the rows of a stack: the same places for all its prompts.

    For each layer, position by position: features (as many as the fullest position of any prompt has), error, bos and
    bias of the MLP. Then the biases of attention, the read-out's bias, and the tokens.

    Attributes:
        counts: features of each layer, at most, at a position; starts: first column of each layer.
        to_nodes: for each prompt, the node of each column; where there is none, the number of its nodes.
    """

    n_pos: int
    counts: tuple[int, ...]
    starts: tuple[int, ...]
    to_nodes: tuple[Int[Tensor, "columns"], ...]

    @property
    def attn_bias(self) -> int:
        return self.starts[-1]

    @property
    def readout(self) -> int:
        return self.starts[-1] + len(self.counts)

    @property
    def tokens(self) -> int:
        return self.readout + 1

    def __len__(self) -> int:
        return self.tokens + self.n_pos

    @classmethod
    def of(cls, features: Features, nodes: Sequence[NodeIndex], n_pos: int) -> Columns:
        """For prompts whose features are joined, and the nodes of each."""
        per_cell = torch.tensor(features.starts).diff().view(features.n_layers, -1)
        counts = tuple(per_cell.max(dim=1).values.tolist())
        starts = [0]
        for count in counts:
            starts.append(starts[-1] + n_pos * (count + 3))
        made = cls(n_pos, counts, tuple(starts), ())
        return replace(made, to_nodes=tuple(made._of_prompt(each) for each in nodes))

    def _of_prompt(self, nodes: NodeIndex) -> Int[Tensor, "columns"]:
        to_node, n = torch.full((len(self),), len(nodes)), nodes.n_pos
        cells = nodes.features[:, 0].long() * n + nodes.features[:, 1]
        sizes = torch.bincount(cells, minlength=nodes.n_layers * n).view(nodes.n_layers, n)
        first = 0
        for layer, count in enumerate(self.counts):
            block = to_node[self.starts[layer] : self.starts[layer + 1]].view(self.n_pos, count + 3)[:n]
            there = torch.arange(count) < sizes[layer][:, None]
            block[:, :count][there] = torch.arange(first, first := first + int(sizes[layer].sum()))
            block[:, count] = torch.arange(n) + nodes.layer_span(NodeKind.ERROR, layer).start
            block[:, count + 1] = nodes.layer_span(NodeKind.BOS, layer).start
            block[:, count + 2] = nodes.layer_span(NodeKind.MLP_BIAS, layer).start
        bias = nodes.span(NodeKind.ATTN_BIAS)
        to_node[self.attn_bias : self.readout] = torch.arange(bias.start, bias.stop)
        to_node[self.readout] = nodes.span(NodeKind.READOUT).start
        to_node[self.tokens : self.tokens + n] = torch.arange(n) + nodes.span(NodeKind.TOKEN).start
        return to_node


def rows_of_prompt(
    rows: Float[Tensor, "targets columns"], to_nodes: Int[Tensor, "columns"], n_nodes: int
) -> Float[Tensor, "targets nodes"]:
    """Rows over a stack's columns as rows over the nodes of one prompt."""
    return rows.new_zeros(len(rows), n_nodes + 1).index_add_(1, to_nodes, rows)[:, :n_nodes].contiguous()
