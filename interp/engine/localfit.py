"""`fit` in this process: one worker, which harvests for itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from interp.corpus.tokens import TokenBlocks
from interp.engine.base import Progress
from interp.engine.harvest import Harvester
from interp.engine.job import FitJob
from interp.engine.microbatches import MicroBatch, micro_batches, rows_of
from interp.engine.session import BaseSession
from interp.training.loop import fit_loop
from interp.training.session import Activations


class LocalSession(BaseSession):
    """The only worker, which harvests for itself."""

    def batches(self, start_step: int) -> Iterator[tuple[int, Sequence[Activations]]]:
        harvester = Harvester(self.job, str(self.device))
        blocks = TokenBlocks.open(self.job.corpus, "train")

        def harvest(micro: MicroBatch) -> Activations:
            return harvester.activations(rows_of(blocks, micro), micro.tokens)

        for step, micros in groupby(micro_batches(self.job.plan, 1, start_step), lambda micro: micro.step):
            yield step, [harvest(micro) for micro in micros]

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
