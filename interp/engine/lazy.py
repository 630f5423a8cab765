"""An engine that is opened when it is first used, so that a run in which every stage is cached starts nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable
from typing import TYPE_CHECKING

from interp.engine.base import Device, Engine, Outcome, Progress, R, T, WorkerSpec

if TYPE_CHECKING:
    from interp.engine.job import FitJob


class LazyEngine:
    """Passes every verb to the engine that `factory` opens."""

    def __init__(self, factory: Callable[[], Engine]):
        self._factory = factory
        self._engine: Engine | None = None

    @property
    def opened(self) -> bool:
        return self._engine is not None

    @property
    def cores(self) -> int:
        return self._engine.cores if self._engine else available_cores()

    @property
    def separate_processes(self) -> bool:
        return self._open().separate_processes

    def map_ordered(
        self, worker: WorkerSpec[T, R], batches: Iterable[T], *, actors: int = 1, device: Device = "cpu"
    ) -> Generator[R]:
        return self._open().map_ordered(worker, batches, actors=actors, device=device)

    def pool(
        self,
        worker: WorkerSpec[T, R],
        items: Iterable[T],
        *,
        min_actors: int = 1,
        max_actors: int = 1,
        retries: int = 2,
        device: Device = "cpu",
        again: Callable[[T], T] | None = None,
    ) -> Generator[Outcome[R]]:
        return self._open().pool(
            worker,
            items,
            min_actors=min_actors,
            max_actors=max_actors,
            retries=retries,
            device=device,
            again=again,
        )

    def fit(self, job: FitJob, progress: Progress) -> None:
        self._open().fit(job, progress)

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def __enter__(self) -> LazyEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> Engine:
        if self._engine is None:
            self._engine = self._factory()
        return self._engine


def available_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
