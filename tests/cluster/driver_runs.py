"""Runs for the tests of the driver: put a tiny study's plan into a store, drive it here or in a process, read back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiny_study import make_study

from interp.cluster.progress import RunStatus
from interp.plan import Plan, make_plan
from interp.spec.study import Study
from interp.store import Store
from interp.store.runs import RunFolder
from ray_jobs.run_plan import main

RUN = "tiny-1"
FAST: dict[str, Any] = {"corpus": {"tokens": 2000}}
SLOW: dict[str, Any] = {"corpus": {"tokens": 14_000}, "fit": {"batch_tokens": 64}}
"""A fit that takes long enough to be stopped in."""


@dataclass(frozen=True)
class Submitted:
    """A run that waits for its driver."""

    study: Study
    plan: Plan
    folder: RunFolder

    @property
    def store(self) -> Store:
        return self.folder.store

    def drive(self, *more: str) -> int:
        """The exit code of a driver in this process."""
        return main(["--run", self.folder.name, "--store", self.store.url, "--engine", "inprocess", *more])

    def start(self, *more: str, **environment: str) -> Driver:
        """A driver in a process of its own."""
        command = [sys.executable, "-m", "ray_jobs.run_plan", "--run", self.folder.name, "--store", self.store.url]
        process = subprocess.Popen(
            [*command, "--engine", "inprocess", *more],
            env={**os.environ, **environment},
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        return Driver(process)

    @property
    def status(self) -> RunStatus:
        found = RunStatus.read(self.folder)
        assert found is not None
        return found

    def log(self, attempt: int | None = None) -> list[str]:
        return self._lines("log", attempt)

    def metrics(self, attempt: int | None = None) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._lines("metrics", attempt)]

    def _lines(self, kind: str, attempt: int | None) -> list[str]:
        part = kind if attempt is None else f"{kind}/{attempt:04d}/"
        return "".join(text for name, text in self.folder.pieces(kind) if name.startswith(part)).splitlines()

    def states(self) -> list[str]:
        return [stage.state for stage in self.status.stages]

    def checkpointed(self) -> bool:
        key = self.key("fit")
        return self.store.scratch("fit", key).json("checkpoint.json") is not None

    def key(self, name: str) -> str:
        stage = self.plan.stage(name)
        assert stage is not None
        return stage.key

    def weights(self) -> dict[str, bytes]:
        made = self.store.get("fit", self.key("fit"))
        return {name: made.read(name) for name in made.names() if name.endswith(".safetensors")}


@dataclass(frozen=True)
class Driver:
    """A driver's process."""

    process: subprocess.Popen[str]

    def until(self, reached: Callable[[], object], seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not reached():
            assert self.process.poll() is None, f"the driver ended too early: {self.process.communicate()[0]}"
            assert time.monotonic() < deadline, "the driver does not get there"
            time.sleep(0.02)

    def end(self, seconds: float = 120) -> tuple[int, list[str]]:
        """Its exit code and the lines that it wrote to stdout."""
        out, _ = self.process.communicate(timeout=seconds)
        return self.process.returncode, out.splitlines()


def submit(folder: Path, store: str | Path, *, run: str = RUN, token: str = "t1", **changes: Any) -> Submitted:
    study = make_study(folder, **{**changes, "store": str(store)})
    opened = Store.open(study.store)
    plan = make_plan(study, opened)
    place = RunFolder(opened, run)
    place.write_text("plan.json", plan.to_json())
    place.write_json("run.json", {"run": run, "token": token})
    return Submitted(study, plan, place)
