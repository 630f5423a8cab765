"""From a study to its stages: which there are, what they read, what is cached, and what stops a plan."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from plan_cases import LLAMA, STUDY, borrowed, revisions, study

from interp.errors import ArtifactMissing, DictionaryError, HookError, ModelMismatch, SourceError, SpecError
from interp.plan import Plan, make_plan, places_in, shape_of
from interp.plan.revisions import find_revisions, pinned
from interp.store import Store


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERP_CACHE_DIR", str(tmp_path / "cache"))


def without(*parts: str, **changes: Any) -> Any:
    return study(**{**changes, **{part: () if part == "dictionaries" else None for part in parts}})


def stages(of: Any, **changes: Any) -> dict[str, dict[str, str]]:
    made = make_plan(of, None, revisions(**changes))
    names = {stage.key: stage.stage for stage in made.stages}
    return {s.stage: {role: names.get(key, key) for role, key in s.inputs.items()} for s in made.stages}


def test_all_stages_and_what_they_read() -> None:
    assert stages(study()) == {
        "corpus": {},
        "fit": {"corpus": "corpus"},
        "evaluate": {"corpus": "corpus", "fit": "fit"},
        "trace": {"fit": "fit"},
    }


def test_parts_may_be_absent() -> None:
    assert list(stages(without("evaluate", "trace"))) == ["corpus", "fit"]
    assert list(stages(without("evaluate", "trace", "dictionaries"))) == ["corpus"]


def test_borrowed_dictionaries_need_no_fit_and_a_trace_of_them_no_corpus() -> None:
    lent = [{"name": "mlp", "from": "artifact://" + "4" * 64}]
    found = stages(study(dictionaries=lent), borrowed=(borrowed(),))
    assert found == {
        "corpus": {},
        "evaluate": {"corpus": "corpus", "dictionaries.mlp": "4" * 64},
        "trace": {"dictionaries.mlp": "4" * 64},
    }
    assert list(stages(without("evaluate", dictionaries=lent), borrowed=(borrowed(),))) == ["trace"]


def test_trained_beside_borrowed() -> None:
    lent = [{"name": "old", "from": "/folder"}, *STUDY["dictionaries"]]
    found = make_plan(study(dictionaries=lent), None, revisions(borrowed=(borrowed(name="old", kind="folder"),)))
    evaluate = found.stage("evaluate")
    assert evaluate is not None and set(evaluate.inputs) == {"corpus", "fit"}
    assert evaluate.spec["dictionaries"][0] == {"name": "old", "from": "folder", "content": "4" * 64}
    trace = found.stage("trace")
    assert trace is not None and trace.spec["dictionaries"] == {"name": "mlp", "from": "fit"}


def test_the_fit_names_every_place_with_its_latents() -> None:
    fit = make_plan(study(), None, revisions()).stage("fit")
    assert fit is not None
    places = {d["name"]: [(p["at"], p["latents"]) for p in d["places"]] for d in fit.spec["dictionaries"]}
    assert places == {
        "mlp": [(f"layers.{i}.mlp", 4 * 64) for i in range(4)],
        "resid": [("layers.1.resid_post", 512)],
        "wide": [("layers.0.mlp", 300), ("layers.1.mlp", 300)],
    }


def test_a_cross_layer_transcoder_is_planned_with_its_places() -> None:
    clt = {**STUDY["dictionaries"][0], "kind": "cross-layer-transcoder"}
    made = make_plan(study(dictionaries=[clt]), None, revisions())
    fit = made.stage("fit")
    assert fit is not None
    (found,) = fit.spec["dictionaries"]
    assert found["kind"] == "cross-layer-transcoder"
    assert found["places"] == [{"at": f"layers.{i}.mlp", "latents": 256} for i in range(4)]
    assert Plan.from_json(made.to_json()) == made
    again = make_plan(study(dictionaries=[{**clt, "at": "layers.[0-2].mlp"}]), None, revisions()).stage("fit")
    assert again is not None and again.key != fit.key


def test_prompts_are_in_the_spec_of_the_trace_bad_ones_with_their_reason() -> None:
    trace = make_plan(study(), None, revisions()).stage("trace")
    assert trace is not None
    assert [prompt["text"] for prompt in trace.spec["prompts"]] == ["one", "two", ""]
    assert "error" not in trace.spec["prompts"][0]
    assert trace.spec["prompts"][2]["error"] == "the prompt is empty"


def test_what_the_store_has_is_cached() -> None:
    store = Store.open("memory://plan-cached")
    made = make_plan(study(), store, revisions())
    assert not any(stage.cached for stage in made.stages)
    corpus = made.stages[0]
    with store.create("corpus", corpus.key, spec=corpus.spec, inputs=corpus.inputs) as writer:
        writer.write("x", b"1")
    again = make_plan(study(), store, revisions())
    assert [stage.cached for stage in again.stages] == [True, False, False, False]
    assert [stage.stage for stage in again.to_do] == ["fit", "evaluate", "trace"]
    assert make_plan(study(seed=1), store, revisions()).stages[0].cached is False


@pytest.mark.parametrize(
    ("dictionary", "told"),
    [
        ({"at": "layers.*.mlps"}, "did you mean layers.*.mlp?"),
        ({"at": "layers.7.mlp"}, "layers.{0..3}"),
        ({"at": "layers.0.mlp_in"}, "layers.0.mlp"),
        ({"kind": "sae", "at": "layers.0.mlp"}, "mlp_in"),
        ({"kind": "sae", "at": "layers.0.attn_pattern"}, "no SAE can be trained"),
        ({"kind": "sae", "at": "logits"}, "no SAE can be trained"),
    ],
)
def test_places_that_the_model_does_not_have(dictionary: dict[str, Any], told: str) -> None:
    wrong = {**STUDY["dictionaries"][0], **dictionary}
    with pytest.raises(HookError) as caught:
        make_plan(without("evaluate", "trace", dictionaries=[wrong]), None, revisions())
    assert told in str(caught.value) and "'mlp'" in str(caught.value)


def test_a_parallel_model_has_no_resid_mid() -> None:
    neox = {
        "model_type": "gpt_neox",
        "hidden_size": 8,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "vocab_size": 9,
    }
    sae = [{**STUDY["dictionaries"][1], "at": "layers.0.resid_mid"}]
    of = without("evaluate", "trace", dictionaries=sae)
    model = dataclasses.replace(revisions().model, config=neox)
    with pytest.raises(HookError):
        make_plan(of, None, revisions(model=model))
    serial = dataclasses.replace(model, config={**neox, "use_parallel_residual": False})
    assert make_plan(of, None, revisions(model=serial)).stages


def test_fewer_latents_than_are_active() -> None:
    small = {**STUDY["dictionaries"][0], "activation": {"type": "topk", "k": 300}}
    with pytest.raises(SpecError, match="fewer latents"):
        make_plan(study(dictionaries=[small]), None, revisions())


def test_a_plan_is_read_back_as_it_was_written() -> None:
    made = make_plan(study(), None, revisions())
    again = Plan.from_json(made.to_json())
    assert again == made
    assert again.to_json() == made.to_json()
    assert again.study == study()


def test_a_borrowing_plan_is_read_back_too() -> None:
    lent = [{"name": "mlp", "from": "artifact://" + "4" * 64}]
    made = make_plan(study(dictionaries=lent), None, revisions(borrowed=(borrowed(),)))
    assert Plan.from_json(made.to_json()) == made
    trace = made.stage("trace")
    assert trace is not None and trace.input_artifacts() == {"dictionaries.mlp": ("fit", "4" * 64)}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda plan: plan["stages"][1]["spec"]["fit"].update(lr=0.5), "the plan was changed"),
        (lambda plan: plan["stages"][1]["inputs"].update(corpus="0" * 64), "the plan was changed"),
        (lambda plan: plan["stages"][0].update(version=99), "another version of interp"),
        (lambda plan: plan["stages"][0].update(stage="bake"), "another version of interp"),
        (lambda plan: plan["stages"][0].pop("spec"), "no plan"),
        (lambda plan: plan["study"].pop("model"), "no plan"),
        (lambda plan: plan.update(format="interp/plan/v0"), "no plan"),
    ],
)
def test_a_plan_that_was_changed_is_refused(change: Any, told: str) -> None:
    data = json.loads(make_plan(study(), None, revisions()).to_json())
    change(data)
    with pytest.raises(SpecError, match=told):
        Plan.from_json(json.dumps(data))


def test_hub_sources_are_pinned_to_the_commit_that_was_planned() -> None:
    corpus = {**STUDY["corpus"], "source": "hf://org/data", "revision": "main"}
    of = study(corpus=corpus, model={"source": "hf://org/name", "revision": "main"})
    model = dataclasses.replace(revisions().model, kind="hub", path="org/name", revision="c" * 40)
    made = make_plan(of, None, revisions(model=model, corpus="d" * 40))
    assert (made.study.model.revision, made.study.corpus.revision) == ("c" * 40, "d" * 40)
    again = make_plan(made.study, None, revisions(model=model, corpus="d" * 40))
    assert [stage.key for stage in again.stages] == [stage.key for stage in made.stages]
    assert pinned(study(), revisions()) == study()


# --- looking revisions up


@pytest.fixture
def lending(tmp_path: Path) -> tuple[Store, str, Path]:
    """A store with a fit artifact, its key, and the checkpoint it belongs to."""
    checkpoint = tmp_path / "model"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text(json.dumps(LLAMA))
    (checkpoint / "model.safetensors").write_bytes(b"w")
    (checkpoint / "tokenizer.json").write_text("{}")
    (tmp_path / "corpus.txt").write_text("text")
    store = Store.open(f"memory://lending-{tmp_path.name}")
    lender = without("evaluate", "trace", model={"source": str(checkpoint)})
    lender = lender.model_copy(
        update={"corpus": lender.corpus.model_copy(update={"source": str(tmp_path / "corpus.txt")})}
    )
    fit = make_plan(lender, store).stages[-1]
    with store.create("fit", fit.key, spec=fit.spec, inputs=fit.inputs) as writer:
        writer.write("x", b"1")
    return store, fit.key, checkpoint


def borrower(lending: tuple[Store, str, Path], name: str = "mlp", source: str | None = None) -> Any:
    _, key, checkpoint = lending
    return study(
        model={"source": str(checkpoint)},
        corpus={**STUDY["corpus"], "source": str(checkpoint.parent / "corpus.txt")},
        dictionaries=[{"name": name, "from": source or f"artifact://{key}"}],
        evaluate=None,
        trace={"prompts": ["one"]},
    )


def test_a_borrowed_artifact_is_found_by_the_first_characters_of_its_key(lending: tuple[Store, str, Path]) -> None:
    store, key, _ = lending
    short = make_plan(borrower(lending, source=f"artifact://{key[:12]}"), store)
    whole = make_plan(borrower(lending), store)
    assert [stage.key for stage in short.stages] == [stage.key for stage in whole.stages]
    trace = whole.stage("trace")
    assert trace is not None and trace.inputs == {"dictionaries.mlp": key}
    assert trace.cost.flops > 0
    assert make_plan(borrower(lending), None).stages[0].key == trace.key
    with pytest.raises(SpecError, match="first characters"):
        make_plan(borrower(lending, source=f"artifact://{key[:12]}"), None)


def test_borrowing_what_is_not_there(lending: tuple[Store, str, Path]) -> None:
    store, _, _ = lending
    with pytest.raises(ArtifactMissing):
        make_plan(borrower(lending, source="artifact://" + "0" * 64), store)
    with pytest.raises(DictionaryError, match="mlp, resid, wide"):
        make_plan(borrower(lending, name="other"), store)
    with pytest.raises(SourceError):
        make_plan(borrower(lending, source="/no/such/folder"), store)
    with pytest.raises(SpecError, match="cannot come from there"):
        make_plan(borrower(lending, source="s3://bucket/dictionaries"), store)


def test_dictionaries_of_another_model_are_refused_before_anything_runs(lending: tuple[Store, str, Path]) -> None:
    store, _, checkpoint = lending
    (checkpoint / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(ModelMismatch, match="another model"):
        make_plan(borrower(lending), store)


def test_a_wrong_place_is_told_before_weights_are_read(
    lending: tuple[Store, str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from interp.sources import memo

    monkeypatch.setattr(memo, "_sha256", lambda *args: pytest.fail("a file was hashed"))
    wrong = [{**STUDY["dictionaries"][0], "at": "layers.9.mlp"}]
    of = study(model={"source": str(lending[2])}, dictionaries=wrong, evaluate=None, trace=None)
    with pytest.raises(HookError):
        make_plan(of, None)


def test_revisions_of_what_a_study_reads(lending: tuple[Store, str, Path]) -> None:
    store, key, _ = lending
    found = find_revisions(borrower(lending), store)
    assert found.borrowed[0].key == key
    assert [prompt.text for prompt in found.prompts] == ["one"]
    assert len({found.model.revision, found.tokenizer, found.corpus}) == 3


def test_every_dictionary_of_a_sweep_that_has_too_few_latents_is_named() -> None:
    """256 dimensions at 1 and 2 latents each."""
    one = {**STUDY["dictionaries"][0], "name": "mlp", "activation": {"type": "topk", "k": [8, 9999]}}
    one = {**{key: value for key, value in one.items() if key != "latents"}, "expansion": [1, 2]}
    with pytest.raises(SpecError, match=r"fewer latents than are active") as told:
        places_in(without("trace", dictionaries=[one]), shape_of(LLAMA))
    assert "mlp-k9999-x1 at" in str(told.value) and "mlp-k9999-x2 at" in str(told.value)
    assert "mlp-k8" not in str(told.value) and "and 3 more" in str(told.value)
