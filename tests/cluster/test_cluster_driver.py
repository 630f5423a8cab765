"""The driver of a run: what it runs, what it leaves in the store, how it ends."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from driver_runs import FAST, RUN, Submitted, submit
from tiny_study import make_inputs

import interp.stages.fit
from interp.errors import EngineError, HookError, SpecError, StoreAccessError
from interp.store.backends.folder import FolderBackend
from interp.store.lock import LockRecord
from interp.store.names import Place
from interp.store.runs import RunFolder
from ray_jobs.run_plan import main


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    make_inputs(folder)
    return folder


@pytest.fixture
def run(inputs: Path, tmp_path: Path) -> Submitted:
    return submit(inputs, tmp_path / "store", **FAST)


@pytest.fixture(autouse=True)
def _own_handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def fails_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> list[str]:
    """Fits raise this; the list grows by one each time."""
    tried: list[str] = []

    def fail(context: Any, *_: Any) -> None:
        tried.append(context.stage.key)
        raise error

    monkeypatch.setattr(interp.stages.fit, "run", fail)
    return tried


def test_a_plan_runs_from_the_store_and_all_of_it_is_told(run: Submitted, capfd: pytest.CaptureFixture[str]) -> None:
    assert run.drive() == 0
    status = run.status
    assert (status.run, status.state, status.attempt, status.error, status.token) == (RUN, "succeeded", 1, None, "t1")
    assert status.started < status.updated
    assert [(stage.stage, stage.state) for stage in status.stages] == [
        ("corpus", "done"),
        ("fit", "done"),
        ("trace", "done"),
    ]
    trace = status.stage("trace")
    assert trace is not None and trace.figures["graphs"] == 5 and trace.seconds > 0
    assert trace.url == run.store.get("trace", run.key("trace")).url

    rows = run.metrics()
    assert {row["stage"] for row in rows} == {"corpus", "fit", "trace"}
    trained = [row for row in rows if row["step"] == "train"]
    assert trained[-1]["done"] == trained[-1]["total"] == 2000 and len(trained[-1]["dictionaries"]) == 3
    assert rows == sorted(rows, key=lambda row: row["time"])
    assert [row["done"] for row in rows if row["step"] == "trace"][-1] == 5

    log = run.log()
    assert log == capfd.readouterr().out.splitlines()
    times = [line.split(" ", 1)[0] for line in log]
    assert times == sorted(set(times))
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", time) for time in times)
    assert "a driver begins" in log[0] and log[-1].endswith("attempt 1: succeeded")


def test_the_next_attempt_finds_everything_and_starts_nothing(run: Submitted) -> None:
    assert run.drive() == 0
    before = run.weights()
    assert run.drive() == 0
    assert (run.status.attempt, run.states()) == (2, ["cached"] * 3)
    assert run.folder.attempts() == [1, 2]
    assert [row["step"] for row in run.metrics(2)] == ["cached"] * 3
    assert run.weights() == before


def test_an_unexpected_error_is_worth_another_try_and_leaves_its_traceback(
    run: Submitted, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error, kind in (
        (EngineError("a worker was lost"), "EngineError"),
        (ZeroDivisionError("by zero"), "ZeroDivisionError"),
    ):
        with monkeypatch.context() as patch:
            tried = fails_with(patch, error)
            assert run.drive() == 1
        assert tried
        assert run.status.state == "failed" and run.status.error is not None
        assert run.status.error.kind == kind and str(error) in run.status.error.message
        assert run.states() == ["done" if run.status.attempt == 1 else "cached", "failed", "waiting"]
        assert any("Traceback" in line for line in run.log(run.status.attempt))
    assert run.drive() == 0


def test_what_another_try_does_not_change_is_not_tried_again_until_resumed(
    run: Submitted, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = fails_with(monkeypatch, HookError("no such hook", value="layers.9.mlp_in", remedy="look at the model"))
    assert run.drive() == 2
    first = run.status
    assert first.error is not None and first.error.kind == "HookError" and "layers.9.mlp_in" in first.error.message
    assert len(tried) == 1

    assert run.drive() == 2
    assert len(tried) == 1
    assert (run.status.attempt, run.status.state, run.status.error) == (2, "failed", first.error)
    assert run.status.stages == first.stages
    assert any("interp resume" in line for line in run.log(2))

    run.folder.write_json("run.json", {"run": RUN, "token": "t2"})
    assert run.drive() == 2
    assert len(tried) == 2
    monkeypatch.undo()
    run.folder.write_json("run.json", {"run": RUN, "token": "t3"})
    assert run.drive() == 0


def test_a_damaged_status_does_not_stop_a_run(run: Submitted) -> None:
    run.folder.write_text("status.json", "{half of")
    assert run.drive() == 0
    assert any("no JSON object" in line for line in run.log())
    assert run.status.state == "succeeded"


def test_a_run_without_a_plan_or_with_a_changed_one_cannot_be_run(run: Submitted) -> None:
    assert main(["--run", "other-1", "--store", run.store.url, "--engine", "inprocess"]) == 2
    other = Submitted(run.study, run.plan, RunFolder(run.store, "other-1"))
    assert other.status.error is not None and other.status.error.kind == "SpecError"
    assert "there is no plan of this run" in other.status.error.message

    text = run.plan.to_json().replace(run.key("fit"), "0" * 64)
    run.folder.write_text("plan.json", text)
    assert run.drive() == 2
    assert run.status.error is not None and "the plan was changed" in run.status.error.message


def test_a_store_that_cannot_be_named_is_an_error_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--run", RUN, "--store", "ftp://nowhere/x", "--engine", "inprocess"]) == 1
    assert "ftp" in capsys.readouterr().out


def test_a_store_that_is_not_up_yet_is_waited_for(
    run: Submitted, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begin, refusals = RunFolder.begin_attempt, [StoreAccessError("no route to the store")] * 2

    def refused(folder: RunFolder, text: str) -> int:
        if refusals:
            raise refusals.pop()
        return begin(folder, text)

    monkeypatch.setattr(RunFolder, "begin_attempt", refused)
    monkeypatch.setattr("ray_jobs.run_plan.time.sleep", lambda _: None)
    monkeypatch.setattr("interp.stages.runner.run_plan", lambda *_, **__: None)
    assert run.drive() == 0
    log = run.log()
    assert sum("no route to the store" in line for line in log) == 2
    assert log == capsys.readouterr().out.splitlines()

    monkeypatch.setattr("ray_jobs.run_plan.START_PATIENCE_S", 0)
    refusals.append(StoreAccessError("no route to the store"))
    assert run.drive() == 1


def test_a_store_that_refuses_writes_for_a_while_costs_one_attempt_and_no_line(
    run: Submitted, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A refusal (no space, no permission) is not a store that is away: the stage ends, and its last words wait."""
    write, fit, until = FolderBackend.write, interp.stages.fit.run, [0.0]

    def refusing(backend: FolderBackend, path: str, data: bytes) -> None:
        if time.monotonic() < until[0]:
            raise StoreAccessError("no space left")
        write(backend, path, data)

    def refused(*arguments: Any) -> None:
        until[0] = time.monotonic() + 4
        fit(*arguments)

    monkeypatch.setattr(FolderBackend, "write", refusing)
    monkeypatch.setattr(interp.stages.fit, "run", refused)
    began = time.monotonic()
    assert run.drive() == 1
    assert time.monotonic() - began >= 4
    assert run.status.error is not None and run.status.error.kind == "StoreAccessError"
    assert run.log() == capsys.readouterr().out.splitlines()

    monkeypatch.setattr(interp.stages.fit, "run", fit)
    assert run.drive() == 0


