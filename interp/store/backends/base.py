"""What a store needs of the place where it keeps its objects: eleven operations, the same for a folder, memory and S3.

Paths are relative to the root and separated by '/'. An object appears whole or not at all. What is absent is a
value (`None`, `False`), never an exception; what is refused is a `StoreAccessError`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Stat:
    """One object; `modified` in seconds since 1970 by the clock of the store."""

    path: str
    size: int
    modified: float


class Backend(Protocol):
    url: str

    def read(self, path: str) -> bytes | None:
        """A whole small object."""

    def chunks(self, path: str, size: int) -> Iterator[bytes]:
        """An object of known size in order, a few chunks at a time in memory; nothing when it is absent."""

    def stat(self, path: str) -> Stat | None: ...

    def write(self, path: str, data: bytes) -> None:
        """Puts an object in place of whatever was there."""

    def write_stream(self, path: str, chunks: Iterable[bytes], size_hint: int) -> None:
        """The same for a big one. `chunks` is consumed once; an exception in it leaves no object."""

    def create(self, path: str, data: bytes) -> bool:
        """Puts an object if there is none: of any number of callers, exactly one is told True.

        `data` must be of this caller alone (carry a random token): that is how a caller whose answer was lost on
        the way knows its own object.
        """

    def replace(self, path: str, old: bytes, new: bytes) -> bool:
        """Puts `new` if the object is there and holds `old`, and makes it young; never makes one appear."""

    def swap(self, path: str, old: bytes, new: bytes) -> bool:
        """`replace` for an object that others read: they find all of `old` or all of `new`, whatever is killed."""

    def age(self, path: str) -> float | None:
        """Seconds since the object was last written, by the store's own clock: hosts' clocks may differ."""

    def objects(self, prefix: str) -> list[Stat]:
        """All objects below a folder, without the zero-byte keys that stand for folders."""

    def folders(self, prefix: str) -> list[str]:
        """The names of the folders directly below a folder."""

    def delete(self, paths: Sequence[str]) -> None:
        """Removes objects; those that are not there do not matter."""

    def clean(self, prefix: str, older_than: float | None, *, dry_run: bool) -> int:
        """Drops what listings do not show (unfinished uploads, empty folders) below a folder; says how many.

        `older_than` is in seconds; None means whatever its age.
        """

    def local(self, path: str) -> Path | None:
        """Where the object lies on this machine's disk, if it does."""

    def adopt(self, source: Path, path: str) -> bool:
        """Moves a file into the store without copying it, if that can be done."""

    def impatient(self, seconds: float) -> Backend:
        """The same, giving up on an unreachable store after so many seconds."""
