"""The engine that runs a study's work as processes of a Ray cluster: this machine's own, or one that is joined."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable

from interp.engine.base import Device, Outcome, Progress, R, T, WorkerSpec
from interp.engine.job import FitJob
from interp.engine.ray.session import start
from interp.engine.resources import pool_size, share
from interp.plan.nodes import places


class RayEngine:
    """See `interp.engine.base.Engine`; `cpus`, `gpus` and `object_store_bytes` as in `session.start`."""

    def __init__(self, *, cpus: int | None = None, gpus: int | None = None, object_store_bytes: int | None = None):
        self._session = start(cpus=cpus, gpus=gpus, object_store_bytes=object_store_bytes)

    @property
    def cores(self) -> int:
        return self._session.capacity.cores

    @property
    def separate_processes(self) -> bool:
        return True

    def map_ordered(
        self, worker: WorkerSpec[T, R], batches: Iterable[T], *, actors: int = 1, device: Device = "cpu"
    ) -> Generator[R]:
        from interp.engine.ray.streams import map_ordered

        capacity = self._session.capacity
        if capacity.nodes:
            actors = max(1, min(actors, places(capacity.nodes, capacity.on_gpu(device))))
        each = share(capacity, actors, device, f"a stream with {actors} actors")
        return map_ordered(worker, batches, actors, each, capacity)

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
        from interp.engine.ray.pool import Pool
        from interp.engine.ray.room import NodeWatch

        capacity = self._session.capacity
        largest = pool_size(capacity, min_actors, max_actors, device)
        each = share(capacity, largest, device, f"a pool of {largest} actors")
        run = Pool(
            worker,
            items,
            smallest=min_actors,
            largest=largest,
            retries=retries,
            share=each,
            again=again,
            nodes=NodeWatch(capacity, each, 1, "a pool"),
        )
        return run.outcomes()

    def fit(self, job: FitJob, progress: Progress) -> None:
        from interp.engine.ray.fit import fit

        fit(job, self._session, progress)

    def close(self) -> None:
        self._session.close()

    def __enter__(self) -> RayEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
