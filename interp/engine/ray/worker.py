"""What each Ray Train worker runs: the training loop, on activations that it makes itself or reads from the stream."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import ray.train
import torch
import torch.distributed
from ray.train.torch import get_device
from torch import Tensor

from interp.engine.job import STOP, FitJob
from interp.engine.microbatches import MicroBatch, bundles
from interp.engine.ray.activations import NAME
from interp.engine.ray.blocks import unpacked
from interp.engine.ray.context import on_one_process
from interp.engine.session import BaseSession
from interp.engine.sources import MicroSource
from interp.training.loop import fit_loop
from interp.training.plan import WorkerPlace
from interp.training.session import Activations

LOOK_EVERY_S = 1.0
"""How often rank 0 looks whether somebody asks for an end."""

PREFETCHED = 1
"""Blocks that a worker reads ahead of the one that it trains on."""


def work(config: dict[str, Any]) -> None:
    """The training function of Ray Train."""
    job: FitJob = config["job"]
    on_one_process(config["threads"])
    context = ray.train.get_context()
    place = WorkerPlace(context.get_world_rank(), context.get_world_size(), job.shards or 1)
    with TemporaryDirectory(prefix="interp-fit-") as folder:
        session = RaySession(
            job,
            place=place,
            device=get_device(),
            folder=Path(folder),
            tell=job.show,
            stop=_Asked(job),
        )
        if fit_loop(session, job.plan):
            session.keep_result()


class RaySession(BaseSession):
    """One of several workers; in streamed mode it reads its bundles of the stream."""

    def __init__(self, job: FitJob, *, place: WorkerPlace, **parts: Any):
        super().__init__(job, place=place, **parts)
        self._shard: torch.distributed.ProcessGroup | None = None
        if place.shards > 1:
            # Every worker makes every group, in the same order.
            ranks = [list(range(shard, place.world, place.shards)) for shard in range(place.shards)]
            self._shard = [torch.distributed.new_group(group) for group in ranks][place.shard]

    def source(self, first_step: int) -> MicroSource:
        return Streamed(self.job, self.place, first_step) if self.job.mode == "streamed" else super().source(first_step)

    def all_reduce(self, flat: Tensor) -> None:
        if self.place.replicas > 1:
            torch.distributed.all_reduce(flat, group=self._shard)

    def share(self, flat: Tensor) -> None:
        if self.place.world > 1:
            torch.distributed.all_reduce(flat)


class Streamed:
    """A worker's micro-batches out of the stream. See `interp.engine.sources.MicroSource`."""

    def __init__(self, job: FitJob, place: WorkerPlace, first_step: int):
        self._blocks: Iterator[pa.Table] = iter(
            ray.train.get_dataset_shard(NAME).iter_batches(
                batch_size=None, batch_format="pyarrow", prefetch_batches=PREFETCHED
            )
        )
        found = bundles(job.plan, place.replicas, first_step)
        self._own = (bundle for bundle in found if bundle.index % place.replicas == place.replica)
        self._shard = place.shard
        all_widths = {hook: width for target in job.plan.targets for hook, width in target.config.widths.items()}
        self._widths = {hook: all_widths[hook] for hook in job.plan.shard_hooks(place.shard, place.shards)}
        self._dtype: torch.dtype = getattr(torch, job.model.dtype)
        self._waiting: list[tuple[MicroBatch, Activations]] = []

    def activations(self, micro: MicroBatch) -> Activations:
        while not self._waiting:
            bundle = next(self._own)
            found = unpacked(next(self._blocks, None), bundle, self._shard, self._widths, self._dtype)
            self._waiting = list(zip(bundle.micros, found, strict=True))
        expected, acts = self._waiting.pop(0)
        assert micro == expected, "bundles are cut as micro-batches are dealt"
        return acts

    def close(self) -> None:
        """The stream ends with its workers."""


class _Asked:
    """Whether somebody has left word in the scratch that training should stop."""

    def __init__(self, job: FitJob):
        self._job = job
        self._looked, self._found = time.monotonic(), False

    def __call__(self) -> bool:
        if not self._found and time.monotonic() - self._looked > LOOK_EVERY_S:
            self._looked = time.monotonic()
            self._found = self._job.scratch.json(STOP) is not None
        return self._found
