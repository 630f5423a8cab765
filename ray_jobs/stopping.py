"""The two ways in which a run is asked to stop: SIGTERM, and `cancel.json` in the run's folder.

Both end as SIGTERM does. In a fit, the engine finishes the step and keeps a checkpoint (`interp.engine.stopping`);
elsewhere the stage is left at once, and what it has in its scratch stays. Either way SystemExit ends the run, the
locks are let go, and the next attempt goes on from there.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from typing import Any

from interp.cluster.progress import CANCELLED, TERMINATED, RunError
from interp.engine.stopping import EXIT_CODE, is_stopping
from interp.errors import StoreError
from interp.store import Store
from interp.store.runs import RunFolder

logger = logging.getLogger(__name__)

CANCEL = "cancel.json"
LOOK_EVERY_S = 3.0


class Stopping:
    """Who asked for an end, if somebody did."""

    def __init__(self) -> None:
        self.cancelled: str | None = None
        self._over = threading.Event()

    @property
    def reason(self) -> RunError:
        if self.cancelled is not None:
            return RunError(CANCELLED, self.cancelled)
        return RunError(TERMINATED, "a signal ended the driver: what is finished stays, and the next attempt goes on")

    def handle_signals(self) -> None:
        """Also to be called when Ray was started, which sets a handler of its own."""
        signal.signal(signal.SIGTERM, self._handle)

    def no_more(self) -> None:
        """The run is over: a signal changes nothing any more, and must not cut short its last words."""
        self._over.set()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def look(self, folder: RunFolder, token: str) -> bool:
        """Whether the run was cancelled.

        Args:
            token: of run.json: a cancel that names another one was of an earlier submission.
        """
        found = folder.json(CANCEL)
        if found is None or found.get("token", token) != token:
            return False
        who = f" by {found['by']}" if found.get("by") else ""
        self.cancelled = f"the run was cancelled{who}: what is finished stays, `interp resume` goes on from there"
        return True

    def keep_looking(self, folder: RunFolder, token: str) -> None:
        """Look every `LOOK_EVERY_S` seconds in a thread, and send this process a SIGTERM when the run is cancelled."""
        hasty = Store(folder.store.url, folder.store.backend.impatient(LOOK_EVERY_S), patience=LOOK_EVERY_S)
        watched = RunFolder(hasty, folder.name)
        threading.Thread(target=self._look, args=(watched, token), name="cancel", daemon=True).start()

    def _look(self, folder: RunFolder, token: str) -> None:
        while not self._over.wait(LOOK_EVERY_S):
            try:
                if self.look(folder, token) and not self._over.is_set():
                    logger.warning("%s", self.cancelled)
                    os.kill(os.getpid(), signal.SIGTERM)
                    return
            except StoreError as error:
                logger.debug("cannot look for %s: %s", CANCEL, error.what)

    def _handle(self, *_: Any) -> None:
        if self.cancelled is None:
            # A second one is not waited for: whoever sends it is about to kill.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        elif is_stopping():
            # The checkpoint is being kept: more cannot be done for whoever sends another, as a deleted RayJob does.
            return
        else:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise SystemExit(EXIT_CODE)
