"""What a driver does with SIGTERM: once, and again while it keeps its checkpoint."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from interp.engine.stopping import is_stopping, stop_on_signal
from ray_jobs.stopping import Stopping


@pytest.fixture
def stopping() -> Iterator[Stopping]:
    before = signal.getsignal(signal.SIGTERM)
    made = Stopping()
    made.handle_signals()
    yield made
    signal.signal(signal.SIGTERM, before)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_checkpoint_that_is_being_kept_is_not_cut_off_by_more_signals(stopping: Stopping) -> None:
    """`interp cancel` deletes the RayJob when it has waited long enough, which sends the second one."""
    stopping.cancelled = "cancelled"
    kept = False
    with pytest.raises(SystemExit) as left, stop_on_signal() as asked:
        terminate()
        assert asked() and is_stopping()
        terminate()
        terminate()
        kept = True
    assert kept and left.value.code == 143 and not is_stopping()


def test_a_cancel_outside_a_fit_ends_the_stage_at_once_and_only_once(stopping: Stopping) -> None:
    stopping.cancelled = "cancelled"
    with pytest.raises(SystemExit):
        terminate()
    terminate()  # locks are being let go, and the last words written


def test_who_is_told_by_a_signal_alone_does_not_hold_up_the_second(stopping: Stopping) -> None:
    with pytest.raises(SystemExit), stop_on_signal():
        terminate()
        with pytest.raises(SystemExit):
            terminate()
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
