"""Which files a corpus on a filesystem consists of, in an order that depends on their names alone.

A path, a glob or a folder, on any filesystem that fsspec knows. What a file holds is told by its name (`.txt`,
`.jsonl`, `.parquet`; behind that `.gz`, `.bz2`, `.xz`, `.zst` when compressed), or by `corpus.format`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import takewhile
from pathlib import PurePosixPath
from typing import Any

from fsspec.core import has_magic, url_to_fs

from interp.errors import CorpusError, SourceError
from interp.sources.folders import explained
from interp.spec.study import CorpusSpec

FORMATS = {".txt": "text", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd"}


@dataclass(frozen=True)
class CorpusFile:
    """One file; `name` is its path below the folder that all files of the source share."""

    fs: Any
    path: str
    name: str
    format: str
    compression: str | None


def find_files(spec: CorpusSpec) -> tuple[CorpusFile, ...]:
    """The files of a path, glob or folder, in the order of sha256 of their names.

    Raises:
        SourceError: nothing is there, or it cannot be reached.
        CorpusError: the format of a file cannot be told from its name.
    """
    with explained(spec.source):
        fs, root = url_to_fs(spec.source)
        paths, root, listed = _expand(fs, root)
    files = [_described(fs, path, root, spec.format) for path in paths if not (listed and _foreign(path, spec.format))]
    if not files:
        raise SourceError(
            "the corpus has no files",
            value=spec.source,
            expected=f"files that end in {', '.join(FORMATS)} (and {', '.join(COMPRESSIONS)} when compressed)",
            remedy="correct corpus.source; set corpus.format when the files are named otherwise",
        )
    return tuple(sorted(files, key=lambda file: (hashlib.sha256(file.name.encode()).digest(), file.name)))


def format_of(name: str) -> tuple[str | None, str | None]:
    """The format and the compression that a file's name tells."""
    suffixes = [suffix.lower() for suffix in PurePosixPath(name).suffixes]
    compression = COMPRESSIONS.get(suffixes[-1]) if suffixes else None
    if compression:
        suffixes.pop()
    return (FORMATS.get(suffixes[-1]) if suffixes else None), compression


def _expand(fs: Any, path: str) -> tuple[list[str], str, bool]:
    """Every file that `path` names, the folder that they are named from, and whether that folder itself was named."""
    if has_magic(path):
        plain = takewhile(lambda part: not has_magic(part), path.split("/")[:-1])
        return [found for found in fs.glob(path) if fs.isfile(found)], "/".join(plain), False
    if fs.isdir(path):
        return [found for found in fs.find(path) if not found.endswith("/")], path, True
    if not fs.exists(path):
        raise FileNotFoundError("no such file or folder")
    return [path], path.rpartition("/")[0], False


def _foreign(path: str, chosen: str | None) -> bool:
    """Whether a file of a folder is no part of the corpus: hidden, or not in a format that is known by name."""
    name = PurePosixPath(path).name
    return name.startswith((".", "_")) or (chosen is None and format_of(name)[0] is None)


def _described(fs: Any, path: str, root: str, chosen: str | None) -> CorpusFile:
    name = path.removeprefix(root).lstrip("/")
    told, compression = format_of(name)
    if chosen is None and told is None:
        raise CorpusError(
            "the format of a corpus file cannot be told from its name",
            value=path,
            expected=f"a name that ends in {', '.join(FORMATS)}, compressed or not",
            remedy="set corpus.format to text, jsonl or parquet",
        )
    return CorpusFile(fs, path, name, chosen or told or "", compression)
