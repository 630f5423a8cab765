"""A finished artifact, for reading. Every byte that it gives was checked against the manifest's sha256, but where the
reader asks for less (`local(..., verify="size")`)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from interp.errors import ArtifactCorrupt, ArtifactMissing, StoreError
from interp.store import cache
from interp.store.digest import FileRecord, digest_of
from interp.store.manifest import Manifest, remake

if TYPE_CHECKING:
    from interp.store.store import Store


@dataclass(frozen=True)
class Problem:
    """A file that is not what the manifest says."""

    file: str
    found: str
    expected: str


@dataclass(frozen=True)
class Artifact:
    """Can be pickled. Made by `Store.get`."""

    store: Store
    manifest: Manifest

    @property
    def stage(self) -> str:
        return self.manifest.stage

    @property
    def key(self) -> str:
        return self.manifest.key

    @property
    def url(self) -> str:
        """The folder of its files."""
        return f"{self.store.url}/{self.manifest.place.folder(self.manifest.attempt)}"

    def names(self, prefix: str = "") -> tuple[str, ...]:
        """The files' names that begin with `prefix`, sorted."""
        return tuple(sorted(name for name in self.manifest.files if name.startswith(prefix)))

    def read(self, name: str) -> bytes:
        """A file's bytes: for small ones; big ones by `local`.

        Raises:
            ArtifactMissing: the artifact has no such file.
            ArtifactCorrupt: the file is absent, truncated or changed.
        """
        wanted = self._record(name)
        data = b"".join(self._chunks(name))
        found = FileRecord.of(data) if data or self._is_there(name) else None
        if found != wanted:
            raise self._corrupt([self._problem(name, found)])
        return data

    def json(self, name: str) -> Any:
        return json.loads(self.read(name))

    def local(self, name: str, *, verify: Literal["sha256", "size"] = "sha256") -> Path:
        """A path on this machine that holds the file, safe to memory-map: the store's own, or a copy of it.

        Checked (and copied) once per process as long as it does not change. Raises like `read`.

        Args:
            verify: `size` for files that are too large to be read once more: those of a store in a folder are checked
                by their length alone. What is copied from elsewhere is hashed on its way in any case.
        """
        wanted = self._record(name)
        path = self.store.backend.local(self.manifest.path(name))
        if path is not None:
            found = cache.record_of(path) if verify == "sha256" else self._by_size(name)
            if found != wanted:
                raise self._corrupt([self._problem(name, found)])
            return path
        path = self._copied_to(name)
        if verify == "sha256" or not cache.has_size(path, wanted.size):
            self.copy(name, path)
        return path

    def forget(self, keep_bytes: int, using: Collection[str] = (), *, recent_s: float = 0) -> int:
        """Removes copies of this artifact's files from this machine, those that were used longest ago first, until at
        most `keep_bytes` are left. Says how many bytes that freed. What lies in the store itself is no copy.

        Args:
            using: files that stay.
            recent_s: so do those that any process has used in the last so many seconds.
        """
        kept = {self._copied_to(name) for name in using}
        return cache.shrink(self._copies.parent, keep_bytes, kept, recent_s=recent_s)

    def touch(self, names: Collection[str]) -> None:
        """Says that the copies of these files are in use, as reading them by `local` does."""
        for name in names:
            cache.touch(self._copied_to(name))

    def copy(self, name: str, target: Path) -> None:
        """Makes a local file a checked copy of one of the artifact's. Raises like `read`."""
        came = cache.fetch(target, self._record(name), lambda: self._chunks(name))
        if came is not None:
            raise self._corrupt([self._problem(name, came if came.size or self._is_there(name) else None)])

    def local_dir(self) -> Path:
        """A folder on this machine with all files, checked.

        Raises:
            StoreError: they lie in several folders, for workers put them there themselves.
        """
        if self.manifest.placed:
            remedy = "read them one by one, with `local`"
            raise StoreError(f"the files of {self.manifest.place} lie in several folders", remedy=remedy)
        for name in self.names():
            self.local(name)
        path = self.store.backend.local(self.manifest.place.folder(self.manifest.attempt))
        return path if path is not None else self._copies

    def problems(self) -> list[Problem]:
        """Reads every file in the store anew and tells which are not what the manifest says."""
        found = []
        for name in self.names():
            there = self.store.backend.stat(self.manifest.path(name))
            record = None if there is None else FileRecord(there.size, "")
            if there is not None and there.size == self._record(name).size:
                record = digest_of(self._chunks(name))
            if record != self._record(name):
                found.append(self._problem(name, record))
        return found

    def verify(self) -> None:
        """Raises ArtifactCorrupt if any file is not what the manifest says."""
        if found := self.problems():
            raise self._corrupt(found)

    def _record(self, name: str) -> FileRecord:
        try:
            return self.manifest.files[name]
        except KeyError:
            raise ArtifactMissing(
                f"{self.manifest.place} has no file of this name", value=name, expected=_some(self.names())
            ) from None

    def _copied_to(self, name: str) -> Path:
        return self._copies / name

    @cached_property
    def _copies(self) -> Path:
        """Where copies lie, by what they hold: an artifact that is removed and made anew has another folder, so that a
        copy of the former one is never taken for the present one's, be it as long."""
        files = sorted((name, record.size, record.sha256) for name, record in self.manifest.files.items())
        digest = hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16]
        return self.store.cache_dir / self.stage / self.key / digest

    def _by_size(self, name: str) -> FileRecord | None:
        """The record of a file, its content taken on trust if it is as long as it should be."""
        stat, wanted = self.store.backend.stat(self.manifest.path(name)), self._record(name)
        return None if stat is None else wanted if stat.size == wanted.size else FileRecord(stat.size, "")

    def _chunks(self, name: str) -> Iterator[bytes]:
        return self.store.backend.chunks(self.manifest.path(name), self._record(name).size)

    def _is_there(self, name: str) -> bool:
        return self.store.backend.stat(self.manifest.path(name)) is not None

    def _problem(self, name: str, found: FileRecord | None) -> Problem:
        wanted = self._record(name)
        if found is None:
            shown = "absent"
        elif found.size != wanted.size:
            shown = f"{found.size} bytes"
        else:
            shown = str(found)
        return Problem(name, shown, str(wanted))

    def _corrupt(self, problems: list[Problem]) -> ArtifactCorrupt:
        place, first = self.manifest.place, problems[0]
        others = f" (and {len(problems) - 1} more: {_some([p.file for p in problems[1:]])})" if problems[1:] else ""
        return ArtifactCorrupt(
            f"{first.file} of {place} is not what its manifest says{others}",
            value=first.found,
            expected=first.expected,
            remedy=remake(place),
        )


def _some(names: tuple[str, ...] | list[str]) -> str:
    shown = ", ".join(names[:8])
    return f"{shown}, ... ({len(names)})" if len(names) > 8 else shown or "no file at all"
