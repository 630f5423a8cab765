"""The two facts that make a graph true, on every family: rows add up, and an edge is what an intervention measures."""

from __future__ import annotations

import circuit_cases as cases
import pytest
import tiny_models
import torch
from frozen_forward import FrozenForward
from torch import Tensor

from interp.circuits.attribution import AttributionComputer, AttributionEdges
from interp.circuits.nodes import NodeKind
from interp.circuits.replacement_model import ReplacementModel
from interp.circuits.state import ReplacementState
from interp.wrapper import HookedModel

RESIDUAL = 1e-4
MEASURED = 2e-5
"""Of the largest edge: the sweep is float32, the measurement float64."""


def traced(rm: ReplacementModel, ids: Tensor | None = None) -> tuple[ReplacementState, AttributionEdges]:
    state = rm.build(cases.prompt() if ids is None else ids)
    return state, AttributionComputer(rm, max_features=None).compute_full_graph(state)


@pytest.mark.parametrize("skip", [False, True], ids=["plain", "skip"])
@pytest.mark.parametrize("activation", cases.ACTIVATIONS)
@pytest.mark.parametrize("name", tiny_models.ALL)
def test_one_more_copy_of_a_source_moves_every_target_by_its_edge(name: str, activation: str, skip: bool) -> None:
    for bos in ("auto", "keep"):
        rm = cases.replacement_model(name, activation, skip, bos=bos)
        state, edges = traced(rm)
        assert state.constant.tolist() == [bos == "auto"] + [False] * 4
        assert edges.residual <= RESIDUAL
        adjacency = edges.edges.to_sparse(len(edges.nodes)).to_dense().double()
        measured = measured_effects(rm, state, edges)
        targets = edges.edges.targets
        gap = (measured - adjacency[targets]).abs().max()
        assert gap <= MEASURED * adjacency.abs().max()
        assert adjacency.abs().max() > 0.1


def measured_effects(rm: ReplacementModel, state: ReplacementState, edges: AttributionEdges) -> Tensor:
    """[targets, nodes]: by how much each target moves when one more copy of a source is written."""
    hooked = rm.hooked
    frozen = FrozenForward(hooked.model, hooked.family, list(rm.transcoders), state.ids, state.constant)
    effects = torch.zeros(len(edges.edges.targets), len(edges.nodes), dtype=torch.float64)
    clean = read_targets(frozen, edges, *frozen.run({}))
    for place, sources, writes in injections(frozen, state, edges):
        moved = read_targets(frozen, edges, *frozen.run({place: writes}))
        effects[:, sources] = (moved - clean).T
    effects[:, edges.nodes.span(NodeKind.READOUT)] = readout_biases(frozen, edges)[:, None]
    return effects


def injections(frozen: FrozenForward, state: ReplacementState, edges: AttributionEdges) -> list:
    """(place, source nodes, what each of them writes [sources, pos, d_model]) for every source that is written."""
    nodes, free = edges.nodes, ~state.constant
    n_pos, every = nodes.n_pos, torch.arange(len(edges.nodes))
    one_each = torch.eye(n_pos, dtype=torch.float64)[:, :, None]
    made = [("embed", every[nodes.span(NodeKind.TOKEN)], one_each * frozen.embeddings)]
    for layer, transcoder in enumerate(frozen.transcoders):
        mlp_out = frozen.mlp_out[layer]
        error, place = mlp_out.clone(), ("mlp", layer)
        if transcoder is not None:
            error = mlp_out - transcoder(frozen.clean_in[layer])
            here = (nodes.features[:, 0] == layer).nonzero().flatten()
            pos, latent = nodes.features[here, 1].long(), nodes.features[here, 2].long()
            activation = transcoder.encode(frozen.clean_in[layer])[pos, latent]
            made.append((place, here, one_each[pos] * (activation[:, None] * transcoder.W_dec[latent])[:, None]))
            bias = transcoder.decode(torch.zeros(n_pos, cases.LATENTS).double(), frozen.mlp_reads_nothing(layer))
            made.append((place, every[nodes.layer_span(NodeKind.MLP_BIAS, layer)], (bias * free[:, None])[None]))
        made.append((place, every[nodes.layer_span(NodeKind.ERROR, layer)], one_each * error * free[:, None]))
        made.append((place, every[nodes.layer_span(NodeKind.BOS, layer)], (mlp_out * state.constant[:, None])[None]))
        bias = frozen.attention_of_nothing(layer)[None]
        made.append((("attn", layer), every[nodes.layer_span(NodeKind.ATTN_BIAS, layer)], bias))
    return made


