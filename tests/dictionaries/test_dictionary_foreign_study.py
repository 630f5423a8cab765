"""Dictionaries of another program in a study: planned without torch, traced, told in the provenance and in the key."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from foreign_cases import arrays, claim, cross_layer, inputs, tensor, write_config, write_cross_layer, write_set
from tiny_study import PROMPTS, artifact, make_study, run

from interp.errors import DictionaryError, SpecError
from interp.plan import make_plan
from interp.sources.resolve import resolve_model
from interp.spec.study import Study
from interp.stages.dictionary_sets import DictionarySet, dictionary_set

ROOT = Path(__file__).resolve().parents[2]
LAYERS = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("foreign")
    write_set(folder / "topk", [arrays(i, skip=True) for i in range(LAYERS)], activation="topk", k=6)
    write_cross_layer(folder / "clt", cross_layer(LAYERS, thresholds=True))
    return folder


def study_of(folder: Path, source: str | Path, store: str | Path = "memory://foreign", **said: Any) -> Study:
    borrowed = [{"name": "theirs", "from": str(source), **said}]
    trace = {"prompts": [PROMPTS[2]], "dictionaries": "theirs", "actors": {"min": 1, "max": 1}}
    return make_study(folder, dictionaries=borrowed, trace=trace, corpus=None, store=str(store))


def key(study: Study) -> str:
    planned = make_plan(study, None).stage("trace")
    assert planned is not None
    return planned.key


def test_a_study_traces_them(folder: Path, tmp_path: Path) -> None:
    from interp.circuits.graph import AttributionGraph

    study = study_of(folder, folder / "topk", tmp_path / "store", format="circuit-tracer")
    summary = run(study)
    assert summary.stage("trace").figures["graphs"] == 1
    made = artifact(study, "trace")
    (row,) = (json.loads(line) for line in made.read("index.jsonl").splitlines())
    assert row["status"] == "ok" and row["residual"] <= 1e-4
    # k latents at each layer and position (but for the BOS), some of which may be 0.
    assert 0 < row["n_active"] <= LAYERS * 6 * (row["n_tokens"] - 1)
    graph = AttributionGraph.load(made.local(f"graphs/{row['slug']}.json"))
    assert graph.provenance["dictionaries"] == str(folder / "topk")


def test_a_set_knows_whose_word_it_is(folder: Path) -> None:
    from interp.wrapper import HookedModel

    study = study_of(folder, folder / "topk")
    hooked = HookedModel(study.model.source)
    loaded = dictionary_set(study, "theirs", {}).load(hooked)
    for dictionary in loaded.values():
        assert dictionary.config.model is not None
        assert dictionary.config.model.source == study.model.source
        assert dictionary.config.model.foreign == "circuit-tracer"
        assert dictionary.config.model.fingerprint == resolve_model(study.model).revision
        assert not dictionary.training and not any(p.requires_grad for p in dictionary.parameters())
    assert list(dictionary_set(study_of(folder, folder / "clt"), "theirs", {}).load(hooked)) == ["cross-layer"]


def test_the_key_is_the_content(folder: Path, tmp_path: Path) -> None:
    first = key(study_of(folder, folder / "topk"))
    assert key(study_of(folder, folder / "topk", format="circuit-tracer")) == first  # told from the files in any case
    copy = write_set(tmp_path / "copy", [arrays(i, skip=True) for i in range(LAYERS)], activation="topk", k=6)
    assert key(study_of(folder, copy)) == first
    assert key(study_of(folder, copy, mlp="kept")) != first
    write_config(copy, activation="topk", k=7)
    assert key(study_of(folder, copy)) != first


def test_that_the_mlps_are_kept_is_said(folder: Path) -> None:
    planned = make_plan(study_of(folder, folder / "topk", mlp="kept"), None).stage("trace")
    assert planned is not None and planned.spec["dictionaries"]["mlp"] == "kept"
    assert "mlp" not in make_plan(study_of(folder, folder / "topk"), None).stages[0].spec["dictionaries"]
    assert dictionary_set(study_of(folder, folder / "topk", mlp="kept"), "theirs", {}).mlp == "kept"


def test_a_format_that_it_is_not(folder: Path) -> None:
    from interp.wrapper import HookedModel

    study = study_of(folder, folder / "topk", format="interp")
    with pytest.raises(DictionaryError, match="no dictionaries of the format interp"):
        dictionary_set(study, "theirs", {}).load(HookedModel(study.model.source))
    with pytest.raises(SpecError, match="an artifact holds what interp wrote"):
        make_plan(study_of(folder, "artifact://" + "0" * 64, format="gemma-scope"), None)
    with pytest.raises(SpecError, match="cannot come from there"):
        make_plan(study_of(folder, "s3://bucket/set"), None)


@pytest.mark.parametrize("command", ["validate", "plan"])
def test_nothing_heavy_is_loaded_to_plan_it(command: str, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    said = study_of(folder, folder / "topk", tmp_path / "store").model_dump(
        by_alias=True, exclude_unset=True, mode="json"
    )
    path.write_text(yaml.safe_dump(said))
    code = f"""
