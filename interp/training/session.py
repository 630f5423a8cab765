"""What the training loop asks of whoever runs it: an engine gives it one `FitSession` a worker.

The loop never knows how activations are made, nor how workers talk. Every method that says "on every worker" is called
at the same points of the same steps on all of them, so a session may synchronise there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from interp.training.metrics import StepMetrics
from interp.training.plan import FitPlan

Activations = Mapping[str, Float[Tensor, "tokens d"]]
"""The activations of one micro-batch, by hook point."""


class FitSession(Protocol):
    """One worker's view of a fit."""

    @property
    def rank(self) -> int: ...

    @property
    def world(self) -> int: ...

    @property
    def device(self) -> torch.device:
        """Where dictionaries train; activations may arrive anywhere."""
        ...

    @property
    def output(self) -> Path:
        """A folder of this worker's; on rank 0 it holds the result when the loop returns."""
        ...

    def batches(self, start_step: int) -> Iterator[tuple[int, Sequence[Activations]]]:
        """(step, the micro-batches of `plan.share(step, rank, world)`) from `start_step` to the last step."""
        ...

    def all_reduce(self, flat: Float[Tensor, "n"]) -> None:
        """Add up over all workers, in place; on every worker."""
        ...

    def load_checkpoint(self) -> Path | None:
        """The folder of the last checkpoint, the same one on every worker; None when there is none."""
        ...

    def save_checkpoint(self, step: int, write: Callable[[Path], None]) -> None:
        """Keep a checkpoint after `step` steps; on every worker. Rank 0 has `write` fill a folder, the others must not
        call it. The checkpoint is durable when this returns on rank 0."""
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

    rank = 0
    world = 1

    def __init__(self, plan: FitPlan, activations: Activations, output: Path):
        self.plan, self.activations, self.output = plan, activations, output
        self.device = torch.device("cpu")
        self.checkpoints = output.with_name(f"{output.name}.checkpoints")
        self.reports: list[StepMetrics] = []

    def batches(self, start_step: int) -> Iterator[tuple[int, Sequence[Activations]]]:
        for step in range(start_step, self.plan.n_steps):
            yield step, [self._micro(tokens) for tokens in self.plan.share(step, self.rank, self.world)]

    def _micro(self, tokens: range) -> Activations:
        return {hook: values[tokens.start : tokens.stop] for hook, values in self.activations.items()}

    def all_reduce(self, flat: Tensor) -> None:
        pass

    def load_checkpoint(self) -> Path | None:
        return max(self.checkpoints.glob("*"), default=None)

    def save_checkpoint(self, step: int, write: Callable[[Path], None]) -> None:
        partial = self.checkpoints.with_name(f"{self.checkpoints.name}.partial")
        partial.mkdir(parents=True, exist_ok=True)
        write(partial)
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        partial.rename(self.checkpoints / f"{step:08d}")

    def report(self, metrics: StepMetrics) -> None:
        self.reports.append(metrics)

    def should_stop(self) -> bool:
        return False