@torch.no_grad()
def read_targets(frozen: FrozenForward, edges: AttributionEdges, mlp_in: dict[int, Tensor], head: Tensor) -> Tensor:
    """[batch, targets]: what each target reads."""
    read = torch.zeros(len(head), len(edges.edges.targets), dtype=torch.float64)
    for layer in edges.nodes.features[:, 0].unique().tolist():
        rows = (edges.nodes.features[:, 0] == layer).nonzero().flatten()
        pos, latents = edges.nodes.features[rows, 1].long(), edges.nodes.features[rows, 2].long()
        weights, bias = frozen.transcoders[layer].linear_encoder(latents)
        read[:, rows] = torch.einsum("bnd,nd->bn", mlp_in[layer][:, pos], weights) + bias
    read[:, edges.nodes.n_features :] = (head - head.mean(-1, keepdim=True))[:, edges.nodes.logits]
    return read


def readout_biases(frozen: FrozenForward, edges: AttributionEdges) -> Tensor:
    nothing = {layer: frozen.mlp_reads_nothing(layer)[None] for layer in range(edges.nodes.n_layers)}
    return read_targets(frozen, edges, nothing, frozen.head_of_nothing()[None])[0]


@pytest.mark.parametrize("name", tiny_models.ALL)
def test_targets_are_what_the_unchanged_model_computes(name: str) -> None:
    rm = cases.replacement_model(name, "gated", skip=True)
    state, edges = traced(rm)
    with torch.no_grad():
        logits = rm.hooked.run_with_cache(state.ids[None], [], logits=True).logits[0, -1]
    expected = (logits - logits.mean())[edges.nodes.logits]
    torch.testing.assert_close(edges.pre_activations[edges.nodes.n_features :], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(edges.pre_activations[: edges.nodes.n_features], edges.activations, atol=1e-5, rtol=1e-4)
    prediction = rm.hooked.model(state.ids[None]).logits[0, -1].softmax(-1)
    torch.testing.assert_close(edges.probabilities, prediction[edges.nodes.logits])


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "split_llama_mlp"])
def test_an_mlp_without_a_transcoder_is_an_error_that_still_adds_up(name: str) -> None:
    hooked = cases.hooked_model(name)
    some = {f"{hooked.topology.block_name(1)}.mlp": cases.transcoder(hooked, 1, "relu", skip=True)}
    for bos in ("auto", "keep"):
        rm = ReplacementModel(hooked, some, bos=bos)
        state, edges = traced(rm)
        assert edges.residual <= RESIDUAL
        assert set(edges.nodes.features[:, 0].tolist()) == {1}
        adjacency = edges.edges.to_sparse(len(edges.nodes)).to_dense().double()
        gap = (measured_effects(rm, state, edges) - adjacency[edges.edges.targets]).abs().max()
        assert gap <= MEASURED * adjacency.abs().max()


def test_a_bias_of_the_head_is_part_of_the_read_out() -> None:
    model = tiny_models.make("llama")
    head = torch.nn.Linear(32, tiny_models.VOCAB)
    torch.nn.init.normal_(head.bias)
    model.lm_head = head
    hooked = HookedModel(model)
    rm = ReplacementModel(hooked, cases.transcoders(hooked))
    state, edges = traced(rm)
    assert edges.residual <= RESIDUAL
    adjacency = edges.edges.to_sparse(len(edges.nodes)).to_dense().double()
    assert (measured_effects(rm, state, edges) - adjacency[edges.edges.targets]).abs().max() <= 1e-4


def test_edges_respect_the_order_of_layers_and_positions() -> None:
    _, edges = traced(cases.replacement_model("qwen2", "relu"))
    nodes, table = edges.nodes, edges.edges
    targets, sources = table.target_of_edge, table.sources.long()
    written = ~nodes.mask(NodeKind.READOUT)[sources]
    above = nodes.layers[targets] - nodes.layers[sources]
    same_layer_attention = nodes.mask(NodeKind.ATTN_BIAS)[sources]
    assert bool((above[written & ~same_layer_attention] > 0).all())
    assert bool((above[same_layer_attention] >= 0).all())
    assert bool((nodes.positions[sources] <= nodes.positions[targets]).all())


def test_a_prompt_of_one_token() -> None:
    for bos in ("auto", "keep"):
        _, edges = traced(cases.replacement_model("llama", bos=bos), cases.prompt(1))
        assert edges.residual <= RESIDUAL
        assert (edges.nodes.n_features == 0) == (bos == "auto")


def test_a_prompt_without_bos_has_no_constant_position() -> None:
    rm = cases.replacement_model("llama")
    state, edges = traced(rm, cases.prompt(bos=False))
    assert not state.constant.any()
    assert not torch.isin(torch.arange(len(edges.nodes))[edges.nodes.span(NodeKind.BOS)], edges.edges.sources).any()


def test_bfloat16_models_state_how_far_they_are_from_exact() -> None:
    hooked = cases.hooked_model("llama")
    hooked.model.to(torch.bfloat16)
    _, edges = traced(ReplacementModel(hooked, cases.transcoders(hooked)))
    assert RESIDUAL < edges.residual < 0.2