import json, sys
from interp.cli.main import main
try:
    main([{command!r}, {str(path)!r}])
except SystemExit as left:
    assert not left.code, left.code
heavy = {{"torch", "ray", "transformers", "nnsight", "safetensors", "huggingface_hub"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True)


# --- interp convert


def convert(*arguments: object) -> int:
    from interp.cli.main import main

    with pytest.raises(SystemExit) as left:
        main(["convert", *map(str, arguments)])
    return int(left.value.code or 0)


@pytest.fixture
def model(folder: Path) -> str:
    return study_of(folder, folder / "topk").model.source


@pytest.mark.parametrize("name", ["topk", "clt"])
def test_convert_there_and_back(name: str, folder: Path, model: str, tmp_path: Path, capsys: Any) -> None:
    assert convert(folder / name, tmp_path / "ours", "--model", model, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["from"], told["to"]) == ("circuit-tracer", "interp")
    assert convert(tmp_path / "ours", tmp_path / "theirs", "--model", model, "--model-name", "org/tiny") == 0
    assert "from interp to circuit-tracer" in capsys.readouterr().out
    for path in (folder / name).glob("*.safetensors"):
        assert (tmp_path / "theirs" / path.name).read_bytes() == path.read_bytes()
    assert yaml.safe_load((tmp_path / "theirs" / "config.yaml").read_text())["model_name"] == "org/tiny"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours", "theirs"]  # nothing half-written is left


def test_convert_replaces_nothing_unless_told_to(folder: Path, model: str, tmp_path: Path, capsys: Any) -> None:
    target = tmp_path / "there"
    target.mkdir()
    assert convert(folder / "topk", target, "--model", model) == 0  # an empty folder is nothing
    before = sorted(path.relative_to(target) for path in target.rglob("*"))
    assert convert(folder / "clt", target, "--model", model) == 2
    assert "there is something at DST already" in capsys.readouterr().err
    assert sorted(path.relative_to(target) for path in target.rglob("*")) == before
    assert convert(folder / "clt", target, "--model", model, "--force") == 0
    assert [path.name for path in target.iterdir()] == ["cross-layer"]
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("words")
    assert convert(folder / "clt", tmp_path / "thesis", "--model", model, "--force") == 2
    assert "is no set of dictionaries" in capsys.readouterr().err
    assert (tmp_path / "thesis" / "chapter.txt").exists()


@pytest.mark.parametrize(
    "name", ["thesis.txt", "layers.0.mlp/notes.txt", "config.yaml", "more/layers.0.mlp/config.json"]
)
def test_convert_replaces_no_file_that_it_would_not_write(
    name: str, folder: Path, model: str, tmp_path: Path, capsys: Any
) -> None:
    """Dictionaries somewhere below do not make a folder one of dictionaries alone."""
    target = tmp_path / "work"
    assert convert(folder / "topk", target, "--model", model) == 0
    mine = target / name
    mine.parent.mkdir(parents=True, exist_ok=True)
    mine.write_text("words")
    assert convert(folder / "clt", target, "--model", model, "--force") == 2
    told = capsys.readouterr().err
    assert "is more than the dictionaries" in told and mine.name in told
    assert mine.read_text() == "words"
    mine.unlink()
    assert convert(folder / "clt", target, "--model", model, "--force") == 0
    assert convert(target, target, "--model", model, "--force") == 0  # and circuit-tracer's own
    assert convert(folder / "clt", target, "--model", model, "--force", "--to", "interp") == 0


def test_a_folder_that_changes_while_it_is_read(
    folder: Path, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from interp.dictionaries import foreign
    from interp.errors import SourceError
    from interp.wrapper import HookedModel

    copy = write_set(tmp_path / "copy", [arrays(i) for i in range(LAYERS)])
    one = dictionary_set(make_plan(study_of(folder, copy), None).study, "theirs", {})
    hooked, read = HookedModel(model), foreign.read_dictionaries
    assert len(one.load(hooked)) == LAYERS

    def slowly(*arguments: Any) -> Any:
        loaded = read(*arguments)
        write_set(copy, [arrays(i + 7) for i in range(LAYERS)])
        return loaded

    monkeypatch.setattr(foreign, "read_dictionaries", slowly)
    with pytest.raises(SourceError, match="changed after they were planned"):
        one.load(hooked)


def test_a_conversion_that_fails_leaves_what_was_there(
    folder: Path, model: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from interp.dictionaries import Dictionary

    target = tmp_path / "there"
    assert convert(folder / "topk", target, "--model", model) == 0
    before = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}
    saved: list[Path] = []

    def full(self: Any, place: Path) -> None:
        place.mkdir(parents=True)
        (place / "half").write_text("written")
        saved.append(place)
        raise OSError("no space is left")

    monkeypatch.setattr(Dictionary, "save", full)
    from interp.cli.main import main

    with pytest.raises(OSError, match="no space"):
        main(["convert", str(folder / "clt"), str(target), "--model", model, "--force"])
    assert saved and not saved[0].exists()
    assert {path: path.read_bytes() for path in target.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


@pytest.mark.parametrize(
    ("arguments", "told", "code"),
    [
        (["--to", "gemma-scope"], "only read", 2),
        (["--to", "nonsense"], "no such format", 2),
        (["--format", "gemma-scope"], "no dictionaries of the format gemma-scope", 1),
    ],
)
def test_convert_refuses(
    arguments: list[str], told: str, code: int, folder: Path, model: str, tmp_path: Path, capsys: Any
) -> None:
    assert convert(folder / "topk", tmp_path / "x", "--model", model, *arguments) == code
    assert told in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_study_can_name_every_format_and_no_other() -> None:
    from typing import get_args

    from interp.dictionaries.foreign import FORMATS
    from interp.spec.dictionary import FromArtifact

    literal = next(part for part in get_args(FromArtifact.model_fields["format"].annotation) if part is not type(None))
    assert set(get_args(literal)) == set(FORMATS)


def test_a_set_of_several_sets_is_refused(folder: Path, tmp_path: Path) -> None:
    """Ours, in a folder above: two dictionaries for one place."""
    from interp.dictionaries.foreign import read_dictionaries
    from interp.wrapper import HookedModel

    study = study_of(folder, folder / "topk")
    hooked = HookedModel(study.model.source)
    loaded = dictionary_set(study, "theirs", {}).load(hooked)
    for name in ("a", "b"):
        for at, dictionary in loaded.items():
            dictionary.save(tmp_path / name / at)
    with pytest.raises(DictionaryError, match=r"several dictionaries at layers\.0\.mlp"):
        DictionarySet("x", None, str(tmp_path)).load(hooked)
    (tmp_path / "a" / "config.yaml").write_text("model_kind: transcoder_set")
    for format in (None, "interp", "circuit-tracer"):  # a format never decides what is read
        with pytest.raises(DictionaryError, match="several formats"):
            read_dictionaries(tmp_path / "a", claim(), format)


def test_what_ours_say_of_their_model_is_checked(folder: Path, tmp_path: Path) -> None:
    """Converted once, they are tied to the model that was named then."""
    from interp.dictionaries.foreign import read_dictionaries
    from interp.errors import ModelMismatch
    from interp.wrapper import HookedModel

    study = study_of(folder, folder / "topk")
    loaded = dictionary_set(study, "theirs", {}).load(HookedModel(study.model.source))
    for at, dictionary in loaded.items():
        dictionary.save(tmp_path / "ours" / at)
    with pytest.raises(ModelMismatch):
        read_dictionaries(tmp_path / "ours", claim())
    again = dictionary_set(study_of(folder, tmp_path / "ours"), "theirs", {}).load(HookedModel(study.model.source))
    x = tensor(inputs())
    for at in loaded:
        assert torch.equal(again[at](x), loaded[at](x))
