"""What is in a store, and the removal of what is no longer wanted."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Literal

from interp.errors import ArtifactCorrupt, ArtifactMissing, LockHeld, StoreError
from interp.store.backends import Backend, Stat
from interp.store.cleanup import remove
from interp.store.lock import holder
from interp.store.manifest import Manifest
from interp.store.names import Place

WEEK = 7 * 24 * 3600.0
_AT_ONCE = 8

State = Literal["finished", "running", "unfinished", "corrupt"]


@dataclass(frozen=True)
class Entry:
    """One artifact in a listing.

    Attributes:
        state: `running` has a live lock; `unfinished` was left by a writer that failed or was killed, or holds
            scratch; `corrupt` has a damaged manifest (files are not looked at: `Store.verify` does that).
        files, size: how many files and bytes; of an unfinished one, whatever is there.
        changed: when it was finished or last written to, ISO 8601 in UTC.
        holder: who is making it.
    """

    stage: str
    key: str
    state: State
    files: int
    size: int
    changed: str
    holder: str | None = None

    @property
    def age(self) -> float:
        """Seconds since `changed`."""
        return time.time() - datetime.fromisoformat(self.changed).timestamp()


@dataclass(frozen=True)
class GcReport:
    """What a collection removed, or would remove."""

    removed: tuple[Entry, ...]
    kept: int
    busy: tuple[Entry, ...]
    remnants: int
    uploads: int
    freed: int
    dry_run: bool


def entries(backend: Backend, stage: str | None = None, start: str = "") -> list[Entry]:
    """Everything of a stage, or of all, whose key begins with `start`."""
    places = []
    for each in [stage] if stage is not None else backend.folders(""):
        for key in (key for key in backend.folders(each) if key.startswith(start)):
            with contextlib.suppress(StoreError):  # a folder of somebody else's
                places.append(Place(each, key))
    with ThreadPoolExecutor(_AT_ONCE, "interp-list") as pool:
        return [entry for entry in pool.map(partial(_entry, backend), places) if entry is not None]


def find(backend: Backend, ref: str, url: str) -> Entry:
    stage, _, start = ref.removeprefix("artifact://").rpartition("/")
    found = entries(backend, stage or None, start)
    exact = [entry for entry in found if entry.key == start]
    if len(found) == 1 or len(exact) == 1:
        return (exact or found)[0]
    if not found:
        remedy = "`interp artifacts ls` shows what is there"
        raise ArtifactMissing("nothing in the store is called so", value=ref, expected=f"a key in {url}", remedy=remedy)
    several = ", ".join(f"{entry.stage}/{entry.key}" for entry in found[:8])
    raise StoreError(
        "several artifacts are called so", value=ref, expected=f"one of {several}", remedy="give more of it"
    )


def collect(backend: Backend, *, keep: Collection[str] | None, older_than: float, dry_run: bool) -> GcReport:
    removed, busy, kept, remnants, freed = [], [], 0, 0, 0
    for entry in entries(backend):
        place = Place(entry.stage, entry.key)
        if entry.state == "running":
            busy.append(entry)
        elif _wanted(entry, keep, older_than):
            kept += 1
            if entry.state == "finished":
                stale = _remnants(backend, place, older_than)
                remnants += len(stale)
                freed += sum(stat.size for stat in stale)
                if not dry_run:
                    backend.delete([stat.path for stat in stale])
        else:
            try:
                freed += entry.size if dry_run else remove(backend, place)
                removed.append(entry)
            except LockHeld:  # a writer began since we looked
                busy.append(entry)
    uploads = backend.clean("", older_than, dry_run=dry_run)
    return GcReport(tuple(removed), kept, tuple(busy), remnants, uploads, freed, dry_run)


def _wanted(entry: Entry, keep: Collection[str] | None, older_than: float) -> bool:
    if keep is not None and entry.key in keep:
        return True
    if entry.state == "unfinished":
        return entry.age < older_than
    return keep is None


def _entry(backend: Backend, place: Place) -> Entry | None:
    data = backend.read(place.manifest)
    if data is not None:
        try:
            manifest = Manifest.from_bytes(data, place)
        except ArtifactCorrupt:
            return _unlisted(backend, place, "corrupt")
        return Entry(place.stage, place.key, "finished", len(manifest.files), manifest.size, manifest.created)
    return _unlisted(backend, place, "unfinished")


def _unlisted(backend: Backend, place: Place, state: State) -> Entry | None:
    """An entry of what is there, for want of a manifest; None when no writer of ours has been there."""
    objects = backend.objects(str(place))
    if state == "unfinished" and not any(place.is_remnant(stat.path) for stat in objects):
        return None
    who = holder(backend, place) if state == "unfinished" else None
    changed = datetime.fromtimestamp(max(stat.modified for stat in objects), UTC).isoformat(timespec="milliseconds")
    size = sum(stat.size for stat in objects)
    return Entry(place.stage, place.key, "running" if who else state, len(objects), size, changed, who)


def _remnants(backend: Backend, place: Place, older_than: float) -> list[Stat]:
    """What a writer that had lost its lock left beside a finished artifact."""
    data = backend.read(place.manifest)
    if data is None or holder(backend, place):  # one that is made anew has its writer's files beside it
        return []
    manifest = Manifest.from_bytes(data, place)
    named = {manifest.path(name) for name in manifest.files}
    latest = time.time() - older_than
    return [
        stat
        for stat in backend.objects(str(place))
        if stat.path not in named and stat.modified <= latest and place.is_remnant(stat.path)
    ]
