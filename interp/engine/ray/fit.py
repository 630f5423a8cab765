"""`fit` on Ray: Ray Data streams activations into Ray Train workers, which run the training loop.

Checkpoints are the job's own, in the store, and Ray Train is told of none: when a worker dies it starts all of them
again, and both the stream and the workers look in the store for the step to go on with. So training sees every token
once: what was computed after the checkpoint leaves no trace.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray.train
import torch
import torch.distributed
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from torch import Tensor

from interp.engine.base import Progress
from interp.engine.job import PROGRESS, FitJob
from interp.engine.ray.activations import NAME, activations
from interp.engine.ray.blocks import read
from interp.engine.ray.context import RETRIES, data_settings, on_one_process, own_part, ray_failure
from interp.engine.ray.session import Session
from interp.engine.resources import Share, share
from interp.engine.session import BaseSession
from interp.errors import EngineError, InterpError
from interp.training.loop import fit_loop
from interp.training.session import Activations

logger = logging.getLogger(__name__)

WATCH_EVERY_S = 1.0


def fit(job: FitJob, session: Session, progress: Progress) -> None:
    """See `Engine.fit`.

    Raises:
        EngineError: the processes do not fit, or workers died again and again at the same step.
        InterpError: whatever a worker met with that another try would not change.
    """
    what = f"fit with {job.workers} workers and {job.harvesters} harvesters"
    each = share(session.capacity, job.workers + job.harvesters, job.device, what)
    if job.finished():
        return
    job.scratch.delete(PROGRESS)
    # In a thread: Ray Train would take over Ctrl-C in the main one, which watches instead.
    training = _Thread(partial(_train, job, each, session))
    training.start()
    told = None
    while training.is_alive():
        training.join(WATCH_EVERY_S)
        figures = job.scratch.json(PROGRESS)
        if figures not in (None, told):
            progress("train", **figures)
            told = figures
    if training.error is not None:
        raise training.error


class _Thread(threading.Thread):
    """Keeps what its work raised."""

    def __init__(self, work: Any):
        super().__init__(name="interp-fit", daemon=True)
        self._work = work
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001 - raised again in the main thread
            self.error = error


def _train(job: FitJob, each: Share, session: Session) -> None:
    # One worker reads the stream itself; several have it dealt out to them.
    split = [NAME] if job.workers > 1 else []
    shared_gpu = each.gpus not in (0, 1)
    backend = "nccl" if each.device == "cuda" and not shared_gpu else "gloo"
    resources = {"CPU": each.cpus} | ({"GPU": each.gpus} if each.gpus else {})
    where = str(session.folder / "train") if session.folder else f"{job.scratch.url}/ray-train"
    with data_settings():
        trainer = TorchTrainer(
            _worker,
            train_loop_config={"job": job, "threads": each.threads},
            torch_config=TorchConfig(backend=backend),
            datasets={NAME: partial(activations, job, each)},
            dataset_config=ray.train.DataConfig(datasets_to_split=split, enable_shard_locality=False),
            scaling_config=ray.train.ScalingConfig(
                num_workers=job.workers, use_gpu=each.device == "cuda", resources_per_worker=resources
            ),
            run_config=ray.train.RunConfig(
                name=job.scratch.place.key,
                storage_path=where,
                failure_config=ray.train.FailureConfig(max_failures=-1),
                callbacks=[_Verdict(job)],
            ),
        )
        with ray_failure("fitting"):
            try:
                trainer.fit()
            except ray.train.ControllerError as error:
                if isinstance(error.controller_failure, InterpError):
                    raise error.controller_failure from None
                raise EngineError("Ray Train failed", value=own_part(error)) from error
            except ray.train.TrainingFailedError as error:
                raise EngineError("training failed", value=own_part(error)) from error


class _Verdict(ray.train.UserCallback):
    """Decides, where Ray Train is controlled, whether workers are started again after a failure.

    A killed worker is replaced, and the others' broken connections are no failures of their own. Not repeated is what
    would happen again: an error that we understand, or death at the same step for the third time.
    """

    def __init__(self, job: FitJob):
        self._job = job
        self._step, self._failures = -1, 0

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for error in worker_exceptions.values():
            if isinstance(error, InterpError):
                raise error
        step = self._job.resume_step()
        self._failures = self._failures + 1 if step == self._step else 1
        self._step = step
        rank, error = min(worker_exceptions.items())
        if self._failures > RETRIES:
            raise EngineError(
                f"training workers failed {self._failures} times after step {step}",
                value=f"worker {rank}: {type(error).__name__}: {own_part(error)}",
                remedy="if workers were killed, most often memory ran out: lower fit.micro_tokens or fit.workers",
            )
        logger.warning("training worker %d failed (%s); going on from step %d", rank, type(error).__name__, step)


def _worker(config: dict[str, Any]) -> None:
    """What each Ray Train worker runs."""
    job: FitJob = config["job"]
    on_one_process(config["threads"])
    context = ray.train.get_context()
    with TemporaryDirectory(prefix="interp-fit-") as folder:
        session = RaySession(
            job,
            rank=context.get_world_rank(),
            world=context.get_world_size(),
            device=get_device(),
            folder=Path(folder),
            tell=job.show,
        )
        fit_loop(session, job.plan)
        if session.rank == 0:
            job.keep_result(session.output)


class RaySession(BaseSession):
    """One Ray Train worker; it reads its blocks of the stream."""

    def batches(self, start_step: int) -> Iterator[tuple[int, Sequence[Activations]]]:
        plan = self.job.plan
        if start_step >= plan.n_steps:
            return
        stream = ray.train.get_dataset_shard(NAME).iter_batches(
            batch_size=None, batch_format="numpy", prefetch_batches=1
        )
        blocks, bfloat16 = iter(stream), self.job.model.dtype == "bfloat16"
        index = start_step * (plan.batch_tokens // plan.micro_tokens) + self.rank
        for step in range(start_step, plan.n_steps):
            micros = []
            for _ in range(-(-len(plan.micro_batches(step)) // self.world)):
                micros.append(read(next(blocks, None), index, plan.hooks, bfloat16=bfloat16))
                index += self.world
            yield step, [micro for micro in micros if micro is not None]

    def all_reduce(self, flat: Tensor) -> None:
        if self.world > 1:
            torch.distributed.all_reduce(flat)
