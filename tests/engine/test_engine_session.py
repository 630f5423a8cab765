"""Starting Ray: what is refused with a reason, and what must stay small."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from interp.engine import open_engine
from interp.engine.ray import session
from interp.errors import EngineError, ModelMismatch


def test_a_cluster_that_does_not_answer_is_an_error_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(EngineError, match=r"cannot be reached[^$]*RAY_ADDRESS=127.0.0.1:1"):
        open_engine("ray")


def test_shared_memory_is_small_on_a_laptop_and_grows_with_a_large_machine() -> None:
    assert session.object_store_size(16 << 30) == session.object_store_size(63 << 30) == 512 << 20
    assert session.object_store_size(128 << 30) == 16 << 30


def test_only_the_folders_of_runs_that_are_gone_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session.tempfile, "gettempdir", lambda: str(tmp_path))
    for name in ("dead", "alive"):
        (tmp_path / f"interp-ray-{name}").mkdir()
        (tmp_path / f"interp-ray-{name}" / "lock").touch()
    (tmp_path / "interp-ray-not-ours").mkdir()
    with (tmp_path / "interp-ray-alive" / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        session._remove_leftovers()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["interp-ray-alive", "interp-ray-not-ours"]


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("interp.engine", "torch ray transformers"),
        ("interp.stages.runner", "torch ray transformers"),
        ("interp.engine.ray.activations", "torch transformers nnsight"),
        ("interp.engine.ray.fit", "transformers nnsight"),
    ],
)
def test_processes_load_only_what_they_use(module: str, absent: str) -> None:
    """Every actor is a process: a library too many is memory times their number. nnsight, once loaded, would even be
    handed on to the actors that a process starts."""
    check = f"import sys, {module}; print(*(set({absent.split()!r}) & set(sys.modules)))"
    found = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": ""}
    )
    assert found.stdout.split() == []


class _Job:
    """As much of a job as the verdict asks for."""

    step = 0

    def resume_step(self) -> int:
        return self.step


def test_workers_are_started_again_unless_it_would_happen_again() -> None:
    from interp.engine.ray.context import RETRIES
    from interp.engine.ray.fit import _Verdict

    job = _Job()
    verdict = _Verdict(job)  # type: ignore[arg-type]
    with pytest.raises(ModelMismatch):
        verdict.after_exception(None, {0: RuntimeError("connection closed by peer"), 1: ModelMismatch("another")})
    for step in (0, 4):
        job.step = step
        for _ in range(RETRIES):
            verdict.after_exception(None, {1: RuntimeError("killed")})
    with pytest.raises(EngineError, match=r"failed 4 times after step 4[^$]*worker 1: RuntimeError: killed"):
        verdict.after_exception(None, {1: RuntimeError("killed")})
