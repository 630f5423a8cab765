"""Measuring edges: one more copy of what a source writes, and by how much every target moves."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from frozen_forward import FrozenForward, Observed
from substitutes import AcrossLayers, Substitutes
from torch import Tensor

from interp.circuits.attribution import AttributionComputer, AttributionEdges
from interp.circuits.nodes import NodeKind
from interp.circuits.replacement_model import ReplacementModel
from interp.circuits.replacements import CrossLayer, PerLayer
from interp.circuits.state import ReplacementState

MEASURED = 2e-5
"""Of the largest edge: the sweep is float32, the measurement float64."""

ReadEnds = Callable[[FrozenForward, AttributionEdges, Observed], Tensor]
"""[batch, ends]: what the end points of a graph read."""


def frozen_forward(rm: ReplacementModel, state: ReplacementState) -> FrozenForward:
    hooked, replacement = rm.hooked, rm.replacement
    if isinstance(replacement, CrossLayer):
        layers = [layer for layer, place in enumerate(replacement.places) if place is not None]
        substitutes: Substitutes = AcrossLayers(replacement.transcoder, layers)
    else:
        assert isinstance(replacement, PerLayer)
        substitutes = Substitutes(replacement.transcoders)
    kept = rm.replacement.keeps_mlp
    return FrozenForward(hooked.model, hooked.family, substitutes, state.ids, state.constant, kept)


def traced(rm: ReplacementModel, ids: Tensor, **options: object) -> tuple[ReplacementState, AttributionEdges]:
    state = rm.build(ids)
    options = {"max_features": None, **options}
    return state, AttributionComputer(rm, **options).compute_full_graph(state)  # type: ignore[arg-type]


def assert_edges_are_measured(
    rm: ReplacementModel, state: ReplacementState, edges: AttributionEdges, read: ReadEnds | None = None
) -> Tensor:
    """Every edge is what an intervention gives; returns the dense adjacency."""
    adjacency = dense(edges).double()
    gap = (measured_effects(rm, state, edges, read) - adjacency[edges.edges.targets]).abs().max()
    assert gap <= MEASURED * adjacency.abs().max()
    return adjacency


def dense(edges: AttributionEdges) -> Tensor:
    return edges.edges.to_sparse(len(edges.nodes)).to_dense()


def measured_effects(
    rm: ReplacementModel, state: ReplacementState, edges: AttributionEdges, read: ReadEnds | None = None
) -> Tensor:
    """[targets, nodes]: by how much each target moves when one more copy of a source is written."""
    frozen, read = frozen_forward(rm, state), read or read_logits
    effects = torch.zeros(len(edges.edges.targets), len(edges.nodes), dtype=torch.float64)
    sources, together = side_by_side(list(injections(frozen, state, edges)))
    moved = read_targets(frozen, edges, frozen.run(together), read)
    effects[:, sources] = (moved - read_targets(frozen, edges, frozen.run({}), read)).T
    effects[:, edges.nodes.span(NodeKind.READOUT)] = read_targets(frozen, edges, frozen.of_nothing(), read).T
    return effects


def side_by_side(made: list[tuple[Tensor, dict[object, Tensor]]]) -> tuple[Tensor, dict[object, Tensor]]:
    """One run for all sources: each has a row of its own, 0 at the places that it does not write to."""
    sources = torch.cat([which for which, _ in made])
    together: dict[object, Tensor] = {}
    first = 0
    for which, writes in made:
        for place, rows in writes.items():
            at = together.setdefault(place, torch.zeros(len(sources), *rows.shape[1:], dtype=torch.float64))
            at[first : first + len(which)] = rows
        first += len(which)
    return sources, together


def injections(
    frozen: FrozenForward, state: ReplacementState, edges: AttributionEdges
) -> Iterator[tuple[Tensor, dict[object, Tensor]]]:
    """(source nodes, by place what each of them writes [sources, pos, d_model]) for every source that is written."""
    nodes, free = edges.nodes, ~state.constant[:, None]
    every = torch.arange(len(edges.nodes))
    one_each = torch.eye(nodes.n_pos, dtype=torch.float64)[:, :, None]
    yield every[nodes.span(NodeKind.TOKEN)], {"embed": one_each * frozen.embeddings}
    for layer in range(nodes.n_layers):
        place = ("mlp", layer)
        here = (nodes.features[:, 0] == layer).nonzero().flatten()
        if len(here):
            pos, latent = nodes.features[here, 1].long(), nodes.features[here, 2].long()
            activation = frozen.substitutes.encode(layer, frozen.clean_in[layer])[pos, latent][:, None]
            rows = frozen.substitutes.rows(layer, latent)
            yield here, {("mlp", to): one_each[pos] * (activation * row)[:, None] for to, row in rows.items()}
        yield every[nodes.layer_span(NodeKind.MLP_BIAS, layer)], {place: (frozen.mlp_of_nothing(layer) * free)[None]}
        yield every[nodes.layer_span(NodeKind.ERROR, layer)], {place: one_each * frozen.mlp_error(layer) * free}
        yield every[nodes.layer_span(NodeKind.BOS, layer)], {place: (frozen.mlp_out[layer] * ~free)[None]}
        bias = frozen.attention_of_nothing(layer)[None]
        yield every[nodes.layer_span(NodeKind.ATTN_BIAS, layer)], {("attn", layer): bias}


@torch.no_grad()
def read_targets(frozen: FrozenForward, edges: AttributionEdges, seen: Observed, read: ReadEnds) -> Tensor:
    """[batch, targets]: what each feature with a row reads, and each end point of the graph."""
    nodes = edges.nodes
    found = torch.zeros(len(seen.head), len(edges.edges.targets), dtype=torch.float64)
    for layer in nodes.features[:, 0].unique().tolist():
        rows = (nodes.features[:, 0] == layer).nonzero().flatten()
        found[:, rows] = read_features(frozen, seen, layer, nodes.features[rows, 1].long(), nodes.features[rows, 2])
    found[:, nodes.n_features :] = read(frozen, edges, seen)
    return found


def read_features(frozen: FrozenForward, seen: Observed, layer: int, pos: Tensor, latents: Tensor) -> Tensor:
    """[batch, features]: pre-activations."""
    weights, bias = frozen.substitutes.linear_encoder(layer, latents.long())
    return torch.einsum("bnd,nd->bn", seen.mlp_in[layer][:, pos], weights) + bias


def read_logits(frozen: FrozenForward, edges: AttributionEdges, seen: Observed) -> Tensor:
    """Each target logit less the mean logit."""
    at = -1 if edges.nodes.logit_pos is None else edges.nodes.logit_pos
    head = seen.head[:, at]
    return (head - head.mean(-1, keepdim=True))[:, edges.nodes.logits]