def test_figures_of_any_kind_are_told(run: Submitted, monkeypatch: pytest.MonkeyPatch) -> None:
    def corpus(context: Any, *_: Any) -> None:
        odd = {
            "nan": float("nan"),
            "array": torch.tensor([1.0, float("inf")]),
            "number": torch.tensor(2),
            "path": Path("/x"),
        }
        context.progress("odd", done=1, total=2, rate=float("inf"), stage="not this", nested={"a": (1, 2)}, **odd)
        raise EngineError("enough")

    monkeypatch.setattr("interp.stages.corpus.run", corpus)
    assert run.drive() == 1
    (row,) = run.metrics()
    told = {"done": 1, "total": 2, "rate": None, "nan": None, "array": [1.0, None], "number": 2, "path": "/x"}
    assert row == {
        "time": row["time"],
        "stage": "corpus",
        "key": run.key("corpus"),
        "step": "odd",
        "nested": {"a": [1, 2]},
        **told,
    }
    del told["array"]
    assert run.status.stages[0].figures == told | {"stage": "not this"}


def test_options_may_come_from_the_environment(run: Submitted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERP_RUN", RUN)
    monkeypatch.setenv("INTERP_RUN_STORE", run.store.url)
    assert main(["--engine", "inprocess"]) == 0
    monkeypatch.delenv("INTERP_RUN")
    with pytest.raises(SystemExit, match="2"):
        main(["--engine", "inprocess"])


def test_a_stage_that_another_holds_for_too_long_is_exit_3(run: Submitted) -> None:
    key = run.key("corpus")
    with contextlib.suppress(InterruptedError), run.store.create("corpus", key, spec={}, inputs={}):
        assert run.drive("--wait", "0") == 3
        raise InterruptedError  # so that nothing is committed
    assert run.status.error is not None and run.status.error.kind == "LockHeld"


def test_the_lock_of_a_driver_on_another_machine_is_waited_out(run: Submitted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can tell whether that one lives before its lock is stale."""
    place = Place("corpus", run.key("corpus"))
    record = replace(LockRecord.mine(1, ttl=4.0), host="lost-head", machine="another", pid=4)
    run.store.backend.write(place.lock(1), json.dumps(asdict(record)).encode())
    seen: list[str] = []
    monkeypatch.setattr("interp.stages.runner.time.sleep", sleep_and(lambda: seen.append(run.status.stages[0].step)))
    monkeypatch.setattr("interp.stages.runner.LOOK_AGAIN_S", 1.0)
    began = time.monotonic()
    assert run.drive() == 0
    assert time.monotonic() - began > 3
    waits = [step for step in seen if step.startswith("waiting for corpus: another writer is making corpus/")]
    assert waits and all("on lost-head, pid 4" in step for step in waits)
    assert run.states() == ["done", "done", "done"] and run.status.stages[0].step == ""
    assert sum("waiting for corpus" in line for line in run.log()) == 1


def sleep_and(look: Callable[[], None]) -> Callable[[float], None]:
    sleep = time.sleep

    def slept(seconds: float) -> None:
        sleep(seconds)
        if seconds == 1.0:
            look()

    return slept


def test_a_cancelled_run_is_not_begun(run: Submitted, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = fails_with(monkeypatch, SpecError("never"))
    run.folder.write_json("cancel.json", {"by": "ada@lab"})
    assert run.drive() == 143
    assert run.status.state == "stopped" and run.status.error is not None
    assert run.status.error.kind == "Cancelled" and "ada@lab" in run.status.error.message
    assert not tried
    monkeypatch.undo()

    # One of a submission before this one is none.
    run.folder.write_json("cancel.json", {"by": "ada@lab", "token": "t1"})
    run.folder.write_json("run.json", {"run": RUN, "token": "t2"})
    assert run.drive() == 0


def test_what_is_read_must_be_what_was_planned(tmp_path: Path) -> None:
    """A corpus that has changed since it was planned would be trained on under the key of the old one."""
    run = submit(tmp_path, tmp_path / "store", **FAST)
    corpus = Path(run.study.required_corpus.source)
    corpus.write_text(corpus.read_text().replace("cat", "dog"))
    assert run.drive() == 2
    error = run.status.error
    assert error is not None and error.kind == "SpecError"
    assert "is not the same here as where it was planned (stage corpus)" in error.message
    assert "planned with" in error.message and run.store.list() == []
