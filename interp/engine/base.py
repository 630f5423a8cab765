"""What a stage may ask of the machines it runs on: three verbs, one contract, two implementations.

    map_ordered  batches through a pool of workers; results in the order of the batches, memory bounded
    pool         items through a pool of workers; results as they come, a failure is a value
    fit          activations of one model into the training of all dictionaries of a study

`InProcess` does the work here, one thing at a time: no ray, for debugging and as the reference of the tests.
`RayEngine` does it in processes of their own, on this machine or on a cluster. What they compute is the same.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

from interp.errors import EngineError, InterpError

if TYPE_CHECKING:
    from interp.engine.job import FitJob

T = TypeVar("T")
R = TypeVar("R")
E = TypeVar("E", bound=BaseException)
T_contra = TypeVar("T_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)

Device = Literal["auto", "cpu", "cuda"]


class WorkerSpec(Protocol[T_contra, R_co]):
    """How to make a worker: a frozen dataclass that can be pickled and is small (paths and numbers, no weights)."""

    def start(self) -> Callable[[T_contra], R_co]:
        """Load what the work needs, once a process, and return the function that does it."""
        ...


@dataclass(frozen=True)
class Outcome(Generic[R]):
    """What became of one item of a pool: a value, or the error that it ended in.

    Attributes:
        index: place of the item in what was given to `pool`.
        seconds: how long the item took in its worker; 0 when the worker died of it.
        actors: workers that could take an item when it came.
    """

    index: int
    value: R | None = None
    error: InterpError | None = None
    seconds: float = 0.0
    actors: int = 1


class Progress(Protocol):
    """Told how far the work is: a step, and figures such as `done`, `total`, `tokens`, `fvu`."""

    def __call__(self, step: str, /, **figures: Any) -> None: ...


class Engine(Protocol):
    """Where the work is done. A context manager: leaving it gives the machines back."""

    @property
    def cores(self) -> int:
        """Processor cores that there are: how many workers make sense."""
        ...

    @property
    def separate_processes(self) -> bool:
        """Whether work is done outside this process, where nothing that is only in this one's memory can be seen."""
        ...

    def map_ordered(
        self, worker: WorkerSpec[T, R], batches: Iterable[T], *, actors: int = 1, device: Device = "cpu"
    ) -> Generator[R]:
        """`worker.start()(batch)` for each batch, in order.

        `batches` is read as far ahead as memory allows, and no further once the caller stops asking. What a batch
        raises is raised here, in its turn. A worker that is killed is replaced, and no batch is lost or done twice.
        """
        ...

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
        """One outcome for each item, as they come.

        An error of one item never stops the others. A worker that dies is replaced and its item tried again, at most
        `retries` times more; then the item's outcome is an error. `again` makes of such an item what is tried instead,
        such as the same with less memory. What `worker.start()` raises is raised here.

        The pool begins with `min_actors` and grows while items wait and there is room, up to `max_actors` or to one for
        each core (or GPU) of the machine, or of all nodes that a cluster can have. An actor that finds no room stops no
        other. When no item is left for an actor it is given back, and an item whose node has gone is not to blame.
        """
        ...

    def fit(self, job: FitJob, progress: Progress) -> None:
        """Train all dictionaries of a job; what it makes is in the job's scratch (see `interp.engine.job`)."""
        ...

    def close(self) -> None:
        """Give the machines back; the engine cannot be used any more."""
        ...

    def __enter__(self) -> Engine: ...

    def __exit__(self, *_: object) -> None: ...


def attempt(work: Callable[[T], R], index: int, item: T) -> Outcome[R]:
    """Do one item of a pool; whatever it raises is its outcome, so that it stops no other."""
    started = time.perf_counter()
    value, error = None, None
    try:
        value = work(item)
    except InterpError as understood:
        error = without_frames(understood)
    except Exception as unexpected:  # noqa: BLE001 - it becomes a value, with its traceback, and is reported as such
        error = EngineError(
            f"unexpected {type(unexpected).__name__}: {unexpected}",
            value=traceback.format_exc(limit=-8).strip(),
            remedy="this is a defect, or the machine has too little memory for this item",
        )
    return Outcome(index, value, error, time.perf_counter() - started)


def without_frames(error: E) -> E:
    """The error, and those that it came from, without their tracebacks: these hold all that the work had in memory."""
    todo: list[BaseException | None] = [error]
    seen: set[int] = set()
    while todo:
        each = todo.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            each.__traceback__ = None
            todo += [each.__cause__, each.__context__]
    return error
