"""Where borrowed dictionaries are: folders, files, places of the hub; and what identifies them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import constants

from interp.errors import SourceError
from interp.plan.revisions import find_revisions, pinned
from interp.sources.dictionaries import HubPlace, dictionary_revision, fetched, layer_in, listed_file
from interp.spec.study import Study

OLD, NEW = "a" * 40, "b" * 40


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The local cache of the hub, with two repositories; there is no network."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    listed = "model_kind: transcoder_set\ntranscoders: ['hf://org/other/layer_0/params.npz']\n"
    put(cache, "name", OLD, {"set/config.yaml": listed, "set/layer_0.safetensors": "zero", "README.md": "words"})
    put(cache, "other", NEW, {"layer_0/params.npz": "weights"})
    return cache


def put(cache: Path, name: str, commit: str, files: dict[str, str]) -> None:
    folder = cache / f"models--org--{name}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(commit)
    for file, content in files.items():
        path = folder / "snapshots" / commit / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def test_a_folder_of_the_hub(hub: Path) -> None:
    root = fetched("hf://org/name/set")
    assert sorted(path.name for path in root.iterdir()) == ["config.yaml", "layer_0.safetensors"]
    assert root == hub / "models--org--name" / "snapshots" / OLD / "set"
    assert fetched("hf://org/name") == root.parent
    assert fetched("hf://org/name@main/set/layer_0.safetensors").read_text() == "zero"
    listed = listed_file(root, "hf://org/other/layer_0/params.npz?revision=main")
    assert listed.read_text() == "weights" and layer_in(listed) == 0


def test_the_commit_identifies_it_and_those_of_the_files_that_it_lists(hub: Path) -> None:
    first = dictionary_revision("hf://org/name/set")
    assert dictionary_revision(f"hf://org/name@{OLD}/set") == first
    assert dictionary_revision("hf://org/name") != first
    put(hub, "other", "c" * 40, {"layer_0/params.npz": "other weights"})
    assert dictionary_revision("hf://org/name/set") != first


def test_what_is_not_there(hub: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no dictionaries at this place"):
        fetched("hf://org/name/nowhere")
    with pytest.raises(SourceError, match="cannot be reached"):
        fetched("hf://org/missing")
    for source in ("hf://name", "hf:///", "s3://org/name"):
        with pytest.raises(SourceError, match="no place of the hub"):
            HubPlace.of(source)
    with pytest.raises(SourceError, match="no such folder or file"):
        fetched(str(tmp_path / "nowhere"))
    with pytest.raises(SourceError):
        dictionary_revision(str(tmp_path / "nowhere"))


def test_many_for_one_layer_are_not_all_downloaded(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"layer_1/width_16k/average_l0_{l0}/params.npz" for l0 in (5, 50)]
    put(hub, "scope", NEW, dict.fromkeys(names, "weights"))
    assert fetched(f"hf://org/scope/{names[1]}").read_text() == "weights"
    monkeypatch.setattr("interp.sources.hub.fetch_file", lambda *_: pytest.fail("downloaded"))
    with pytest.raises(SourceError, match="several dictionaries for layer 1") as caught:
        fetched("hf://org/scope")
    assert all(name in str(caught.value) for name in names)


def test_a_plan_pins_the_commit(hub: Path, checkpoint: Path) -> None:
    """The driver may read the plan when `main` has moved."""
    borrowed = {"name": "theirs", "from": "hf://org/name/set"}
    said = {"apiVersion": "interp/v1", "kind": "Study", "metadata": {"name": "x"}, "store": "memory://x"}
    said |= {"model": {"source": str(checkpoint)}, "dictionaries": [borrowed], "trace": {"prompts": ["a"]}}
    study = Study.model_validate_json(json.dumps(said))
    made = pinned(study, find_revisions(study, None))
    assert made.borrowed[0].source == f"hf://org/name@{OLD}/set"
    put(hub, "name", NEW, {"set/layer_0.safetensors": "moved"})
    assert fetched(made.borrowed[0].source).joinpath("layer_0.safetensors").read_text() == "zero"


def test_a_folder_s_own_path_is_no_part_of_its_content(tmp_path: Path) -> None:
    for name in ("layer_1_things", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights.safetensors").write_text("w")
    revisions = {dictionary_revision(str(tmp_path / name)) for name in ("layer_1_things", "other")}
    assert len(revisions) == 1
    for name in ("layer_1_things", "other"):  # but for Gemma Scope's files, whose layer it tells
        (tmp_path / name / "params.npz").write_text("w")
    revisions = {dictionary_revision(str(tmp_path / name)) for name in ("layer_1_things", "other")}
    assert len(revisions) == 2


def test_a_config_that_lists_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("transcoders: [gone.safetensors]")
    with pytest.raises(SourceError, match=r"config\.yaml lists is not there"):
        dictionary_revision(str(tmp_path))
    (tmp_path / "config.yaml").write_text("transcoders: [")  # its reader says what is wrong with it
    assert dictionary_revision(str(tmp_path))


@pytest.mark.parametrize(
    ("path", "layer"),
    [
        ("a/layer_12/width_16k/average_l0_6/params.npz", 12),
        ("a/layer_3_width_16k_l0_big_affine/params.safetensors", 3),
        ("layer_1/set/layer_2/params.npz", 2),
        ("a/player_1/params.npz", None),
        ("a/layer_x/params.npz", None),
    ],
)
def test_the_layer_that_a_path_tells(path: str, layer: int | None) -> None:
    assert layer_in(Path(path)) == layer
