"""`fit` in this process: one worker, which harvests for itself. Workers, shards and modes change nothing here."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from interp.engine.base import Progress
from interp.engine.job import FitJob
from interp.engine.session import BaseSession
from interp.engine.stopping import stop_on_signal
from interp.training.loop import fit_loop
from interp.training.plan import WorkerPlace


def fit_here(job: FitJob, progress: Progress) -> None:
    """Run a job in this process."""
    device = job.device if job.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if job.finished():
        return
    with TemporaryDirectory(prefix="interp-fit-") as folder, stop_on_signal() as asked:
        session = BaseSession(
            job,
            place=WorkerPlace(),
            device=torch.device(device),
            folder=Path(folder),
            tell=lambda figures: progress("train", **figures),
            stop=asked,
        )
        if fit_loop(session, job.plan):
            session.keep_result()
