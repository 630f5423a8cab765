"""From what a study names as its model to a place, a configuration and a revision.

    builtin://name     ships with the package
    DIRECTORY          Hugging Face layout, or a saved SplitLlama: config.json and safetensors (or one .gguf file)
    FILE.gguf
    hf://org/name      the hub; `org/name` alone too, where no such directory is here
    s3://bucket/path   a directory on any filesystem that fsspec knows

A revision identifies content: sha256 for files that are here, the commit on the hub, etags on object storage. Only the
configuration is read to describe a model: no weights are downloaded to plan a study. Weights are safetensors or GGUF;
a directory that has pickles alone is refused.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from interp.errors import SourceError, UnsafeFormat
from interp.sources import hub
from interp.sources.builtin import builtin_model_path
from interp.sources.folders import Folder, HubFolder, LocalFolder, RemoteFolder, matching
from interp.sources.gguf_config import gguf_config
from interp.sources.memo import Memo
from interp.spec.study import ModelSpec

Kind = Literal["directory", "split", "hub", "gguf"]

WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "*.model"),
)
"""Every file that can change how text becomes tokens."""

_TOKENIZER_ITSELF = ("tokenizer.json", "vocab.json", "vocab.txt", "*.model")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@dataclass(frozen=True)
class ResolvedModel:
    """A model that was found.

    Attributes:
        path: a local directory or .gguf file, or `org/name` of the hub (to be loaded at `revision`).
        kind: what is there; `split` is a local directory with a SplitLlama.
        revision: identifies its content.
        config: its configuration, as config.json has it.
    """

    path: str
    kind: Kind
    revision: str
    config: dict[str, Any]


@dataclass(frozen=True)
class ResolvedTokenizer:
    """Where a tokenizer can be loaded from, and what identifies it; `kind` and `path` as in ResolvedModel."""

    path: str
    kind: Kind
    revision: str


def resolve_model(spec: ModelSpec, *, fetch: bool = True) -> ResolvedModel:
    """Find the model of a study.

    Args:
        fetch: bring weights and tokenizer of a remote directory here, so that `path` is local. Without, `path` is the
            URL; everything else is the same.

    Raises:
        SourceError: there is nothing, or it cannot be reached.
        UnsafeFormat: it has weights that can execute code, and no others.
        ModelError: its configuration cannot be read.
    """
    if file := _gguf_file(spec.source):
        return _gguf(file)
    folder = _folder(spec.source, spec.revision, "model")
    names = folder.names()
    if isinstance(folder, LocalFolder) and (file := _only_gguf(folder, names)):
        return _gguf(file)
    weights = _checked_weights(spec.source, folder, names)
    config = _config(spec.source, folder, names)
    revision = folder.revision(["config.json", *weights])
    loaded = matching(names, ("config.json", "generation_config.json", *WEIGHTS, *TOKENIZER))
    path = folder.fetch(loaded) if fetch else _name_of(folder)
    return ResolvedModel(path, _kind(folder, config), revision, config)


def read_config(spec: ModelSpec) -> dict[str, Any]:
    """The configuration alone: nothing is hashed, and of a remote model nothing else is read."""
    if file := _gguf_file(spec.source):
        return gguf_config(file)
    folder = _folder(spec.source, spec.revision, "model")
    names = folder.names()
    if isinstance(folder, LocalFolder) and (file := _only_gguf(folder, names)):
        return gguf_config(file)
    _checked_weights(spec.source, folder, names)
    return _config(spec.source, folder, names)


def resolve_tokenizer(spec: ModelSpec, *, fetch: bool = True) -> ResolvedTokenizer:
    """Find the tokenizer: the one that the study names, or the one beside the weights.

    Raises:
        SourceError: there is none.
    """
    source = spec.tokenizer or spec.source
    if file := _gguf_file(source):
        return ResolvedTokenizer(str(file), "gguf", _digest(file))
    folder = _folder(source, None if spec.tokenizer else spec.revision, "tokenizer")
    names = folder.names()
    files = matching(names, TOKENIZER)
    if not matching(names, _TOKENIZER_ITSELF):
        if isinstance(folder, LocalFolder) and (file := _only_gguf(folder, names)):
            return ResolvedTokenizer(str(file), "gguf", _digest(file))
        raise SourceError(
            "there is no tokenizer",
            value=source,
            expected=f"one of {', '.join(_TOKENIZER_ITSELF)}",
            remedy="set model.tokenizer to a folder or hub repository that has one",
        )
    path = folder.fetch(matching(names, ("config.json", *TOKENIZER))) if fetch else _name_of(folder)
    return ResolvedTokenizer(path, "hub" if isinstance(folder, HubFolder) else "directory", folder.revision(files))


def tokenizer_revision(spec: ModelSpec) -> str:
    """What identifies how the study's model turns text into tokens."""
    return resolve_tokenizer(spec, fetch=False).revision


