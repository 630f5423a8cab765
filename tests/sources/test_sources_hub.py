"""Hub repositories: commits from the network, from the cache without one, and a clear word when neither helps."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from interp.errors import SourceError, UnsafeFormat
from interp.sources.resolve import resolve_model, tokenizer_revision
from interp.sources.revision import corpus_revision
from interp.spec.study import CorpusSpec, ModelSpec

OLD, NEW = "a" * 40, "b" * 40


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    return folder


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str | None]]:
    """A hub that answers with NEW; the list has what it was asked."""
    calls: list[tuple[str, str, str | None]] = []

    def repo_info(self: Any, repo_id: str, *, repo_type: str, revision: str | None = None) -> Any:
        calls.append((repo_id, repo_type, revision))
        files = ["config.json", "model.safetensors", "tokenizer.json", "sub/x.json"]
        return SimpleNamespace(sha=NEW, siblings=[SimpleNamespace(rfilename=name) for name in files])

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", repo_info)
    return calls


def cached(hub_cache: Path, kind: str, commit: str, files: dict[str, str]) -> None:
    folder = hub_cache / f"{kind}s--org--name"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(commit)
    for name, content in files.items():
        path = folder / "snapshots" / commit / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def model(source: str = "hf://org/name", **fields: Any) -> ModelSpec:
    return ModelSpec.model_validate({"source": source, **fields})


def test_the_cache_answers_without_a_network(hub_cache: Path) -> None:
    cached(hub_cache, "model", OLD, {"config.json": json.dumps({"model_type": "gpt2"}), "tokenizer.json": "{}"})
    found = resolve_model(model())
    assert (found.path, found.kind, found.revision) == ("org/name", "hub", OLD)
    assert found.config == {"model_type": "gpt2"}
    assert resolve_model(model("org/name")) == found
    assert tokenizer_revision(model()) == OLD


def test_neither_network_nor_cache(hub_cache: Path) -> None:
    with pytest.raises(SourceError) as caught:
        resolve_model(model())
    assert "cannot be reached" in str(caught.value)
    assert "HF_HUB_OFFLINE" in str(caught.value)


def test_a_directory_of_the_same_name_wins(
    hub_cache: Path, tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "org").mkdir()
    checkpoint.rename(tmp_path / "org" / "name")
    monkeypatch.chdir(tmp_path)
    assert resolve_model(model("org/name")).kind == "directory"


def test_the_network_decides_what_main_is(hub_cache: Path, asked: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    cached(hub_cache, "model", OLD, {"config.json": "{}"})
    config = hub_cache / "config.json"
    config.write_text(json.dumps({"model_type": "llama"}))
    wanted: list[str] = []

    def download(repo: str, name: str, *, revision: str, **options: Any) -> str:
        wanted.append(revision)
        return str(config)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    found = resolve_model(model(revision="v2"))
    assert (found.revision, found.config) == (NEW, {"model_type": "llama"})
    assert asked == [("org/name", "model", "v2")]
    assert wanted == [NEW]  # the file of the commit that was found, not of a branch that may have moved


def test_a_commit_in_the_cache_asks_nobody(hub_cache: Path, asked: list[Any]) -> None:
    cached(hub_cache, "model", OLD, {"config.json": "{}", "model.safetensors": "x"})
    assert resolve_model(model(revision=OLD)).revision == OLD
    assert asked == []


def test_a_repository_that_does_not_exist_is_not_looked_for_in_the_cache(
    hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub.errors import RepositoryNotFoundError

    cached(hub_cache, "model", OLD, {"config.json": "{}"})

    def repo_info(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise RepositoryNotFoundError.__new__(RepositoryNotFoundError, "404: no such repository")

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", repo_info)
    with pytest.raises(SourceError, match="the hub does not give this model"):
        resolve_model(model())


def test_pickles_on_the_hub_are_refused_before_any_download(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def repo_info(self: Any, *args: Any, **kwargs: Any) -> Any:
        names = ("config.json", "pytorch_model.bin")
        return SimpleNamespace(sha=NEW, siblings=[SimpleNamespace(rfilename=name) for name in names])

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", repo_info)
    with pytest.raises(UnsafeFormat):
        resolve_model(model())


@pytest.mark.parametrize("source", ["hf://name", "hf://org/name/file.json", "hf://org/name@main"])
def test_what_is_no_repository(source: str) -> None:
    with pytest.raises(SourceError, match="no model of the hub"):
        resolve_model(model(source))


def test_a_data_set_is_identified_by_its_commit(hub_cache: Path, asked: list[Any]) -> None:
    corpus = CorpusSpec.model_validate({"source": "hf://org/name", "tokens": 1, "revision": "v1"})
    assert corpus_revision(corpus) == NEW
    assert asked == [("org/name", "dataset", "v1")]


def test_a_data_set_of_the_cache(hub_cache: Path) -> None:
    cached(hub_cache, "dataset", OLD, {"data.parquet": ""})
    assert corpus_revision(CorpusSpec.model_validate({"source": "hf://org/name", "tokens": 1})) == OLD
