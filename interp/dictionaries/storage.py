"""The two files of one dictionary: `weights.safetensors` beside `config.json`, whatever its kind.

The config is removed first and written last, so a folder that has one is complete. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from interp.dictionaries.config import FORMAT, AnyConfig, CrossLayerConfig, DictionaryConfig
from interp.errors import DictionaryError

WEIGHTS, CONFIG = "weights.safetensors", "config.json"

_CONFIG: TypeAdapter[DictionaryConfig | CrossLayerConfig] = TypeAdapter(AnyConfig)


def write(config: DictionaryConfig | CrossLayerConfig, tensors: dict[str, Tensor], folder: Path) -> None:
    """Write a dictionary into `folder`, which is made if need be.

    Raises:
        DictionaryError: the config names no model, or the weights are not finite.
    """
    if config.model is None:
        raise DictionaryError(
            f"the {config.kind} at {config.at} names no model, so no reader could check it",
            remedy="set config.model to the ModelIdentity of the model that it was trained on",
        )
    require_finite(tensors, folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).unlink(missing_ok=True)
    partial = folder / f".{WEIGHTS}.{os.getpid()}"
    save_file(tensors, partial)
    partial.replace(folder / WEIGHTS)
    partial = folder / f".{CONFIG}.{os.getpid()}"
    partial.write_text(config.model_dump_json(indent=2) + "\n", encoding="utf-8")
    partial.replace(folder / CONFIG)


def says_ours(config: Path) -> bool:
    """Whether a `config.json` is one of our dictionaries', of whatever version: other programs use the name too."""
    return f'"{FORMAT.rpartition("/")[0]}/' in config.read_text(encoding="utf-8", errors="replace")


def read_config(path: Path) -> DictionaryConfig | CrossLayerConfig:
    """A `config.json`, checked.

    Raises:
        DictionaryError: it is not there, of another format, or says something impossible.
    """
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


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Copies of the tensors of a file: its own memory is mapped, and changes when the file does.

    Raises:
        DictionaryError: it is not there, or is not readable.
    """
    if not path.is_file():
        raise DictionaryError("a dictionary has no weights", value=str(path), expected=f"{WEIGHTS} beside {CONFIG}")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise DictionaryError(
            f"a dictionary's weights are not readable safetensors: {path}",
            value=str(error),
            remedy="the file was truncated or changed: copy or train it again",
        ) from error


def require_as_expected(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> None:
    """Refuse other names, shapes or types than `expected` has; its values do not matter."""
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


def require_finite(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Refuse infinities and what is no number."""
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise DictionaryError(f"tensor {name} has values that are not finite: {folder}")
