"""A study file is read, or refused with every problem it has, each at its line and in the file's own terms."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import yaml

from interp.errors import SpecError
from interp.spec.dictionary import FromArtifact, TopK
from interp.spec.loading import Problem, StudyFileError, load_study, parse_study
from interp.spec.trace import target_columns

GOOD = """\
apiVersion: interp/v1
kind: Study
metadata: {name: good}
model: {source: "builtin://tiny-split-llama"}
corpus: {source: "builtin://python-stdlib", context: 128, tokens: 1.5M, holdout: 32K}
dictionaries:
  - {name: mlp, kind: transcoder, at: "layers_first.*.mlp", activation: {type: topk, k: 16}, expansion: 8}
fit:
  batch_tokens: 2048
store: ./runs
"""

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "specs").glob("*.yaml"))


def problems(text: str) -> dict[str, Problem]:
    """The problems of a text, by path."""
    with pytest.raises(StudyFileError) as caught:
        parse_study(text, "study.yaml")
    return {problem.path: problem for problem in caught.value.problems}


def changed(old: str, new: str) -> str:
    assert GOOD.count(old) == 1
    return GOOD.replace(old, new)


def test_a_good_study() -> None:
    study = parse_study(GOOD)
    assert study.corpus.tokens == 1_500_000
    assert study.corpus.holdout == 32_000
    assert study.trained[0].at == ("layers_first.*.mlp",)
    assert study.trained[0].activation == TopK(type="topk", k=16)
    assert study.fit.batch_tokens == 2048


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_are_valid(path: Path) -> None:
    assert load_study(path).metadata.name


def test_the_quickstart_is_what_it_says() -> None:
    study = load_study(next(path for path in EXAMPLES if path.stem == "quickstart"))
    assert (study.corpus.context, study.corpus.tokens, study.corpus.holdout) == (128, 400_000, 32_000)
    assert study.trace is not None and len(study.trace.prompts) == 8
    assert "\n        self.name =" in study.trace.prompts[0]


def test_a_borrowed_dictionary() -> None:
    study = parse_study(
        changed("  - {name: mlp, kind", '  - {name: old, from: "artifact://abc"}\n  - {name: mlp, kind')
    )
    assert study.borrowed == (FromArtifact.model_validate({"name": "old", "from": "artifact://abc"}),)


def test_all_problems_at_once_in_the_order_of_their_lines() -> None:
    text = (
        changed("kind: Study", "kind: Studdy")
        .replace("{name: good}", "{name: Not_Good}")
        .replace("context: 128", "context: 1")
    )
    with pytest.raises(StudyFileError) as caught:
        parse_study(text, "study.yaml")
    assert [problem.line for problem in caught.value.problems] == [2, 3, 5]
    message = str(caught.value)
    assert message.startswith("study.yaml: 3 problems\n")
    assert "study.yaml:5: corpus.context: this is not allowed\n  found:    1\n  expected: at least 2" in message


def test_a_typo_names_the_key_that_was_meant() -> None:
    found = problems(changed("tokens: 1.5M", "toknes: 1.5M"))
    assert found["corpus.toknes"].line == 5
    assert found["corpus.toknes"].remedy == "did you mean tokens?"
    assert "holdout" in str(found["corpus.toknes"].expected)
    assert found["corpus.tokens"].what == "this key is required"
    assert found["corpus.tokens"].expected == "exact number of training tokens"


def test_a_typo_at_the_top_level() -> None:
    found = problems(GOOD + "evalaute: {}\n")
    assert found["evalaute"].line == 11
    assert found["evalaute"].remedy == "did you mean evaluate?"


def test_a_part_that_is_not_there_yet_is_refused_rather_than_ignored() -> None:
    assert problems(GOOD + "publish: []\n")["publish"].what == "unknown key"


@pytest.mark.parametrize(
    ("activation", "path", "told"),
    [
        ("{type: topkk, k: 16}", "dictionaries[0].activation.type", "did you mean topk?"),
        ("{k: 16}", "dictionaries[0].activation.type", "one of topk, batchtopk, relu, jumprelu, gated"),
        ("{type: topk}", "dictionaries[0].activation.k", "add the key k"),
        ("{type: topk, k: 16, l1: 3}", "dictionaries[0].activation.l1", "one of type, k"),
        ("{type: topk, k: many}", "dictionaries[0].activation.k", "a whole number"),
        ("{type: jumprelu, bandwith: 1}", "dictionaries[0].activation.bandwith", "did you mean bandwidth?"),
        ("topk", "dictionaries[0].activation", "a mapping of type"),
    ],
)
def test_unions_are_told_in_the_file_s_terms(activation: str, path: str, told: str) -> None:
    found = problems(changed("{type: topk, k: 16}", activation))
    assert set(found) == {path}
    assert found[path].line == 7
    assert told in str(found[path])
    for inner in ("trained", "borrowed", "TopK", "pydantic", "Input should"):
        assert inner not in str(found[path])


def test_a_key_that_is_named_like_a_member_of_the_union() -> None:
    found = problems(changed("{type: topk, k: 16}", "{type: topk, k: 16, topk: 1}"))
    assert set(found) == {"dictionaries[0].activation.topk"}


def test_a_borrowed_dictionary_takes_no_other_key() -> None:
    found = problems(changed("{name: mlp, kind: transcoder,", '{name: mlp, from: "artifact://x", kind: transcoder,'))
    assert found["dictionaries[0].kind"].expected == "one of name, from, format, content, mlp"


@pytest.mark.parametrize(
    ("old", "new", "path", "told"),
    [
        ("name: good", "name: 12", "metadata.name", "put it in quotes"),
        ("tokens: 1.5M", "tokens: 1.2345K", "corpus.tokens", "not a whole number"),
        ("tokens: 1.5M", "tokens: true", "corpus.tokens", "not true or false"),
        ("batch_tokens: 2048", "lr: true", "fit.lr", "not true or false"),
        ("batch_tokens: 2048", "lr: .inf", "fit.lr", "a finite number"),
        ("batch_tokens: 2048", "lr: 0", "fit.lr", "more than 0"),
        ("batch_tokens: 2048", "warmup: 1.0", "fit.warmup", "less than 1"),
        ("batch_tokens: 2048", "device: gpu", "fit.device", "one of auto, cpu, cuda"),
        ("batch_tokens: 2048", "workers: 3", "fit.workers", "cannot be dealt evenly"),
        ("batch_tokens: 2048", "batch_tokens: 2000", "fit.batch_tokens", "the nearest that is: 2048"),
        ("batch_tokens: 2048", "shuffle_tokens: 1", "fit.shuffle_tokens", "does something: 0"),
        ("batch_tokens: 2048", "shuffle_tokens: 16383", "fit.shuffle_tokens", "something: 16384"),
        ("batch_tokens: 2048", "log: [wandb, tensorboard, wandb]", "fit.log[2]", "wandb twice"),
        ('at: "layers_first.*.mlp"', "at: []", "dictionaries[0].at", "a list of at least 1"),
        ("expansion: 8", "expansion: 8, latents: 64", "dictionaries[0]", "exactly one of expansion and latents"),
        ("expansion: 8", "latents: 8", "dictionaries[0].activation.k", "activation.k=16 is more than latents=8"),
        ("model: {", "model: [", "model", "a mapping of source"),
    ],
)
def test_one_wrong_value(old: str, new: str, path: str, told: str) -> None:
    text = changed(old, new)
    if new == "model: [":
        text = text.replace('[source: "builtin://tiny-split-llama"}', "[1]")
    found = problems(text)
    assert set(found) == {path}
    assert told in str(found[path])


TARGETS = "salient, last-token, or a mapping with one of tokens, difference, direction, features"


@pytest.mark.parametrize(
    "target",
    [
        "salient",
        "last-token",
        "{tokens: [' mode', 17, {column: answer}], position: -2}",
        "{difference: [' he', ' she']}",
        "{difference: [{column: good}, {column: bad}]}",
        "{direction: probe.npy, at: layers.3.resid_post, name: truth}",
        "{features: [{at: layers.3.mlp, latent: 12}]}",
    ],
)
def test_each_form_of_a_target(target: str) -> None:
    study = parse_study(f"{GOOD}trace: {{prompts: [x], target: {target}, memory: 8G, adjacency: full}}\n")
    assert study.trace is not None and study.trace.memory == 8_000_000_000
    said = study.trace.model_dump(mode="json", exclude_unset=True)["target"]
    assert type(study).model_validate(study.model_dump(by_alias=True)).trace == study.trace
    assert said == yaml.safe_load(target)


def test_the_columns_that_a_target_is_named_by() -> None:
    targets = ["salient", "{tokens: [1, {column: a}]}", "{difference: [{column: a}, {column: a}]}"]
    studies = [parse_study(f"{GOOD}trace: {{prompts: [x], target: {target}}}\n") for target in targets]
    assert [target_columns(study.trace.target) for study in studies if study.trace] == [(), ("a",), ("a",)]


@pytest.mark.parametrize(
    ("trace", "path", "told"),
    [
        ("target: last_token", "target", ("did you mean last-token?", TARGETS)),
        ("target: {differenc: [' a', ' b']}", "target", ("did you mean difference?", TARGETS)),
        ("target: {}", "target", (TARGETS,)),
        ("target: [a]", "target", (TARGETS,)),
        ("target: 3", "target", (TARGETS,)),
        ("target: null", "target", (TARGETS, "null")),
        ("target: {tokens: []}", "target.tokens", ("a list of at least 1",)),
        ("target: {tokens: a}", "target.tokens", ("write it as [a, b]",)),
        ("target: {tokens: [a], difference: [a, b]}", "target.difference", ("unknown key", "one of tokens, position")),
        ("target: {tokens: [a], positon: 1}", "target.positon", ("did you mean position?",)),
        ("target: {tokens: [a, true]}", "target.tokens[1]", ("a token's text in quotes, its id, or {column: NAME}",)),
        ("target: {tokens: [-4]}", "target.tokens[0]", ("at least 0",)),
        ("target: {tokens: ['']}", "target.tokens[0]", ("text that is not empty",)),
        ("target: {tokens: [{column: 3}]}", "target.tokens[0].column", ("put it in quotes",)),
        ("target: {difference: [a]}", "target.difference", ("a list of at least 2",)),
        ("target: {difference: [a, b, c]}", "target.difference", ("a list of at most 2",)),
        ("target: {direction: d.npy, at: 3}", "target.at", ("put it in quotes",)),
        ("target: {features: [{at: layers.1.mlp}]}", "target.features[0].latent", ("add the key latent",)),
        ("target: {features: [{at: x, latent: -1}]}", "target.features[0].latent", ("at least 0",)),
        ("memory: 8GB", "memory", ("10K, 1.5M or 2G",)),
        ("adjacency: sparse", "adjacency", ("one of none, pruned, full",)),
        ("faithfulness: {curve: [2]}", "faithfulness.curve[0]", ("at most 1",)),
        ("faithfulness: {curve: []}", "faithfulness.curve", ("a list of at least 1",)),
    ],
)
def test_a_trace_is_refused_at_its_place_and_in_the_file_s_terms(trace: str, path: str, told: tuple[str, ...]) -> None:
    found = problems(f"{GOOD}trace: {{prompts: [x], {trace}}}\n")
    assert set(found) == {f"trace.{path}"}
    assert found[f"trace.{path}"].line == 11
    for part in told:
        assert part in str(found[f"trace.{path}"])
    for inner in ("<", "pydantic", "Input should", "Target"):
        assert inner not in str(found[f"trace.{path}"])


@pytest.mark.parametrize(
    ("old", "path"),
    [
        ('"builtin://tiny-split-llama"', "model.source"),
        ('"builtin://python-stdlib"', "corpus.source"),
        ("./runs", "store"),
        ("[x]", "trace.prompts"),
    ],
)
def test_credentials_are_refused_and_not_repeated(old: str, path: str) -> None:
    text = GOOD + "trace: {prompts: [x]}\n"
    assert text.count(old) == 1
    found = problems(text.replace(old, '"https://user:planted@host/p.txt"'))
    assert set(found) == {path}
    assert "planted" not in str(found[path])
    assert "AWS" in str(found[path].remedy)


def test_parts_that_do_not_fit_together_are_all_told() -> None:
    text = changed("holdout: 32K", "holdout: 0") + "evaluate: {}\ntrace: {prompts: [x], dictionaries: sae}\n"
    found = problems(text)
    assert found["corpus.holdout"].line == 5
    assert found["trace.dictionaries"].line == 12
    assert "none of ['mlp']" in found["trace.dictionaries"].what


def test_saes_are_not_traced() -> None:
    text = changed("kind: transcoder", "kind: sae") + "trace: {prompts: [x]}\n"
    assert "are SAEs" in problems(text)["trace.dictionaries"].what


def test_more_tokens_evaluated_than_held_out() -> None:
    assert "32000" in problems(GOOD + "evaluate: {tokens: 64K}\n")["evaluate.tokens"].what


def test_duplicate_keys_are_refused_with_both_lines() -> None:
    found = problems(changed("  batch_tokens: 2048\n", "  batch_tokens: 2048\n  batch_tokens: 4096\n"))
    assert found["fit.batch_tokens"].line == 10
    assert "line 9" in found["fit.batch_tokens"].what


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "the file is empty"),
        ("- 1\n", "a mapping belongs here"),
        ("a: [1,\nb: 2\n", "this is no YAML"),
        ("a:\n\tb: 1\n", "this is no YAML"),
        (GOOD + "---\n" + GOOD, "this is no YAML"),
        (GOOD + "seed: !!python/object/apply:os.system [id]\n", "only plain YAML is"),
        (GOOD + "seed: !!int x\n", "is no int"),
        (GOOD + "seed: &a [*a]\n", "an alias that contains itself"),
        (GOOD + "12: x\n", "the key '12' is no text"),
    ],
)
def test_what_is_no_study_at_all(text: str, told: str) -> None:
    with pytest.raises(StudyFileError, match=told):
        parse_study(text)


def test_plain_words_are_text_and_numbers_are_numbers() -> None:
    text = changed("holdout: 32K", "holdout: 0100, split: no, revision: 2024-01-01").replace(
        "batch_tokens: 2048", "lr: 1e-3"
    )
    study = parse_study(text)
    assert study.corpus.holdout == 100
    assert study.corpus.split == "no"
    assert study.corpus.revision == "2024-01-01"
    assert study.fit.lr == 1e-3


def test_anchors_may_be_used() -> None:
    text = GOOD.replace("{type: topk, k: 16}", "&a {type: topk, k: 16}")
    again = "  - {name: two, kind: transcoder, at: x, activation: *a, latents: 64}\nfit:"
    study = parse_study(text.replace("fit:", again))
    assert study.trained[0].activation == study.trained[1].activation


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_files_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "study.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SpecError, match=r"study\.yaml"):
        load_study(path)


def test_the_error_travels_between_processes() -> None:
    with pytest.raises(StudyFileError) as caught:
        parse_study(changed("kind: Study", "kind: X"))
    copy = pickle.loads(pickle.dumps(caught.value))
    assert copy.problems == caught.value.problems and str(copy) == str(caught.value)
