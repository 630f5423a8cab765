"""Run a plan: stage by stage, what is cached is skipped. The same function serves this machine and a cluster's driver.

A stage's artifact is committed when the stage returns; when it raises, its scratch stays in the store, and the next
run of the same plan goes on from there. The engine is opened by the first stage that asks it for something, so a run
in which everything is cached starts no process, and it is closed when the last stage has ended.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from interp.engine.lazy import LazyEngine
from interp.errors import EngineError, LockHeld
from interp.stages import load_stage
from interp.stages.context import StageContext
from interp.stages.headlines import headline
from interp.stages.trace_earlier import failures_to_retry

if TYPE_CHECKING:
    from interp.engine.base import Engine
    from interp.plan import Plan, PlannedStage
    from interp.store import Artifact, Store

logger = logging.getLogger(__name__)

LOOK_AGAIN_S = 2.0
"""Between two looks at a stage that another driver makes."""


@dataclass(frozen=True)
class StageSummary:
    """What became of one stage.

    Attributes:
        cached: it was there before.
        seconds: that it took; 0 when cached.
        figures: its headline numbers, by name (`interp.stages.headlines`).
        url: where its artifact is.
    """

    stage: str
    key: str
    cached: bool
    seconds: float
    url: str
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunSummary:
    """What became of a plan."""

    stages: tuple[StageSummary, ...]
    seconds: float

    def stage(self, name: str) -> StageSummary | None:
        return next((summary for summary in self.stages if summary.stage == name), None)


class Watcher(Protocol):
    """Told how a run goes."""

    def began(self, stage: PlannedStage) -> None:
        """A stage that is not cached begins."""
        ...

    def progressed(self, stage: PlannedStage, step: str, figures: Mapping[str, Any]) -> None:
        """How far it is: figures such as `done`, `total`, `unit`, `rate`, `fvu`."""
        ...

    def waits(self, stage: PlannedStage, held: LockHeld) -> None:
        """Another driver is at work on this stage; told again at every look."""
        ...

    def ended(self, summary: StageSummary) -> None:
        """A stage is done, or was cached."""
        ...


class NobodyWatches:
    """A `Watcher` that says nothing."""

    def began(self, stage: PlannedStage) -> None: ...

    def progressed(self, stage: PlannedStage, step: str, figures: Mapping[str, Any]) -> None: ...

    def waits(self, stage: PlannedStage, held: LockHeld) -> None: ...

    def ended(self, summary: StageSummary) -> None: ...


def run_plan(
    plan: Plan,
    store: Store,
    engine_factory: Callable[[], Engine],
    progress: Watcher | None = None,
    *,
    retry_failed: bool = False,
    wait: float = 0.0,
) -> RunSummary:
    """Make every artifact of a plan that the store does not have; activations only where a fit that reads them is to be
    made.

    Args:
        retry_failed: also make a trace anew of which prompts failed for reasons that are not their own; those alone
            are traced, and the artifact that is there stays until the new one takes its place.
        wait: seconds to wait for another driver that makes a stage: what it finishes is used, and if it dies, its work
            is taken over from its last checkpoint.

    Raises:
        LockHeld: another driver makes a stage, and went on for longer than `wait`.
        InterpError: what a stage raised; the stages before it are finished, and its own work up to here is kept.
    """
    watcher = progress or NobodyWatches()
    _require_trackers(plan, store)
    how = _How(watcher, retry_failed, wait)
    started, summaries = time.monotonic(), []
    with LazyEngine(lambda: _that_sees(store, engine_factory())) as engine:
        for stage in plan.stages:
            if not plan.is_needed(stage, lambda reader: store.has(reader.stage, reader.key)):
                continue
            summaries.append(_run_stage(plan, stage, store, engine, how))
            watcher.ended(summaries[-1])
    return RunSummary(tuple(summaries), time.monotonic() - started)


def _require_trackers(plan: Plan, store: Store) -> None:
    """A fit that could not tell of its steps is refused before the stages that come before it are run."""
    fit, log = plan.stage("fit"), plan.study.fit.log
    if fit is not None and set(log) - {"tensorboard"} and not store.has("fit", fit.key):
        from interp.training.trackers import require_trackers

        require_trackers(log)


def _that_sees(store: Store, engine: Engine) -> Engine:
    if store.url.startswith("memory:") and engine.separate_processes:
        engine.close()
        raise EngineError(
            "the engine's processes cannot see a store that is in this process's memory",
            value=store.url,
            expected="a folder or S3",
            remedy="use another store, or the engine `inprocess`",
        )
    return engine


@dataclass(frozen=True)
class _How:
    """What all stages of a run have in common."""

    watcher: Watcher
    retry_failed: bool
    wait: float


def _run_stage(plan: Plan, stage: PlannedStage, store: Store, engine: Engine, how: _How) -> StageSummary:
    deadline: float | None = None
    while True:
        # Not `stage.cached`: that was when the plan was made, and another driver may have finished it since.
        earlier = store.get(stage.stage, stage.key) if store.has(stage.stage, stage.key) else None
        if earlier is not None and not (how.retry_failed and failures_to_retry(earlier)):
            return _summary(earlier, cached=True, seconds=0.0)
        try:
            return _make(plan, stage, store, engine, how.watcher, earlier)
        except LockHeld as held:
            deadline = deadline or time.monotonic() + how.wait
            if time.monotonic() >= deadline:
                raise
            how.watcher.waits(stage, held)
        time.sleep(LOOK_AGAIN_S)


def _make(
    plan: Plan, stage: PlannedStage, store: Store, engine: Engine, watcher: Watcher, earlier: Artifact | None
) -> StageSummary:
    inputs = {role: store.get(*place) for role, place in stage.input_artifacts().items()}
    with store.create(stage.stage, stage.key, spec=stage.spec, inputs=stage.inputs, replaces=earlier) as out:
        watcher.began(stage)
        started = time.monotonic()
        context = StageContext(
            plan.study,
            stage,
            engine,
            store,
            lambda step, /, **figures: watcher.progressed(stage, step, figures),
            earlier,
        )
        load_stage(stage.stage).run(context, inputs, out)
    return _summary(store.get(stage.stage, stage.key), cached=False, seconds=time.monotonic() - started)


def _summary(artifact: Artifact, *, cached: bool, seconds: float) -> StageSummary:
    return StageSummary(artifact.stage, artifact.key, cached, seconds, artifact.url, headline(artifact))
