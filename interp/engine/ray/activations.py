"""The stream of activations on Ray Data: tokens of the corpus -> hooked-model actors -> blocks of one micro-batch.

    TokenSource      one read task after the other; a block is the token ids of one micro-batch
    HarvestActor     one forward pass; a block is the activations at all hook points that training reads
    read             a block as tensors, straight from shared memory

The stream keeps its order, so who gets which micro-batch is known beforehand: with several training workers Ray Data
deals blocks to whoever has fewest rows, and as every block has one row, that is to each in turn. Every block carries
its place, and the reader checks it. bfloat16 travels as uint16, for numpy has no such type.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
import torch
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask
from torch import Tensor

from interp.engine.harvest import Harvester, MicroBatch, micro_batches
from interp.engine.job import FitJob
from interp.engine.ray.context import data_settings, on_one_process, through_actors
from interp.engine.resources import Share
from interp.errors import InterpError
from interp.training.session import Activations

NAME = "activations"

MICROS_PER_READ = 512
"""Micro-batches that one read task gives, one after the other: it is held back when the actors do not keep up."""

READ_CPUS = 0.05
"""Reading tokens is hardly any work. Unlike the actors' share, so that Ray Data does not run both in one process."""


def activations(job: FitJob, share: Share) -> ray.data.Dataset:
    """The stream from the step on that training resumes with; made anew whenever the workers (re)start."""
    with data_settings():
        source = ray.data.read_datasource(
            TokenSource(job, job.resume_step()), num_cpus=READ_CPUS, concurrency=1, override_num_blocks=1
        )
        return through_actors(source, HarvestActor, (job, share), job.harvesters, share)


class TokenSource(Datasource):
    """The training tokens of a job from a step on, a micro-batch to a block."""

    def __init__(self, job: FitJob, first_step: int):
        super().__init__()
        self._job, self._first_step = job, first_step

    def estimate_inmemory_data_size(self) -> int:
        return 4 * (self._job.plan.total_tokens - self._first_step * self._job.plan.batch_tokens)

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        """As many as there are; `parallelism` does not matter, for they run one at a time."""
        micros = list(micro_batches(self._job.plan, self._job.workers, self._first_step))
        pieces = [micros[start : start + MICROS_PER_READ] for start in range(0, len(micros), MICROS_PER_READ)]
        return [ReadTask(partial(_read_tokens, self._job, piece), self._metadata(piece)) for piece in pieces]

    def _metadata(self, micros: list[MicroBatch]) -> BlockMetadata:
        size = 4 * sum(micro.stop - micro.start for micro in micros)
        return BlockMetadata(num_rows=len(micros), size_bytes=size, exec_stats=None, input_files=None)


def _read_tokens(job: FitJob, micros: list[MicroBatch]) -> Iterator[pa.Table]:
    harvester = Harvester(job, "cpu")
    for micro in micros:
        ids = pa.array([harvester.rows(micro.start, micro.stop).tobytes()], pa.large_binary())
        place = {name: [getattr(micro, name)] for name in ("index", "step", "start", "stop")}
        yield pa.table({**place, "ids": ids})


class HarvestActor:
    """One process with the model. It is loaded with the first block, so that a failure to load is a row as well."""

    def __init__(self, job: FitJob, share: Share):
        self._harvester, self._threads = Harvester(job, share.device), share.threads
        self._started = False

    def __call__(self, table: pa.Table) -> dict[str, Any]:
        (row,) = table.to_pylist()
        try:
            if not self._started:
                on_one_process(self._threads)
                self._started = True
            columns = self._columns(row)
        except InterpError as error:
            columns = {"error": np.array([pickle.dumps(error)], dtype=object)}
        return {"index": np.array([row["index"]]), "tokens": np.array([row["stop"] - row["start"]]), **columns}

    def _columns(self, row: Mapping[str, Any]) -> dict[str, Any]:
        tokens = row["stop"] - row["start"]
        if not tokens:
            return {}
        ids = np.frombuffer(row["ids"], np.int32).reshape(-1, self._harvester.job.plan.context)
        found = self._harvester.activations(ids, tokens)
        return {hook: _to_numpy(values)[None] for hook, values in found.items()}


def read(block: Mapping[str, Any], index: int, hooks: tuple[str, ...], bfloat16: bool) -> Activations | None:
    """The activations in a block; None for one without tokens.

    Raises:
        InterpError: what the actor met with, instead of activations.
        OutOfPlace: the block is not number `index` of the stream.
    """
    if "error" in block:
        raise pickle.loads(block["error"][0])
    if int(block["index"][0]) != index:
        raise OutOfPlace(f"micro-batch {int(block['index'][0])} arrived instead of {index}")
    if not int(block["tokens"][0]):
        return None
    return {hook: _to_torch(block[hook][0], bfloat16) for hook in hooks}


class OutOfPlace(RuntimeError):
    """The stream and the worker disagree about where training is: both must start again from the checkpoint."""


def _to_numpy(values: Tensor) -> Any:
    values = values.contiguous().cpu()
    return (values.view(torch.uint16) if values.dtype == torch.bfloat16 else values).numpy()


def _to_torch(values: Any, bfloat16: bool) -> Tensor:
    with warnings.catch_warnings():
        # The memory is shared and read-only; training never writes into activations.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        tensor = torch.from_numpy(values)
    return tensor.view(torch.bfloat16) if bfloat16 else tensor
