"""Sweeps: which dictionaries a list makes, what they are called, and that errors are told of what the user wrote."""

from __future__ import annotations

from typing import Any

import pytest
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from interp.errors import SpecError
from interp.spec.loading import StudyFileError, parse_study, study_of
from interp.spec.schema import study_schema
from interp.spec.study import Study
from interp.spec.sweep import LONGEST_NAME, expand

TEXT = """\
apiVersion: interp/v1
kind: Study
metadata: {name: good}
model: {source: m}
corpus: {source: c, tokens: 1M}
dictionaries:
  - {name: other, kind: sae, at: embed, activation: {type: topk, k: 4}, latents: 64}
  - name: mlp
    kind: transcoder
    at: "layers.*.mlp"
    activation:
      type: TYPE
      KEY
    WIDTH
store: s
"""


def text(key: str = "k: [16, 32]", width: str = "expansion: [8, 4]", kind: str = "topk", more: str = "") -> str:
    return TEXT.replace("TYPE", kind).replace("KEY", key).replace("WIDTH", width) + more


def names(study: Study) -> list[str]:
    return [dictionary.name for dictionary in study.dictionaries]


def problems(source: str) -> list[tuple[str, int | None, str]]:
    with pytest.raises(StudyFileError) as caught:
        parse_study(source, "study.yaml")
    return [(problem.path, problem.line, str(problem)) for problem in caught.value.problems]


def test_every_combination_is_a_dictionary_the_first_key_varying_slowest() -> None:
    study = parse_study(text())
    assert names(study) == ["other", "mlp-k16-x8", "mlp-k16-x4", "mlp-k32-x8", "mlp-k32-x4"]
    made = [(d.activation.k, d.expansion) for d in study.trained[1:]]  # type: ignore[union-attr]
    assert made == [(16, 8), (16, 4), (32, 8), (32, 4)]
    assert {d.at for d in study.trained[1:]} == {("layers.*.mlp",)}


@pytest.mark.parametrize(
    ("kind", "key", "width", "expected"),
    [
        ("relu", "l1: [0.5, 1e-6, 5.0, 12.25]", "latents: 4096", ["l1-0p5", "l1-1e-06", "l1-5", "l1-12p25"]),
        ("gated", "l1: [1, 2.5]", "latents: [4K, 4096]", ["l1-1-n4000", "l1-1-n4096", "l1-2p5-n4000", "l1-2p5-n4096"]),
        ("jumprelu", "l0: [0.01, 1]", "expansion: 2", ["l0-0p01", "l0-1"]),
        ("batchtopk", "k: 8", "expansion: [2, 1.2K]", ["x2", "x1200"]),
        ("topk", "k: [8]", "expansion: 2", ["k8"]),
    ],
)
def test_names_tell_the_values(kind: str, key: str, width: str, expected: list[str]) -> None:
    assert names(parse_study(text(key, width, kind)))[1:] == [f"mlp-{suffix}" for suffix in expected]


def test_a_value_without_a_list_is_no_sweep() -> None:
    assert names(parse_study(text("k: 8", "expansion: 2"))) == ["other", "mlp"]


def plain(**changes: Any) -> dict[str, Any]:
    one = {"name": "mlp", "kind": "transcoder", "at": "layers.*.mlp", "activation": {"type": "topk", "k": [8, 16]}}
    study = {"apiVersion": "interp/v1", "kind": "Study", "metadata": {"name": "x"}, "model": {"source": "m"}}
    corpus = {"source": "c", "tokens": "1M"}
    return {**study, "corpus": corpus, "dictionaries": [{**one, "expansion": 4, **changes}], "store": "s"}


def test_python_data_is_expanded_too_and_what_is_written_out_is_expanded() -> None:
    data = plain(activation={"type": "topk", "k": (8, 16)})
    made = [Study.model_validate(data), Study(**data), study_of(data, "data")]
    assert [names(study) for study in made] == [["mlp-k8", "mlp-k16"]] * 3
    assert data == plain(activation={"type": "topk", "k": (8, 16)})  # the caller's own is as it was
    written = made[0].model_dump(mode="json", by_alias=True, exclude_unset=True)
    assert [one["name"] for one in written["dictionaries"]] == ["mlp-k8", "mlp-k16"]
    assert Study.model_validate(written) == Study.model_validate_json(made[0].model_dump_json(by_alias=True)) == made[0]


def test_a_sweep_is_the_study_that_names_its_dictionaries_one_by_one() -> None:
    one, other = ({**plain()["dictionaries"][0], "activation": {"type": "topk", "k": k}} for k in (8, 16))
    by_hand = {**plain(), "dictionaries": [{**one, "name": "mlp-k8"}, {**other, "name": "mlp-k16"}]}
    assert Study.model_validate(by_hand) == Study.model_validate(plain())


