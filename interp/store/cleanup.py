"""Removing: what other attempts left beside a finished artifact, and whole artifacts.

An artifact is removed under its lock and manifest first: it is either there, or not done, and no new writer's files
are mistaken for its own.
"""

from __future__ import annotations

from collections.abc import Iterable

from interp.store.backends import Backend
from interp.store.lock import DEFAULT_TTL, acquire
from interp.store.names import Place


def sweep(backend: Backend, place: Place, keep: Iterable[str]) -> None:
    """Removes all below a finished artifact but its manifest and the paths to keep."""
    kept = {place.manifest, *keep}
    backend.delete([stat.path for stat in backend.objects(str(place)) if stat.path not in kept])
    backend.clean(str(place), None, dry_run=False)


def remove(backend: Backend, place: Place) -> int:
    """Removes an artifact, finished or not, and says how many bytes that freed.

    Raises:
        LockHeld: a writer is at work on it.
    """
    lock = acquire(backend, place, DEFAULT_TTL)
    lock_path = place.lock(lock.attempt)
    try:
        objects = [stat for stat in backend.objects(str(place)) if stat.path != lock_path]
        backend.delete([place.manifest])
        backend.delete([stat.path for stat in objects])
    except BaseException:
        lock.release()
        raise
    lock.stop()
    backend.delete([lock_path])
    backend.clean(str(place), None, dry_run=False)
    return sum(stat.size for stat in objects)
