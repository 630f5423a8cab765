"""Verified files on this machine's disk.

A file is hashed once per process: what was found is remembered by path, size and time of change. Files of a store
that is elsewhere are downloaded into `$INTERP_CACHE_DIR` (default `~/.cache/interp/artifacts`), once for all
processes of the machine; what is there is checked like everything else, and fetched again if it is not right.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from interp.errors import StoreAccessError
from interp.store.digest import Digest, FileRecord, digest_of, file_chunks
from interp.store.names import TEMPORARY

_LOCKS = 64
_known: dict[tuple[str, int, int], str] = {}
_guard = threading.Lock()


def record_of(path: Path) -> FileRecord | None:
    """Size and sha256 of a local file; None if it is absent. Hashes it if it is new to this process or has changed."""
    try:
        stat = path.stat()
        seen = (str(path), stat.st_size, stat.st_mtime_ns)
        with _guard:
            known = _known.get(seen)
        if known is None:
            record = digest_of(file_chunks(path))
            if record.size != stat.st_size:  # it is being written
                return record
            known = record.sha256
            with _guard:
                _known[seen] = known
    except FileNotFoundError:
        return None
    return FileRecord(stat.st_size, known)


def folder_for(url: str) -> Path:
    """The cache of one store; that of a memory store ends with the process, as the store does."""
    name = hashlib.sha256(url.encode()).hexdigest()[:16]
    if url.startswith("memory:"):
        return Path(_temporary_folder().name) / name
    return Path(os.environ.get("INTERP_CACHE_DIR") or Path.home() / ".cache" / "interp" / "artifacts") / name


@functools.cache
def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="interp-memory-")


def fetch(target: Path, wanted: FileRecord, chunks: Callable[[], Iterator[bytes]]) -> FileRecord | None:
    """Makes `target` hold what `chunks` yields, unless it already holds what is wanted.

    Returns the record of what came instead when it is not what was wanted (the file is then not there), else None.
    """
    with _access(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with _one_process(target):
            if record_of(target) == wanted:
                return None
            temporary = target.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:12]}")
            digest = Digest()
            try:
                with temporary.open("wb") as file:
                    for chunk in digest.over(chunks()):
                        file.write(chunk)
                if digest.record() != wanted:
                    target.unlink(missing_ok=True)
                    return digest.record()
                temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)
            stat = target.stat()
            with _guard:
                _known[str(target), stat.st_size, stat.st_mtime_ns] = wanted.sha256
    return None


@contextlib.contextmanager
def _one_process(target: Path) -> Iterator[None]:
    """One downloader of a file at a time on this machine; the others find it done.

    The locks lie away from the files, so that a folder of files holds nothing else, and are few, because nobody can
    ever safely remove one.
    """
    number = int(hashlib.sha256(str(target).encode()).hexdigest(), 16) % _LOCKS
    with (Path(tempfile.gettempdir()) / f"interp-{os.getuid()}-download-{number}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _access(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreAccessError(
            f"cannot make a local copy of an artifact's file: {error.strerror or error}",
            value=str(target),
            remedy="see that the disk is writable and not full; INTERP_CACHE_DIR says where copies of remote files go",
        ) from error
