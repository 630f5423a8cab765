"""What the tests of the store share: making an artifact, looking below its surface, playing dead."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from interp.store import Artifact, Store
from interp.store.lock import LockRecord
from interp.store.names import Place

KEY = "0123abcd" * 8
OTHER = "fedcba98" * 8


def make(store: Store, stage: str = "fit", key: str = KEY, **files: bytes) -> Artifact:
    with store.create(stage, key, spec={"k": 32}, inputs={"corpus": OTHER}) as writer:
        for name, data in (files or {"weights": b"w" * 1000, "summary": b"{}"}).items():
            writer.write(name, data)
    return store.get(stage, key)


def paths(store: Store, below: str = "") -> list[str]:
    return [stat.path for stat in store.backend.objects(below)]


def dead_writer(store: Store, attempt: int = 1, stage: str = "fit", key: str = KEY) -> None:
    """Leaves the lock of a process of this machine that has ended."""
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    record = replace(LockRecord.mine(attempt, ttl=3600), pid=child.pid, born="1")
    assert store.backend.create(Place(stage, key).lock(attempt), record.to_bytes())


def take_for_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on every writer looks dead to the others, though it lives: a pause longer than the ttl, at once."""
    monkeypatch.setattr("interp.store.process.is_gone", lambda machine, pid, born: True)
