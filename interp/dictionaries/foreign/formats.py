"""The formats of dictionaries, ours among them: one row each. A new one is a file with `is_here` and `read`, and a row.

What a folder holds is told from its files. A format that is named is only checked: it never decides what is read. A
set of circuit-tracer may keep files of Gemma Scope in its folder: its config.yaml says how they are read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from interp.dictionaries.dictionary import Dictionary
from interp.dictionaries.files import CONFIG, WEIGHTS, load_dictionaries, says_ours
from interp.dictionaries.foreign import (
    circuit_tracer,
    circuit_tracer_writer,
    dictionary_learning,
    gemma_scope,
    hub_card,
    saelens,
    saelens_writer,
    sparsify,
)
from interp.dictionaries.foreign.claim import Claim
from interp.errors import DictionaryError, SpecError

Loaded = Mapping[str, Dictionary]
"""Dictionaries by place (`layers.3.mlp`), or a cross-layer transcoder as `cross-layer`."""


@dataclass(frozen=True)
class Format:
    """One row.

    Attributes:
        looked_for: what `is_here` looks for, for people.
        is_here: whether a folder (or file) has dictionaries in this format.
        read: all of them.
        write: into a folder, with `model_name`, `scan` and `mlps` for those who ask; None: the format is only read.
        written: what `write` calls its files, from the folder on.
    """

    looked_for: str
    is_here: Callable[[Path], bool]
    read: Callable[[Path, Claim], Loaded]
    write: Callable[..., None] | None = None
    written: re.Pattern[str] | None = None


def _is_ours(folder: Path) -> bool:
    return folder.is_dir() and any(says_ours(path) for path in folder.rglob(CONFIG))


def _read_ours(folder: Path, claim: Claim) -> Loaded:
    """Ours name the fingerprint of their model, so nobody's word is needed."""
    loaded = load_dictionaries(folder, model=claim.model)
    by_place: dict[str, Dictionary] = {}
    for name, dictionary in loaded.items():
        if dictionary.config.at in by_place:
            raise DictionaryError(
                f"there are several dictionaries at {dictionary.config.at}",
                value=f"{folder}, {name}",
                expected="one set of dictionaries, at most one for each place",
                remedy="name the folder of one set: a subfolder of this one",
            )
        if claim.dtype:
            dictionary.config = dictionary.config.model_copy(update={"dtype": claim.dtype})
            dictionary.to(getattr(torch, claim.dtype))
        by_place[dictionary.config.at] = dictionary
    return by_place


def _write_ours(loaded: Loaded, folder: Path, **_: Any) -> None:
    for at, dictionary in loaded.items():
        dictionary.save(folder / at)


_OURS = re.compile(rf"[^/]+/({re.escape(CONFIG)}|{re.escape(WEIGHTS)})")

FORMATS: Mapping[str, Format] = {
    "interp": Format(f"<hook point>/{CONFIG} and {WEIGHTS}", _is_ours, _read_ours, _write_ours, _OURS),
    circuit_tracer.NAME: Format(
        "config.yaml with model_kind",
        circuit_tracer.is_here,
        circuit_tracer.read,
        circuit_tracer_writer.write,
        circuit_tracer_writer.WRITTEN,
    ),
    gemma_scope.NAME: Format("params.npz or params.safetensors", gemma_scope.is_here, gemma_scope.read),
    saelens.NAME: Format(
        f"{saelens.WEIGHTS} and {saelens.CONFIG}",
        saelens.is_here,
        saelens.read,
        saelens_writer.write,
        saelens_writer.WRITTEN,
    ),
    sparsify.NAME: Format(
        f"<module>/{sparsify.WEIGHTS} and {sparsify.CONFIG}",
        sparsify.is_here,
        sparsify.read,
        sparsify.write,
        sparsify.WRITTEN,
    ),
    dictionary_learning.NAME: Format(
        f"{dictionary_learning.WEIGHTS} and {dictionary_learning.CONFIG}",
        dictionary_learning.is_here,
        dictionary_learning.read,
    ),
}
"""By the name that a study and `interp convert` use."""


def recognise(path: Path) -> str:
    """The format of what is at `path`.

    Raises:
        DictionaryError: it is in none that is known, or in several.
    """
    found = [name for name, format in FORMATS.items() if format.is_here(path)]
    if len(found) == 1:
        return found[0]
    looked_for = "; ".join(f"{name}: {format.looked_for}" for name, format in FORMATS.items())
    if not found:
        raise DictionaryError(
            "there are no dictionaries here, or they are in no format that is read",
            value=str(path),
            expected=looked_for,
            remedy="name the folder that has these files itself",
        )
    raise DictionaryError(
        "there are dictionaries of several formats here",
        value=f"{path}: {', '.join(found)}",
        expected="one of them",
        remedy="name the folder of one set",
    )


def first_other(folder: Path) -> Path | None:
    """The first file below a folder of dictionaries that is none of those that `write_dictionaries` makes.

    Raises:
        DictionaryError: it is no folder of dictionaries, or of several formats.
    """
    written = FORMATS[recognise(folder)].written
    there = sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    known = (
        (written is not None and written.fullmatch(path.relative_to(folder).as_posix()))
        or (path.parent == folder and hub_card.is_ours(path))
        for path in there
    )
    return next((path for path, ours in zip(there, known, strict=True) if not ours), None)


def read_dictionaries(path: Path, claim: Claim, format: str | None = None) -> Loaded:
    """All dictionaries at `path`, in whatever format they are.

    Args:
        format: a name of `FORMATS`; told from the files when absent.

    Raises:
        ModelMismatch: they name another model.
        DictionaryError: they are not in that format, or not for this model's places and sizes.
    """
    row = None if format is None else format_named(format)
    found = recognise(path) if row is None or row.is_here(path) else None
    if format not in (None, found):
        assert row is not None
        raise DictionaryError(
            f"there are no dictionaries of the format {format} here",
            value=f"{path}{f', of the format {found}' if found else ''}",
            expected=row.looked_for,
            remedy="leave the format out: it is told from the files",
        )
    assert found is not None
    return FORMATS[found].read(path, claim)


def write_dictionaries(
    loaded: Loaded,
    folder: Path,
    format: str,
    *,
    mlps: Sequence[str],
    model_name: str | None = None,
    scan: str | None = None,
) -> None:
    """Write dictionaries into a folder, which is made if need be.

    Args:
        mlps: all MLPs of the model, `layers.0.mlp` and so on, in execution order.

    Raises:
        DictionaryError: the format is only read, or cannot say what these dictionaries are.
    """
    row = format_named(format)
    if row.write is None:
        raise DictionaryError("this format is only read", value=format, expected=" or ".join(writable()))
    row.write(loaded, folder, mlps=mlps, model_name=model_name, scan=scan)


def format_named(name: str) -> Format:
    """The row of that name."""
    if name not in FORMATS:
        raise SpecError("there is no such format", value=name, expected=", ".join(FORMATS))
    return FORMATS[name]


def writable() -> Sequence[str]:
    """The formats that can be written."""
    return [name for name, format in FORMATS.items() if format.write]
