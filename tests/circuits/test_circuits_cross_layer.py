"""Cross-layer transcoders in attribution: a feature writes to its own MLP's output and to all later ones'."""

from __future__ import annotations

import circuit_cases as cases
import pytest
import tiny_models
import torch
from frozen_forward import FrozenForward, Observed
from interventions import assert_edges_are_measured, dense, frozen_forward, injections, read_features, traced
from torch import Tensor

from interp.circuits.attribution import AttributionComputer, AttributionEdges
from interp.circuits.nodes import NodeKind
from interp.circuits.replacement_model import ReplacementModel
from interp.dictionaries import CrossLayerTranscoder
from interp.errors import DictionaryError, ModelMismatch
from interp.spec.trace import FeaturePlace, FeaturesTarget

RESIDUAL = 1e-4


@pytest.mark.parametrize("name", tiny_models.ALL)
def test_one_more_copy_of_a_source_moves_every_target_by_its_edge(name: str) -> None:
    hooked = cases.hooked_model(name)
    for bos, activation in (("auto", "relu"), ("keep", "topk")):
        rm = ReplacementModel(hooked, cases.cross_layer(hooked, activation), bos=bos)
        state, edges = traced(rm, cases.prompt())
        assert edges.residual <= RESIDUAL
        assert set(edges.nodes.features[:, 0].tolist()) == set(range(hooked.topology.n_layers))
        assert_edges_are_measured(rm, state, edges)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_neox", "split_llama_mlp"])
@pytest.mark.parametrize("activation", ["jumprelu", "batchtopk", "gated"])
def test_every_activation_is_as_exact(name: str, activation: str) -> None:
    hooked = cases.hooked_model(name)
    rm = ReplacementModel(hooked, cases.cross_layer(hooked, activation))
    state, edges = traced(rm, cases.prompt())
    assert edges.residual <= RESIDUAL and edges.nodes.n_features > 20
    assert_edges_are_measured(rm, state, edges)


@pytest.mark.parametrize("name", ["llama", "gpt2", "split_llama"])
def test_layers_between_the_places_are_errors(name: str) -> None:
    hooked = cases.hooked_model(name)
    rm = ReplacementModel(hooked, cases.cross_layer(hooked, layers=[0, 2]))
    state, edges = traced(rm, cases.prompt())
    assert edges.residual <= RESIDUAL
    assert set(edges.nodes.features[:, 0].tolist()) == {0, 2}
    assert_edges_are_measured(rm, state, edges)
    assert torch.equal(state.layers[1].error[1:], rm.stream(state.ids, f"{hooked.topology.block_name(1)}.mlp_out")[1:])


@pytest.mark.parametrize("name", ["gemma2", "gpt_neox", "split_llama_mlp"])
def test_one_whose_mlps_are_kept(name: str) -> None:
    hooked = cases.hooked_model(name)
    rm = ReplacementModel(hooked, cases.cross_layer(hooked), mlp="kept")
    state, edges = traced(rm, cases.prompt())
    assert edges.residual <= RESIDUAL
    assert max(float(layer.error.abs().max()) for layer in state.layers) < 1e-5
    assert_edges_are_measured(rm, state, edges)


