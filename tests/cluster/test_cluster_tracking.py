"""Which of the figures that stages tell become rows of the metrics."""

from __future__ import annotations

import json
from typing import Any

import pytest

from interp.plan.cost import Cost
from interp.plan.plan import PlannedStage
from ray_jobs import tracking
from ray_jobs.ending import SUCCEEDED
from ray_jobs.redaction import Redactor
from ray_jobs.tracking import Tracker

TRACE = PlannedStage("trace", "aa" * 32, 1, {}, {}, False, Cost(0, 0, 0, 0))


class _Lines:
    """In place of an outbox."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(self, kind: str, line: str) -> None:
        assert kind == "metrics"
        self.rows.append(json.loads(line))

    def changed(self, *, at_once: bool = False) -> None: ...


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> tuple[Tracker, _Lines]:
    """A tracker for which it is never time for the next sample."""
    monkeypatch.setattr(tracking, "SAMPLE_EVERY_S", 3600.0)
    tracker, lines = Tracker("tiny-1", 1, Redactor()), _Lines()
    tracker.outbox = lines  # type: ignore[assignment]
    tracker.began(TRACE)
    return tracker, lines


def test_every_change_of_the_number_of_actors_is_a_row_at_once(told: tuple[Tracker, _Lines]) -> None:
    tracker, lines = told
    actors = [1, 1, 1, 2, 2, 4, 4, 4, 4, 3, 2, 1]
    for done, there in enumerate(actors):
        tracker.progressed(TRACE, "trace", {"done": done, "actors": there})
        assert (lines.rows[-1]["done"], lines.rows[-1]["actors"]) == (done, there) or there == actors[done - 1]
    kept = [(row["done"], row["actors"]) for row in lines.rows]
    assert kept == [(0, 1), (2, 1), (3, 2), (4, 2), (5, 4), (8, 4), (9, 3), (10, 2), (11, 1)]


def test_what_does_not_change_is_sampled_and_the_last_of_a_step_is_kept(told: tuple[Tracker, _Lines]) -> None:
    tracker, lines = told
    for step in ("load", "trace"):
        for done in range(50):
            tracker.progressed(TRACE, step, {"done": done, "actors": 2})
    tracker.over(SUCCEEDED)
    assert [(row["step"], row["done"]) for row in lines.rows] == [("load", 0), ("load", 49), ("trace", 49)]
