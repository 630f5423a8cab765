"""Interventions, against edges of the graph and against a second implementation, on every family."""

from __future__ import annotations

from typing import Any

import circuit_cases as cases
import pytest
import tiny_models
import torch
from intervention_cases import EditedForward, edited_logits, replacement_model, some_edits
from torch import Tensor

from interp.circuits.attribution import AttributionComputer
from interp.circuits.edits import Edits
from interp.circuits.generate import generate
from interp.circuits.intervene import Intervention, intervene
from interp.circuits.nodes import NodeKind
from interp.circuits.readings import frozen_changes
from interp.circuits.replacement_model import ReplacementModel
from interp.circuits.state import ReplacementState
from interp.circuits.targets import FeatureTargets
from interp.errors import DictionaryError, InterpError, PromptError, SpecError
from interp.wrapper import HookedModel

KINDS = ("plain", "skip", "cross-layer", "kept")
FROZEN_MODES = ("replacement", "frozen")
ITERATED_MODES = ("replacement", "frozen", "model")


def as_interventions(edits: list) -> list[Intervention]:
    return [edit.intervention() for edit in edits]


def demeaned(logits: Tensor) -> Tensor:
    return logits - logits.mean(-1, keepdim=True)


def own_logits(rm: ReplacementModel, ids: Tensor) -> Tensor:
    """The head's output of the model, with its adapters if it has any."""
    return edited_logits(rm, ids, [], "model")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", tiny_models.ALL)
def test_a_direct_effect_is_the_edge_times_the_relative_change(name: str, kind: str) -> None:
    rm = replacement_model(name, kind)
    state = rm.build(cases.prompt())
    graph = AttributionComputer(rm, max_features=None).compute_full_graph(state)
    adjacency = graph.edges.to_sparse(len(graph.nodes)).to_dense().double()
    features, n = graph.nodes.features, graph.nodes.n_features
    values = 3 * torch.rand(n, generator=torch.Generator().manual_seed(0))
    index = torch.cat([torch.arange(n)[:, None], features], dim=1)
    edits = Edits.of(n, index, torch.zeros(n), values)
    relative = ((values - graph.activations) / graph.activations)[:, None].double()
    for targets, span in (
        (graph.targets, graph.nodes.span(NodeKind.LOGIT)),
        (FeatureTargets(state, features), graph.nodes.span(NodeKind.FEATURE)),
    ):
        expected = relative * adjacency[span, :n].T
        gap = (frozen_changes(state, edits, targets, "frozen").double() - expected).abs().max()
        assert gap <= 1e-4 * expected.abs().max()
        assert expected.abs().max() > 0.01


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", tiny_models.ALL)
def test_features_respond_in_the_frozen_model_as_in_a_second_implementation(name: str, kind: str) -> None:
    switched = 0
    for activation, bos in (("relu", "auto"), ("topk", "keep"), ("jumprelu", "auto")):
        rm = replacement_model(name, kind, activation, bos=bos)
        state = rm.build(cases.prompt())
        edits = some_edits(state)
        result = intervene(rm, state, as_interventions(edits))
        second = EditedForward(rm, state)
        expected = second.logits(edits) - second.logits([])
        found = (result.after - result.before)[0].double()
        assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
        direct = intervene(rm, state, as_interventions(edits), mlps="frozen")
        switched += not torch.allclose(direct.after, result.after, rtol=1e-3)
    assert switched > 0


