"""Where a model is, what it is, and what identifies its content."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from interp.errors import ModelError, SourceError, UnsafeFormat
from interp.sources.resolve import read_config, resolve_model, resolve_tokenizer, tokenizer_revision
from interp.spec.study import ModelSpec


def spec(source: str | Path, **fields: Any) -> ModelSpec:
    return ModelSpec.model_validate({"source": str(source), **fields})


def test_a_directory(checkpoint: Path, llama: dict[str, Any]) -> None:
    found = resolve_model(spec(checkpoint))
    assert (found.path, found.kind, found.config) == (str(checkpoint), "directory", llama)
    assert re.fullmatch(r"[0-9a-f]{64}", found.revision)


def test_the_built_in_model() -> None:
    found = resolve_model(spec("builtin://tiny-split-llama"))
    assert found.kind == "split"
    assert (Path(found.path) / "model.safetensors").is_file()
    with pytest.raises(SourceError, match="built-in"):
        resolve_model(spec("builtin://nothing"))


def test_the_revision_is_that_of_the_content(checkpoint: Path, tmp_path: Path) -> None:
    before = resolve_model(spec(checkpoint)).revision
    copy = tmp_path / "elsewhere"
    checkpoint.rename(copy)
    assert resolve_model(spec(copy)).revision == before
    (copy / "README.md").write_text("other words")
    (copy / "tokenizer.json").write_text('{"a": 1}')
    assert resolve_model(spec(copy)).revision == before
    (copy / "model.safetensors").write_bytes(b"Weights")
    assert resolve_model(spec(copy)).revision != before


def test_the_configuration_is_content_too(checkpoint: Path, llama: dict[str, Any]) -> None:
    before = resolve_model(spec(checkpoint)).revision
    (checkpoint / "config.json").write_text(json.dumps({**llama, "rms_norm_eps": 1e-5}))
    assert resolve_model(spec(checkpoint)).revision != before


def test_the_tokenizer_has_a_revision_of_its_own(checkpoint: Path) -> None:
    before = tokenizer_revision(spec(checkpoint))
    (checkpoint / "model.safetensors").write_bytes(b"other")
    assert tokenizer_revision(spec(checkpoint)) == before
    (checkpoint / "tokenizer_config.json").write_text('{"bos_token": "<s>"}')
    assert tokenizer_revision(spec(checkpoint)) != before


def test_a_tokenizer_from_elsewhere(checkpoint: Path, tmp_path: Path) -> None:
    other = tmp_path / "tokenizer"
    other.mkdir()
    (other / "tokenizer.json").write_text("{}")
    found = resolve_tokenizer(spec(checkpoint, tokenizer=str(other)))
    assert (found.path, found.kind) == (str(other), "directory")
    assert found.revision == tokenizer_revision(spec(checkpoint))  # the same content


def test_no_tokenizer(checkpoint: Path) -> None:
    (checkpoint / "tokenizer.json").unlink()
    with pytest.raises(SourceError, match="no tokenizer"):
        resolve_tokenizer(spec(checkpoint))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth"])
def test_pickles_alone_are_refused(checkpoint: Path, name: str) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / name)
    for look in (resolve_model, read_config):
        with pytest.raises(UnsafeFormat, match=name):
            look(spec(checkpoint))


def test_a_pickle_beside_safetensors_is_ignored(checkpoint: Path) -> None:
    before = resolve_model(spec(checkpoint)).revision
    (checkpoint / "training_args.bin").write_bytes(b"x")
    assert resolve_model(spec(checkpoint)).revision == before


@pytest.mark.parametrize(("remove", "told"), [("config.json", "no config.json"), ("model.safetensors", "no weights")])
def test_incomplete_directories(checkpoint: Path, remove: str, told: str) -> None:
    (checkpoint / remove).unlink()
    with pytest.raises(SourceError, match=told):
        resolve_model(spec(checkpoint))


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_configuration_that_is_none(checkpoint: Path, content: str) -> None:
    (checkpoint / "config.json").write_text(content)
    with pytest.raises(SourceError, match=r"config\.json"):
        resolve_model(spec(checkpoint))


@pytest.mark.parametrize("source", ["no/such/directory", "nothing", "./org/name", "model.gguf"])
def test_nothing_there(source: str) -> None:
    with pytest.raises(SourceError, match="there is no"):
        resolve_model(spec(source))


def test_a_remote_directory_is_described_without_being_downloaded(checkpoint: Path, cache: Path) -> None:
    fs = fsspec.filesystem("memory")
    fs.put(str(checkpoint), "/bucket/model", recursive=True)
    described = resolve_model(spec("memory://bucket/model"), fetch=False)
    assert described.path == "memory://bucket/model"
    assert described.config == json.loads((checkpoint / "config.json").read_text())
    assert not (cache / "models").exists()
    assert read_config(spec("memory://bucket/model")) == described.config


def test_a_remote_directory_is_downloaded_once_and_again_when_it_changes(checkpoint: Path, cache: Path) -> None:
    fs = fsspec.filesystem("memory")
    fs.put(str(checkpoint), "/bucket/changing", recursive=True)
    first = resolve_model(spec("memory://bucket/changing"))
    assert Path(first.path).is_relative_to(cache)
    assert (Path(first.path) / "model.safetensors").read_bytes() == b"weights"
    assert (Path(first.path) / "tokenizer.json").is_file()
    assert not (Path(first.path) / "README.md").exists()
    (Path(first.path) / "model.safetensors").unlink()  # a download that was interrupted
    assert resolve_model(spec("memory://bucket/changing")) == first
    assert (Path(first.path) / "model.safetensors").is_file()
    fs.pipe_file("/bucket/changing/model.safetensors", b"weight2")
    second = resolve_model(spec("memory://bucket/changing"))
    assert second.revision != first.revision
    assert (Path(second.path) / "model.safetensors").read_bytes() == b"weight2"


def test_a_remote_directory_that_is_not_there() -> None:
    with pytest.raises(SourceError, match="no such file or folder"):
        resolve_model(spec("memory://bucket/nothing"))


@pytest.mark.s3
def test_s3_and_its_refusals(checkpoint: Path, s3_env: None, s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fs = fsspec.filesystem("s3")
    for file in checkpoint.iterdir():
        fs.pipe_file(f"{s3_url}/{file.name}", file.read_bytes())
    described = resolve_model(spec(s3_url), fetch=False)
    assert resolve_model(spec(s3_url)).revision == described.revision
    fs.pipe_file(f"{s3_url}/model.safetensors", b"Weights")
    assert resolve_model(spec(s3_url), fetch=False).revision != described.revision
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    type(fs).clear_instance_cache()
    with pytest.raises(SourceError) as caught:
        resolve_model(spec(s3_url), fetch=False)
    assert "planted-secret" not in str(caught.value)
    assert "AWS_SECRET_ACCESS_KEY" in str(caught.value)
    type(fs).clear_instance_cache()


def write_gguf(path: Path, architecture: str = "llama", *, tied: bool = False) -> Path:
    from gguf import GGUFWriter

    writer = GGUFWriter(path, architecture)
    writer.add_embedding_length(16)
    writer.add_feed_forward_length(32)
    writer.add_block_count(3)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "b", "c"])
    writer.add_tensor("token_embd.weight", np.zeros((3, 16), np.float32))
    if not tied:
        writer.add_tensor("output.weight", np.zeros((3, 16), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_file(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    found = resolve_model(spec(path))
    assert (found.path, found.kind) == (str(path), "gguf")
    assert found.config == {
        "model_type": "llama",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 3,
        "tie_word_embeddings": False,
    }
    assert tokenizer_revision(spec(path)) == found.revision


def test_a_directory_with_one_gguf_file(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    path = write_gguf(folder / "tiny.gguf", tied=True)
    found = resolve_model(spec(folder))
    assert (found.path, found.kind) == (str(path), "gguf")
    assert found.config["tie_word_embeddings"] is True
    assert resolve_tokenizer(spec(folder)).path == str(path)
    write_gguf(folder / "other.gguf")
    with pytest.raises(SourceError, match="several GGUF files"):
        resolve_model(spec(folder))


def test_gguf_files_that_cannot_be_used(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"not a model")
    with pytest.raises(ModelError, match="no GGUF file"):
        resolve_model(spec(broken))
    with pytest.raises(ModelError, match="architecture"):
        resolve_model(spec(write_gguf(tmp_path / "mamba.gguf", "mamba")))
