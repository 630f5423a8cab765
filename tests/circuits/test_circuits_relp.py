"""MLPs that are kept and made linear by the RelP rules, with adapters beside them whose features are the nodes."""

from __future__ import annotations

from dataclasses import replace

import circuit_cases as cases
import pytest
import tiny_models
import torch
from interventions import assert_edges_are_measured, dense, frozen_forward, traced
from torch import Tensor

from interp.circuits.nodes import NodeKind
from interp.circuits.replacement_model import ReplacementModel
from interp.errors import ModelError, SpecError
from interp.wrapper import HookedModel

RESIDUAL = 1e-4
ONE_OF_EACH = ["llama", "gemma2", "gpt2", "gpt_neox", "split_llama_mlp"]


@pytest.mark.parametrize("skip", [False, True], ids=["plain", "skip"])
@pytest.mark.parametrize("name", tiny_models.ALL)
def test_one_more_copy_of_a_source_moves_every_target_by_its_edge(name: str, skip: bool) -> None:
    """With and without BOS; MLPs in the measurement are the model's own modules with detaches."""
    for bos, activation in (("auto", "relu"), ("keep", "topk")):
        rm = cases.replacement_model(name, activation, skip, mlp="kept", bos=bos)
        state, edges = traced(rm, cases.prompt())
        assert edges.residual <= RESIDUAL
        # Nothing is left unexplained but rounding.
        assert max(float(layer.error.abs().max()) for layer in state.layers) < 1e-5
        assert_edges_are_measured(rm, state, edges)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_prompt_without_bos(name: str) -> None:
    rm = cases.replacement_model(name, "jumprelu", skip=True, mlp="kept")
    state, edges = traced(rm, cases.prompt(bos=False))
    assert not state.constant.any() and edges.residual <= RESIDUAL
    assert_edges_are_measured(rm, state, edges)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_an_mlp_without_an_adapter_stays_linear_and_has_no_error(name: str) -> None:
    hooked = cases.hooked_model(name)
    some = {f"{hooked.topology.block_name(1)}.mlp": cases.transcoder(hooked, 1, "relu", skip=True)}
    rm = ReplacementModel(hooked, some, mlp="kept")
    state, edges = traced(rm, cases.prompt())
    assert edges.residual <= RESIDUAL
    assert set(edges.nodes.features[:, 0].tolist()) == {1}
    assert max(float(layer.error.abs().max()) for layer in state.layers) < 1e-5
    assert_edges_are_measured(rm, state, edges)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_targets_are_what_the_model_with_its_adapters_computes(name: str) -> None:
    rm = cases.replacement_model(name, "gated", skip=True, mlp="kept")
    state, edges = traced(rm, cases.prompt())
    logits = with_adapters(rm, state.ids)
    expected = (logits - logits.mean())[edges.nodes.logits]
    torch.testing.assert_close(edges.pre_activations[edges.nodes.n_features :], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(edges.pre_activations[: edges.nodes.n_features], edges.activations, atol=1e-5, rtol=1e-4)
    bare = rm.hooked.run_with_cache(state.ids[None], [], logits=True).logits
    assert bare is not None and (bare[0, -1] - logits).abs().max() > 0.01


def with_adapters(rm: ReplacementModel, ids: Tensor) -> Tensor:
    """Logits [d_vocab] at the last position, by plain torch hooks on the model's modules."""
    hooked, read, handles = rm.hooked, {}, []
    layout = hooked.family.block
    blocks = [b for group in hooked.family.groups for b in hooked.model.get_submodule(group.path).children()]
    for layer, (block, adapter) in enumerate(zip(blocks, rm.replacement.transcoders, strict=True)):
        norm, writer = block.get_submodule(layout.mlp_norm), block.get_submodule(layout.mlp_post_norm or layout.mlp)
        handles.append(norm.register_forward_hook(lambda m, a, out, layer=layer: read.update({layer: out})))
        handles.append(
            writer.register_forward_hook(lambda m, a, out, layer=layer, adapter=adapter: out + adapter(read[layer]))
        )
    found: list[Tensor] = []
    head = hooked.model.get_submodule(hooked.family.head)
    handles.append(head.register_forward_hook(lambda m, args, out: found.append(out)))
    with torch.no_grad():
        hooked.model(ids[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return found[0][0, -1]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_encoder_rows_injected_where_the_layer_begins_do_not_add_up(name: str) -> None:
    """A feature reads what its MLP reads. Its row at resid_pre skips the layer's attention and the MLP's norm."""
    rm = cases.replacement_model(name, "relu", mlp="kept")
    state, edges = traced(rm, cases.prompt())
    frozen, rows = frozen_forward(rm, state), slice(0, edges.nodes.n_features)
    seen = frozen.run({})
    layers, pos, latents = edges.nodes.features.long().T
    misplaced = torch.zeros(len(layers), dtype=torch.float64)
    for layer in layers.unique().tolist():
        here = layers == layer
        weights, bias = frozen.substitutes.linear_encoder(layer, latents[here])
        misplaced[here] = (weights * seen.streams[layer, "resid_pre"][0, pos[here]]).sum(-1) + bias
    sums, expected = edges.edges.row_sums()[rows], edges.pre_activations[rows].double()
    torch.testing.assert_close(sums, expected, atol=1e-4, rtol=1e-4)
    assert (misplaced - expected).abs().median() > 0.1


def test_an_adapter_that_writes_nothing_leaves_the_model_as_it_is() -> None:
    hooked = cases.hooked_model("llama")
    adapters = cases.transcoders(hooked, "relu")
    with torch.no_grad():
        for adapter in adapters:
            adapter.W_dec.zero_()
            adapter.b_dec.zero_()
    rm = ReplacementModel(hooked, adapters, mlp="kept")
    state, edges = traced(rm, cases.prompt())
    torch.testing.assert_close(with_adapters(rm, state.ids), hooked.model(state.ids[None]).logits[0, -1].detach())
    assert float(dense(edges)[:, edges.nodes.span(NodeKind.FEATURE)].abs().max()) == 0.0
    assert edges.residual <= RESIDUAL


def test_a_family_whose_mlps_are_not_known_is_traced_with_replaced_ones_only() -> None:
    model = tiny_models.make("llama")
    family = cases.hooked_model("llama").family
    family = replace(family, block=replace(family.block, mlp_parts=None))
    hooked = HookedModel(model, family=family)
    _, edges = traced(ReplacementModel(hooked, cases.transcoders(hooked)), cases.prompt())
    assert edges.residual <= RESIDUAL
    with pytest.raises(ModelError, match="cannot be kept"):
        ReplacementModel(hooked, cases.transcoders(hooked), mlp="kept")


def test_an_activation_function_that_is_not_0_at_0_cannot_be_made_linear() -> None:
    hooked = HookedModel(tiny_models.make("llama", hidden_act="sigmoid"))
    ReplacementModel(hooked, cases.transcoders(hooked))
    with pytest.raises(ModelError, match="not 0 at 0"):
        ReplacementModel(hooked, cases.transcoders(hooked), mlp="kept")


def test_mlps_are_replaced_or_kept() -> None:
    with pytest.raises(SpecError, match="no such rule"):
        cases.replacement_model("llama", mlp="added")
