"""The store: where everything that `interp` makes is kept, by stage and key.

    store = Store.open("s3://bucket/prefix")        # or a folder, file://, memory://
    if not store.has("fit", key):
        with store.create("fit", key, spec=spec, inputs={"corpus": corpus_key}) as writer:
            writer.write_json("summary.json", {...})
    store.get("fit", key).json("summary.json")

An S3 store takes its credentials and endpoint from the AWS_* environment variables or an AWS profile, never from
the URL. A `Store` can be pickled (it opens itself again from its URL) and used from several threads.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from interp.errors import ArtifactMissing, StoreError
from interp.store import cache, inventory
from interp.store.artifact import Artifact
from interp.store.backends import Backend, backend_for
from interp.store.cleanup import remove
from interp.store.inventory import Entry, GcReport
from interp.store.location import parse
from interp.store.lock import DEFAULT_TTL
from interp.store.manifest import Manifest
from interp.store.names import Place
from interp.store.scratch import Scratch
from interp.store.writer import Writer

PATIENCE = 120.0
"""Seconds for which a request is repeated when a store that has answered before stops answering."""


class Store:
    """One store. Made by `Store.open`.

    Attributes:
        url: canonical; a folder's is its absolute path.
        backend: the objects themselves; for the store's own modules.
    """

    def __init__(self, url: str, backend: Backend, *, patience: float = PATIENCE) -> None:
        self.url = url
        self.backend = backend
        self._patience = patience

    @staticmethod
    def open(url: str | os.PathLike[str], *, patience: float = PATIENCE) -> Store:
        """Opens a store; nothing is asked of it, and nothing written to it, before it is used.

        Raises:
            StoreError: the URL is of no known kind or carries credentials.
        """
        location = parse(url)
        return Store(location.url, backend_for(location, patience), patience=patience)

    def __reduce__(self) -> tuple[object, ...]:
        return (_reopen, (self.url, self._patience))

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    @property
    def cache_dir(self) -> Path:
        """Where copies of remote files go: a part of `$INTERP_CACHE_DIR`."""
        return cache.folder_for(self.url)

    # --- reading

    def has(self, stage: str, key: str) -> bool:
        """Whether the artifact is finished."""
        return self.backend.stat(Place(stage, key).manifest) is not None

    def get(self, stage: str, key: str) -> Artifact:
        """A finished artifact.

        Raises:
            ArtifactMissing: it is not there, or not finished.
            ArtifactCorrupt: its manifest is damaged.
        """
        place = Place(stage, key)
        data = self.backend.read(place.manifest)
        if data is None:
            raise ArtifactMissing(
                f"{place} is not in the store, or was never finished",
                value=self.url,
                expected=place.manifest,
                remedy="run the study that makes it; finished stages and checkpoints are used again",
            )
        return Artifact(self, Manifest.from_bytes(data, place))

    def find(self, ref: str) -> Entry:
        """What a person means by `stage/key`, `key` or `artifact://key`, the key being cut short at will.

        Raises:
            ArtifactMissing: nothing in the store begins so.
            StoreError: several do.
        """
        return inventory.find(self.backend, ref, self.url)

    # --- writing

    def create(
        self,
        stage: str,
        key: str,
        *,
        spec: Mapping[str, Any],
        inputs: Mapping[str, str],
        provenance: Mapping[str, Any] | None = None,
        ttl: float = DEFAULT_TTL,
        wait: float = 0.0,
        replaces: Artifact | None = None,
    ) -> Writer:
        """A writer, to be used in a `with` block, which takes the lock.

        Args:
            ttl: seconds without a heartbeat after which another writer may take over; 2 or more.
            wait: seconds to wait for another writer to fail or to be taken for dead. After a driver was killed on
                another machine, its lock is in the way for up to its `ttl`.
            replaces: a finished artifact of this key, to be made anew; it stays until the new one takes its place.

        Raises:
            LockHeld: (on entering) another writer is still at work, or has finished: `has` tells which.
        """
        if ttl < 2:
            raise StoreError("this ttl is too short for S3, whose clock has seconds", value=ttl, expected="2 or more")
        return Writer(
            self.backend,
            Place(stage, key),
            self.scratch(stage, key),
            spec=spec,
            inputs=inputs,
            provenance=provenance,
            ttl=ttl,
            wait=wait,
            replaces=None if replaces is None else replaces.manifest,
        )

    def scratch(self, stage: str, key: str) -> Scratch:
        """The scratch of a key, without its lock: for the workers of whoever holds it."""
        return Scratch(self, Place(stage, key))

    # --- keeping house

    def list(self, stage: str | None = None) -> list[Entry]:
        """Everything in the store, finished or not, by stage and key."""
        return inventory.entries(self.backend, stage)

    def verify(self, artifact: Artifact) -> None:
        """Reads every file anew; raises ArtifactCorrupt naming all that are not what the manifest says."""
        artifact.verify()

    def remove(self, stage: str, key: str) -> int:
        """Removes an artifact, finished or not, and says how many bytes that freed. LockHeld if it is being made."""
        return remove(self.backend, Place(stage, key))

    def gc(
        self, *, keep: Collection[str] | None = None, older_than: float = inventory.WEEK, dry_run: bool = False
    ) -> GcReport:
        """Removes what is no longer wanted.

        Args:
            keep: keys to keep; every finished artifact of another key is removed. None keeps all finished ones.
            older_than: seconds; an unfinished artifact whose key is not in `keep` is removed when nothing has
                been written to it for so long. One that is being made is never touched.
            dry_run: only tell.
        """
        return inventory.collect(self.backend, keep=keep, older_than=older_than, dry_run=dry_run)


def _reopen(url: str, patience: float) -> Store:
    return Store.open(url, patience=patience)
