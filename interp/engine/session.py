"""The engine's side of a fit: what the `FitSession` of every training worker has in common.

Loads no model library: a process that has loaded nnsight hands it on to every Ray actor that it starts.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from interp.engine.job import FitJob
from interp.training.metrics import StepMetrics

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
