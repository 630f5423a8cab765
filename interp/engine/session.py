"""The engine's side of a fit: one `FitSession` for each training worker. This file: what all have in common, and the
one that does everything in this process."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from interp.engine.base import Progress
from interp.engine.harvest import Harvester, micro_batches
from interp.engine.job import FitJob
from interp.training.loop import fit_loop
from interp.training.metrics import StepMetrics
from interp.training.session import Activations

REPORT_EVERY_S = 1.0


class BaseSession:
    """Output, checkpoints and reports of one worker.

    Args:
        folder: a temporary folder of this worker's own.
        tell: what to do with the figures of a step, on rank 0.
    """

    def __init__(
        self,
        job: FitJob,
        *,
        rank: int,
        world: int,
        device: torch.device,
        folder: Path,
        tell: Callable[[dict[str, Any]], None],
    ):
        self.job, self.rank, self.world, self.device = job, rank, world, device
        self.output = folder / "output"
        self._folder, self._tell = folder, tell
        self._told = 0.0

    def load_checkpoint(self) -> Path | None:
        return self.job.fetch_checkpoint(self._folder / "loaded")

    def save_checkpoint(self, step: int, write: Callable[[Path], None]) -> None:
        if self.rank:
            return
        partial = self._folder / "checkpoint"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write(partial)
        self.job.keep_checkpoint(step, partial)
        shutil.rmtree(partial)

    def report(self, metrics: StepMetrics) -> None:
        last = metrics.tokens_seen >= self.job.plan.total_tokens
        if self.rank or (time.monotonic() - self._told < REPORT_EVERY_S and not last):
            return
        self._told = time.monotonic()
        self._tell(figures_of(metrics, self.job.plan.total_tokens))

    def should_stop(self) -> bool:
        return False


class LocalSession(BaseSession):
    """The only worker, which harvests for itself."""

    def batches(self, start_step: int) -> Iterator[tuple[int, Sequence[Activations]]]:
        harvester = Harvester(self.job, str(self.device))
        for step, micros in groupby(micro_batches(self.job.plan, 1, start_step), lambda micro: micro.step):
            yield (
                step,
                [
                    harvester.activations(harvester.rows(micro.start, micro.stop), micro.stop - micro.start)
                    for micro in micros
                ],
            )

    def all_reduce(self, flat: Tensor) -> None:
        """One worker's sum is the sum."""


def fit_here(job: FitJob, progress: Progress) -> None:
    """Run a job in this process."""
    device = job.device if job.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if job.finished():
        return
    with TemporaryDirectory(prefix="interp-fit-") as folder:
        session = LocalSession(
            job,
            rank=0,
            world=1,
            device=torch.device(device),
            folder=Path(folder),
            tell=lambda figures: progress("train", **figures),
        )
        fit_loop(session, job.plan)
        job.keep_result(session.output)


def figures_of(metrics: StepMetrics, total: int) -> dict[str, Any]:
    """What a progress bar shows: the run, the mean over the dictionaries, and each of them."""
    each = {
        name: {figure: getattr(found, figure) for figure in ("fvu", "l0", "dead")}
        for name, found in metrics.dictionaries.items()
    }
    mean = {
        figure: sum(found[figure] for found in each.values()) / max(1, len(each)) for figure in ("fvu", "l0", "dead")
    }
    return {
        "done": metrics.tokens_seen,
        "total": total,
        "unit": "tokens",
        "rate": metrics.tokens_per_s,
        **mean,
        "dictionaries": each,
    }
