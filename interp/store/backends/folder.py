"""A store in a folder of this machine, or one that machines share.

By the operating system itself, not fsspec: its local file system has neither fsync nor an exclusive create that
shows the content at once. A write is a temporary file, fsync, rename, fsync of the folder; an exclusive create is
the same with a hard link in place of the rename, which fails when the name is taken.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from interp.errors import StoreAccessError
from interp.store.backends.base import Backend, Stat
from interp.store.digest import file_chunks
from interp.store.names import TEMPORARY

_REMEDIES = {
    errno.ENOSPC: "free some space or give the store a folder on another disk; what was finished is kept",
    errno.EDQUOT: "the quota is used up: free some space or give the store another folder",
    errno.EROFS: "the disk is mounted read-only: give the store another folder",
    errno.EACCES: "give this user the right to write there, or give the store another folder",
    errno.EPERM: "give this user the right to write there, or give the store another folder",
}
_TRIES = 10
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS)


class FolderBackend:
    """See `Backend`."""

    def __init__(self, root: str) -> None:
        self.url = root
        self._root = Path(root)

    def read(self, path: str) -> bytes | None:
        with _access("read", self._root / path):
            try:
                return (self._root / path).read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None

    def chunks(self, path: str, size: int) -> Iterator[bytes]:
        with _access("read", self._root / path), contextlib.suppress(FileNotFoundError):
            yield from file_chunks(self._root / path)

    def stat(self, path: str) -> Stat | None:
        with _access("read", self._root / path):
            try:
                found = (self._root / path).stat()
            except (FileNotFoundError, NotADirectoryError):
                return None
        return Stat(path, found.st_size, found.st_mtime)

    def write(self, path: str, data: bytes) -> None:
        target = self._root / path
        with _access("write", target):
            for last in (*[False] * _TRIES, True):
                try:
                    return _put(target, (data,))
                except FileNotFoundError:  # a writer that finished swept our temporary file away
                    if last:
                        raise

    def write_stream(self, path: str, chunks: Iterable[bytes], size_hint: int) -> None:
        target = self._root / path
        with _access("write", target):
            _put(target, chunks)

    def create(self, path: str, data: bytes) -> bool:
        target = self._root / path
        with _access("write", target):
            for _ in range(_TRIES):
                with _temporary(target) as temporary:
                    _fill(temporary, (data,))
                    made = _link(temporary, target, data)
                if made is not None:
                    break
            else:
                raise FileNotFoundError(errno.ENOENT, "something keeps removing temporary files", str(target.parent))
            _sync_folder(target.parent)
        return made

    def replace(self, path: str, old: bytes, new: bytes) -> bool:
        target = self._root / path
        with _access("write", target):
            try:
                # Opened without O_CREAT and written in place: an object that is removed meanwhile stays removed.
                with target.open("r+b") as file:
                    if (found := file.read()) not in (old, new):
                        return False
                    if found != new:
                        file.seek(0)
                        file.write(new)
                        file.truncate()
                        file.flush()
                        os.fsync(file.fileno())
                    os.utime(file.fileno())
            except FileNotFoundError:
                return False
        return True

    def swap(self, path: str, old: bytes, new: bytes) -> bool:
        if self.read(path) not in (old, new):
            return False
        self.write(path, new)
        return True

    def age(self, path: str) -> float | None:
        found = self.stat(path)
        if found is None:
            return None
        # The file server's clock, not ours: on a shared folder they differ.
        probe = (self._root / path).with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
        try:
            probe.touch()
            now = probe.stat().st_mtime
            probe.unlink()
        except OSError:  # who may not write can still be told an age, by this machine's clock
            now = time.time()
        return now - found.modified

    def objects(self, prefix: str) -> list[Stat]:
        found: list[Stat] = []
        with _access("list", self._root / prefix):
            for folder, _, files in os.walk(self._root / prefix, onerror=_raise_unless_gone):
                for name in files:
                    path = Path(folder, name)
                    with contextlib.suppress(FileNotFoundError):
                        stat = path.stat()
                        found.append(Stat(path.relative_to(self._root).as_posix(), stat.st_size, stat.st_mtime))
        return sorted(found, key=lambda stat: stat.path)

    def folders(self, prefix: str) -> list[str]:
        with _access("list", self._root / prefix):
            try:
                with os.scandir(self._root / prefix) as entries:
                    return sorted(entry.name for entry in entries if entry.is_dir())
            except (FileNotFoundError, NotADirectoryError):
                return []

    def delete(self, paths: Sequence[str]) -> None:
        for path in paths:
            with _access("remove", self._root / path):
                (self._root / path).unlink(missing_ok=True)
        for parent in {self._root / path for path in paths}:
            self._remove_empty(parent.parent)

    def clean(self, prefix: str, older_than: float | None, *, dry_run: bool) -> int:
        if dry_run:
            return 0
        # Bottom up; a folder that a writer has just filled stays, because rmdir refuses it.
        limit = time.time() - (older_than or 0)
        for folder, _, _ in os.walk(self._root / prefix, topdown=False):
            with contextlib.suppress(OSError):
                if Path(folder).stat().st_mtime <= limit and Path(folder) != self._root:
                    Path(folder).rmdir()
        return 0

    def local(self, path: str) -> Path | None:
        return self._root / path

    def adopt(self, source: Path, path: str) -> bool:
        target = self._root / path
        with _access("write", target):
            _make_folder(target.parent)
            if source.stat().st_dev != target.parent.stat().st_dev:
                return False
            with source.open("rb") as file:
                os.fsync(file.fileno())
            source.replace(target)
            _sync_folder(target.parent)
        return True

    def impatient(self, seconds: float) -> Backend:
        return self

    def _remove_empty(self, folder: Path) -> None:
        while folder != self._root and self._root in folder.parents:
            try:
                folder.rmdir()
            except OSError:  # not empty, or gone already
                return
            folder = folder.parent


@contextlib.contextmanager
def _access(action: str, path: Path) -> Iterator[None]:
    """Turns what the operating system refuses into an error with a remedy."""
    try:
        yield
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, type(error).__name__)
        raise StoreAccessError(
            f"cannot {action} in the store: {error.strerror or error} ({name})",
            value=str(path),
            remedy=_REMEDIES.get(error.errno or 0, "see that the folder is there, is a folder, and can be written"),
        ) from error


def _put(target: Path, chunks: Iterable[bytes]) -> None:
    with _temporary(target) as temporary:
        _fill(temporary, chunks)
        temporary.replace(target)
        _sync_folder(target.parent)


@contextlib.contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    """A name beside the target, on the same file system; what is left under it in the end is removed."""
    _make_folder(target.parent)
    path = target.with_name(f"{TEMPORARY}{os.getpid()}-{uuid.uuid4().hex[:12]}")
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _link(temporary: Path, target: Path, data: bytes) -> bool | None:
    """Gives a file a second name if that is free; None when the file is gone (a writer that finished swept it away)."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        return False
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # A file system without hard links. Exclusive all the same, but a reader may see half of it, which manifests
        # and locks can tell.
        try:
            _fill(target, (data,))
        except FileExistsError:
            return False
    return True


def _fill(path: Path, chunks: Iterable[bytes]) -> None:
    for last in (*[False] * _TRIES, True):
        try:
            file = path.open("xb")
            break
        except FileNotFoundError:
            # Between our making the folder and this line, somebody found it empty and removed it.
            if last:
                raise
            _make_folder(path.parent)
    with file:
        for chunk in chunks:
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())


def _make_folder(folder: Path) -> None:
    """Like `mkdir -p`, and each new folder's entry is on the disk."""
    for last in (*[False] * _TRIES, True):
        if folder.is_dir():
            return
        _make_folder(folder.parent)
        try:
            folder.mkdir(exist_ok=True)
            _sync_folder(folder.parent)
            return
        except FileNotFoundError:  # the parent was found empty and removed
            if last:
                raise


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error
