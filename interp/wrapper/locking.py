"""One forward pass at a time through a model: traces of one module tree from two threads would mix."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from interp.errors import HookError


class RunLock:
    """Held while a model runs. Other threads wait; the holder itself must not come back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holder: int | None = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock for the length of one run."""
        if self._holder == threading.get_ident():
            raise HookError(
                "a hook ran the model that it is a hook of",
                expected="a hook that only computes with the value it is given",
                remedy="run the model before, and let the hook use the result",
            )
        with self._lock:
            self._holder = threading.get_ident()
            try:
                yield
            finally:
                self._holder = None


_LOCKS: weakref.WeakKeyDictionary[nn.Module, RunLock] = weakref.WeakKeyDictionary()
_REGISTRY = threading.Lock()


def run_lock(model: nn.Module) -> RunLock:
    """The lock of this model, the same for every wrapper around it."""
    with _REGISTRY:
        return _LOCKS.setdefault(model, RunLock())
