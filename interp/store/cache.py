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
import time
import uuid
from collections.abc import Callable, Collection, Iterator
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


def has_size(path: Path, size: int) -> bool:
    """Whether a copy is there and as long as it should be; it counts as used now.

    A copy appears under its name when it is whole and was hashed on its way, and its folder is named by the hashes, so
    its length says enough.
    """
    return touch(path) == size


def touch(path: Path) -> int | None:
    """Notes that a copy is used now, by the time of access; its length, None if it is not there."""
    try:
        stat = path.stat()
        os.utime(path, ns=(time.time_ns(), stat.st_mtime_ns))
    except FileNotFoundError:
        return None
    return stat.st_size


def shrink(folder: Path, keep_bytes: int, spare: Collection[Path], *, recent_s: float = 0) -> int:
    """Removes copies below a folder, those that were used longest ago first, until `keep_bytes` are left; the bytes
    that this freed. Those that were used in the last `recent_s` seconds, by whatever process, stay. A process that has
    mapped one of them keeps what it mapped; another one fetches it again."""
    young = time.time_ns() - int(recent_s * 1e9) if recent_s else None
    found = []
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            if path.is_file() and not path.name.startswith(TEMPORARY):
                stat = path.stat()
                found.append((stat.st_atime_ns, stat.st_size, path))
    total, freed = sum(size for _, size, _ in found), 0
    for used, size, path in sorted(found):
        if total - freed <= keep_bytes or (young is not None and used > young):
            break
        if path not in spare:
            path.unlink(missing_ok=True)
            freed += size
    return freed


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