def _folder(source: str, revision: str | None, what: str) -> Folder:
    if source.startswith("builtin://"):
        return LocalFolder(builtin_model_path(source.removeprefix("builtin://")))
    if source.startswith("hf://"):
        return HubFolder(hub.look_up(hub.repository_of(source, "model"), "model", revision))
    if "://" in source and not source.startswith("file://"):
        return RemoteFolder.of(source.rstrip("/"))
    path = Path(source.removeprefix("file://")).expanduser()
    if path.is_dir():
        return LocalFolder(path)
    if hub.REPOSITORY.fullmatch(source) and not path.exists():
        return HubFolder(hub.look_up(source, "model", revision))
    raise SourceError(
        f"there is no {what} here",
        value=source,
        expected="a directory, a .gguf file, builtin://name, hf://org/name or s3://bucket/path",
        remedy="check the path; it is taken from the current directory",
    )


def _gguf_file(source: str) -> Path | None:
    if "://" in source or not source.endswith(".gguf"):
        return None
    path = Path(source).expanduser()
    if not path.is_file():
        raise SourceError("there is no such GGUF file", value=source, remedy="check the path")
    return path


def _only_gguf(folder: LocalFolder, names: Sequence[str]) -> Path | None:
    found = matching(names, ["*.gguf"])
    if not found or matching(names, WEIGHTS):
        return None
    if len(found) > 1:
        remedy = "name one of the files as model.source"
        raise SourceError("the directory has several GGUF files", value=", ".join(found), remedy=remedy)
    return folder.path / found[0]


def _gguf(file: Path) -> ResolvedModel:
    return ResolvedModel(str(file), "gguf", _digest(file), gguf_config(file))


def _digest(file: Path) -> str:
    with Memo() as memo:
        return memo.sha256(file)


def _checked_weights(source: str, folder: Folder, names: Sequence[str]) -> list[str]:
    found = matching(names, WEIGHTS)
    if found or (isinstance(folder, HubFolder) and folder.at.cached):  # a cache may lack the weights and be right
        return found
    if pickles := matching(names, _PICKLES):
        raise UnsafeFormat(
            "the model has weights only in a format that can execute code",
            value=f"{source}: {', '.join(pickles[:4])}",
            expected="safetensors or GGUF",
            remedy="convert the checkpoint to safetensors where its origin is trusted",
        )
    remedy = "give a directory that `save_pretrained` wrote"
    raise SourceError("the model has no weights", value=source, expected="*.safetensors or one .gguf", remedy=remedy)


def _config(source: str, folder: Folder, names: Sequence[str]) -> dict[str, Any]:
    if "config.json" not in names:
        remedy = "give a directory that `save_pretrained` wrote"
        raise SourceError("the model has no config.json", value=source, expected="config.json", remedy=remedy)
    try:
        config = json.loads(folder.read("config.json"))
    except ValueError as error:
        raise SourceError("config.json is no JSON", value=f"{source}: {error}", remedy="copy the file again") from error
    if not isinstance(config, dict):
        raise SourceError("config.json holds no mapping", value=source, remedy="copy the file again")
    return config


def _kind(folder: Folder, config: dict[str, Any]) -> Kind:
    if isinstance(folder, HubFolder):
        return "hub"
    return "split" if config.get("model_type") == "split-llama" else "directory"


def _name_of(folder: Folder) -> str:
    return folder.url if isinstance(folder, RemoteFolder) else folder.fetch(())
