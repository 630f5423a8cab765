"""The stream of activations on Ray Data: tokens of the corpus -> hooked-model actors -> blocks of one micro-batch.

    TokenSource      one read task after the other; a block is the token ids of one micro-batch
    HarvestActor     one forward pass; a block is the activations at all hook points that training reads

The stream keeps its order, so who gets which micro-batch is known beforehand: with several training workers Ray Data
deals blocks to whoever has fewest rows, and as every block has one row, that is to each in turn. Every block carries
its place, and the reader checks it (`interp.engine.ray.blocks`).

Ray Data passes what is here through several processes. They load no torch: this module does not, and the plan of the
fit, whose class does, travels as bytes.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from interp.corpus.tokens import TokenBlocks
from interp.engine.job import FitJob
from interp.engine.microbatches import MicroBatch, micro_batches, rows_of
from interp.engine.ray.context import data_settings, on_one_process, through_actors
from interp.engine.resources import Share
from interp.errors import InterpError
from interp.store import Artifact

if TYPE_CHECKING:
    from interp.engine.harvest import Harvester

NAME = "activations"

MICROS_PER_READ = 512
"""Micro-batches that one read task gives, one after the other: it is held back when the actors do not keep up."""

READ_CPUS = 0.05
"""Reading tokens is hardly any work. Unlike the actors' share, so that Ray Data does not run both in one process."""


def activations(job: FitJob, share: Share) -> ray.data.Dataset:
    """The stream from the step on that training resumes with; made anew whenever the workers (re)start."""
    micros = list(micro_batches(job.plan, job.workers, job.resume_step()))
    with data_settings():
        source = ray.data.read_datasource(
            TokenSource(job.corpus, micros), num_cpus=READ_CPUS, concurrency=1, override_num_blocks=1
        )
        return through_actors(source, HarvestActor, (pickle.dumps(job), share), job.harvesters, share)


class TokenSource(Datasource):
    """The training tokens of a corpus, a micro-batch to a block."""

    def __init__(self, corpus: Artifact, micros: Sequence[MicroBatch]):
        super().__init__()
        self._corpus, self._micros = corpus, micros

    def estimate_inmemory_data_size(self) -> int:
        return _size(self._micros)

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        """As many as there are; `parallelism` does not matter, for they run one at a time."""
        starts = range(0, len(self._micros), MICROS_PER_READ)
        return [self._task(self._micros[start : start + MICROS_PER_READ]) for start in starts]

    def _task(self, micros: Sequence[MicroBatch]) -> ReadTask:
        metadata = BlockMetadata(num_rows=len(micros), size_bytes=_size(micros), exec_stats=None, input_files=None)
        return ReadTask(partial(_read_tokens, self._corpus, micros), metadata)


def _size(micros: Sequence[MicroBatch]) -> int:
    return 4 * sum(micro.tokens for micro in micros)


def _read_tokens(corpus: Artifact, micros: Sequence[MicroBatch]) -> Iterator[pa.Table]:
    blocks = TokenBlocks.open(corpus, "train")
    for micro in micros:
        ids = pa.array([rows_of(blocks, micro).tobytes()], pa.large_binary())
        yield pa.table({"index": [micro.index], "tokens": [micro.tokens], "ids": ids})


class HarvestActor:
    """One process with the model. It is loaded with the first block, so that a failure to load is a row as well."""

    def __init__(self, job: bytes, share: Share):
        self._job, self._share = job, share
        self._harvester: Harvester | None = None

    def __call__(self, table: pa.Table) -> dict[str, Any]:
        (row,) = table.to_pylist()
        place = {"index": np.array([row["index"]]), "tokens": np.array([row["tokens"]])}
        try:
            return {**place, **self._activations(row)}
        except InterpError as error:
            return {**place, "error": np.array([pickle.dumps(error)], dtype=object)}

    def _activations(self, row: Mapping[str, Any]) -> dict[str, Any]:
        from interp.engine.harvest import Harvester
        from interp.engine.ray.blocks import to_numpy

        if self._harvester is None:
            on_one_process(self._share.threads)
            self._harvester = Harvester(pickle.loads(self._job), self._share.device)
        if not row["tokens"]:
            return {}
        ids = np.frombuffer(row["ids"], np.int32).reshape(-1, self._harvester.job.plan.context)
        found = self._harvester.activations(ids, row["tokens"])
        return {hook: to_numpy(values)[None] for hook, values in found.items()}
