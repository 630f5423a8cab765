"""Predicted against measured effects: exact where they must be, and a check that fails when the graph is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import circuit_cases as cases
import numpy as np
import pytest
import tiny_models
import torch
from intervention_cases import Edit, EditedForward, edited_logits, replacement_model
from torch import Tensor

import interp.circuits.faithfulness as faithfulness_module
from interp.circuits.attribution import AttributionComputer, AttributionEdges
from interp.circuits.faithfulness import Effect, Faithfulness, faithfulness, through_origin, total_effects
from interp.circuits.influence import influence_of
from interp.circuits.nodes import NodeKind
from interp.circuits.replacement_model import ReplacementModel
from interp.circuits.state import ReplacementState
from interp.errors import PromptError
from interp.spec.trace import (
    DifferenceTarget,
    DirectionTarget,
    FaithfulnessSpec,
    FeaturePlace,
    FeaturesTarget,
    TokensTarget,
)
from interp.wrapper import HookedModel

SPEC = FaithfulnessSpec(features=12, curve=(0.1, 0.5, 1.0))


def traced(rm: ReplacementModel, **options: Any) -> tuple[ReplacementState, AttributionEdges]:
    state = rm.build(cases.prompt())
    return state, AttributionComputer(rm, **{"max_features": None, **options}).compute_full_graph(state)


def without_thresholds(kind: str, name: str = "gemma2") -> ReplacementModel:
    """A model whose features are all active by far, whatever is ablated: it is linear."""
    rm = replacement_model(name, kind)
    found: Any = rm.replacement
    with torch.no_grad():
        for made in found.transcoders if hasattr(found, "transcoders") else [found.transcoder]:
            for parameter in made.b_enc if isinstance(made.b_enc, torch.nn.ParameterList) else [made.b_enc]:
                parameter.add_(40.0)
    return rm


@pytest.mark.parametrize("kind", ["plain", "skip", "cross-layer", "kept"])
def test_without_thresholds_predicted_effects_are_those_of_the_frozen_model(kind: str) -> None:
    rm = without_thresholds(kind)
    state, edges = traced(rm)
    assert edges.n_active == sum(rm.replacement.n_latents(layer) for layer in range(3)) * 4
    found = faithfulness(rm, state, edges, SPEC)
    assert found.slope_frozen == pytest.approx(1.0, abs=1e-4) and found.r2_frozen == pytest.approx(1.0, abs=1e-4)
    largest = max(abs(row.predicted) for row in found.rows)
    assert all(abs(row.predicted - row.frozen) <= 1e-4 * largest for row in found.rows)
    assert len(found.rows) == 12 * len(edges.logit_tokens)
    # Attention and norms do respond in the model.
    assert found.r2 is not None and found.r2 < 0.9999


def test_a_wrong_prediction_has_no_r2(monkeypatch: pytest.MonkeyPatch) -> None:
    rm = without_thresholds("plain")
    state, edges = traced(rm)

    def shuffled(nodes: Any, *rest: Any) -> Tensor:
        order = torch.randperm(nodes.n_features, generator=torch.Generator().manual_seed(0))
        return total_effects(nodes, *rest)[:, order]

    monkeypatch.setattr(faithfulness_module, "total_effects", shuffled)
    found = faithfulness(rm, state, edges, FaithfulnessSpec(features=40))
    assert found.r2_frozen is not None and found.r2_frozen < 0.3


def test_the_line_through_the_origin() -> None:
    assert through_origin([1.0, 2.0, -1.0], [2.0, 4.0, -2.0]) == (2.0, 1.0)
    slope, r2 = through_origin([1.0, 1.0, 1.0, 1.0], [1.0, 2.0, 3.0, 4.0])
    assert slope == pytest.approx(2.5) and r2 == pytest.approx(0.0)
    slope, r2 = through_origin([1.0, -1.0], [3.0, 3.5])
    assert r2 is not None and r2 < 0
    assert through_origin([], []) == (None, None) == through_origin([0.0], [1.0])
    assert through_origin([2.0], [1.0]) == (0.5, None)


@pytest.mark.parametrize("activation", ["topk", "gated"])
def test_total_effects_are_the_sum_over_all_paths(activation: str) -> None:
    _, edges = traced(replacement_model("qwen3", "cross-layer", activation))
    nodes = edges.nodes
    share = edges.edges.to_sparse(len(nodes)).to_dense().double()
    share[nodes.span(NodeKind.FEATURE)] /= edges.activations.double()[:, None]
    paths = torch.linalg.inv(torch.eye(len(nodes), dtype=torch.float64) - share) - torch.eye(len(nodes))
    expected = paths[nodes.span(NodeKind.LOGIT)]
    found = total_effects(nodes, edges.edges, edges.activations)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(found, share[nodes.span(NodeKind.LOGIT)], rtol=0.1)


def test_total_effects_do_not_depend_on_how_many_edges_are_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    _, edges = traced(replacement_model("llama", "plain"))
    whole = total_effects(edges.nodes, edges.edges, edges.activations)
    monkeypatch.setattr(faithfulness_module, "_EDGES_AT_ONCE", 1)
    torch.testing.assert_close(total_effects(edges.nodes, edges.edges, edges.activations), whole)


@pytest.mark.parametrize("kind", ["plain", "skip", "cross-layer", "kept"])
@pytest.mark.parametrize("name", tiny_models.ALL)
def test_measured_effects_are_those_of_a_second_implementation(name: str, kind: str) -> None:
    rm = replacement_model(name, kind)
    state, edges = traced(rm)
    found = faithfulness(rm, state, edges, FaithfulnessSpec(features=3, curve=(1.0,)))
    second = EditedForward(rm, state)
    before, before_frozen = edited_logits(rm, state.ids, [], "model")[-1], second.logits([])
    rows = iter(found.rows)
    for _ in range(3):
        at_once = [next(rows) for _ in edges.logit_tokens]
        edit = Edit(at_once[0].layer, at_once[0].pos, at_once[0].latent, 0.0, 0.0)
        measured = edited_logits(rm, state.ids, [edit], "model")[-1] - before
        frozen = second.logits([edit]) - before_frozen
        for values, change in (([r.measured for r in at_once], measured), ([r.frozen for r in at_once], frozen)):
            expected = (change - change.mean()).double()[edges.nodes.logits]
            assert (torch.tensor(values) - expected).abs().max() <= 1e-4 * max(1.0, float(expected.abs().max()))
    assert found.slope is not None and found.r2 is not None


def test_the_curve_ends_at_one_and_begins_at_none() -> None:
    rm = replacement_model("llama", "skip")
    state, edges = traced(rm)
    found = faithfulness(rm, state, edges, FaithfulnessSpec(features=1, curve=(0.02, 0.3, 0.6, 1.0)))
    assert [point.share for point in found.curve] == [0.02, 0.3, 0.6, 1.0]
    n = edges.nodes.n_features
    assert [point.features for point in found.curve] == [max(1, round(s * n)) for s in (0.02, 0.3, 0.6, 1.0)]
    last = found.curve[-1]
    assert last.recovered == pytest.approx(1.0, abs=1e-5) and last.recovered_frozen == pytest.approx(1.0, abs=1e-5)
    few = found.curve[0]
    assert few.recovered is not None and few.recovered_frozen is not None
    assert abs(few.recovered_frozen) < 0.6


def test_the_curve_is_that_of_a_second_implementation() -> None:
    rm = replacement_model("gpt_neox", "plain")
    state, edges = traced(rm)
    found = faithfulness(rm, state, edges, FaithfulnessSpec(features=1, curve=(0.3,)))
    second, features = EditedForward(rm, state), edges.nodes.features
    weights = edges.probabilities.double() / edges.probabilities.double().sum()

    def value(kept: Tensor | None) -> float:
        only = {layer: torch.zeros(5, cases.LATENTS) for layer in range(3)}
        for layer, pos, latent in [] if kept is None else kept.tolist():
            only[layer][pos, latent] = 1.0
        logits = second.logits([], only)
        return float((logits - logits.mean())[edges.nodes.logits] @ weights)

    everything = second.logits([])
    whole = float((everything - everything.mean())[edges.nodes.logits] @ weights)
    _, influence, _ = influence_of(edges.nodes, edges.edges, edges.probabilities)
    best = influence[: len(features)].argsort(descending=True, stable=True)[: found.curve[0].features]
    expected = (value(features[best]) - value(None)) / (whole - value(None))
    assert found.curve[0].recovered_frozen == pytest.approx(expected, rel=1e-3, abs=1e-4)


def targets(folder: Path) -> dict[str, Any]:
    width = 32
    vector = np.random.default_rng(0).normal(size=width).astype(np.float32)
    np.save(folder / "direction.npy", vector)
    source = str(folder / "direction.npy")
    return {
        "tokens": TokensTarget(tokens=(5, 9), position=3),
        "difference": DifferenceTarget(difference=(7, 8)),
        "direction": DirectionTarget(direction=source),
        "stream": DirectionTarget(direction=source, at="layers.2.resid_mid"),
        "end of the stream": DirectionTarget(direction=source, at="layers.2.resid_post"),
        "features": FeaturesTarget(
            features=(FeaturePlace(at="layers.2.mlp", latent=3), FeaturePlace(at="layers.1.mlp", latent=5))
        ),
    }


@pytest.mark.parametrize("which", ["tokens", "difference", "direction", "stream", "end of the stream", "features"])
def test_every_target_is_measured_by_its_own_value(which: str, tmp_path: Path) -> None:
    rm = without_thresholds("plain", "llama")
    state, edges = traced(rm, target=targets(tmp_path)[which])
    found = faithfulness(rm, state, edges, SPEC)
    assert found.slope_frozen == pytest.approx(1.0, abs=1e-4) and found.r2_frozen == pytest.approx(1.0, abs=1e-4)
    assert {row.target for row in found.rows} == set(edges.logit_tokens)
    row = max(found.rows, key=lambda row: abs(row.measured))
    assert row.measured == pytest.approx(by_hand(rm, state, row, which, tmp_path), rel=1e-3, abs=1e-5)


def by_hand(rm: ReplacementModel, state: ReplacementState, row: Effect, which: str, folder: Path) -> float:
    """By how much a target moves in the model, when what a feature writes is taken away."""
    transcoder = rm.replacement.transcoders[row.layer]  # type: ignore[attr-defined]
    found = state.features
    place = (found.index == torch.tensor([row.layer, row.pos, row.latent])).all(-1)
    written = (found.activations[place] * transcoder.W_dec[row.latent]).detach()

    def ablate(mlp_out: Tensor, name: str) -> Tensor:
        mlp_out = mlp_out.clone()
        mlp_out[0, row.pos] -= written
        return mlp_out

    @torch.no_grad()
    def read(hooks: dict[str, Any]) -> float:
        names = ["final_norm", "layers.2.resid_mid", "layers.2.resid_post", "layers.1.mlp_in", "layers.2.mlp_in"]
        cache = rm.hooked.run_with_cache(state.ids[None], names, logits=True, hooks=hooks)
        vector = torch.from_numpy(np.load(folder / "direction.npy"))
        logits = {pos: cache.logits[0, pos] - cache.logits[0, pos].mean() for pos in (3, -1)}
        match which:
            case "tokens":
                return float(logits[3][int(row.target.strip("<>"))])
            case "difference":
                return float(logits[-1][7] - logits[-1][8])
            case "features":
                layer, latent = (2, 3) if row.target.startswith("layers.2") else (1, 5)
                encoder = rm.replacement.transcoders[layer]  # type: ignore[attr-defined]
                return float(cache[f"layers.{layer}.mlp_in"][0, -1] @ encoder.W_enc[latent] + encoder.b_enc[latent])
        at = {"direction": "final_norm", "stream": "layers.2.resid_mid", "end of the stream": "layers.2.resid_post"}
        return float(cache[at[which]][0, -1] @ vector)

    return read({f"layers.{row.layer}.mlp_out": ablate}) - read({})


@pytest.mark.parametrize("name", tiny_models.ALL)
def test_in_the_last_layer_the_graph_s_own_read_out_moves_as_predicted(name: str) -> None:
    """Nothing can respond but the target's own norm, which its value goes through and its read-out does not."""
    rm = replacement_model(name, "plain")
    state, edges = traced(rm)
    found = faithfulness(rm, state, edges, FaithfulnessSpec(features=1000, curve=(1.0,)))
    rows = [row for row in found.rows if (row.layer, row.pos) == (state.n_layers - 1, state.n_pos - 1)]
    assert rows
    largest = max(abs(row.predicted) for row in rows)
    assert max(abs(row.readout - row.predicted) for row in rows) <= 1e-4 * largest
    assert max(abs(row.measured - row.predicted) for row in rows) > 0.01 * largest


