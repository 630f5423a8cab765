"""The formats of dictionaries, ours among them: one row each. A new one is a file with `is_here` and `read`, and a row.

What a folder holds is told from its files. A format that is named is only checked: it never decides what is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from interp.dictionaries.config import FORMAT
from interp.dictionaries.dictionary import Dictionary
from interp.dictionaries.files import CONFIG, WEIGHTS, load_dictionaries
from interp.dictionaries.foreign import circuit_tracer, circuit_tracer_writer, gemma_scope
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
        write: into a folder, with `model_name` and `scan` for those who ask; None: the format is only read.
    """

    looked_for: str
    is_here: Callable[[Path], bool]
    read: Callable[[Path, Claim], Loaded]
    write: Callable[..., None] | None = None


def _is_ours(folder: Path) -> bool:
    return folder.is_dir() and any(
        (path.parent / WEIGHTS).is_file() and FORMAT in path.read_text(encoding="utf-8", errors="replace")
        for path in folder.rglob(CONFIG)
    )


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


def _write_ours(loaded: Loaded, folder: Path, *, model_name: str | None = None, scan: str | None = None) -> None:
    for at, dictionary in loaded.items():
        dictionary.save(folder / at)


FORMATS: Mapping[str, Format] = {
    "interp": Format(f"<hook point>/{CONFIG} and {WEIGHTS}", _is_ours, _read_ours, _write_ours),
    circuit_tracer.NAME: Format(
        "config.yaml with model_kind", circuit_tracer.is_here, circuit_tracer.read, circuit_tracer_writer.write
    ),
    gemma_scope.NAME: Format("params.npz or params.safetensors", gemma_scope.is_here, gemma_scope.read),
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
        remedy="name the folder of one set, or the format",
    )


def read_dictionaries(path: Path, claim: Claim, format: str | None = None) -> Loaded:
    """All dictionaries at `path`, in whatever format they are.

    Args:
        format: a name of `FORMATS`; told from the files when absent.

    Raises:
        ModelMismatch: they name another model.
        DictionaryError: they are not in that format, or not for this model's places and sizes.
    """
    if format is None:
        format = recognise(path)
    row = format_named(format)
    if not row.is_here(path):
        raise DictionaryError(
            f"there are no dictionaries of the format {format} here",
            value=str(path),
            expected=row.looked_for,
            remedy="leave the format out: it is told from the files",
        )
    return row.read(path, claim)


def write_dictionaries(
    loaded: Loaded, folder: Path, format: str, *, model_name: str | None = None, scan: str | None = None
) -> None:
    """Write dictionaries into a folder, which is made if need be.

    Raises:
        DictionaryError: the format is only read, or cannot say what these dictionaries are.
    """
    row = format_named(format)
    if row.write is None:
        raise DictionaryError("this format is only read", value=format, expected=" or ".join(writable()))
    row.write(loaded, folder, model_name=model_name, scan=scan)


def format_named(name: str) -> Format:
    """The row of that name."""
    if name not in FORMATS:
        raise SpecError("there is no such format", value=name, expected=", ".join(FORMATS))
    return FORMATS[name]


def writable() -> Sequence[str]:
    """The formats that can be written."""
    return [name for name, format in FORMATS.items() if format.write]
