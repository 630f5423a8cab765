"""Dictionaries on disk: `weights.safetensors` beside `config.json`, and folders of many.

The config is removed first and written last, so a folder that has one is complete. Nothing is ever unpickled. Loading
checks the version of the format, the model, the names, shapes and types of all tensors, and that their values are
finite.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import overload

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from interp.dictionaries.autoencoder import SparseAutoencoder
from interp.dictionaries.base import SparseDictionary
from interp.dictionaries.config import FORMAT, AnyConfig, CrossLayerConfig, DictionaryConfig
from interp.dictionaries.cross_layer import CrossLayerTranscoder
from interp.dictionaries.dictionary import Dictionary, HasFingerprint
from interp.dictionaries.transcoder import Transcoder
from interp.errors import DictionaryError

WEIGHTS, CONFIG = "weights.safetensors", "config.json"

DICTIONARIES: Mapping[str, Callable[..., Dictionary]] = {
    "sae": SparseAutoencoder,
    "transcoder": Transcoder,
    "skip-transcoder": Transcoder,
    "cross-layer-transcoder": CrossLayerTranscoder,
}
"""The class of each kind: what makes one from its config and a seed."""

_CONFIG: TypeAdapter[DictionaryConfig | CrossLayerConfig] = TypeAdapter(AnyConfig)


@overload
def build_dictionary(config: DictionaryConfig, *, seed: int = 0) -> SparseDictionary: ...
@overload
def build_dictionary(config: CrossLayerConfig, *, seed: int = 0) -> CrossLayerTranscoder: ...
@overload
def build_dictionary(config: DictionaryConfig | CrossLayerConfig, *, seed: int = 0) -> Dictionary: ...
def build_dictionary(config: DictionaryConfig | CrossLayerConfig, *, seed: int = 0) -> Dictionary:
    """A new dictionary of the config's kind, random by `seed`."""
    return DICTIONARIES[config.kind](config, seed=seed)


def save(dictionary: Dictionary, folder: Path) -> None:
    """Write a dictionary into `folder`, which is made if need be.

    Raises:
        DictionaryError: the dictionary names no model, or its weights are not finite.
    """
    if dictionary.config.model is None:
        raise DictionaryError(
            f"the {dictionary.config.kind} at {dictionary.config.at} names no model, so no reader could check it",
            remedy="set config.model to the ModelIdentity of the model that it was trained on",
        )
    tensors = _stored_tensors(dictionary)
    _require_finite(tensors, folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).unlink(missing_ok=True)
    partial = folder / f".{WEIGHTS}.{os.getpid()}"
    save_file(tensors, partial)
    partial.replace(folder / WEIGHTS)
    partial = folder / f".{CONFIG}.{os.getpid()}"
    partial.write_text(dictionary.config.model_dump_json(indent=2) + "\n", encoding="utf-8")
    partial.replace(folder / CONFIG)


def load(folder: Path, *, model: HasFingerprint | str) -> Dictionary:
    """Read one dictionary; see `Dictionary.load`."""
    config = _read_config(folder / CONFIG)
    dictionary = build_dictionary(config)
    dictionary.check_model(model)
    tensors = _read_tensors(folder / WEIGHTS)
    _require_as_expected(tensors, _stored_tensors(dictionary), folder / WEIGHTS)
    _require_finite(tensors, folder)
    own = {name: dictionary.stored_name(name) for name in dictionary.state_dict()}
    dictionary.load_state_dict({name: tensors[stored] for name, stored in own.items()})
    return dictionary


def load_dictionaries(folder: str | Path, *, model: HasFingerprint | str) -> dict[str, Dictionary]:
    """All dictionaries below a folder, in the order of their layers.

    The keys are the paths below `folder`: `"layers.0.mlp"` for a folder of one study's set, and
    `"<set>/layers.0.mlp"` for the folder above it.

    Raises:
        DictionaryError: there is none, or one of them does not load.
    """
    root = Path(folder)
    found = {path.parent.relative_to(root).as_posix(): path.parent for path in root.rglob(CONFIG)}
    found = {name: path for name, path in found.items() if (path / WEIGHTS).is_file()}
    if not found:
        raise DictionaryError(
            "there is no dictionary in this folder",
            value=str(root),
            expected=f"<name>/<hook point>/{CONFIG} and {WEIGHTS}",
        )
    return {name: load(found[name], model=model) for name in sorted(found, key=_natural)}


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts layer 10 after layer 2."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _stored_tensors(dictionary: Dictionary) -> dict[str, Tensor]:
    tensors = dictionary.state_dict().items()
    return {dictionary.stored_name(name): tensor.detach().cpu().clone() for name, tensor in tensors}


def _read_config(path: Path) -> DictionaryConfig | CrossLayerConfig:
    if not path.is_file():
        raise DictionaryError(
            "a dictionary's folder has no config",
            value=str(path),
            expected=f"{CONFIG} beside {WEIGHTS}",
            remedy="an interrupted save leaves none: train or copy it again",
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DictionaryError("a dictionary's config is not JSON", value=str(path), expected=str(error)) from error
    version = content.get("format") if isinstance(content, dict) else None
    if version != FORMAT:
        raise DictionaryError(
            f"a dictionary's config is of another format: {path}",
            value=version,
            expected=FORMAT,
            remedy="a newer release of interp wrote it, or another program did",
        )
    try:
        return _CONFIG.validate_python(content)
    except ValidationError as error:
        raise DictionaryError(f"a dictionary's config is not valid: {path}", value=str(error)) from error


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise DictionaryError("a dictionary has no weights", value=str(path), expected=f"{WEIGHTS} beside {CONFIG}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise DictionaryError(
            f"a dictionary's weights are not readable safetensors: {path}",
            value=str(error),
            remedy="the file was truncated or changed: copy or train it again",
        ) from error


def _require_as_expected(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> None:
    if found.keys() != expected.keys():
        raise DictionaryError(
            f"a dictionary's weights do not hold what its config says: {path}",
            value=f"missing {sorted(expected.keys() - found.keys())}, unknown {sorted(found.keys() - expected.keys())}",
            expected=", ".join(sorted(expected)),
        )
    for name, tensor in found.items():
        if tensor.shape != expected[name].shape or tensor.dtype != expected[name].dtype:
            raise DictionaryError(
                f"tensor {name} is not as the config says: {path}",
                value=f"{tuple(tensor.shape)} {tensor.dtype}",
                expected=f"{tuple(expected[name].shape)} {expected[name].dtype}",
            )


def _require_finite(tensors: Mapping[str, Tensor], folder: Path) -> None:
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise DictionaryError(f"tensor {name} has values that are not finite: {folder}")
