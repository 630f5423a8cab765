"""SIGTERM during a fit: finish the step, keep a checkpoint, then go. A second one is not waited for.

Schedulers send it before they kill: Kubernetes when a pod is evicted, a batch queue when the time is up. The next run
goes on from the checkpoint.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

logger = logging.getLogger(__name__)

EXIT_CODE = 128 + signal.SIGTERM
"""What a shell says of a process that SIGTERM has ended."""


_stopping = threading.Event()


def is_stopping() -> bool:
    """Whether a signal came, and what was under way is about to end by it."""
    return _stopping.is_set()


@contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Inside, from the first SIGTERM on the function that this yields says so.

    A handler runs between any two lines of the main thread, so it does nothing but note it: whoever asks acts on it.
    Outside the main thread, which alone may handle signals, it never does.

    Raises:
        SystemExit: at the end, if a signal came.
    """
    came = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield came.is_set
        return

    def handle(*_: Any) -> None:
        signal.signal(signal.SIGTERM, before)
        came.set()
        _stopping.set()

    # None stands for a handler that was not set from Python, which cannot be set again.
    before = signal.signal(signal.SIGTERM, handle) or signal.SIG_DFL
    try:
        yield came.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
        _stopping.clear()
    if came.is_set():
        logger.warning("stopped by SIGTERM")
        raise SystemExit(EXIT_CODE)
