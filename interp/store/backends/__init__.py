"""The places where a store can keep its objects; `backend_for` chooses by the URL and imports no more than it needs."""

from __future__ import annotations

from interp.store.backends.base import Backend, Stat
from interp.store.location import Location

__all__ = ["Backend", "Stat", "backend_for"]


def backend_for(location: Location, patience: float) -> Backend:
    """The backend of a URL; `patience` is for how many seconds an S3 that does not answer is tried again."""
    if location.scheme == "s3":
        from interp.store.backends.s3 import S3Backend

        return S3Backend(location.root, patience)
    if location.scheme == "memory":
        from interp.store.backends.memory import MemoryBackend

        return MemoryBackend(location.root)
    from interp.store.backends.folder import FolderBackend

    return FolderBackend(location.root)
