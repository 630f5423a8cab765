"""What the driver leaves in the store as it goes, written by a thread of its own: the run never waits for it.

Lines of the log and of the metrics are collected, and go out as pieces: every `EVERY_S` seconds, metrics every
`METRICS_EVERY_S` (a run of days would leave too many objects), or when there are `PIECE_BYTES`. A piece is fixed when
it is first tried, and tried again under its number until the store takes it, so a store that refuses or is away delays
lines and loses none. What waits is bounded: beyond `MOST_WAITING` bytes the oldest lines are dropped, and the log says
so. The status is what it is at the moment when it is written.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from interp.cluster.progress import HEARTBEAT_S, STATUS
from interp.errors import StoreError
from interp.store import Store
from interp.store.provenance import now
from interp.store.runs import RunFolder

logger = logging.getLogger(__name__)

EVERY_S, METRICS_EVERY_S = 2.0, 10.0
PIECE_BYTES = 64 << 10
MOST_WAITING = 10 << 20
SILENT_S = 60.0
"""A later attempt that has not written its status for so long is dead, and this one may speak again."""

_PATIENCE_S = 10.0
_LONGEST_PAUSE_S = 2.0


class Outbox:
    """A context of its own from `start` to `close`.

    Args:
        attempt: of this driver; its first piece of log, number 0, is there already.
        status: makes the document of status.json.
    """

    def __init__(self, folder: RunFolder, attempt: int, status: Callable[[], dict[str, Any]]):
        store = folder.store
        # This thread repeats for itself, and looks between two tries whether the driver wants to end.
        hasty = Store(store.url, store.backend.impatient(_PATIENCE_S), patience=_PATIENCE_S)
        self._folder, self._attempt = RunFolder(hasty, folder.name), attempt
        self._status = _StatusFile(self._folder, attempt, status)
        self._queues = {"log": _Pieces(1, _gap_in_log), "metrics": _Pieces(0, _gap_in_metrics)}
        self._wake = threading.Condition()
        self._urgent = self._closing = self._all = False
        self._metrics_sent = time.monotonic()
        self._changes = self._told = 0
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def add(self, kind: str, line: str) -> None:
        """A line, with its end, of `log` or `metrics`."""
        with self._wake:
            queue = self._queues[kind]
            queue.add(line)
            if queue.size >= PIECE_BYTES:
                self._wake.notify_all()

    def changed(self, *, at_once: bool = False) -> None:
        """The status is another one; `at_once` for a change of state."""
        with self._wake:
            self._changes += 1
            self._urgent |= at_once
            if at_once:
                self._wake.notify_all()

    def flush(self, limit_s: float) -> bool:
        """Wait until everything so far is in the store; False if that took too long."""
        with self._wake:
            self._urgent = self._all = True
            self._wake.notify_all()
            done = self._wake.wait_for(self._nothing_left, limit_s)
            self._all = False
            return done

    def close(self, limit_s: float) -> bool:
        """Flush, and end the thread; it is left alone if the store does not answer."""
        done = self.flush(limit_s)
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        self._thread.join(_LONGEST_PAUSE_S if done else 0)
        return done

    def _nothing_left(self) -> bool:
        return self._told == self._changes and not any(queue.waiting for queue in self._queues.values())

    def _run(self) -> None:
        failures = 0
        while not self._closing:
            with self._wake:
                self._wake.wait_for(self._is_time, EVERY_S)
                self._urgent = False
            try:
                self._send()
            except Exception as error:  # noqa: BLE001 - whatever it is, the run goes on, and the next try may succeed
                failures += 1
                if failures == 1:
                    what = error.what if isinstance(error, StoreError) else f"{type(error).__name__}: {error}"
                    logger.warning("log and status wait, the store does not take them: %s", what)
                time.sleep(min(_LONGEST_PAUSE_S, 0.1 * 2**failures))
                continue
            if failures:
                logger.info("the store takes log and status again, after %d tries", failures)
            failures = 0

    def _is_time(self) -> bool:
        return self._urgent or self._closing or any(queue.size >= PIECE_BYTES for queue in self._queues.values())

    def _send(self) -> None:
        self._send_pieces("log")
        early = time.monotonic() - self._metrics_sent < METRICS_EVERY_S
        if self._all or not early or self._queues["metrics"].size >= PIECE_BYTES:
            self._send_pieces("metrics")
            self._metrics_sent = time.monotonic()
        changes = self._changes
        self._status.write(changed=changes != self._told)
        with self._wake:
            self._told = changes
            self._wake.notify_all()

    def _send_pieces(self, kind: str) -> None:
        queue = self._queues[kind]
        while True:
            with self._wake:
                piece = queue.next()
            if piece is None:
                return
            self._folder.put_piece(kind, self._attempt, piece[0], piece[1])
            with self._wake:
                queue.sent()


class _Pieces:
    """Lines that wait, and the piece that is being sent."""

    def __init__(self, first: int, gap: Callable[[int, str], str]):
        self.size = 0
        self._number, self._gap = first, gap
        self._lines: deque[str] = deque()
        self._dropped, self._last_dropped = 0, ""
        self._sending: str | None = None

    @property
    def waiting(self) -> bool:
        return bool(self._lines) or self._sending is not None

    def add(self, line: str) -> None:
        self._lines.append(line)
        self.size += _bytes(line)
        while self.size > MOST_WAITING:
            self._last_dropped = self._lines.popleft()
            self.size -= _bytes(self._last_dropped)
            self._dropped += 1

    def next(self) -> tuple[int, str] | None:
        """The piece to be sent, with its number: the same one until it was `sent`."""
        if self._sending is None and (self._lines or self._dropped):
            lines, size = [self._gap(self._dropped, self._last_dropped)] if self._dropped else [], 0
            self._dropped = 0
            while self._lines and (not size or size + _bytes(self._lines[0]) <= PIECE_BYTES):
                lines.append(self._lines.popleft())
                size += _bytes(lines[-1])
            self.size -= size
            self._sending = "".join(lines)
        return None if self._sending is None else (self._number, self._sending)

    def sent(self) -> None:
        self._number += 1
        self._sending = None


def _gap_in_log(lines: int, last: str) -> str:
    """In place of what is missing, with the time of its last line: times in a log do not go back."""
    return f"{last.split(' ', 1)[0]} WARNING {lines} lines are missing here: the store did not take them in time\n"


def _gap_in_metrics(lines: int, last: str) -> str:
    return f'{{"time": "{now()}", "missing": {lines}}}\n'


class _StatusFile:
    """Of two drivers of one run, both alive because one waits for the other, the later attempt writes the status."""

    def __init__(self, folder: RunFolder, attempt: int, document: Callable[[], dict[str, Any]]):
        self._folder, self._attempt, self._document = folder, attempt, document
        self._written = -HEARTBEAT_S
        self._later: tuple[Any, float] = (None, 0.0)

    def write(self, changed: bool) -> None:
        if not changed and time.monotonic() - self._written < HEARTBEAT_S:
            return
        if not self._outranked():
            self._folder.write_json(STATUS, self._document())
        self._written = time.monotonic()

    def _outranked(self) -> bool:
        try:
            there = self._folder.json(STATUS) or {}
        except StoreError:
            # Damaged, or not to be read: the write that follows mends the one and meets with the other.
            return False
        if not isinstance(attempt := there.get("attempt"), int) or attempt <= self._attempt:
            return False
        if there.get("state") != "running":
            return False
        if self._later[0] != (word := (attempt, there.get("updated"))):
            self._later = (word, time.monotonic())
        return time.monotonic() - self._later[1] < SILENT_S


def _bytes(line: str) -> int:
    return len(line.encode())
