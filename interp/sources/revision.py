"""What identifies the content of a corpus, so that equal content has equal keys and changed content has others.

builtin://python-stdlib   version of Python, and sha256 over the documents
files                     names below their common folder (the order and the held-out part depend on them), formats,
                          and sha256 of the content, or size and etag on object storage
hf://org/name             commit of the data set
"""

from __future__ import annotations

import hashlib
import os
import platform
import sysconfig
from collections.abc import Iterable
from pathlib import Path

from interp.errors import SourceError
from interp.sources import hub
from interp.sources.builtin import stdlib_documents
from interp.sources.files import CorpusFile, find_files
from interp.sources.folders import combined, content_tag, explained
from interp.sources.memo import Memo
from interp.sources.resolve import tokenizer_revision
from interp.spec.study import CorpusSpec

__all__ = ["STDLIB", "content_revision", "corpus_revision", "file_revision", "tokenizer_revision"]

STDLIB = "builtin://python-stdlib"


def corpus_revision(spec: CorpusSpec) -> str:
    """Identifies what `spec.source` holds now.

    Raises:
        SourceError: there is nothing, or it cannot be reached.
        CorpusError: the format of a file cannot be told.
    """
    if spec.source.startswith("builtin://"):
        if spec.source != STDLIB:
            raise SourceError("there is no built-in corpus of that name", value=spec.source, expected=STDLIB)
        return f"python-{platform.python_version()}-{_stdlib_digest()}"
    if spec.source.startswith("hf://"):
        return hub.look_up(hub.repository_of(spec.source, "dataset"), "dataset", spec.revision).commit
    return _files_digest(find_files(spec), spec.source)


def content_revision(folder: Path) -> str:
    """sha256 over the names and contents of everything below a local folder."""
    if not folder.is_dir():
        raise SourceError("there is no such folder", value=str(folder), remedy="check the path")
    with Memo() as memo:
        files = (path for path in folder.rglob("*") if path.is_file())
        return combined((path.relative_to(folder).as_posix(), memo.sha256(path)) for path in files)


def file_revision(source: str) -> str:
    """sha256 of the content of one small file, wherever it is."""
    import fsspec

    with explained(source), fsspec.open(source, "rb") as stream:
        return hashlib.sha256(stream.read()).hexdigest()


def _files_digest(files: Iterable[CorpusFile], source: str) -> str:
    parts = []
    with Memo() as memo, explained(source):
        for file in files:
            local = "file" in (protocol := file.fs.protocol) or protocol == "file"
            tag = memo.sha256(Path(file.path)) if local else content_tag(file.fs, file.fs.info(file.path))
            parts.append((file.name, file.format, file.compression or "", tag))
    return combined(parts)


def _stdlib_digest() -> str:
    """Reading 10 MB in 600 files takes a second when the disk is cold; looking at their dates does not."""
    with Memo() as memo:
        root = Path(sysconfig.get_paths()["stdlib"])
        digest: str = memo.recall(f"stdlib:{root}", [_listing(root)], _read_stdlib)
    return digest


def _read_stdlib() -> str:
    return combined((name, hashlib.sha256(text.encode()).hexdigest()) for name, text in stdlib_documents())


def _listing(root: Path) -> str:
    """Changes when any source file of the library does."""
    digest = hashlib.sha256()
    for folder, below, names in os.walk(root):
        below[:] = sorted(name for name in below if name not in ("site-packages", "dist-packages", "__pycache__"))
        for name in sorted(name for name in names if name.endswith(".py")):
            status = os.stat(f"{folder}/{name}")  # noqa: PTH116 - thousands of them
            digest.update(f"{folder}/{name}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ino}\n".encode())
    return digest.hexdigest()
