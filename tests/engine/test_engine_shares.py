"""What a fit on Ray asks of the machine before anything starts, and how a signal is passed on."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from interp.engine.job import STOP, FitJob
from interp.engine.ray import fit as module
from interp.engine.resources import Capacity
from interp.engine.stopping import stop_on_signal
from interp.errors import EngineError

LAPTOP = SimpleNamespace(capacity=Capacity(4, 2.5))


def job_of(**changes: Any) -> FitJob:
    return FitJob(**{"plan": None, "model": None, "corpus": None, "scratch": None, "workers": 2, **changes})  # type: ignore[arg-type]


def test_a_cache_leaves_no_room_for_harvesters_that_never_run(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[FitJob] = []

    def needs(job: FitJob) -> Any:
        asked.append(job)
        raise EngineError("far enough")

    scratch = SimpleNamespace(json=lambda name: None)
    monkeypatch.setattr(module, "needs_of", needs)
    job = job_of(mode="streamed", harvesters=20, cache=object(), scratch=scratch)
    with pytest.raises(EngineError, match="far enough"):
        module.fit(job, LAPTOP, print)  # type: ignore[arg-type]
    assert (asked[0].mode, asked[0].harvesters) == ("colocated", 0)
    with pytest.raises(EngineError, match="22 processes"):
        module.fit(job_of(mode="streamed", harvesters=20), LAPTOP, print)  # type: ignore[arg-type]


def test_harvesters_beside_the_workers_leave_them_less_memory() -> None:
    alone = module._worker_memory(job_of(), LAPTOP, 0)  # type: ignore[arg-type]
    beside = module._worker_memory(job_of(harvesters=2), LAPTOP, 2)  # type: ignore[arg-type]
    assert beside == pytest.approx(alone / 2, rel=0.1)
    for mode in ("auto", "colocated"):
        assert module._worker_memory(job_of(mode=mode), LAPTOP, 20) == 0, "streamed cannot be chosen"  # type: ignore[arg-type]


@pytest.mark.parametrize(("harvesters", "asked"), [(0, [0]), (2, [0, 2])])
def test_memory_is_asked_for_once_where_there_are_no_harvesters(
    harvesters: int, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []

    def settled(*_: Any) -> Any:
        raise EngineError("far enough")

    monkeypatch.setattr(module, "needs_of", lambda job: None)
    monkeypatch.setattr(module, "settled", settled)
    monkeypatch.setattr(module, "_worker_memory", lambda job, session, beside, waits: told.append(beside) or 1)
    job = job_of(harvesters=harvesters, scratch=SimpleNamespace(json=lambda name: None))
    with pytest.raises(EngineError, match="far enough"):
        module.fit(job, LAPTOP, print)  # type: ignore[arg-type]
    assert told == asked


def test_a_signal_is_passed_on_by_who_watches_and_not_by_its_handler() -> None:
    written: list[tuple[str, str]] = []

    def write(name: str, _: Any) -> None:
        written.append((name, threading.current_thread().name))

    scratch = SimpleNamespace(json=lambda name: None, write_json=write)
    training = module._Thread(lambda: time.sleep(1.5))
    with pytest.raises(SystemExit), stop_on_signal() as asked:
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked() and not written
        module._watched(job_of(scratch=scratch), training, asked, {}, print)  # type: ignore[arg-type]
    assert [name for name, _ in written] == [STOP], "once"


def test_a_handler_that_python_did_not_set_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    set_handler = signal.signal
    monkeypatch.setattr(signal, "signal", lambda *a: (set_handler(*a), None)[1])
    before = signal.getsignal(signal.SIGTERM)
    try:
        with stop_on_signal() as asked:
            assert not asked()
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        set_handler(signal.SIGTERM, before)
