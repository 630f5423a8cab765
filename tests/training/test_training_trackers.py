"""Who is told of the steps of a fit: every step once, whatever was interrupted, and nothing that is not for others."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from training_cases import plan_of, planted, target

from interp.errors import EngineError
from interp.training import FitPlan, InMemorySession, fit_loop
from interp.training.metrics import MetricsLog
from interp.training.trackers import TRACKERS, TrackedRun, require_trackers


class Server:
    """What Weights & Biases would keep, over several runs of a program."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[int, dict[str, float]]] = {}
        self.inits: list[dict[str, Any]] = []
        self.finished = 0

    def init(self, **options: Any) -> Any:
        self.inits.append(options)
        steps = self.runs.setdefault(options["id"], {})

        def log(figures: dict[str, float], step: int) -> None:
            assert step not in steps, f"step {step} is told twice"
            assert step >= max(steps, default=-1), "wandb drops steps that are not in order"
            steps[step] = figures

        def finish() -> None:
            self.finished += 1

        return SimpleNamespace(log=log, finish=finish, step=max(steps, default=-1) + 1)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    made = Server()
    module = SimpleNamespace(
        init=made.init,
        Settings=lambda **settings: settings,
        errors=SimpleNamespace(Error=RuntimeError),
        __spec__=importlib.util.spec_from_loader("wandb", None),
    )
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setenv("WANDB_API_KEY", "a-secret-key")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return made


def logged() -> FitPlan:
    return plan_of(target("sae", {"type": "topk", "k": 4}), log=("tensorboard", "wandb"))


class Stopped(InMemorySession):
    """Asked to stop after some steps."""

    steps = 2

    def should_stop(self) -> bool:
        self.steps -= 1
        return self.steps < 0


def test_every_step_is_told_once_though_the_run_was_interrupted(tmp_path: Path, server: Server) -> None:
    of = logged()
    values = planted(500)
    assert not fit_loop(Stopped(of, values, tmp_path / "out"), of)
    assert fit_loop(InMemorySession(of, values, tmp_path / "out"), of)
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    (run,) = server.runs.values()
    assert sorted(run) == [row["step"] for row in rows] == list(range(of.n_steps))
    for row in rows:
        (name, figures), *_ = row["dictionaries"].items()
        assert run[row["step"]][f"fvu/{name}"] == figures["fvu"] and run[row["step"]]["tokens"] == row["tokens"]
    assert [options["id"] for options in server.inits] == ["out", "out"] and server.finished == 2
    assert all(options["resume"] == "allow" for options in server.inits)
    assert list((tmp_path / "out" / "tensorboard").iterdir())


def test_no_secret_and_no_place_is_told(tmp_path: Path, server: Server) -> None:
    of = logged()
    fit_loop(InMemorySession(of, planted(500), tmp_path / "out"), of)
    (options,) = server.inits
    told = json.dumps({name: value for name, value in options.items() if name != "dir"}, default=str)
    assert "a-secret-key" not in told and str(tmp_path) not in told and "://" not in told
    assert "source" not in told and not str(options["dir"]).startswith(str(tmp_path / "out"))
    assert not Path(options["dir"]).exists()  # what wandb keeps here while it sends is gone
    assert options["config"]["total_tokens"] == of.total_tokens and options["config"]["dictionaries"]
    settings = options["settings"]
    assert settings["console"] == "off" and settings["disable_git"] and settings["disable_code"]


def test_an_offline_run_is_kept_with_the_dictionaries(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_API_KEY")
    MetricsLog(TrackedRun(tmp_path, "key"), "", ("wandb",)).close()
    assert server.inits[0]["dir"] == str(tmp_path)


def test_what_is_missing_is_said_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of = logged()
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EngineError, match=r"pip install .*wandb"):
        fit_loop(InMemorySession(of, planted(500), tmp_path / "out"), of)
    assert not (tmp_path / "out" / "metrics.jsonl").exists()
    require_trackers(("tensorboard",))


def test_a_missing_key_is_said(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    with pytest.raises(EngineError, match="WANDB_API_KEY is not set"):
        require_trackers(("wandb",))
    monkeypatch.setenv("WANDB_MODE", "offline")
    require_trackers(("wandb",))


def test_a_run_that_does_not_start_is_an_error_with_a_remedy(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**options: Any) -> None:
        raise RuntimeError("401")

    monkeypatch.setattr(sys.modules["wandb"], "init", refuse)
    with pytest.raises(EngineError, match="WANDB_MODE=offline"):
        MetricsLog(TrackedRun(tmp_path, "key"), "", ("wandb",))


def test_the_table_has_what_a_study_may_ask_for() -> None:
    from typing import get_args

    from interp.spec.study import FitSpec

    (literal, _) = get_args(FitSpec.model_fields["log"].annotation)
    assert set(get_args(literal)) == set(TRACKERS)