@pytest.mark.parametrize(
    ("key", "width", "found"),
    [
        ("k: [32, 0]", "expansion: 8", [("dictionaries[1].activation.k[1]", 13, "at least 1")]),
        ("k: [32, 0]", "expansion: [8, 4]", [("dictionaries[1].activation.k[1]", 13, "found:    0")]),
        ("k: [many, 2, null]", "expansion: 8", [
            ("dictionaries[1].activation.k[0]", 13, "found:    many"),
            ("dictionaries[1].activation.k[2]", 13, "found:    null"),
        ]),
        ("k: [true]", "expansion: 8", [("dictionaries[1].activation.k[0]", 13, "not true or false")]),
        ("k: [1.5, 2]", "expansion: 8", [("dictionaries[1].activation.k[0]", 13, "a whole number")]),
        ("k: [8, 16]", "expansion: [2, -1]", [("dictionaries[1].expansion[1]", 14, "at least 1")]),
        (
            "k: [8, 100]",
            "latents: [50, 60]",
            [
                ("dictionaries[1].activation.k[1]", 13, "activation.k=100 is more than latents=50"),
                ("dictionaries[1].activation.k[1]", 13, "activation.k=100 is more than latents=60"),
            ],
        ),
        ("k: []", "expansion: 8", [("dictionaries[1].activation.k", 13, "an empty list makes no dictionary")]),
        ("k: [8, 4, 8]", "expansion: 8", [("dictionaries[1].activation.k[2]", 13, "stands twice in the list: 8")]),
        ("k: [4K, 4000]", "latents: 8K", [("dictionaries[1].activation.k[1]", 13, "stands twice in the list: 4000")]),
        ("k: [[8], 4]", "expansion: 8", [("dictionaries[1].activation.k[0]", 13, "a value belongs here, not a list")]),
        ("k: [8, 4]\n      l1: 3", "expansion: 8", [("dictionaries[1].activation.l1", 14, "unknown key")]),
        ("l1: [8, 4]\n      k: 3", "expansion: 8", [("dictionaries[1].activation.l1", 13, "unknown key")]),
        ("k: [8, 4]", "expansion: [8, 4]\n    wdth: 3", [("dictionaries[1].wdth", 15, "unknown key")]),
        ("k: [8, 4]", "kimd: sae", [("dictionaries[1].kimd", 14, "unknown key")]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_once_where_the_user_wrote_it(
    key: str, width: str, found: list[tuple[str, int, str]]
) -> None:
    told = problems(text(key, width))
    assert [(path, line) for path, line, _ in told] == [(path, line) for path, line, _ in found]
    for (_, _, message), (_, _, expected) in zip(told, found, strict=True):
        assert expected in message and "-k" not in message


def test_names_that_are_wrong_or_too_long() -> None:
    [(path, line, told)] = problems(text().replace("name: mlp", "name: MLP"))
    assert (path, line) == ("dictionaries[1].name", 8) and "found:    MLP\n" in told
    [(path, line, told)] = problems(text().replace("name: mlp", "name: " + "m" * LONGEST_NAME))
    assert (path, line) == ("dictionaries[1].name", 8) and f"at most {LONGEST_NAME}" in told
    [(path, _, told)] = problems(text().replace("name: other", "name: mlp-k16-x4"))
    assert path == "dictionaries[1].name" and "two dictionaries are named 'mlp-k16-x4'" in told


def test_a_trace_is_told_which_names_there_are() -> None:
    [(path, line, told)] = problems(text(more="trace: {prompts: [a], dictionaries: mlp}\n"))
    assert (path, line) == ("trace.dictionaries", 16)
    assert "'mlp-k16-x8', 'mlp-k16-x4', 'mlp-k32-x8', 'mlp-k32-x4'" in told and "a trace uses one" in told
    study = parse_study(text(more="trace: {prompts: [a], dictionaries: mlp-k32-x4}\n"))
    assert study.traced is not None and study.traced.name == "mlp-k32-x4"


def test_errors_of_plain_data_name_the_user_s_path() -> None:
    with pytest.raises(SpecError, match=r"dictionaries\[0\]\.activation\.k\[1\]"):
        study_of(plain(activation={"type": "topk", "k": [4, 0]}), "the command line")
    with pytest.raises(ValidationError, match="an empty list"):
        Study.model_validate(plain(expansion=[]))


def test_borrowed_dictionaries_and_what_is_no_study_stay_as_they_are() -> None:
    for data in (None, [], {"dictionaries": 3}, {"dictionaries": [None, "x", {"from": "x", "latents": [1]}]}):
        assert expand(data).data is data


def test_the_schema_takes_lists_where_a_sweep_is() -> None:
    validator = Draft202012Validator(study_schema())
    good: list[dict[str, Any]] = [
        {},
        {"expansion": [4, "1K"]},
        {"expansion": None, "latents": ["4K", 80]},
        {"activation": {"type": "relu", "l1": [0.5, 1]}},
        {"activation": {"type": "jumprelu", "l0": [1]}},
    ]
    bad: list[dict[str, Any]] = [
        {"activation": {"type": "topk", "k": []}},
        {"activation": {"type": "topk", "k": [0]}},
        {"activation": {"type": "topk", "k": [4, 4]}},
        {"activation": {"type": "jumprelu", "threshold": [1]}},
        {"expansion": [None]},
        {"kind": ["sae"]},
    ]
    assert [[e.message for e in validator.iter_errors(plain(**one))] for one in good] == [[]] * len(good)
    assert [validator.is_valid(plain(**one)) for one in bad] == [False] * len(bad)
    for one in good:
        Study.model_validate(plain(**one))
    for one in bad:
        with pytest.raises(ValidationError):
            Study.model_validate(plain(**one))
