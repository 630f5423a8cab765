"""sha256 over streams: nothing here ever holds more than one chunk of a file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

CHUNK = 8 * 2**20
"""Bytes read from a local file at once."""


@dataclass(frozen=True)
class FileRecord:
    """What a manifest knows of a file."""

    size: int
    sha256: str

    @staticmethod
    def of(data: bytes) -> FileRecord:
        return FileRecord(len(data), hashlib.sha256(data).hexdigest())

    def __str__(self) -> str:
        return f"{self.size} bytes, sha256 {self.sha256[:16]}..."


class Digest:
    """Counts and hashes what passes through."""

    def __init__(self) -> None:
        self._sha = hashlib.sha256()
        self._size = 0

    def update(self, chunk: bytes | memoryview) -> None:
        self._sha.update(chunk)
        self._size += len(chunk)

    def over(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self.update(chunk)
            yield chunk

    @property
    def size(self) -> int:
        return self._size

    def raw(self) -> bytes:
        return self._sha.digest()

    def record(self) -> FileRecord:
        return FileRecord(self._size, self._sha.hexdigest())


def file_chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk


def digest_of(chunks: Iterable[bytes]) -> FileRecord:
    digest = Digest()
    for chunk in chunks:
        digest.update(chunk)
    return digest.record()
