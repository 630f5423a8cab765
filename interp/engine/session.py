"""The engine's side of a fit: what the `FitSession` of every training worker has in common.

Loads no model library: a process that has loaded nnsight hands it on to every Ray actor that it starts.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.engine.job import FitJob
from interp.engine.microbatches import dealt
from interp.engine.sources import MicroSource, own_source
from interp.training.metrics import StepMetrics
from interp.training.plan import WorkerPlace
from interp.training.session import Activations
from interp.training.shuffle import steps_of

logger = logging.getLogger(__name__)

REPORT_EVERY_S = 1.0


class BaseSession:
    """Activations, output, checkpoints and reports of one worker; alone, unless a subclass says otherwise.

    Args:
        folder: a temporary folder of this worker's own.
        tell: what to do with the figures of a step, on rank 0.
        stop: asked before every step on rank 0: whether to stop after it.
    """

    def __init__(
        self,
        job: FitJob,
        *,
        place: WorkerPlace,
        device: torch.device,
        folder: Path,
        tell: Callable[[dict[str, Any]], None],
        stop: Callable[[], bool] = lambda: False,
    ):
        self.job, self.place, self.device = job, place, device
        self.output = folder / "output"
        self._folder, self._tell, self._stop = folder, tell, stop
        self._told = 0.0

    @property
    def run_id(self) -> str:
        return self.job.scratch.place.key[:32]

    def source(self, first_step: int) -> MicroSource:
        """What gives this worker's micro-batches from a step on."""
        hooks = self.job.plan.shard_hooks(self.place.shard, self.place.shards)
        return own_source(self.job, str(self.device), hooks)

    def batches(self, start_step: int) -> Iterator[tuple[int, Iterable[Activations]]]:
        plan, place = self.job.plan, self.place
        if start_step >= plan.n_steps:
            return
        first = plan.stream_start(start_step)
        with closing(self.source(first)) as source:
            raw = (source.activations(micro) for micro in dealt(plan, place.replica, place.replicas, first))
            yield from steps_of(plan, raw, start_step, place, self.device)

    def all_reduce(self, flat: Tensor) -> None:
        """One worker's sum is the sum."""

    def share(self, flat: Tensor) -> None:
        """One worker's sum is the sum."""

    def load_checkpoint(self, members: Collection[str]) -> Path | None:
        found = self.job.fetch_checkpoint(self._folder / "loaded", members)
        steps = self._gathered(-1 if found is None else int(found.name))
        if found is not None and set(steps) == {steps[0]}:
            return found
        # All have looked: what one of them finds torn is torn for all.
        if self.place.rank == 0 and max(steps) >= 0:
            logger.warning("the checkpoint is not whole: training starts anew")
            self.job.forget()
        return None

    def save_checkpoint(self, step: int, write: Callable[[Path], None]) -> None:
        if self.place.leads:
            partial = self._folder / "checkpoint"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            write(partial)
            self.job.put_checkpoint(step, partial, self.place.shard)
            shutil.rmtree(partial)
        self._meet()
        if self.place.rank == 0:
            self.job.name_checkpoint(step, self.place.shards)

    def keep_result(self) -> None:
        """Put what the loop has written into the job's scratch; on every worker."""
        if self.place.leads:
            self.job.put_result(self.output, self.place.shard)
        self._meet()
        if self.place.rank == 0:
            self.job.name_result(self.place.shards)

    def report(self, metrics: StepMetrics) -> None:
        last = metrics.tokens_seen >= self.job.plan.total_tokens
        if self.place.rank or (time.monotonic() - self._told < REPORT_EVERY_S and not (last or metrics.stop)):
            return
        self._told = time.monotonic()
        self._tell(figures_of(metrics, self.job.plan.total_tokens))

    def should_stop(self) -> bool:
        return self.place.rank == 0 and self._stop()

    def _meet(self) -> None:
        """Go on when every worker is here."""
        if self.place.shards > 1:
            self._gathered(0)

    def _gathered(self, figure: int) -> list[int]:
        """The figure of every worker. Reading them waits for all workers, on a GPU too."""
        flat = torch.zeros(self.place.world, dtype=torch.float64, device=self.device)
        flat[self.place.rank] = figure
        self.share(flat)
        return [int(each) for each in flat.tolist()]


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
