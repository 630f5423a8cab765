"""The engine that does everything in this process, one thing at a time, without ray."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable

from interp.engine.base import Device, Outcome, Progress, R, T, WorkerSpec, attempt
from interp.engine.job import FitJob
from interp.engine.lazy import available_cores


class InProcess:
    """See `interp.engine.base.Engine`. Numbers of workers and actors are accepted and change nothing."""

    @property
    def cores(self) -> int:
        return available_cores()

    @property
    def separate_processes(self) -> bool:
        return False

    def map_ordered(
        self, worker: WorkerSpec[T, R], batches: Iterable[T], *, actors: int = 1, device: Device = "cpu"
    ) -> Generator[R]:
        work = worker.start()
        for batch in batches:
            yield work(batch)

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
        work = worker.start()
        for index, item in enumerate(items):
            yield attempt(work, index, item)

    def fit(self, job: FitJob, progress: Progress) -> None:
        from interp.engine.localfit import fit_here

        fit_here(job, progress)

    def close(self) -> None:
        """Nothing to give back."""

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
