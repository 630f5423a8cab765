"""Dictionaries by their kind, and folders of many; `storage` has the files of one."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import overload

from interp.dictionaries.base import SparseDictionary
from interp.dictionaries.config import CrossLayerConfig, DictionaryConfig
from interp.dictionaries.cross_layer import CrossLayerTranscoder
from interp.dictionaries.dictionary import KINDS, Dictionary, HasFingerprint
from interp.dictionaries.storage import CONFIG, WEIGHTS, says_ours
from interp.errors import DictionaryError

__all__ = ["CONFIG", "DICTIONARIES", "WEIGHTS", "build_dictionary", "load_dictionaries", "says_ours"]

DICTIONARIES: Mapping[str, Callable[..., Dictionary]] = MappingProxyType(KINDS)
"""The class of each kind: what makes one from its config and a seed."""


@overload
def build_dictionary(config: DictionaryConfig, *, seed: int = 0) -> SparseDictionary: ...
@overload
def build_dictionary(config: CrossLayerConfig, *, seed: int = 0) -> CrossLayerTranscoder: ...
@overload
def build_dictionary(config: DictionaryConfig | CrossLayerConfig, *, seed: int = 0) -> Dictionary: ...
def build_dictionary(config: DictionaryConfig | CrossLayerConfig, *, seed: int = 0) -> Dictionary:
    """A new dictionary of the config's kind, random by `seed`."""
    return DICTIONARIES[config.kind](config, seed=seed)


def load_dictionaries(folder: str | Path, *, model: HasFingerprint | str) -> dict[str, Dictionary]:
    """All dictionaries below a folder, in the order of their layers.

    The keys are the paths below `folder`: `"layers.0.mlp"` for a folder of one study's set, and
    `"<set>/layers.0.mlp"` for the folder above it.

    Raises:
        DictionaryError: there is none, one of them lacks a file, or does not load.
    """
    root = Path(folder)
    # Either file tells that there is a dictionary: one that lacks the other is incomplete, and not left out.
    files = {*root.rglob(WEIGHTS), *(path for path in root.rglob(CONFIG) if says_ours(path))}
    found = {path.parent.relative_to(root).as_posix(): path.parent for path in files}
    if not found:
        raise DictionaryError(
            "there is no dictionary in this folder",
            value=str(root),
            expected=f"<name>/<hook point>/{CONFIG} and {WEIGHTS}",
        )
    return {name: Dictionary.load(found[name], model=model) for name in sorted(found, key=_natural)}


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts layer 10 after layer 2."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
