"""How an attempt ended, and what its exit code tells: 0 done, 1 worth another try, 2 not, 3 held up, 143 stopped.

Kubernetes and KubeRay start a driver again whatever its code says. So what another try cannot change is recorded in
the status, and the next attempt of the same submission ends with it at once, without work (`recorded`).
"""

from __future__ import annotations

from dataclasses import dataclass

from interp import errors
from interp.cluster.progress import RunError, RunState, RunStatus
from interp.engine.stopping import EXIT_CODE
from ray_jobs.stopping import Stopping

DONE, FAILED, CANNOT_BE_RUN, HELD_UP = 0, 1, 2, 3

NO_USE_TRYING = (
    errors.SpecError,
    errors.HookError,
    errors.ModelError,
    errors.DictionaryError,
    errors.CorpusError,
    errors.PromptError,
)
"""What the study, its sources or the plan must change for. A source that cannot be read, a store, a worker or the
machines may be better the next time."""


@dataclass(frozen=True)
class Ending:
    """What is said of an attempt in the end."""

    state: RunState
    code: int
    error: RunError | None = None


SUCCEEDED = Ending("succeeded", DONE)


def ending_of(error: BaseException, stopping: Stopping) -> Ending:
    """What an attempt ends with when this came out of it."""
    if isinstance(error, (SystemExit, KeyboardInterrupt)) or stopping.cancelled is not None:
        return Ending("stopped", EXIT_CODE, stopping.reason)
    found = RunError(type(error).__name__, str(error) or type(error).__name__)
    if isinstance(error, errors.LockHeld):
        return Ending("failed", HELD_UP, found)
    return Ending("failed", CANNOT_BE_RUN if isinstance(error, NO_USE_TRYING) else FAILED, found)


def recorded(before: RunStatus | None, token: str) -> Ending | None:
    """What an attempt before this one failed with, if this one would fail with it too; None if it is worth a try.

    Args:
        token: of run.json now: submitting or resuming writes another one, and then everything is tried again.
    """
    if before is None or before.error is None or before.state != "failed" or before.token != token:
        return None
    kind = getattr(errors, before.error.kind, None)
    if not isinstance(kind, type) or not issubclass(kind, NO_USE_TRYING):
        return None
    return Ending("failed", CANNOT_BE_RUN, before.error)
