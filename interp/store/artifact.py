"""A finished artifact, for reading. Every byte that it gives was checked against the manifest's sha256."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.errors import ArtifactCorrupt, ArtifactMissing
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

    def local(self, name: str) -> Path:
        """A path on this machine that holds the file, safe to memory-map: the store's own, or a copy of it.

        Checked (and copied) once per process as long as it does not change. Raises like `read`.
        """
        wanted = self._record(name)
        path = self.store.backend.local(self.manifest.path(name))
        if path is not None:
            found = cache.record_of(path)
            if found != wanted:
                raise self._corrupt([self._problem(name, found)])
            return path
        path = self.store.cache_dir / self.stage / self.key / name
        self.copy(name, path)
        return path

    def copy(self, name: str, target: Path) -> None:
        """Makes a local file a checked copy of one of the artifact's. Raises like `read`."""
        came = cache.fetch(target, self._record(name), lambda: self._chunks(name))
        if came is not None:
            raise self._corrupt([self._problem(name, came if came.size or self._is_there(name) else None)])

    def local_dir(self) -> Path:
        """A folder on this machine with all files, checked."""
        for name in self.names():
            self.local(name)
        path = self.store.backend.local(self.manifest.place.folder(self.manifest.attempt))
        return path if path is not None else self.store.cache_dir / self.stage / self.key

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