@pytest.mark.parametrize("name", ["qwen2", "gpt_neox", "split_llama"])
@pytest.mark.parametrize("activation", cases.ACTIVATIONS)
def test_without_cross_layer_decoders_it_is_one_transcoder_for_each_layer(name: str, activation: str) -> None:
    hooked = cases.hooked_model(name)
    single = cases.transcoders(hooked, activation)
    config = cases.cross_layer(hooked, activation).config
    places = tuple(place.model_copy(update={"n_latents": cases.LATENTS}) for place in config.places)
    across = CrossLayerTranscoder(config.model_copy(update={"places": places})).eval()
    with torch.no_grad():
        for i, transcoder in enumerate(single):
            across.encoder(i).copy_(transcoder.W_enc)
            across.b_enc[i].copy_(transcoder.b_enc)
            across.decoder(i, i).copy_(transcoder.W_dec)
            across.b_dec(i).copy_(transcoder.b_dec)
            across.activation(i).load_state_dict(transcoder.activation.state_dict())
    for max_features in (None, 30):
        _, one = traced(ReplacementModel(hooked, single), cases.prompt(), max_features=max_features)
        _, other = traced(ReplacementModel(hooked, across), cases.prompt(), max_features=max_features)
        assert torch.equal(one.nodes.features, other.nodes.features)
        torch.testing.assert_close(dense(one), dense(other), atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(one.activations, other.activations)


def test_the_measurement_tells_one_layers_decoder_from_all_of_them() -> None:
    """Were a feature injected at its own layer alone, its edges would not be those of the graph."""
    hooked = cases.hooked_model("llama")
    rm = ReplacementModel(hooked, cases.cross_layer(hooked))
    state, edges = traced(rm, cases.prompt())
    frozen = frozen_forward(rm, state)
    places = [tuple(writes) for sources, writes in injections(frozen, state, edges) if len(writes) > 1]
    assert places == [(("mlp", 0), ("mlp", 1), ("mlp", 2)), (("mlp", 1), ("mlp", 2))]
    own_layer_only = {("mlp", 0): next(w for s, w in injections(frozen, state, edges) if len(w) == 3)[("mlp", 0)]}
    moved = frozen.run(own_layer_only).head[:, -1] - frozen.run({}).head[:, -1]
    here = edges.nodes.features[:, 0] == 0
    found = dense(edges)[edges.nodes.span(NodeKind.LOGIT), : edges.nodes.n_features][:, here]
    expected = (moved - moved.mean(-1, keepdim=True))[:, edges.nodes.logits].T
    assert (found - expected).abs().max() > 0.01 * found.abs().max()


@pytest.mark.parametrize("name", ["gpt2", "split_llama_mlp"])
def test_its_features_can_be_targets(name: str) -> None:
    hooked = cases.hooked_model(name)
    rm, last = ReplacementModel(hooked, cases.cross_layer(hooked)), hooked.topology.n_layers - 1
    chosen = [(last, cases.LATENTS + last - 1), (1, 0)]
    places = tuple(FeaturePlace(at=f"{hooked.topology.block_name(at)}.mlp", latent=latent) for at, latent in chosen)

    def read(frozen: FrozenForward, edges: AttributionEdges, seen: Observed) -> Tensor:
        each = [read_features(frozen, seen, at, torch.tensor([3]), torch.tensor([latent])) for at, latent in chosen]
        return torch.cat(each, dim=1)

    state, edges = traced(rm, cases.prompt(), target=FeaturesTarget(features=places, position=3))
    assert edges.residual <= RESIDUAL
    assert_edges_are_measured(rm, state, edges, read)


def test_it_may_be_given_by_name_and_must_fit_the_model() -> None:
    hooked = cases.hooked_model("llama")
    made = cases.cross_layer(hooked)
    assert ReplacementModel(hooked, {"cross-layer": made}).replacement.writers(2) == (0, 1, 2)
    with pytest.raises(DictionaryError, match="give it alone"):
        ReplacementModel(hooked, {"layers.0.mlp": made, "layers.1.mlp": made})
    with pytest.raises(ModelMismatch):
        ReplacementModel(cases.hooked_model("llama", seed=1), made)
    place = made.config.places[0]
    for change, message in (
        ({"hook_in": "layers.0.resid_pre"}, "does not stand for"),
        ({"d_in": 16}, "another width"),
        ({"hook_in": "layers.7.mlp_in", "hook_out": "layers.7.mlp_out"}, "does not have"),
    ):
        config = made.config.model_copy(update={"places": (place.model_copy(update=change),)})
        with pytest.raises(DictionaryError, match=message):
            ReplacementModel(hooked, CrossLayerTranscoder(config))


def test_places_are_in_the_order_in_which_the_model_computes_them() -> None:
    hooked = cases.hooked_model("llama")
    config = cases.cross_layer(hooked).config
    backwards = config.model_copy(update={"places": tuple(reversed(config.places))})
    with pytest.raises(DictionaryError, match="not in the order"):
        ReplacementModel(hooked, CrossLayerTranscoder(backwards))


def test_the_result_does_not_depend_on_the_batch() -> None:
    hooked = cases.hooked_model("split_llama_mlp")
    rm = ReplacementModel(hooked, cases.cross_layer(hooked))
    state = rm.build(cases.prompt(7))
    one, *others = (
        AttributionComputer(rm, max_features=25, batch=batch).compute_full_graph(state) for batch in (1000, 1, 7)
    )
    for other in others:
        assert torch.equal(one.nodes.features, other.nodes.features)
        torch.testing.assert_close(dense(one), dense(other), atol=1e-5, rtol=1e-5)
