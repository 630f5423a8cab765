"""A store in this process's memory, through fsspec: for tests and notebooks. Other processes do not see it.

fsspec's exclusive create is a look and then a write; one lock for all memory stores makes it one step.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from interp.store.backends.base import Backend, Stat

_ONE_AT_A_TIME = threading.RLock()


class MemoryBackend:
    """See `Backend`. Two of the same URL share their objects."""

    def __init__(self, root: str) -> None:
        self.url = f"memory:/{root}"
        self._root = root.rstrip("/")

    @property
    def _fs(self) -> Any:
        from fsspec.implementations.memory import MemoryFileSystem

        return MemoryFileSystem()

    def read(self, path: str) -> bytes | None:
        with _ONE_AT_A_TIME:
            try:
                return self._fs.cat_file(f"{self._root}/{path}")
            except FileNotFoundError:
                return None

    def chunks(self, path: str, size: int) -> Iterator[bytes]:
        data = self.read(path)
        if data:
            yield data

    def stat(self, path: str) -> Stat | None:
        with _ONE_AT_A_TIME:
            if not self._fs.isfile(f"{self._root}/{path}"):
                return None
            return self._stat(f"{self._root}/{path}")

    def write(self, path: str, data: bytes) -> None:
        with _ONE_AT_A_TIME:
            self._fs.pipe_file(f"{self._root}/{path}", bytes(data))

    def write_stream(self, path: str, chunks: Iterable[bytes], size_hint: int) -> None:
        self.write(path, b"".join(chunks))

    def create(self, path: str, data: bytes) -> bool:
        with _ONE_AT_A_TIME:
            try:
                self._fs.pipe_file(f"{self._root}/{path}", data, mode="create")
            except FileExistsError:
                return False
            return True

    def replace(self, path: str, old: bytes, new: bytes) -> bool:
        with _ONE_AT_A_TIME:
            if self.read(path) not in (old, new):
                return False
            self.write(path, new)
            return True

    def swap(self, path: str, old: bytes, new: bytes) -> bool:
        return self.replace(path, old, new)

    def age(self, path: str) -> float | None:
        found = self.stat(path)
        return None if found is None else time.time() - found.modified

    def objects(self, prefix: str) -> list[Stat]:
        with _ONE_AT_A_TIME:
            found = [self._stat(path) for path in self._fs.find(f"{self._root}/{prefix}".rstrip("/"))]
        return sorted(found, key=lambda stat: stat.path)

    def folders(self, prefix: str) -> list[str]:
        skip = len(prefix) + 1 if prefix else 0
        below = (stat.path[skip:] for stat in self.objects(prefix))
        return sorted({path.split("/", 1)[0] for path in below if "/" in path})

    def delete(self, paths: Sequence[str]) -> None:
        with _ONE_AT_A_TIME:
            for path in paths:
                if self._fs.isfile(f"{self._root}/{path}"):
                    self._fs.rm_file(f"{self._root}/{path}")

    def clean(self, prefix: str, older_than: float | None, *, dry_run: bool) -> int:
        return 0

    def local(self, path: str) -> Path | None:
        return None

    def adopt(self, source: Path, path: str) -> bool:
        return False

    def impatient(self, seconds: float) -> Backend:
        return self

    def _stat(self, full: str) -> Stat:
        info = self._fs.info(full)
        return Stat(full.removeprefix(f"{self._root}/"), info["size"], self._fs.modified(full).timestamp())
