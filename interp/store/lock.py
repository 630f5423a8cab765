"""One writer at a time for an artifact, on storage that can only create an object if it is absent.

A lock is an object `lock/<n>.json`, n being the number of the attempt; the highest number counts. To take the lock
of an artifact: look at the highest object, n (0 if there is none).
  * It is live: `LockHeld`.
  * It was released, or is stale: create object n + 1. Of all who try, one succeeds; the others get `LockHeld`.
Numbers only grow until the artifact is finished, so nobody can mistake a new lock for the one that they saw before.

The holder's heartbeat rewrites its object (only if it is still there and its own) every third of `ttl` seconds. An
object is stale when by the store's clock it has not been rewritten for `ttl` seconds, and at once when its process
ran on this machine and is gone. A holder that was only slow finds object n + 1 and knows that it has lost. It looks
once more before it commits, and the commit is an exclusive create itself: a lock spares work, it is not what keeps
artifacts whole (see `writer`).
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import uuid
from dataclasses import asdict, dataclass, replace

from interp.errors import LockHeld, StoreError
from interp.store import process
from interp.store.backends import Backend
from interp.store.names import Place, attempt_of
from interp.store.provenance import now

logger = logging.getLogger(__name__)

DEFAULT_TTL = 60.0


@dataclass(frozen=True)
class LockRecord:
    """What a lock object says. `machine` and `born` tell this process from others of the same host name and pid."""

    owner: str
    host: str
    machine: str
    pid: int
    born: str
    time: str
    generation: int
    ttl: float
    token: str
    released: bool = False

    @staticmethod
    def mine(generation: int, ttl: float) -> LockRecord:
        me = process.this()
        return LockRecord(
            me.owner, me.host, me.machine, me.pid, me.born, now(), generation, ttl, token=uuid.uuid4().hex
        )

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self), indent=2).encode()

    @staticmethod
    def from_bytes(data: bytes) -> LockRecord | None:
        """None for one that is not whole: its age alone decides."""
        try:
            return LockRecord(**json.loads(data))
        except (ValueError, TypeError):
            return None


class Lock:
    """A lock that this process holds. Made by `acquire`."""

    def __init__(self, backend: Backend, place: Place, record: LockRecord) -> None:
        self.record = record
        self._backend, self._place = backend, place
        self._path = place.lock(record.generation)
        self._lost: str | None = None
        self._stop = threading.Event()
        self._heart = threading.Thread(target=self._beat, name=f"lock {place}", daemon=True)
        self._heart.start()

    @property
    def attempt(self) -> int:
        return self.record.generation

    @property
    def lost(self) -> bool:
        return self._lost is not None

    def check(self) -> None:
        """Raises LockHeld when the heartbeat has found that the lock is lost. Costs nothing."""
        if self._lost is not None:
            raise LockHeld(
                f"this writer of {self._place} has lost its lock",
                value=self._lost,
                expected=f"a heartbeat at least every {self.record.ttl:.0f} s",
                remedy="nothing is damaged: wait for the other writer, or run again to use what it made",
            )

    def confirm(self, patience: float | None = None) -> None:
        """Asks the store (for `patience` seconds at most) whether the lock is still held; raises LockHeld if not."""
        self._renew(self._backend if patience is None else self._backend.impatient(patience))
        self.check()

    def release(self) -> None:
        """Lets the next attempt start at once."""
        self.stop()
        record = self.record
        self._backend.replace(self._path, record.to_bytes(), replace(record, released=True).to_bytes())

    def stop(self) -> None:
        """Ends the heartbeat."""
        self._stop.set()
        self._heart.join()

    def _beat(self) -> None:
        interval = self.record.ttl / 3
        impatient = self._backend.impatient(interval)
        while not self._stop.wait(interval) and self._lost is None:
            try:
                self._renew(impatient)
            except StoreError as error:
                # Not lost yet: only another writer's object says so, and the next beat or the commit will look.
                logger.warning("the lock of %s could not be renewed: %s", self._place, error.what)

    def _renew(self, backend: Backend) -> None:
        content = self.record.to_bytes()
        if not backend.replace(self._path, content, content):
            self._lost = "its lock was removed: the artifact was finished or removed by another writer"
        elif (latest := _latest(backend, self._place)) > self.attempt:
            self._lost = _described(backend, self._place, latest)
        if self._lost is not None and not self._stop.is_set():
            logger.warning("the writer of %s has lost its lock: %s", self._place, self._lost)


def acquire(backend: Backend, place: Place, ttl: float, *, after: int = 0) -> Lock:
    """Takes the lock, or raises LockHeld saying who has it. Attempts up to `after` have been: their files are there."""
    latest = _latest(backend, place)
    if latest and _is_live(backend, place, latest):
        raise _held(backend, place, latest)
    record = LockRecord.mine(max(latest, after) + 1, ttl)
    if not backend.create(place.lock(record.generation), record.to_bytes()):
        raise _held(backend, place, record.generation)
    # Only if the artifact was finished or removed since we looked can there be others now.
    if (highest := _latest(backend, place)) != record.generation:
        backend.delete([place.lock(record.generation)])
        raise _held(backend, place, highest)
    if latest:
        logger.info("attempt %d of %s takes over", record.generation, place)
    return Lock(backend, place, record)


def holder(backend: Backend, place: Place) -> str | None:
    """Who is writing this artifact now; None if nobody is."""
    latest = _latest(backend, place)
    return _described(backend, place, latest) if latest and _is_live(backend, place, latest) else None


def _latest(backend: Backend, place: Place) -> int:
    return max((attempt_of(stat.path) or 0 for stat in backend.objects(place.locks)), default=0)


def _is_live(backend: Backend, place: Place, attempt: int) -> bool:
    path = place.lock(attempt)
    data = backend.read(path)
    record = LockRecord.from_bytes(data) if data is not None else None
    if record is not None:
        if record.released:
            return False
        if process.is_gone(record.machine, record.pid, record.born):
            logger.info("the writer of %s (pid %d) is gone", place, record.pid)
            return False
    age = backend.age(path)
    return age is not None and age <= (record.ttl if record else DEFAULT_TTL)


def _held(backend: Backend, place: Place, attempt: int) -> LockHeld:
    return LockHeld(
        f"another writer is making {place}",
        value=_described(backend, place, attempt),
        expected="one writer at a time",
        remedy="wait for it and use what it makes; a dead writer's lock is free once it is not renewed in time",
    )


def _described(backend: Backend, place: Place, attempt: int) -> str:
    data = backend.read(place.lock(attempt))
    record = LockRecord.from_bytes(data) if data is not None else None
    if record is None:
        return f"attempt {attempt}, by a writer that has just finished or was just starting"
    with contextlib.suppress(StoreError):
        if (age := backend.age(place.lock(attempt))) is not None:
            return f"{_who(record)}, last seen {max(age, 0):.0f} s ago, renewed within {record.ttl:.0f} s"
    return _who(record)


def _who(record: LockRecord) -> str:
    return f"{record.owner} on {record.host}, pid {record.pid}, attempt {record.generation} since {record.time}"
