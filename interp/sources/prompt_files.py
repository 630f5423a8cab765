"""Prompts that are files of their own: a folder or a glob of .txt files, one prompt each, on any filesystem."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from fsspec.core import has_magic, url_to_fs

from interp.errors import SourceError
from interp.sources.files import format_of
from interp.sources.folders import explained

_SUFFIX = ".txt"
_AT_ONCE = 16
"""Files that are read side by side: object storage takes its time for each."""


@dataclass(frozen=True)
class TextFiles:
    """Files of one filesystem, in the order of their names; `root` is the folder that they are named from."""

    fs: Any
    root: str
    paths: Sequence[str]


def expanded(source: str) -> TextFiles | None:
    """The files of a folder or glob; None when `source` is neither, but a file (or nothing at all).

    Raises:
        SourceError: there are none, a glob names others too, or they cannot be reached.
    """
    folder = format_of(source)[0] is None or source.endswith("/")
    if not folder and not has_magic(source):
        return None
    with explained(source):
        fs, path = url_to_fs(source)
        if has_magic(path) and not fs.isfile(path):
            return _of_glob(fs, path, source)
        if folder and fs.isdir(path):
            return _of_folder(fs, path, source)
        if not fs.exists(path):
            raise SourceError(
                "there is no such file or folder of prompts",
                value=source,
                remedy="check the path; a single prompt stands in a list: prompts: ['...']",
            )
        return None


def read_files(files: TextFiles) -> Iterator[tuple[str, bytes]]:
    """Name and content of each."""
    with explained(files.root), ThreadPoolExecutor(_AT_ONCE) as pool:
        contents = pool.map(files.fs.cat_file, files.paths)
        for path, content in zip(files.paths, contents, strict=True):
            yield path.removeprefix(files.root).lstrip("/"), bytes(content)


def _of_folder(fs: Any, path: str, source: str) -> TextFiles:
    fs.invalidate_cache()
    entries = [entry["name"] for entry in fs.ls(path, detail=True) if entry["type"] == "file"]
    visible = [name for name in entries if not _hidden(name)]
    found = sorted(name for name in visible if name.endswith(_SUFFIX))
    if not found:
        others = ", ".join(sorted(name.rpartition("/")[2] for name in visible)[:5])
        raise SourceError(
            "the folder has no prompts",
            value=f"{source}: {others or 'empty'}",
            expected="files that end in .txt, one prompt each",
            remedy="name a file of several prompts itself; subfolders need a glob, such as prompts/**/*.txt",
        )
    return TextFiles(fs, path, found)


def _of_glob(fs: Any, path: str, source: str) -> TextFiles:
    fs.invalidate_cache()
    found = sorted(name for name in fs.glob(path) if fs.isfile(name) and not _hidden(name))
    if not found:
        raise SourceError("no file matches", value=source, expected="a glob of .txt files, one prompt each")
    foreign = [name for name in found if not name.endswith(_SUFFIX)]
    if foreign:
        what = "a glob of prompts names .txt files only, one prompt each"
        raise SourceError(what, value=foreign[0], expected="a name that ends in .txt", remedy=f"{source} -> *.txt")
    root = "/".join(takewhile(lambda part: not has_magic(part), path.split("/")[:-1]))
    return TextFiles(fs, root, found)


def _hidden(path: str) -> bool:
    return path.rpartition("/")[2].startswith(".")