@pytest.mark.parametrize("mlps", ["replacement", "model"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", tiny_models.ALL)
def test_the_model_responds_as_when_it_is_hooked_by_hand(name: str, kind: str, mlps: Any) -> None:
    rm = replacement_model(name, kind, "topk" if kind == "plain" else "relu")
    ids = cases.prompt()
    edits = some_edits(rm.build(ids))
    result = intervene(rm, ids, as_interventions(edits), attention="iterated", mlps=mlps, read="all")
    expected = edited_logits(rm, ids, edits, mlps)
    torch.testing.assert_close(result.after, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(result.after[-1], result.before[-1], atol=1e-3)
    assert [change.after for change in result.features] == pytest.approx(
        [edit.factor * change.before + edit.shift for edit, change in zip(edits, result.features, strict=True)]
    )


@pytest.mark.parametrize("name", tiny_models.ALL)
def test_without_interventions_every_mode_gives_the_model_s_own_logits(name: str) -> None:
    ids = cases.prompt()
    for kind in KINDS:
        rm = replacement_model(name, kind)
        state, expected = rm.build(ids), own_logits(rm, ids)
        # A feature that is set to what it is goes through everything and changes nothing.
        layer, pos, latent = state.features.index[0].tolist()
        same = Intervention(layer, latent, pos, "scale", 1.0)
        for attention, modes in (("frozen", FROZEN_MODES), ("iterated", ITERATED_MODES)):
            for mlps in modes:
                for what in ([], [same]):
                    options: Any = {"attention": attention, "mlps": mlps}
                    result = intervene(rm, state, what, read="all", **options)
                    for logits in (result.before, result.after):
                        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_where_only_the_head_can_respond_all_ways_agree(kind: str) -> None:
    """At the last position of the last layer nothing is left but the final norm, and its denominator hardly moves."""
    rm = replacement_model("gemma2", kind)
    state = rm.build(cases.prompt())
    last = state.features.index[(state.features.index[:, 0] == 2) & (state.features.index[:, 1] == 4)]
    what = [Intervention(2, int(last[0, 2]), -1, "scale", 1.01)]
    frozen = intervene(rm, state, what)
    direct = intervene(rm, state, what, attention="iterated", mlps="frozen").after
    for mlps in ITERATED_MODES:
        result = intervene(rm, state, what, attention="iterated", mlps=mlps)  # type: ignore[arg-type]
        torch.testing.assert_close(result.after, direct, atol=1e-5, rtol=1e-5)
    assert (frozen.after - frozen.before).abs().max() > 1e-3
    assert (direct - frozen.after).abs().max() < 0.2 * (frozen.after - frozen.before).abs().max()


def test_iterated_attention_differs_from_frozen_attention() -> None:
    rm = replacement_model("llama", "plain")
    state = rm.build(cases.prompt())
    what = as_interventions(some_edits(state))
    frozen = intervene(rm, state, what).after
    again = intervene(rm, state, what, attention="iterated", mlps="replacement").after
    by_the_model = intervene(rm, state, what, attention="iterated").after
    assert (again - frozen).abs().max() > 1e-2 and (by_the_model - again).abs().max() > 1e-2
    assert torch.equal(by_the_model, intervene(rm, state, what, attention="iterated", mlps="model").after)


@pytest.mark.parametrize("attention", ["frozen", "iterated"])
def test_nothing_before_the_intervention_changes(attention: Any) -> None:
    rm = replacement_model("qwen2", "cross-layer")
    state = rm.build(cases.prompt(6))
    place = state.features.index[state.features.index[:, 1] == 3][0].tolist()
    result = intervene(rm, state, [Intervention(place[0], place[2], 3)], attention=attention, read="all")
    moved = (result.after - result.before).abs().amax(-1)
    assert moved[:3].max() <= 1e-5 and moved[3:].min() > 1e-4
    some = intervene(rm, state, [Intervention(place[0], place[2], 3)], attention=attention, read=[-1, 3])
    assert some.positions == (5, 3)
    torch.testing.assert_close(some.after, result.after[[5, 3]])


def test_positions_may_be_a_number_a_list_a_slice_or_all() -> None:
    rm = replacement_model("llama", "plain")
    state = rm.build(cases.prompt(6))

    def held(positions: Any) -> list[int]:
        result = intervene(rm, state, [Intervention("layers.1.mlp", 7, positions, "set", 1.0)])
        assert {(change.layer, change.latent, change.after) for change in result.features} == {(1, 7, 1.0)}
        return [change.pos for change in result.features]

    assert held(2) == [2] and held(-1) == [5] and held([1, -2]) == [1, 4]
    # Position 0 is BOS, where MLPs are constant.
    assert held("all") == [1, 2, 3, 4, 5] == held(slice(None))
    assert held(slice(-2, None)) == [4, 5] and held(slice(1, 4, 2)) == [1, 3]


def test_an_intervention_on_a_feature_that_is_not_active_says_that_it_changed_nothing() -> None:
    rm = replacement_model("llama", "plain")
    state = rm.build(cases.prompt())
    active = {tuple(place) for place in state.features.index.tolist()}
    silent = next(latent for latent in range(cases.LATENTS) if (1, 3, latent) not in active)
    loud = next(latent for latent in range(cases.LATENTS) if (1, 3, latent) in active)
    for attention in ("frozen", "iterated"):
        for mode, value in (("ablate", None), ("scale", 4.0)):
            what = Intervention(1, silent, 3, mode, value)  # type: ignore[arg-type]
            result = intervene(rm, state, [what], attention=attention)  # type: ignore[arg-type]
            assert [(c.before, c.after) for c in result.unchanged] == [(0.0, 0.0)]
            torch.testing.assert_close(result.after, result.before, atol=1e-5, rtol=1e-5)
        result = intervene(rm, state, [Intervention(1, loud, 3)], attention=attention)  # type: ignore[arg-type]
        assert result.unchanged == () and result.features[0].before > 0


def test_probabilities_go_through_the_soft_cap() -> None:
    rm = replacement_model("gemma2", "plain")
    ids = cases.prompt()
    before, _ = intervene(rm, ids, [], attention="iterated").probabilities()
    with torch.no_grad():
        torch.testing.assert_close(before[0], rm.hooked.model(ids[None]).logits[0, -1].softmax(-1))


@pytest.mark.parametrize("attention", ["frozen", "iterated"])
def test_bfloat16_models_can_be_intervened_on(attention: Any) -> None:
    hooked = HookedModel(tiny_models.make("llama").to(torch.bfloat16))
    rm = ReplacementModel(hooked, cases.transcoders(hooked, "relu"))
    state = rm.build(cases.prompt())
    same = intervene(rm, state, [], attention=attention)
    assert torch.equal(same.after, same.before)
    result = intervene(rm, state, as_interventions(some_edits(state)), attention=attention)
    assert result.after.dtype == torch.float32 and bool(torch.isfinite(result.after).all())
    assert (result.after - result.before).abs().max() > 0.05


def test_many_features_are_worked_through_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    rm = replacement_model("split_llama_mlp", "cross-layer")
    state = rm.build(cases.prompt(7))
    what = [Intervention(0, latent, "all", "scale", 3.0) for latent in range(cases.LATENTS)]
    whole = [intervene(rm, state, what, attention=attention) for attention in ("frozen", "iterated")]  # type: ignore[arg-type]
    monkeypatch.setattr("interp.circuits.edits._NUMBERS_AT_ONCE", 2 * cases.LATENTS)
    for attention, expected in zip(("frozen", "iterated"), whole, strict=True):
        torch.testing.assert_close(intervene(rm, state, what, attention=attention).after, expected.after)  # type: ignore[arg-type]


# --- generation


def test_the_first_step_of_generation_is_the_intervention_on_the_prompt() -> None:
    rm = replacement_model("llama", "skip")
    ids = cases.prompt()
    what = as_interventions(some_edits(rm.build(ids)))
    for mlps in ITERATED_MODES:
        done = generate(rm, ids, what, 3, mlps=mlps, stop_at_eos=False)  # type: ignore[arg-type]
        first = intervene(rm, ids, what, attention="iterated", mlps=mlps)  # type: ignore[arg-type]
        torch.testing.assert_close(done.before[:1], first.before)
        torch.testing.assert_close(done.after[:1], first.after)
        assert done.new.tolist() == done.after.argmax(-1).tolist() and len(done.new) == 3
        # A later step is the same on a longer prompt.
        later = intervene(rm, done.ids[:-1], what, attention="iterated", mlps=mlps)  # type: ignore[arg-type]
        torch.testing.assert_close(done.after[2:], later.after)


def test_without_interventions_the_model_generates_what_it_always_does() -> None:
    for name in ("gpt2", "gemma2", "split_llama"):
        rm = replacement_model(name, "plain")
        ids = cases.prompt()
        expected = rm.hooked.model.generate(ids[None], max_new_tokens=4, do_sample=False, eos_token_id=None)
        assert generate(rm, ids, [], 4, stop_at_eos=False).ids.tolist() == expected[0].tolist()


def test_interventions_at_all_positions_go_on_through_new_tokens() -> None:
    rm = replacement_model("llama", "plain")
    what = [Intervention(1, 3, "all", "set", 4.0)]
    done = generate(rm, cases.prompt(), what, 3, stop_at_eos=False)
    assert [change.pos for change in done.features] == [1, 2, 3, 4, 5, 6]
    on_the_prompt = generate(rm, cases.prompt(), [Intervention(1, 3, slice(1, 5), "set", 4.0)], 3, stop_at_eos=False)
    assert [change.pos for change in on_the_prompt.features] == [1, 2, 3, 4]
    at_the_end = generate(rm, cases.prompt(), [Intervention(1, 3, -1, "set", 4.0)], 3, stop_at_eos=False)
    assert [change.pos for change in at_the_end.features] == [4]
    later = generate(rm, cases.prompt(), [Intervention(1, 3, 6, "set", 4.0)], 3, stop_at_eos=False)
    torch.testing.assert_close(later.after[:2], later.before[:2])
    assert (later.after[2] - later.before[2]).abs().max() > 1e-3


def test_tokens_are_drawn_by_temperature_and_seed() -> None:
    rm, ids = replacement_model("llama", "plain"), cases.prompt()

    def drawn(**options: Any) -> list[int]:
        return generate(rm, ids, [], 6, stop_at_eos=False, **options).new.tolist()

    assert drawn(temperature=2.0, seed=1) == drawn(temperature=2.0, seed=1)
    assert len({tuple(drawn(temperature=2.0, seed=seed)) for seed in range(4)}) > 1
    assert drawn(temperature=1e-4) == drawn()


def test_generation_stops_at_the_end_of_text() -> None:
    rm, ids = replacement_model("llama", "plain"), cases.prompt()
    first = int(generate(rm, ids, [], 1).new[0])
    rm.hooked.model.config.eos_token_id = first
    assert generate(rm, ids, [], 5).new.tolist() == [first]
    assert len(generate(rm, ids, [], 5, stop_at_eos=False).new) == 5


# --- what cannot be done


def test_what_an_intervention_cannot_be() -> None:
    for mode, value in (("remove", None), ("ablate", 1.0), ("set", None), ("scale", float("nan"))):
        with pytest.raises(SpecError):
            Intervention(0, 1, 2, mode, value)  # type: ignore[arg-type]


WRONG: list[tuple[type[InterpError], str, list[Intervention], dict[str, Any]]] = [
    (DictionaryError, "no such feature", [Intervention(0, cases.LATENTS)], {}),
    (DictionaryError, "no such layer", [Intervention(3, 0)], {}),
    (DictionaryError, "does not have", [Intervention("layers.9.mlp", 0)], {}),
    (PromptError, "not in the prompt", [Intervention(0, 0, 5)], {}),
    (PromptError, "not in the prompt", [Intervention(0, 0, [2, -6])], {}),
    (PromptError, "held constant", [Intervention(0, 0, 0)], {}),
    (PromptError, "no position", [Intervention(0, 0, slice(5, 7))], {}),
    (SpecError, "no positions", [Intervention(0, 0, "some")], {}),  # type: ignore[arg-type]
    (SpecError, "upwards", [Intervention(0, 0, slice(None, None, -1))], {}),
    (SpecError, "hold the same feature", [Intervention(0, 0, "all"), Intervention("layers.0.mlp", 0, 2)], {}),
    (SpecError, "attention cannot", [], {"attention": "free"}),
    (SpecError, "MLPs cannot", [], {"mlps": "free"}),
    (SpecError, "iterated", [], {"mlps": "model"}),
    (PromptError, "no logits", [], {"read": [7]}),
]


@pytest.mark.parametrize(("kind", "says", "interventions", "options"), WRONG, ids=[row[1] for row in WRONG])
def test_what_cannot_be_done_is_said(kind: type, says: str, interventions: list, options: dict[str, Any]) -> None:
    rm = replacement_model("llama", "plain")
    with pytest.raises(kind, match=says):
        intervene(rm, cases.prompt(), interventions, **options)


def test_what_cannot_be_generated_is_said() -> None:
    rm, ids = replacement_model("gpt2", "plain"), cases.prompt()
    with pytest.raises(SpecError, match="frozen attention nothing can be generated"):
        generate(rm, ids, [], 2, attention="frozen")
    with pytest.raises(PromptError, match="longer than the model reads"):
        generate(rm, ids, [], tiny_models.CONTEXT)
    with pytest.raises(PromptError, match="not in the prompt"):
        generate(rm, ids, [Intervention(0, 0, 7)], 2)
    for options in ({"max_new_tokens": 0}, {"max_new_tokens": 1, "temperature": -1.0}):
        with pytest.raises(SpecError):
            generate(rm, ids, [], **options)  # type: ignore[arg-type]


def test_an_mlp_without_a_transcoder_has_no_features_to_hold() -> None:
    hooked = cases.hooked_model("llama")
    rm = ReplacementModel(hooked, {"layers.1.mlp": cases.transcoder(hooked, 1, "relu")})
    with pytest.raises(DictionaryError, match="no features"):
        intervene(rm, cases.prompt(), [Intervention(0, 1, 2)])
    state: ReplacementState = rm.build(cases.prompt())
    edits = some_edits(state)
    assert (intervene(rm, state, as_interventions(edits)).after - own_logits_of(rm)).abs().max() > 1e-3


def own_logits_of(rm: ReplacementModel) -> Tensor:
    return intervene(rm, cases.prompt(), [], attention="iterated").before