@pytest.mark.parametrize("which", ["stream", "features"])
def test_read_outs_of_other_targets(which: str, tmp_path: Path) -> None:
    rm = without_thresholds("plain", "gpt_neox" if which == "features" else "llama")
    state, edges = traced(rm, target=targets(tmp_path)[which])
    found = faithfulness(rm, state, edges, SPEC)
    if which == "stream":
        assert (found.slope, found.r2) == pytest.approx((found.slope_readout, found.r2_readout))
    else:
        assert found.slope != pytest.approx(found.slope_readout, rel=1e-3)


def test_a_graph_that_leaves_features_out_recovers_less() -> None:
    rm = replacement_model("llama", "plain")
    state, edges = traced(rm, max_features=20)
    found = faithfulness(rm, state, edges, SPEC)
    assert len({(row.layer, row.pos, row.latent) for row in found.rows}) == 12
    assert found.curve[-1].features == 20 and found.curve[-1].recovered_frozen != pytest.approx(1.0, abs=1e-3)


def test_a_graph_without_features_has_nothing_to_measure() -> None:
    rm = replacement_model("llama", "plain")
    state = rm.build([cases.BOS])
    edges = AttributionComputer(rm).compute_full_graph(state)
    found = faithfulness(rm, state, edges, SPEC)
    assert found.rows == () and found.slope is None and found.r2_frozen is None
    assert [point.recovered for point in found.curve] == [None, None, None]


