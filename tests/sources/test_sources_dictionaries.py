"""Where borrowed dictionaries are: folders, files, places of the hub; and what identifies them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

from interp.errors import SourceError, SpecError
from interp.plan.revisions import find_revisions, pinned
from interp.sources.dictionaries import HubPlace, dictionary_revision, fetched, layer_in, listed_file
from interp.spec.study import Study
from interp.stages.dictionary_sets import dictionary_set

OLD, NEW = "a" * 40, "b" * 40


class Hub:
    """Repositories on a hub, and the local cache of it, which has what was downloaded."""

    def __init__(self, cache: Path):
        self.cache, self.online, self.asked = cache, True, 0
        self.main: dict[str, str] = {}
        self.files: dict[tuple[str, str], dict[str, str]] = {}

    def put(self, name: str, commit: str, files: dict[str, str]) -> None:
        self.main[f"org/{name}"], self.files[f"org/{name}", commit] = commit, files

    def repo_info(self, api: Any, repository: str, *, repo_type: str, revision: str | None = None) -> Any:
        if not self.online:
            raise OfflineModeIsEnabled("there is no network")
        self.asked += 1
        commit = self.main[repository] if revision in (None, "main") else revision
        siblings = [SimpleNamespace(rfilename=name) for name in self.files[repository, commit]]
        return SimpleNamespace(sha=commit, siblings=siblings)

    def download(self, repository: str, name: str, *, revision: str, local_files_only: bool, **_: Any) -> str:
        folder = self.cache / f"models--{repository.replace('/', '--')}"
        path = folder / "snapshots" / revision / name
        if not path.exists():
            if local_files_only or not self.online:
                raise LocalEntryNotFoundError(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self.files[repository, revision][name])
            (folder / "refs").mkdir(exist_ok=True)
            (folder / "refs" / "main").write_text(revision)
        return str(path)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A hub with two repositories, of which nothing is in the local cache."""
    made = Hub(tmp_path / "hub")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(made.cache))
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", lambda *a, **k: made.repo_info(*a, **k))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", made.download)
    listed = "model_kind: transcoder_set\ntranscoders: ['hf://org/other/layer_0/params.npz']\n"
    made.put("name", OLD, {"set/config.yaml": listed, "set/layer_0.safetensors": "zero", "README.md": "words"})
    made.put("other", NEW, {"layer_0/params.npz": "weights"})
    return made


def test_a_folder_of_the_hub(hub: Hub) -> None:
    root = fetched("hf://org/name/set")
    assert sorted(path.name for path in root.iterdir()) == ["config.yaml", "layer_0.safetensors"]
    assert root == hub.cache / "models--org--name" / "snapshots" / OLD / "set"
    assert fetched("hf://org/name") == root.parent
    assert fetched("hf://org/name@main/set/layer_0.safetensors").read_text() == "zero"
    listed = listed_file(root, "hf://org/other/layer_0/params.npz?revision=main")
    assert listed.read_text() == "weights" and layer_in(listed) == 0


def test_pickles_of_weights_are_fetched_and_those_of_training_are_not(hub: Hub) -> None:
    trainer = {"ae.pt": "weights", "config.json": "{}", "checkpoints/ae_10.pt": "earlier", "state.pt": "moments"}
    hub.put("name", OLD, {f"trainer_0/{name}": content for name, content in trainer.items()})
    assert HubPlace.of("hf://org/name").files() == ["trainer_0/ae.pt", "trainer_0/config.json"]


def test_a_cache_that_has_a_part_is_not_taken_for_the_whole(hub: Hub) -> None:
    """Planning downloads config.yaml alone, and a download may have been cut short."""
    pinned_place = f"hf://org/name@{OLD}/set"
    dictionary_revision("hf://org/name/set")
    assert [p.name for p in hub.cache.rglob("snapshots/*/set/*")] == ["config.yaml"]
    assert sorted(path.name for path in fetched(pinned_place).iterdir()) == ["config.yaml", "layer_0.safetensors"]
    names = [f"layer_{layer}/params.npz" for layer in range(4)]
    hub.put("scope", NEW, dict.fromkeys(names, "weights"))
    fetched(f"hf://org/scope@{NEW}/{names[1]}")
    assert fetched(f"hf://org/scope@{NEW}/layer_3").name == "layer_3"
    root = fetched(f"hf://org/scope@{NEW}")
    assert sorted(path.relative_to(root).as_posix() for path in root.rglob("*.npz")) == names


def test_what_a_commit_has_is_asked_once(hub: Hub) -> None:
    fetched("hf://org/name/set")
    asked = hub.asked
    fetched(f"hf://org/name@{OLD}/set")
    assert hub.asked == asked
    hub.online = False
    assert fetched("hf://org/name/set").joinpath("layer_0.safetensors").read_text() == "zero"


