"""Drivers that are stopped, killed, and that meet: the next one goes on, and no stage is made twice."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from driver_runs import FAST, SLOW, Submitted, submit
from s3 import S3Server
from tiny_study import make_inputs


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    make_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def undisturbed(inputs: Path) -> dict[str, bytes]:
    """The dictionaries of a run that nothing happened to."""
    run = submit(inputs, inputs / "undisturbed", **SLOW)
    code, _ = run.start().end()
    assert code == 0
    return run.weights()


def resumed_at(run: Submitted, attempt: int) -> int:
    """Tokens that a fit began with."""
    return next(row["done"] for row in run.metrics(attempt) if (row["stage"], row["step"]) == ("fit", "start"))


@pytest.mark.slow
def test_sigterm_in_a_fit_keeps_a_checkpoint(inputs: Path, tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    run = submit(inputs, tmp_path / "store", **SLOW)
    driver = run.start()
    driver.until(run.checkpointed)
    driver.process.terminate()
    code, lines = driver.end()
    assert code == 143
    status = run.status
    assert status.state == "stopped" and status.error is not None and status.error.kind == "Terminated"
    assert run.states() == ["done", "waiting", "waiting"]
    assert run.log() == lines

    assert run.start().end()[0] == 0
    assert 0 < resumed_at(run, 2) < 14_000
    assert (run.status.state, run.status.attempt, run.states()) == ("succeeded", 2, ["cached", "done", "done"])
    assert run.weights() == undisturbed


@pytest.mark.slow
def test_a_driver_that_is_killed_in_a_fit_is_gone_on_with(
    inputs: Path, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    run = submit(inputs, tmp_path / "store", **SLOW)
    driver = run.start()
    driver.until(run.checkpointed)
    driver.process.kill()
    code, lines = driver.end()
    assert code == -signal.SIGKILL
    # Status and log are as they were two seconds before at most, and the log is a beginning of what stdout had.
    assert run.status.state == "running"
    told = run.log()
    assert told == lines[: len(told)] and any("fit: begins" in line for line in told)

    assert run.start().end()[0] == 0
    assert 0 < resumed_at(run, 2) < 14_000
    assert run.log(1) == told
    assert run.weights() == undisturbed


@pytest.mark.slow
def test_a_cancel_in_a_fit_is_a_stop(inputs: Path, tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    run = submit(inputs, tmp_path / "store", **SLOW)
    driver = run.start()
    driver.until(run.checkpointed)
    run.folder.write_json("cancel.json", {"by": "ada@lab", "token": "t1"})
    code, _ = driver.end()
    assert code == 143
    assert run.status.state == "stopped" and run.status.error is not None and run.status.error.kind == "Cancelled"
    assert run.start().end()[0] == 143

    run.folder.write_json("run.json", {"run": run.folder.name, "token": "t2"})
    assert run.start().end()[0] == 0
    assert resumed_at(run, 3) > 0
    assert run.weights() == undisturbed


@pytest.mark.slow
def test_two_drivers_make_each_stage_once(inputs: Path, tmp_path: Path) -> None:
    runs = [submit(inputs, tmp_path / "store", run=name, **SLOW) for name in ("tiny-1", "tiny-1", "tiny-2")]
    drivers = [run.start() for run in runs]
    ends = [driver.end() for driver in drivers]
    assert [code for code, _ in ends] == [0, 0, 0]
    log = [line for _, lines in ends for line in lines]
    for stage in ("corpus", "fit", "trace"):
        assert sum(f"{stage}: begins" in line for line in log) == 1
        assert sum(f"{stage}: cached" in line for line in log) == 2
    assert any("waiting for fit: another writer is making fit/" in line for line in log)
    assert runs[0].folder.attempts() == [1, 2]
    assert runs[0].status.state == runs[2].status.state == "succeeded"


@pytest.mark.slow
def test_a_driver_that_waits_can_be_stopped(inputs: Path, tmp_path: Path) -> None:
    run = submit(inputs, tmp_path / "store", **FAST)
    with pytest.raises(InterruptedError), run.store.create("corpus", run.key("corpus"), spec={}, inputs={}):
        driver = run.start()
        driver.until(lambda: bool(run.folder.json("status.json")) and any(stage.step for stage in run.status.stages))
        driver.process.terminate()
        assert driver.end()[0] == 143
        raise InterruptedError  # so that nothing is committed
    assert run.status.state == "stopped"


@pytest.mark.s3
@pytest.mark.slow
def test_a_restarted_store_delays_and_loses_nothing(
    inputs: Path, s3_server: S3Server, s3_url: str, undisturbed: dict[str, bytes]
) -> None:
    run = submit(inputs, s3_url, **SLOW)
    driver = run.start()
    driver.until(run.checkpointed)
    s3_server.kill()
    try:
        time.sleep(8)
    finally:
        s3_server.start()
    code, lines = driver.end()
    assert code == 0
    assert run.log() == lines
    assert any("cannot" in line for line in lines)
    assert (run.status.state, run.states()) == ("succeeded", ["done", "done", "done"])
    assert run.metrics()[-1]["step"] == "done"
    assert run.weights() == undisturbed


@pytest.mark.ray
@pytest.mark.slow
def test_sigterm_is_a_stop_on_ray_too(inputs: Path, tmp_path: Path) -> None:
    """Ray sets a handler of its own when it starts; and a trace, unlike a fit, is left at once."""
    many = {"prompts": [f"def f{n}(x): return x" for n in range(60)]}
    run = submit(inputs, tmp_path / "store", **SLOW, trace=many)
    trace = run.store.scratch("trace", run.key("trace"))
    for reached in (run.checkpointed, lambda: trace.list("rows/")):
        driver = run.start("--engine", "ray")
        driver.until(reached)
        driver.process.terminate()
        code, lines = driver.end()
        assert code == 143
        assert run.status.state == "stopped"
        assert run.log(run.status.attempt) == lines
    assert run.states() == ["cached", "done", "waiting"]
    assert resumed_at(run, 2) > 0
    assert run.start().end()[0] == 0
    assert run.states() == ["cached", "cached", "done"]