def test_what_is_found_does_not_depend_on_how_many_rows_run_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rm = replacement_model("split_llama_mlp", "cross-layer")
    state, edges = traced(rm)
    whole = faithfulness(rm, state, edges, SPEC)
    monkeypatch.setattr("interp.circuits.readings._NUMBERS_AT_ONCE", 1)
    one_by_one = faithfulness(rm, state, edges, SPEC)
    for row, alone in zip(whole.rows, one_by_one.rows, strict=True):
        assert (row.measured, row.frozen) == pytest.approx((alone.measured, alone.frozen), abs=1e-5)
    assert [p.recovered for p in whole.curve] == pytest.approx([p.recovered for p in one_by_one.curve], abs=1e-4)


def test_it_is_written_as_json() -> None:
    rm = replacement_model("llama", "plain")
    state, edges = traced(rm)
    found = faithfulness(rm, state, edges, SPEC)
    said = json.loads(json.dumps(found.to_json(), allow_nan=False))
    figures = {f"{figure}{where}" for figure in ("slope", "r2") for where in ("", "_frozen", "_readout")}
    assert set(said) == {*figures, "rows", "curve"}
    assert set(said["rows"][0]) == {
        *("layer", "pos", "latent", "target"),
        *("predicted", "frozen", "measured", "readout"),
    }
    assert Faithfulness(**{**said, "rows": (), "curve": ()}).slope == found.slope


def test_bfloat16_models_can_be_measured() -> None:
    hooked = HookedModel(tiny_models.make("llama").to(torch.bfloat16))
    rm = ReplacementModel(hooked, cases.transcoders(hooked, "relu"))
    state, edges = traced(rm)
    found = faithfulness(rm, state, edges, SPEC)
    assert found.slope_frozen is not None and found.slope is not None and np.isfinite(found.slope)


def test_the_state_must_be_that_of_the_graph() -> None:
    rm = replacement_model("llama", "plain")
    _, edges = traced(rm)
    with pytest.raises(PromptError, match="another prompt"):
        faithfulness(rm, rm.build(cases.prompt(seed=9)), edges, SPEC)
