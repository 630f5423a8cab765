"""The driver's log: each line on stdout, and in the store.

    2026-11-21T19:36:37.123456Z INFO    interp.stages.runner: fit begins

Every line has a time of its own, also those of a traceback: no two are the same, so whoever reads both the pod's log
and the store's pieces can tell which lines they have seen. Times never go back.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import IO

from ray_jobs.redaction import Redactor

_TELLS = ("interp", "ray_jobs")
"""Loggers whose news are told; of others, warnings."""


class DriverLog(logging.Handler):
    """Formats a record once, and hands its lines to stdout and to `to`.

    Until `to` is called, lines are kept for it: a driver begins before it can reach the store.
    """

    def __init__(self, redactor: Redactor, stream: IO[str] | None = None):
        super().__init__()
        self._redactor, self._stream = redactor, stream or sys.stdout
        self._last = datetime.min.replace(tzinfo=UTC)
        self._early: list[str] = []
        self._store: Callable[[str], None] = self._early.append

    @property
    def early(self) -> tuple[str, ...]:
        """The lines that are kept."""
        return tuple(self._early)

    def to(self, store: Callable[[str], None], after: int = 0) -> None:
        """From now on give all lines to this, those that were kept first; so many of them are there already."""
        with self.lock or contextlib.nullcontext():
            for line in self._early[after:]:
                store(line)
            self._early, self._store = [], store

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self._text(record)
        except Exception:  # noqa: BLE001 - a log call with wrong arguments must not end a run
            text = f"a message that cannot be formatted: {record.msg!r} {record.args!r}"
        for line in self._redactor.text(text).splitlines() or [""]:
            self._put(self._line(record.levelname, f"{record.name}: {line}"))

    def _line(self, level: str, text: str) -> str:
        self._last = max(datetime.now(UTC), self._last + timedelta(microseconds=1))
        return f"{self._last:%Y-%m-%dT%H:%M:%S.%f}Z {level:<7} {text}\n"

    def _text(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if record.exc_info and record.exc_info[0] is not None:
            text += "\n" + logging.Formatter().formatException(record.exc_info)
        return text

    def _put(self, line: str) -> None:
        self._store(line)
        # Nobody may be reading: the store has the line, and the run goes on.
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(line)
            self._stream.flush()


@contextlib.contextmanager
def driver_log(redactor: Redactor, stream: IO[str] | None = None) -> Iterator[DriverLog]:
    """All that this process logs, warns of, or dies of in a thread, goes to the log that this yields."""
    log, root = DriverLog(redactor, stream), logging.getLogger()
    handlers, levels = root.handlers[:], {name: logging.getLogger(name).level for name in ("", *_TELLS)}
    root.handlers = [log]
    root.setLevel(logging.WARNING)
    for name in _TELLS:
        logging.getLogger(name).setLevel(logging.INFO)
    logging.captureWarnings(True)
    hook, threading.excepthook = threading.excepthook, _thread_died
    try:
        yield log
    finally:
        threading.excepthook = hook
        logging.captureWarnings(False)
        root.handlers = handlers
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _thread_died(died: threading.ExceptHookArgs) -> None:
    if died.exc_value is not None and died.exc_type is not SystemExit:
        logging.getLogger(__name__).error(
            "thread %s ended with an error",
            died.thread.name if died.thread else "?",
            exc_info=(died.exc_type, died.exc_value, died.exc_traceback),
        )
