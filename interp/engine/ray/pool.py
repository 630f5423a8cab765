"""`pool` on Ray: actors of our own, because each item has a fate of its own.

    starting -> idle -> busy with one item -> idle ... -> stopped when no item is left for it

An actor has one item at a time, so when it dies the item that it had is known: the item is put back in front of the
queue, and a new actor takes the place of the dead one. An item whose actor's node has gone is not to blame, and neither
is its result, if that went with the node. The pool starts with `min_actors`; whenever every actor is busy and items
wait, it doubles, up to `max_actors`. New actors are asked for when those before them have started: on a full cluster,
or while a node for them comes, they stay where they are, in Ray's queue, and the others work on. Towards the end,
actors that find no item are given back, one by one, so that a cluster gives back their nodes.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sized
from dataclasses import dataclass, replace
from typing import Any, Generic

import ray
from ray.exceptions import ActorUnschedulableError, ObjectLostError, RayActorError, RayError, RayTaskError

from interp.engine.base import Outcome, R, T, WorkerSpec, attempt
from interp.engine.ray.context import on_one_process, ray_failure
from interp.engine.ray.room import NodeWatch
from interp.engine.resources import Share
from interp.errors import EngineError

logger = logging.getLogger(__name__)

_STARTS = 3
"""Deaths while starting, one after another, after which the pool does not grow any more. No item can be blamed for
them: when they leave no actor at all, they end the pool."""

_PATIENCE_S = 60.0
"""How long no actor finds room before that is said."""

_LOOK_EVERY_S = 2.0
"""How often it is asked, where nothing is being done, whether there is a node at all."""

_NODES_LOST = 20
"""Nodes that may go under one item."""


@dataclass(frozen=True)
class _Task(Generic[T]):
    index: int
    item: T
    deaths: int = 0
    nodes_lost: int = 0


class Pool(Generic[T, R]):
    """One run over the items; see `Engine.pool`.

    Args:
        nodes: of the cluster, if the pool is to know of them.
    """

    def __init__(
        self,
        worker: WorkerSpec[T, R],
        items: Iterable[T],
        *,
        smallest: int,
        largest: int,
        retries: int,
        share: Share,
        again: Callable[[T], T] | None = None,
        nodes: NodeWatch | None = None,
    ):
        self._worker, self._share, self._again, self._nodes = worker, share, again, nodes
        self._smallest, self._largest, self._retries = smallest, largest, retries
        self._items = (_Task(index, item) for index, item in enumerate(items))
        self._left = len(items) if isinstance(items, Sized) else None
        self._waiting: deque[_Task[T]] = deque()
        self._idle: list[Any] = []
        self._node_of: dict[Any, str] = {}
        self._starting: dict[Any, Any] = {}
        self._busy: dict[Any, tuple[Any, _Task[T]]] = {}
        self._failed_starts = 0

    def outcomes(self) -> Generator[Outcome[R]]:
        """Outcomes as they come; closing the generator stops all actors."""
        try:
            while self._assign():
                ready = self._next_ready()
                if ready in self._starting:
                    self._started(ready)
                elif (outcome := self._finished(ready)) is not None:
                    yield replace(outcome, actors=len(self._idle) + len(self._busy))
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
            for actor in [*self._idle, *self._starting.values()]:
                ray.kill(actor)
            self._idle, self._starting = [], {}
            return bool(self._busy)
        for _ in range(self._wanted()):
            self._start()
        return True

    def _wanted(self) -> int:
        """How many more actors to ask for, where an item waits and nobody is idle."""
        if self.size < self._smallest:
            return self._smallest - self.size
        if self._starting:
            return 0
        waiting = len(self._waiting) + (self.size if self._left is None else self._left)
        return min(self._largest - self.size, self.size, waiting)

    def _look_ahead(self) -> bool:
        """Whether an item waits; items are read from the caller one at a time."""
        if not self._waiting:
            self._waiting.extend(task for task in (next(self._items, None),) if task is not None)
            if self._left is not None:
                self._left -= len(self._waiting)
        return bool(self._waiting)

    def _next_ready(self) -> Any:
        """The next item that is done, or actor that has started."""
        since, said = time.monotonic(), False
        while True:
            ready, _ = ray.wait([*self._busy, *self._starting], num_returns=1, timeout=_LOOK_EVERY_S)
            if ready:
                return ready[0]
            if self._busy:
                continue
            if self._nodes is not None:
                self._nodes.look()
            if not said and time.monotonic() - since > _PATIENCE_S:
                said = True
                logger.warning("no worker has started for %.0f s: it loads, or waits for room", _PATIENCE_S)

    def _start(self) -> None:
        options = {"num_cpus": self._share.cpus, "num_gpus": self._share.gpus, "max_restarts": 0}
        actor = ray.remote(**options)(_PoolActor).remote()
        self._starting[actor.start.remote(self._worker, self._share.threads)] = actor

    def _started(self, ready: Any) -> None:
        actor = self._starting.pop(ready)
        try:
            with ray_failure("starting a worker"):
                self._node_of[actor] = ray.get(ready)
        except EngineError as error:
            self._not_started(error)
            return
        self._failed_starts = 0
        self._idle.append(actor)

    def _not_started(self, error: EngineError) -> None:
        """A worker that found no room, or died of having too little, is done without if there are others."""
        cause = error.__cause__
        if not isinstance(cause, RayActorError | ActorUnschedulableError):
            raise error
        self._failed_starts += 1
        if isinstance(cause, RayActorError) and self._failed_starts < _STARTS:
            logger.warning("a worker died while starting; it is replaced")
        elif self._idle or self._busy:
            self._largest = self._smallest = len(self._idle) + len(self._busy)
            logger.warning("no further worker can start (%s): going on with %d", error.what, self._largest)
        else:
            raise error

    def _finished(self, ready: Any) -> Outcome[R] | None:
        """The outcome of the item, or None when its actor died and it will be tried again."""
        actor, task = self._busy.pop(ready)
        try:
            outcome: Outcome[R] = ray.get(ready)
        except RayActorError as error:
            ray.kill(actor)  # it may only be out of reach
            return self._mourn(task, error, actor)
        except RayTaskError as error:  # the result itself cannot be sent
            self._idle.append(actor)
            return Outcome(task.index, error=EngineError("a result could not be returned", value=str(error)[-2000:]))
        except ObjectLostError as error:  # with its node, and so was the actor
            ray.kill(actor)
            return self._mourn(task, error, actor)
        except RayError as error:
            self._idle.append(actor)
            return Outcome(task.index, error=EngineError("a result was lost", value=str(error)[:2000]))
        self._idle.append(actor)
        return outcome

    def _mourn(self, task: _Task[T], error: RayError, actor: Any) -> Outcome[R] | None:
        gone = self._nodes is not None and self._nodes.has_gone(self._node_of[actor])
        if gone and task.nodes_lost < _NODES_LOST:
            logger.warning("the node that item %d was on has gone; trying again elsewhere", task.index)
            self._waiting.appendleft(replace(task, nodes_lost=task.nodes_lost + 1))
            return None
        deaths = task.deaths + 1
        if deaths <= self._retries:
            logger.warning("the worker of item %d died (%d of %d); trying again", task.index, deaths, self._retries + 1)
            item = task.item if self._again is None else self._again(task.item)
            self._waiting.appendleft(replace(task, item=item, deaths=deaths))
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

    def start(self, worker: WorkerSpec[Any, Any], threads: int) -> str:
        """Ready for items; on which node."""
        on_one_process(threads)
        self._work = worker.start()
        node: str = ray.get_runtime_context().get_node_id()
        return node

    def run(self, index: int, item: Any) -> Outcome[Any]:
        assert self._work is not None, "start() comes first"
        return attempt(self._work, index, item)
