"""`pool` on Ray: actors of our own, because each item has a fate of its own.

    starting -> idle -> busy with one item -> idle ... -> stopped when no item is left for it

An actor has one item at a time, so when it dies the item that it had is known: the item is put back in front of the
queue, and a new actor takes the place of the dead one. The pool starts with `min_actors` and adds one whenever every
actor is busy and an item waits, up to `max_actors`; towards the end, actors that find no item are given back.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any, Generic

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from interp.engine.base import Outcome, R, T, WorkerSpec, attempt
from interp.engine.ray.context import on_one_process, ray_failure
from interp.engine.resources import Share
from interp.errors import EngineError

logger = logging.getLogger(__name__)

_STARTS = 3
"""Deaths while starting, one after another, that end the pool: no item can be blamed for them."""


@dataclass(frozen=True)
class _Task(Generic[T]):
    index: int
    item: T
    deaths: int = 0


class Pool(Generic[T, R]):
    """One run over the items; see `Engine.pool`."""

    def __init__(
        self, worker: WorkerSpec[T, R], items: Iterable[T], *, smallest: int, largest: int, retries: int, share: Share
    ):
        self._worker, self._share = worker, share
        self._smallest, self._largest, self._retries = smallest, largest, retries
        self._items = (_Task(index, item) for index, item in enumerate(items))
        self._waiting: deque[_Task[T]] = deque()
        self._idle: list[Any] = []
        self._starting: dict[Any, Any] = {}
        self._busy: dict[Any, tuple[Any, _Task[T]]] = {}
        self._failed_starts = 0

    def outcomes(self) -> Generator[Outcome[R]]:
        """Outcomes as they come; closing the generator stops all actors."""
        try:
            while self._assign():
                (ready,), _ = ray.wait([*self._busy, *self._starting], num_returns=1)
                if ready in self._starting:
                    self._started(ready)
                elif (outcome := self._finished(ready)) is not None:
                    yield outcome
        finally:
            for actor in self._actors():
                ray.kill(actor)

    @property
    def size(self) -> int:
        """Actors there are, those that still start included."""
        return len(self._actors())

    def _assign(self) -> bool:
        """Give waiting items to idle actors; grow or shrink. False when all is done."""
        while self._look_ahead() and self._idle:
            actor, task = self._idle.pop(), self._waiting.popleft()
            self._busy[actor.run.remote(task.index, task.item)] = (actor, task)
        if not self._waiting:
            while self._idle:
                ray.kill(self._idle.pop())
            return bool(self._busy)
        # Too small a pool, or everyone is busy: one more, and not a second before the first has started.
        if self.size < self._smallest or (not self._starting and self.size < self._largest):
            for _ in range(max(1, self._smallest - self.size)):
                self._start()
        return True

    def _look_ahead(self) -> bool:
        """Whether an item waits; items are read from the caller one at a time."""
        if not self._waiting:
            self._waiting.extend(task for task in (next(self._items, None),) if task is not None)
        return bool(self._waiting)

    def _start(self) -> None:
        options = {"num_cpus": self._share.cpus, "num_gpus": self._share.gpus, "max_restarts": 0}
        actor = ray.remote(**options)(_PoolActor).remote()
        self._starting[actor.start.remote(self._worker, self._share.threads)] = actor

    def _started(self, ready: Any) -> None:
        actor = self._starting.pop(ready)
        try:
            with ray_failure("starting a worker"):
                ray.get(ready)
        except EngineError as error:
            if not isinstance(error.__cause__, RayActorError) or self._failed_starts + 1 >= _STARTS:
                raise
            self._failed_starts += 1
            logger.warning("a worker died while starting; it is replaced")
            return
        self._failed_starts = 0
        self._idle.append(actor)

    def _finished(self, ready: Any) -> Outcome[R] | None:
        """The outcome of the item, or None when its actor died and it will be tried again."""
        actor, task = self._busy.pop(ready)
        try:
            outcome: Outcome[R] = ray.get(ready)
        except RayActorError as error:
            return self._mourn(task, error)
        except RayTaskError as error:  # the result itself cannot be sent
            self._idle.append(actor)
            return Outcome(task.index, error=EngineError("a result could not be returned", value=str(error)[-2000:]))
        except RayError as error:
            self._idle.append(actor)
            return Outcome(task.index, error=EngineError("a result was lost", value=str(error)[:2000]))
        self._idle.append(actor)
        return outcome

    def _mourn(self, task: _Task[T], error: RayActorError) -> Outcome[R] | None:
        deaths = task.deaths + 1
        if deaths <= self._retries:
            logger.warning("the worker of item %d died (%d of %d); trying again", task.index, deaths, self._retries + 1)
            self._waiting.appendleft(_Task(task.index, task.item, deaths))
            return None
        reason = EngineError(
            f"this item killed its worker {deaths} times",
            value=str(error).strip().splitlines()[0][:500],
            remedy="most often memory ran out: make the item smaller, or use a larger machine",
        )
        return Outcome(task.index, error=reason)

    def _actors(self) -> list[Any]:
        return [*self._idle, *self._starting.values(), *(actor for actor, _ in self._busy.values())]


class _PoolActor:
    """One process of a pool."""

    def __init__(self) -> None:
        self._work: Callable[[Any], Any] | None = None

    def start(self, worker: WorkerSpec[Any, Any], threads: int) -> None:
        on_one_process(threads)
        self._work = worker.start()

    def run(self, index: int, item: Any) -> Outcome[Any]:
        assert self._work is not None, "start() comes first"
        return attempt(self._work, index, item)
