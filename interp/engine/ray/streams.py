"""`map_ordered` on Ray Data.

    batches -> windows -> [a block of one row each] -> map_batches on a pool of actors -> rows, in order

The source of a Ray Data pipeline is known before it runs. So that endless or slow batches can be read lazily, they are
taken a window at a time: as many as fit in WINDOW_BYTES. Batches and results cross as bytes, one to a row, for they
are Python objects of any kind. What a batch raises is a row as well: in Ray Data one exception ends the whole stream.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

import pyarrow as pa
import ray.data

from interp.engine.base import R, T, WorkerSpec
from interp.engine.ray.context import data_settings, on_one_process, ray_failure, through_actors
from interp.engine.ray.room import await_room
from interp.engine.resources import Capacity, Share
from interp.errors import EngineError, InterpError

WINDOW_BYTES = 32 << 20
"""Batches that are read ahead of the actors, pickled."""


def map_ordered(
    worker: WorkerSpec[T, R], batches: Iterable[T], actors: int, share: Share, capacity: Capacity
) -> Generator[R]:
    """See `Engine.map_ordered`; on a cluster it begins when there is room for one actor."""
    first = 0
    await_room(capacity, share, 1, "a stream of batches")
    for window in _windows(batches, WINDOW_BYTES):
        yield from _map_window(worker, window, first, min(actors, len(window)), share)
        first += len(window)


def _windows(batches: Iterable[T], limit: int) -> Iterator[list[bytes]]:
    window: list[bytes] = []
    size = 0
    for batch in batches:
        window.append(pickle.dumps(batch, protocol=5))
        size += len(window[-1])
        if size >= limit:
            yield window
            window, size = [], 0
    if window:
        yield window


def _map_window(worker: WorkerSpec[T, R], window: list[bytes], first: int, actors: int, share: Share) -> Generator[R]:
    rows = [{"index": first + offset, "payload": payload} for offset, payload in enumerate(window)]
    with data_settings():
        source = ray.data.from_items(rows, override_num_blocks=len(rows))
        results = through_actors(source, _MapActor, (worker, share.threads), actors, share).iter_batches(
            batch_size=None, batch_format="pyarrow", prefetch_batches=1
        )
    expected = first
    with ray_failure("a stream of batches"):
        for table in results:
            for row in table.to_pylist():
                if row["index"] != expected:
                    raise EngineError("a stream is out of order", value=row["index"], expected=f"batch {expected}")
                expected += 1
                result = pickle.loads(row["payload"])
                if not row["ok"]:
                    raise result
                yield result
    if expected != first + len(window):
        raise EngineError("a stream ended early", value=expected - first, expected=f"{len(window)} batches")


class _MapActor:
    """One process of the pool; it starts its worker with the first batch, so that a failure to start is a row too."""

    def __init__(self, spec: WorkerSpec[Any, Any], threads: int):
        self._spec, self._threads = spec, threads
        self._work: Callable[[Any], Any] | None = None

    def __call__(self, row: pa.Table) -> pa.Table:
        ok = True
        try:
            if self._work is None:
                on_one_process(self._threads)
                self._work = self._spec.start()
            result = self._work(pickle.loads(row["payload"][0].as_py()))
        except InterpError as error:
            ok, result = False, error
        payload = pa.array([pickle.dumps(result, protocol=5)], pa.large_binary())
        return pa.table({"index": row["index"], "ok": pa.array([ok]), "payload": payload})
