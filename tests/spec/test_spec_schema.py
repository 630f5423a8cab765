"""The JSON Schema accepts what `load_study` accepts and refuses what an editor can know to be wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from interp.spec.schema import DIALECT, study_schema
from interp.spec.study import Study

SPECS = Path(__file__).resolve().parents[2] / "specs"


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    schema = study_schema()
    assert schema["$schema"] == DIALECT
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def study(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "apiVersion": "interp/v1",
        "kind": "Study",
        "metadata": {"name": "x"},
        "model": {"source": "m"},
        "corpus": {"source": "c", "tokens": "200M", "context": 128, "holdout": 1000},
        "dictionaries": [dictionary()],
        "store": "s",
    }
    return {**base, **changes}


def dictionary(**changes: Any) -> dict[str, Any]:
    base = {"name": "d", "kind": "transcoder", "at": ["layers.*.mlp"], "activation": {"type": "topk", "k": 4}}
    return {**base, **(changes if {"latents", "expansion"} & set(changes) else {"latents": "16K", **changes})}


GOOD = {
    "plain": study(),
    "counts": study(fit={"batch_tokens": "8.192K", "dead_after": "1m"}),
    "at as text": study(dictionaries=[dictionary(at="layers.*.mlp")]),
    "borrowed": study(dictionaries=[{"name": "d", "from": "artifact://x"}]),
    "one width is null": study(dictionaries=[dictionary(expansion=4, latents=None)]),
    "prompts as list": study(trace={"prompts": ["a", "b"]}),
    "prompts as file": study(trace={"prompts": "s3://b/p.jsonl"}),
    "null for all features": study(trace={"prompts": ["a"], "max_features": None}),
    **{
        f"target {target}": study(trace={"prompts": ["a"], "target": target})
        for target in (
            "last-token",
            {"tokens": [" a", 3, {"column": "x"}], "position": -2},
            {"difference": [" a", 3]},
            {"direction": "d.npy", "at": "layers.1.resid_mid", "name": "d"},
            {"features": [{"at": "layers.1.mlp", "latent": 0}]},
        )
    },
    "memory and the rest": study(
        trace={"prompts": "p/*.txt", "memory": "8G", "adjacency": "none", "faithfulness": {"features": 5}}
    ),
    "every activation": study(
        dictionaries=[
            dictionary(name="a", activation={"type": "batchtopk", "k": 1}),
            dictionary(name="b", activation={"type": "relu"}),
            dictionary(name="c", activation={"type": "jumprelu", "l0": 0.1}),
            dictionary(name="e", activation={"type": "gated", "l1": 2}),
        ]
    ),
}
BAD = {
    "unknown key": study(evalaute={}),
    "unknown key deep": study(fit={"batchtokens": 1}),
    "missing": {key: value for key, value in study().items() if key != "store"},
    "wrong version": study(apiVersion="interp/v2"),
    "not a count": study(corpus={"source": "c", "tokens": "200X"}),
    "zero": study(corpus={"source": "c", "tokens": 0}),
    "context of one": study(corpus={"source": "c", "tokens": 10, "context": 1}),
    "share above one": study(fit={"warmup": 1.0}),
    "both widths": study(dictionaries=[dictionary(expansion=4, latents=8)]),
    "no width": study(dictionaries=[{k: v for k, v in dictionary().items() if k != "latents"}]),
    "no place": study(dictionaries=[dictionary(at=[])]),
    "activation of no kind": study(dictionaries=[dictionary(activation={"k": 4})]),
    "activation of two kinds": study(dictionaries=[dictionary(activation={"type": "topk", "k": 4, "l1": 1})]),
    "borrowed and trained": study(dictionaries=[{**dictionary(), "from": "x"}]),
    "name with capitals": study(dictionaries=[dictionary(name="D")]),
    "no prompts": study(trace={"prompts": []}),
    **{
        f"target {target}": study(trace={"prompts": ["a"], "target": target})
        for target in (
            "last_token",
            3,
            None,
            {},
            {"tokens": []},
            {"tokens": [-1]},
            {"tokens": [1.5]},
            {"tokens": [{"colum": "x"}]},
            {"difference": ["a"]},
            {"difference": ["a", "b", "c"]},
            {"tokens": ["a"], "difference": ["a", "b"]},
            {"features": [{"at": "layers.1.mlp"}]},
        )
    },
    "memory with another unit": study(trace={"prompts": ["a"], "memory": "8GB"}),
    "unknown adjacency": study(trace={"prompts": ["a"], "adjacency": "sparse"}),
    "unknown metric": study(evaluate={"metrics": ["accuracy"]}),
}


@pytest.mark.parametrize("name", GOOD)
def test_good_studies(validator: Draft202012Validator, name: str) -> None:
    Study.model_validate(GOOD[name])
    assert [error.message for error in validator.iter_errors(GOOD[name])] == []


@pytest.mark.parametrize("name", BAD)
def test_bad_studies_are_refused_by_both(validator: Draft202012Validator, name: str) -> None:
    with pytest.raises(ValidationError):
        Study.model_validate(BAD[name])
    assert not validator.is_valid(BAD[name])


@pytest.mark.parametrize("path", sorted(SPECS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_examples(validator: Draft202012Validator, path: Path) -> None:
    assert [error.message for error in validator.iter_errors(yaml.safe_load(path.read_text()))] == []


def test_execution_fields_are_told_to_the_reader() -> None:
    fit = study_schema()["$defs"]["FitSpec"]["properties"]
    assert "in no artifact's key" in fit["workers"]["description"]
    assert "in no artifact's key" not in fit["batch_tokens"]["description"]


def test_no_private_keyword_is_left() -> None:
    def keywords(node: Any) -> set[str]:
        inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        own = set(node) if isinstance(node, dict) else set()
        return own.union(*(keywords(value) for value in inner))

    assert not {"discriminator", "interp"} & keywords(study_schema())
