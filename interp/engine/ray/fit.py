"""`fit` on Ray: Ray Train workers run the training loop, on activations that they make or that are streamed to them.

    colocated  each worker holds the model and harvests its own micro-batches: only gradients cross processes
    streamed   harvesters hold the model, and Ray Data deals blocks of activations to the workers, ahead of training

Checkpoints are the job's own, in the store, and Ray Train is told of none: when a worker dies it starts all of them
again, and both the stream and the workers look in the store for the step to go on with. So training sees every token
once: what was computed after the checkpoint leaves no trace.
"""

from __future__ import annotations

import logging
import tempfile
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from interp.engine.base import Progress
from interp.engine.job import PROGRESS, STOP, FitJob
from interp.engine.placing import device_memory, largest_share, needs_of, settled
from interp.engine.ray.activations import NAME, activations
from interp.engine.ray.context import RETRIES, data_settings, own_part, ray_failure
from interp.engine.ray.room import NodeWatch, Say, await_room
from interp.engine.ray.session import Session
from interp.engine.ray.worker import work
from interp.engine.resources import Share, share, with_threads
from interp.engine.stopping import stop_on_signal
from interp.errors import EngineError, InterpError
from interp.plan.nodes import node_memory

logger = logging.getLogger(__name__)

WATCH_EVERY_S = 1.0


def fit(job: FitJob, session: Session, progress: Progress) -> None:
    """See `Engine.fit`.

    Raises:
        EngineError: the processes or the dictionaries do not fit, or workers died again and again at the same step.
        InterpError: whatever a worker met with that another try would not change.
        SystemExit: a signal asked for an end; a checkpoint was kept.
    """
    if job.cache is not None:
        job = replace(job, mode="colocated", harvesters=0)  # nothing runs the model
    each = _share(job, session, harvesters=job.harvesters if job.mode == "streamed" else 0)
    if job.finished():
        return

    def waits(sentence: str) -> None:
        logger.info(sentence)
        progress(sentence)

    needs = needs_of(job)
    memory = _worker_memory(job, session, 0, waits)
    beside = _worker_memory(job, session, job.harvesters, waits) if job.harvesters else memory
    job, chosen = settled(job, needs, memory, beside)
    harvester = each
    harvesters = job.harvesters if job.mode == "streamed" else 0
    if harvesters:
        each = _share(job, session, harvesters=harvesters)
        harvester = with_threads(each, session.capacity, job.harvesters, needs.forward_part)
        each = with_threads(each, session.capacity, job.workers, 1 - needs.forward_part)
    placement = {"mode": chosen.mode, "shards": chosen.shards, "placement": chosen.reason}
    job.scratch.delete(PROGRESS, STOP)
    await_room(session.capacity, each, job.workers + harvesters, "fit", waits)
    with stop_on_signal() as asked:
        watch = NodeWatch(session.capacity, each, job.workers + harvesters, "fit", waits)
        _watched(job, _Thread(partial(_train, job, each, harvester)), asked, placement, progress, watch.look)


def _share(job: FitJob, session: Session, harvesters: int) -> Share:
    streamed = f" and {harvesters} harvesters" if harvesters else ""
    what = f"fit with {job.workers} workers{streamed}"
    return share(session.capacity, job.workers + harvesters, job.device, what)


def _worker_memory(job: FitJob, session: Session, harvesters: int, waits: Say = logger.info) -> int:
    """Bytes of one worker's device, with so many harvesters beside all workers. Of a cluster's nodes what is known is
    taken; else it is asked in a process like a worker's, once there is a node for it."""
    processes = job.workers + harvesters
    try:
        each = _share(job, session, harvesters)
    except EngineError:
        if job.mode == "streamed" or not harvesters:
            raise
        return 0  # so many processes do not fit: there is no streamed mode to choose
    capacity = session.capacity
    if known := node_memory(capacity.nodes, each.cpus, each.gpus > 0):
        return known
    part = each.gpus or largest_share(processes, range(sum(kind.count for kind in capacity.nodes)))
    if not each.gpus and not capacity.nodes:
        return device_memory("cpu", part)
    await_room(capacity, each, 1, "asking for a worker's memory", waits)
    task = ray.remote(num_cpus=each.cpus, num_gpus=each.gpus)(device_memory)
    with ray_failure("asking for a worker's memory"):
        return int(ray.get(task.remote(each.device, part)))


def _watched(
    job: FitJob,
    training: _Thread,
    asked: Callable[[], bool],
    placement: dict[str, Any],
    progress: Progress,
    look: Callable[[], None] = lambda: None,
) -> None:
    """Train in a thread, since Ray Train would take over Ctrl-C in the main one, which tells how far it is, and passes
    on that a stop is asked for."""
    training.start()
    told, passed_on = None, False
    while training.is_alive():
        training.join(WATCH_EVERY_S)
        look()
        if asked() and not passed_on:
            logger.warning("asked to stop: finishing the step and keeping a checkpoint")
            job.scratch.write_json(STOP, {"asked": True})
            passed_on = True
        figures = job.scratch.json(PROGRESS)
        if figures not in (None, told):
            progress("train", **placement, **figures)
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


def _train(job: FitJob, each: Share, harvester: Share) -> None:
    streamed = job.mode == "streamed"
    # Dealt out even to one worker: a stream that a worker runs itself takes time, and Python's lock, from training.
    split = [NAME]
    shared_gpu = each.gpus not in (0, 1)
    backend = "nccl" if each.device == "cuda" and not shared_gpu else "gloo"
    resources = {"CPU": each.cpus} | ({"GPU": each.gpus} if each.gpus else {})
    # Ray Train writes a mark of its own there and nothing else, from a process beside this one.
    with tempfile.TemporaryDirectory(prefix="interp-train-") as where, data_settings():
        trainer = TorchTrainer(
            work,
            train_loop_config={"job": job, "threads": each.threads},
            torch_config=TorchConfig(backend=backend),
            datasets={NAME: partial(activations, job, harvester)} if streamed else None,
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
