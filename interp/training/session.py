"""What the training loop asks of whoever runs it: an engine gives it one `FitSession` a worker.

The loop never knows how activations are made, nor how workers talk. Every method that says "on every worker" is called
at the same points of the same steps on all of them, so a session may synchronise there.

Workers that hold the same dictionaries are a shard (`WorkerPlace`): they add up gradients among themselves. What all
workers have to know of one another is small, and goes another way.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from interp.training.metrics import StepMetrics
from interp.training.plan import FitPlan, WorkerPlace
from interp.training.shuffle import steps_of

Activations = Mapping[str, Float[Tensor, "tokens d"]]
"""The activations of one micro-batch, by hook point."""


class FitSession(Protocol):
    """One worker's view of a fit."""

    @property
    def place(self) -> WorkerPlace:
        """Which worker this is: what it trains, and on which micro-batches."""
        ...

    @property
    def run_id(self) -> str:
        """Names the run to whoever tracks it; the same whenever it is resumed."""
        ...

    @property
    def device(self) -> torch.device:
        """Where dictionaries train; activations may arrive anywhere."""
        ...

    @property
    def output(self) -> Path:
        """A folder of this worker's. When the loop returns it holds, where a worker leads its shard, the shard's
        dictionaries, and on rank 0 what is told of the whole run."""
        ...

    def batches(self, start_step: int) -> Iterator[tuple[int, Iterable[Activations]]]:
        """(step, the micro-batches that `plan.share` deals to this place) from `start_step` to the last step. All of a
        step's are taken before the next step is asked for."""
        ...

    def all_reduce(self, flat: Float[Tensor, "n"]) -> None:
        """Add up over the workers of this shard, in place; on every worker."""
        ...

    def share(self, flat: Float[Tensor, "n"]) -> None:
        """Add up over all workers, in place; on every worker. For small things."""
        ...

    def load_checkpoint(self, members: Collection[str]) -> Path | None:
        """The folder of the last checkpoint, the same one on every worker; None when there is none. It need hold no
        more than what is common, and the parts of `members` (by `<name>/<at>`)."""
        ...

    def save_checkpoint(self, step: int, write: Callable[[Path], None]) -> None:
        """Keep a checkpoint after `step` steps; on every worker. Those that lead a shard have `write` fill a folder,
        the others must not call it. The checkpoint is all of them together, and durable when this returns on rank 0."""
        ...

    def report(self, metrics: StepMetrics) -> None:
        """Show how far training is; on every worker."""
        ...

    def should_stop(self) -> bool:
        """Whether this worker was asked to stop. When any was, all save a checkpoint after the step and return."""
        ...


class InMemorySession:
    """A session of one worker on activations that are in memory: for tests and for use without an engine.

    Args:
        plan: how the tokens are cut.
        activations: all training tokens of each hook point, in order.
        output: where the result goes; checkpoints are kept in a folder beside it.
    """

    place = WorkerPlace()

    def __init__(self, plan: FitPlan, activations: Activations, output: Path):
        self.plan, self.activations, self.output = plan, activations, output
        self.device = torch.device("cpu")
        self.run_id = output.name
        self.checkpoints = output.with_name(f"{output.name}.checkpoints")
        self.reports: list[StepMetrics] = []

    def batches(self, start_step: int) -> Iterator[tuple[int, Iterable[Activations]]]:
        steps = range(self.plan.stream_start(start_step), self.plan.n_steps)
        place = self.place
        raw = (self._micro(tokens) for s in steps for tokens in self.plan.share(s, place.replica, place.replicas))
        return steps_of(self.plan, raw, start_step, place, self.device)

    def _micro(self, tokens: range) -> Activations:
        return {hook: values[tokens.start : tokens.stop] for hook, values in self.activations.items()}

    def all_reduce(self, flat: Tensor) -> None:
        pass

    def share(self, flat: Tensor) -> None:
        pass

    def load_checkpoint(self, members: Collection[str] = ()) -> Path | None:
        return max(self.checkpoints.glob("*"), default=None)

    def save_checkpoint(self, step: int, write: Callable[[Path], None]) -> None:
        partial = self.checkpoints.with_name(f"{self.checkpoints.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed while it wrote
        partial.mkdir(parents=True)
        write(partial)
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        partial.rename(self.checkpoints / f"{step:08d}")

    def report(self, metrics: StepMetrics) -> None:
        self.reports.append(metrics)

    def should_stop(self) -> bool:
        return False
