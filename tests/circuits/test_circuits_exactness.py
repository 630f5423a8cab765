"""The two facts that make a graph true, on every family: rows add up, and an edge is what an intervention measures."""

from __future__ import annotations

import circuit_cases as cases
import pytest
import tiny_models
import torch
from interventions import assert_edges_are_measured, traced

from interp.circuits.nodes import NodeKind
from interp.circuits.replacement_model import ReplacementModel
from interp.wrapper import HookedModel

RESIDUAL = 1e-4


@pytest.mark.parametrize("skip", [False, True], ids=["plain", "skip"])
@pytest.mark.parametrize("activation", cases.ACTIVATIONS)
@pytest.mark.parametrize("name", tiny_models.ALL)
def test_one_more_copy_of_a_source_moves_every_target_by_its_edge(name: str, activation: str, skip: bool) -> None:
    for bos in ("auto", "keep"):
        rm = cases.replacement_model(name, activation, skip, bos=bos)
        state, edges = traced(rm, cases.prompt())
        assert state.constant.tolist() == [bos == "auto"] + [False] * 4
        assert edges.residual <= RESIDUAL
        assert assert_edges_are_measured(rm, state, edges).abs().max() > 0.1


@pytest.mark.parametrize("name", tiny_models.ALL)
def test_targets_are_what_the_unchanged_model_computes(name: str) -> None:
    rm = cases.replacement_model(name, "gated", skip=True)
    state, edges = traced(rm, cases.prompt())
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
        state, edges = traced(rm, cases.prompt())
        assert edges.residual <= RESIDUAL
        assert set(edges.nodes.features[:, 0].tolist()) == {1}
        assert_edges_are_measured(rm, state, edges)


def test_a_bias_of_the_head_is_part_of_the_read_out() -> None:
    model = tiny_models.make("llama")
    head = torch.nn.Linear(32, tiny_models.VOCAB)
    torch.nn.init.normal_(head.bias)
    model.lm_head = head
    hooked = HookedModel(model)
    rm = ReplacementModel(hooked, cases.transcoders(hooked))
    state, edges = traced(rm, cases.prompt())
    assert edges.residual <= RESIDUAL
    assert_edges_are_measured(rm, state, edges)


def test_edges_respect_the_order_of_layers_and_positions() -> None:
    _, edges = traced(cases.replacement_model("qwen2", "relu"), cases.prompt())
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


@pytest.mark.parametrize("mlp", ["replaced", "kept"])
@pytest.mark.parametrize("name", tiny_models.ALL)
def test_bfloat16_models_state_how_far_they_are_from_exact(name: str, mlp: str) -> None:
    """The stream, what norms give and what attention computes are rounded to 8 bits; the edges are float32."""
    hooked = HookedModel(tiny_models.make(name).to(torch.bfloat16))
    for dtype in (torch.float32, torch.bfloat16):
        made = [transcoder.to(dtype) for transcoder in cases.transcoders(hooked, "relu")]
        _, edges = traced(ReplacementModel(hooked, made, mlp=mlp), cases.prompt(12))
        assert RESIDUAL < edges.residual < 0.06
        gaps = (edges.edges.row_sums() - edges.pre_activations).abs() / edges.pre_activations.abs().clamp(min=1)
        assert gaps.median() < 0.005