def test_without_a_network_and_a_list_of_its_files_it_is_refused(hub: Hub, cache: Path) -> None:
    """Whether the local cache has all of them nobody knows."""
    fetched("hf://org/name/set")
    (cache / "digests.json").unlink()
    hub.online = False
    for source in ("hf://org/name/set", f"hf://org/name@{OLD}/set"):
        with pytest.raises(SourceError, match="a part of them may be in the local cache"):
            fetched(source)


def test_the_commit_identifies_it_and_those_of_the_files_that_it_lists(hub: Hub) -> None:
    first = dictionary_revision("hf://org/name/set")
    assert dictionary_revision(f"hf://org/name@{OLD}/set") == first
    assert dictionary_revision("hf://org/name") != first
    hub.put("other", "c" * 40, {"layer_0/params.npz": "other weights"})
    assert dictionary_revision("hf://org/name/set") != first


def test_what_is_not_there(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no dictionaries at this place"):
        fetched("hf://org/name/nowhere")
    hub.online = False
    with pytest.raises(SourceError, match="cannot be reached"):
        fetched("hf://org/missing")
    for source in ("hf://name", "hf:///", "s3://org/name"):
        with pytest.raises(SourceError, match="no place of the hub"):
            HubPlace.of(source)
    with pytest.raises(SourceError, match="no such folder or file"):
        fetched(str(tmp_path / "nowhere"))
    with pytest.raises(SourceError):
        dictionary_revision(str(tmp_path / "nowhere"))


def test_many_for_one_layer_are_not_all_downloaded(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"layer_1/width_16k/average_l0_{l0}/params.npz" for l0 in (5, 50)]
    hub.put("scope", NEW, dict.fromkeys(names, "weights"))
    assert fetched(f"hf://org/scope/{names[1]}").read_text() == "weights"
    monkeypatch.setattr("interp.sources.hub.fetch_file", lambda *_: pytest.fail("downloaded"))
    with pytest.raises(SourceError, match="several dictionaries for layer 1") as caught:
        fetched("hf://org/scope")
    assert all(name in str(caught.value) for name in names)


def study_of(checkpoint: Path, source: str | Path, **borrowed: str) -> Study:
    borrowed = {"name": "theirs", "from": str(source), **borrowed}
    said = {"apiVersion": "interp/v1", "kind": "Study", "metadata": {"name": "x"}, "store": "memory://x"}
    said |= {"model": {"source": str(checkpoint)}, "dictionaries": [borrowed], "trace": {"prompts": ["a"]}}
    return Study.model_validate_json(json.dumps(said))


def test_a_plan_pins_the_commit(hub: Hub, checkpoint: Path) -> None:
    """The driver may read the plan when `main` has moved."""
    study = study_of(checkpoint, "hf://org/name/set")
    made = pinned(study, find_revisions(study, None))
    assert made.borrowed[0].source == f"hf://org/name@{OLD}/set"
    hub.put("name", NEW, {"set/layer_0.safetensors": "moved"})
    assert fetched(made.borrowed[0].source).joinpath("layer_0.safetensors").read_text() == "zero"


def test_a_plan_says_the_content_and_no_other_is_read(hub: Hub, checkpoint: Path) -> None:
    """A listed file of the hub is at whatever commit its branch is: it may move between the plan and an actor."""
    study = study_of(checkpoint, "hf://org/name/set")
    made = pinned(study, find_revisions(study, None))
    one = dictionary_set(made, "theirs", {})
    assert one.content == dictionary_revision("hf://org/name/set")
    hub.put("other", "c" * 40, {"layer_0/params.npz": "other weights"})
    with pytest.raises(SourceError, match="changed after they were planned"):
        one.load(SimpleNamespace(device="cpu"))  # type: ignore[arg-type]
    with pytest.raises(SourceError, match="changed after they were planned"):
        find_revisions(made, None)


def test_a_folder_that_changed_after_it_was_planned(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "layer_0.safetensors").write_text("w")
    study = study_of(checkpoint, folder)
    made = pinned(study, find_revisions(study, None))
    assert pinned(made, find_revisions(made, None)) == made
    (folder / "layer_0.safetensors").write_text("other")
    with pytest.raises(SourceError, match="changed after they were planned"):
        dictionary_set(made, "theirs", {}).load(SimpleNamespace(device="cpu"))  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="an artifact's key says its content"):
        find_revisions(study_of(checkpoint, "artifact://" + "0" * 64, content="x"), None)


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
