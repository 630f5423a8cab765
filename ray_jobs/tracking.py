"""How a run goes, from what its stages tell: the document of status.json, the lines of metrics, lines of the log."""

from __future__ import annotations

import json
import logging
import math
import os
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from interp.cli.watch import figures_text, left_text, rate_text
from interp.cluster.progress import RunStatus, StageState, StageStatus
from interp.store.provenance import now
from ray_jobs.ending import Ending
from ray_jobs.redaction import Redactor

if TYPE_CHECKING:
    from interp.errors import LockHeld
    from interp.plan import Plan, PlannedStage
    from interp.stages.runner import StageSummary
    from ray_jobs.outbox import Outbox

logger = logging.getLogger(__name__)

SAMPLE_EVERY_S = 1.0
LOG_EVERY_S = 10.0
SAY_AGAIN_S = 60.0


class Tracker:
    """A `Watcher` of a run. What it knows is read by the thread that writes it (`document`), so all is under a lock.

    `outbox` must be set before anything is told.
    """

    outbox: Outbox

    def __init__(self, run: str, attempt: int, redactor: Redactor):
        self._redactor, self._guard = redactor, threading.RLock()
        began = now()
        self._status = RunStatus(run, "running", attempt, socket.gethostname(), os.getpid(), began, began)
        self._stages: dict[str, StageStatus] = {}
        self._running: str | None = None
        self._clock = self._logged = self._sampled = 0.0
        self._held_back: tuple[Any, ...] | None = None
        self._actors: Any = None

    # --- what is told

    def begins(self, token: str) -> None:
        """The submission that this attempt belongs to."""
        with self._guard:
            self._status = replace(self._status, token=token)
        self.outbox.changed(at_once=True)

    def planned(self, plan: Plan) -> None:
        with self._guard:
            self._stages = {stage.stage: StageStatus(stage.stage, stage.key) for stage in plan.stages}
        self.outbox.changed(at_once=True)

    def as_before(self, before: RunStatus) -> None:
        """Nothing is done in this attempt: its stages are as an earlier one left them."""
        with self._guard:
            self._stages = {stage.stage: stage for stage in before.stages}

    def began(self, stage: PlannedStage) -> None:
        logger.info("%s: begins (%s)", stage.stage, stage.key[:12])
        self._clock, self._logged = time.monotonic(), 0.0
        with self._guard:
            self._running = stage.stage
            self._stages[stage.stage] = StageStatus(stage.stage, stage.key, "running")
        self.outbox.changed(at_once=True)

    def progressed(self, stage: PlannedStage, step: str, figures: Mapping[str, Any]) -> None:
        plain = _plain(figures)
        with self._guard:
            self._stages[stage.stage] = replace(self._stages[stage.stage], step=step, figures=_headline(plain))
        self._sample(stage.stage, stage.key, step, plain)
        if time.monotonic() - self._logged >= LOG_EVERY_S:
            self._logged = time.monotonic()
            told = (rate_text(figures), left_text(figures), figures_text(figures))
            logger.info("%s", "  ".join([f"{stage.stage}: {step}", *(text for text in told if text)]))
        self.outbox.changed()

    def waits(self, stage: PlannedStage, held: LockHeld) -> None:
        step = f"waiting for {stage.stage}: {held.what}" + (f", held by {held.value}" if held.value else "")
        with self._guard:
            first = not self._stages[stage.stage].step.startswith("waiting for")
            self._running = None
            self._stages[stage.stage] = StageStatus(stage.stage, stage.key, "waiting", step)
        if first or time.monotonic() - self._logged >= SAY_AGAIN_S:
            self._logged = time.monotonic()
            logger.info("%s", step)
        self.outbox.changed(at_once=first)

    def ended(self, summary: StageSummary) -> None:
        state = "cached" if summary.cached else f"done in {summary.seconds:.1f} s"
        logger.info("%s: %s, %s", summary.stage, state, summary.url)
        plain = _plain(summary.figures)
        self._release()
        step = "cached" if summary.cached else "done"
        self._row((now(), summary.stage, summary.key, step, {"seconds": round(summary.seconds, 3), **_headline(plain)}))
        with self._guard:
            self._running = None
            self._stages[summary.stage] = StageStatus(
                summary.stage,
                summary.key,
                "cached" if summary.cached else "done",
                figures=_headline(plain),
                seconds=round(summary.seconds, 3),
                url=summary.url,
            )
        self.outbox.changed(at_once=True)

    def over(self, ending: Ending) -> None:
        """The attempt has ended."""
        self._release()
        with self._guard:
            if self._running is not None:
                stage = self._timed(self._stages[self._running])
                state: StageState = "failed" if ending.state == "failed" else "waiting"
                self._stages[self._running], self._running = replace(stage, state=state), None
            if ending.state == "succeeded":
                # Activations that no fit is left to read are not made.
                for name, stage in self._stages.items():
                    if stage.state == "waiting":
                        self._stages[name] = replace(stage, state="cached", step="not needed")
            self._status = replace(self._status, state=ending.state, error=ending.error)
        self.outbox.changed(at_once=True)

    # --- what is written

    def document(self) -> dict[str, Any]:
        """status.json as of now."""
        with self._guard:
            stages = tuple(
                self._timed(stage) if name == self._running else stage for name, stage in self._stages.items()
            )
            status = replace(self._status, stages=stages, updated=now())
        return self._redacted(status).to_json()

    def _redacted(self, status: RunStatus) -> RunStatus:
        """Names and states stay as they are, whatever secrets there are: programs read them."""
        text, tree = self._redactor.text, self._redactor.tree
        stages = (
            replace(stage, step=text(stage.step), figures=tree(stage.figures), url=text(stage.url))
            for stage in status.stages
        )
        error = status.error and replace(status.error, message=text(status.error.message))
        return replace(status, stages=tuple(stages), error=error)

    def _timed(self, stage: StageStatus) -> StageStatus:
        return replace(stage, seconds=round(time.monotonic() - self._clock, 3))

    def _sample(self, *told: Any) -> None:
        """One row every so often, and always the last of a step, and the last before and the first after a change in
        the number of actors: a pool may shrink from many to none within a second. `told` is stage, key, step, figures.
        """
        with self._guard:
            resized, self._actors = told[3].get("actors") != self._actors, told[3].get("actors")
            if self._held_back is not None and (resized or self._held_back[1:4] != told[:3]):
                self._release()
            self._held_back = (now(), *told)
            if resized or time.monotonic() - self._sampled >= SAMPLE_EVERY_S:
                self._sampled = time.monotonic()
                self._release()

    def _release(self) -> None:
        with self._guard:
            if self._held_back is not None:
                self._row(self._held_back)
                self._held_back = None

    def _row(self, told: tuple[Any, ...]) -> None:
        when, stage, key, step, figures = told
        names = {"time": when, "stage": stage, "key": key, "step": self._redactor.text(step)}
        row = names | self._redactor.tree(figures) | names
        self.outbox.add("metrics", json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    """As JSON has it: numbers of arrays as numbers, null for what is not finite, text for anything else."""
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def _headline(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The single figures: lists and tables are in the metrics and the artifact."""
    return {name: value for name, value in figures.items() if not isinstance(value, (dict, list))}
