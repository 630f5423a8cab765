"""Keys: the same on every machine, moved by everything that changes a result and by nothing else."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from plan_cases import LLAMA, borrowed, revisions, study

from interp.plan import VERSIONS, make_plan
from interp.plan.keys import differences, stage_key
from interp.sources.prompts import Prompt
from interp.spec.base import EXECUTION, SpecModel
from interp.spec.study import Study
from interp.spec.trace import FaithfulnessSpec

GOLDEN = Path(__file__).parent / "golden_plan.json"

Path_ = tuple[str | int, ...]

# Fields whose value is in no key although they are not marked EXECUTION: names that people give, and references whose
# content is in the key instead, as a revision (`test_every_revision_is_in_a_key`).
REPLACED = {
    ("metadata", "name"),
    ("metadata", "description"),
    *((part, field) for part in ("model", "corpus") for field in ("source", "revision")),
    ("model", "tokenizer"),
    ("corpus", "format"),
    ("trace", "prompts"),
    ("trace", "column"),
}

CHOSEN: dict[Path_, Any] = {
    ("model", "family"): "mistral",
    ("dictionaries", 0, "at"): ("layers.[12].mlp",),
    ("dictionaries", 1, "at"): ("layers.2.resid_post",),
    ("dictionaries", 2, "at"): ("layers.3.mlp",),
    ("dictionaries", 0, "kind"): "transcoder",
    ("dictionaries", 1, "kind"): None,  # what is no SAE cannot be at this place
    ("dictionaries", 2, "kind"): "skip-transcoder",
    ("trace", "dictionaries"): "wide",
    ("trace", "target"): "last-token",
    ("trace", "faithfulness"): FaithfulnessSpec(),
    ("evaluate", "metrics"): ("fvu",),
}
"""Other values for fields where any would not do."""


def keys(of: Study, **changes: Any) -> dict[str, str]:
    return {stage.stage: stage.key for stage in make_plan(of, None, revisions(**changes)).stages}


def fields(model: SpecModel, path: Path_ = ()) -> Iterator[tuple[Path_, Any, bool]]:
    """(path, another value, whether it or something above it is EXECUTION) of every field below a model."""
    for name, field in type(model).model_fields.items():
        value, here = getattr(model, name), (*path, name)
        if value is None and name in ("expansion", "latents"):
            continue  # exactly one of the two is given
        execution = field.json_schema_extra == EXECUTION
        inner = value if isinstance(value, tuple) else (value,)
        if all(isinstance(item, SpecModel) for item in inner) and inner:
            for index, item in enumerate(inner):
                for found, other, below in fields(item, (*here, index) if isinstance(value, tuple) else here):
                    yield found, other, below or execution
        elif (other := CHOSEN[here] if here in CHOSEN else _other(value, field.annotation)) is not None:
            yield here, other, execution


def _other(value: Any, annotation: Any) -> Any:
    """A value of the same kind that is not this one; None if there is none."""
    if get_origin(annotation) is Literal:
        return next((choice for choice in get_args(annotation) if choice != value), None)
    if value is None:
        inner = next(part for part in get_args(annotation) if part is not type(None))
        return (
            _other({int: 6, float: 0.25, str: "x"}.get(inner), inner)
            if get_origin(inner) is None
            else _other(None, inner)
        )
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value * 2 if value else 1
    return f"{value}x" if isinstance(value, str) else (*value, "x")


def replaced(model: Any, path: Path_, value: Any) -> Any:
    """The study with one field changed, unchecked."""
    head, rest = path[0], path[1:]
    if isinstance(model, tuple):
        assert isinstance(head, int)
        return (*model[:head], replaced(model[head], rest, value), *model[head + 1 :])
    new = replaced(getattr(model, str(head)), rest, value) if rest else value
    return model.model_copy(update={str(head): new})


FIELDS = {path: (other, execution) for path, other, execution in fields(study())}


def test_the_walk_sees_the_whole_study() -> None:
    assert {
        ("fit", "lr"),
        ("fit", "workers"),
        ("trace", "actors", "max"),
        ("dictionaries", 0, "activation", "k"),
    } <= set(FIELDS)
    assert set(FIELDS) >= REPLACED
    assert len(FIELDS) > 55


@pytest.mark.parametrize("path", FIELDS, ids=lambda path: ".".join(map(str, path)))
def test_a_field_moves_a_key_if_and_only_if_it_changes_a_result(path: Path_) -> None:
    other, execution = FIELDS[path]
    changed = replaced(study(), path, other)
    assert changed != study()
    moves = keys(changed) != keys(study())
    assert moves == (not execution and path not in REPLACED)


@pytest.mark.parametrize(
    ("change", "moved"),
    [
        ({"model": dataclasses.replace(revisions().model, revision="9" * 64)}, {"fit", "evaluate", "trace"}),
        ({"model": dataclasses.replace(revisions().model, path="/elsewhere")}, set()),
        ({"tokenizer": "9" * 64}, {"corpus", "fit", "evaluate", "trace"}),
        ({"corpus": "9" * 64}, {"corpus", "fit", "evaluate", "trace"}),
        ({"prompts": (Prompt.of(0, "other"),)}, {"trace"}),
        ({"prompts": (*revisions().prompts[:2], Prompt.of(2, "", "no JSON"))}, {"trace"}),
        ({"prompts": (*revisions().prompts[:2], Prompt.of(2, "", row={"good": 1}))}, {"trace"}),
        ({"borrowed": (borrowed(),)}, {"evaluate", "trace"}),
        ({"borrowed": (borrowed(kind="folder"),)}, {"evaluate", "trace"}),
    ],
    ids=[
        "model",
        "model's path",
        "tokenizer",
        "corpus",
        "prompts",
        "a bad prompt's reason",
        "a row",
        "borrowed",
        "folder",
    ],
)
def test_every_revision_is_in_a_key(change: dict[str, Any], moved: set[str]) -> None:
    before, after = keys(study()), keys(study(), **change)
    assert {stage for stage in before if before[stage] != after[stage]} == moved


def test_a_direction_is_in_the_key_by_what_it_is_and_not_by_where() -> None:
    def traced(path: str, **target: Any) -> Study:
        return study(trace={"prompts": ["one"], "dictionaries": "mlp", "target": {"direction": path, **target}})

    before = keys(traced("/a.npy"), direction="5" * 64)
    assert keys(traced("/b.npy"), direction="5" * 64) == before
    for after in (
        keys(traced("/a.npy"), direction="6" * 64),
        keys(traced("/a.npy", at="layers.1.resid_post"), direction="5" * 64),
    ):
        assert {stage for stage in before if before[stage] != after[stage]} == {"trace"}


@pytest.mark.parametrize("kind", ["artifact", "folder"])
def test_the_content_of_borrowed_dictionaries_is_in_the_keys_of_what_uses_them(kind: str) -> None:
    before = keys(study(), borrowed=(borrowed(kind=kind),))
    after = keys(study(), borrowed=(borrowed(kind=kind, key="5" * 64),))
    assert {stage for stage in before if before[stage] != after[stage]} == {"evaluate", "trace"}


def test_what_moves_a_key_moves_those_behind_it() -> None:
    before = keys(study())
    for changed, moved in (
        (study(seed=1), {"corpus", "fit", "evaluate", "trace"}),
        (study(fit={"batch_tokens": 2048, "lr": 0.002, "clip_norm": 1.0}), {"fit", "evaluate", "trace"}),
        (study(evaluate={"tokens": 1024}), {"evaluate"}),
        (study(trace={"prompts": ["one"], "dictionaries": "mlp", "max_features": 5}), {"trace"}),
    ):
        after = keys(changed)
        assert {stage for stage in before if before[stage] != after[stage]} == moved


def test_two_spellings_of_one_study_have_one_key() -> None:
    plain = study().model_dump(by_alias=True)
    mlp, resid, wide = (dict(dictionary) for dictionary in plain["dictionaries"])
    mlp |= {"at": [f"layers.{i}.mlp" for i in (3, 1, 0, 2)], "expansion": None, "latents": 256}
    resid |= {"at": ["blocks.1.hook_resid_post"]}
    spelled = study(dictionaries=[mlp, resid, wide], model={**plain["model"], "family": "llama"})
    assert keys(spelled) == keys(study())
    micro = study(fit={"batch_tokens": "2.048K", "micro_tokens": 1024, "lr": 1e-3, "clip_norm": 1})
    assert keys(micro) == keys(study())


def test_a_version_of_a_stage_moves_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = keys(study())
    monkeypatch.setitem(VERSIONS, "fit", VERSIONS["fit"] + 1)
    after = keys(study())
    assert {stage for stage in before if before[stage] != after[stage]} == {"fit", "evaluate", "trace"}


def test_golden_keys() -> None:
    """If this fails, artifacts that people have are no longer found.

    That is right where results change: raise the stage's version and write the golden file anew by running this module.
    """
    found, golden = _stages(), json.loads(GOLDEN.read_text("utf-8"))
    told = [f"{stage}: {line}" for stage in golden for line in differences(golden[stage], found.get(stage, {}))]
    assert found == golden, "\n".join(["the keys of a fixed study have changed:", *told])


def test_the_golden_specs_hold_no_path_and_no_execution() -> None:
    text = GOLDEN.read_text("utf-8")
    for absent in ("/models", "/corpus", "/store", "golden", "words", "workers", "actors", "checkpoint", "harvesters"):
        assert f'"{absent}' not in text


def test_differences_are_told_by_path() -> None:
    old = {"fit": {"lr": 0.1, "gone": 1}, "list": [1, {"a": 2}], "same": None}
    new = {"fit": {"lr": 0.2, "come": 1.0}, "list": [1, {"a": 3}], "same": None}
    assert differences(old, new) == [
        "fit.come: only in the new: 1.0",
        "fit.gone: only in the old: 1",
        "fit.lr: 0.1 -> 0.2",
        "list[1].a: 2 -> 3",
    ]


def test_a_key_is_of_all_its_parts() -> None:
    parts = [
        ("fit", 1, {}, {}),
        ("fit", 2, {}, {}),
        ("trace", 1, {}, {}),
        ("fit", 1, {"a": 1}, {}),
        ("fit", 1, {}, {"a": "1"}),
    ]
    assert len({stage_key(*part) for part in parts}) == len(parts)


def test_the_model_of_these_cases_has_the_shape_they_need() -> None:
    assert LLAMA["num_hidden_layers"] == 4


def _stages() -> dict[str, Any]:
    made = make_plan(study(), None, revisions())
    return {s.stage: {"key": s.key, "version": s.version, "spec": s.spec, "inputs": s.inputs} for s in made.stages}


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(_stages(), indent=1, sort_keys=True) + "\n", "utf-8")
