"""The stream of activations on Ray Data: tokens of the corpus -> hooked-model actors -> blocks for training workers.

    TokenSource      one read task after the other; a block is the token ids of one bundle of micro-batches
    HarvestActor     one forward pass for each micro-batch; of a bundle a block for each shard, with the activations at
                     the hook points that this shard reads

The stream keeps its order, so who gets which bundle is known beforehand: Ray Data deals blocks to whoever has fewest
rows, and as every block has one row, that is to each in turn. Bundles are dealt to replicas in turn, and of a bundle
come blocks for shards 0, 1, ..., which are the ranks of that replica. Every block carries its place, and the reader
checks it (`interp.engine.ray.blocks`).

Ray Data passes what is here through several processes. They load no torch: this module does not, and the plan of the
fit, whose class does, travels as bytes.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from interp.corpus.tokens import TokenBlocks
from interp.engine.job import FitJob
from interp.engine.microbatches import Bundle, bundles, rows_of
from interp.engine.ray.context import data_settings, on_one_process, through_actors
from interp.engine.resources import Share
from interp.errors import InterpError
from interp.store import Artifact

if TYPE_CHECKING:
    from interp.engine.harvest import Harvester

NAME = "activations"

BUNDLES_PER_READ = 512
"""Bundles that one read task gives, one after the other: it is held back when the actors do not keep up."""

READ_CPUS = 0.05
"""Reading tokens is hardly any work. Unlike the actors' share, so that Ray Data does not run both in one process."""


def activations(job: FitJob, share: Share) -> ray.data.Dataset:
    """The stream from the step on that training resumes with; made anew whenever the workers (re)start.

    The job's shards are settled.
    """
    shards = job.shards or 1
    first = job.plan.stream_start(job.resume_step())
    found = list(bundles(job.plan, job.workers // shards, first))
    with data_settings():
        source = ray.data.read_datasource(
            TokenSource(job.corpus, found), num_cpus=READ_CPUS, concurrency=1, override_num_blocks=1
        )
        return through_actors(source, HarvestActor, (pickle.dumps(job), shards, share), job.harvesters, share)


class TokenSource(Datasource):
    """The training tokens of a corpus, a bundle to a block."""

    def __init__(self, corpus: Artifact, found: Sequence[Bundle]):
        super().__init__()
        self._corpus, self._bundles = corpus, found

    def estimate_inmemory_data_size(self) -> int:
        return _size(self._bundles)

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        """As many as there are; `parallelism` does not matter, for they run one at a time."""
        starts = range(0, len(self._bundles), BUNDLES_PER_READ)
        return [self._task(self._bundles[start : start + BUNDLES_PER_READ]) for start in starts]

    def _task(self, found: Sequence[Bundle]) -> ReadTask:
        metadata = BlockMetadata(num_rows=len(found), size_bytes=_size(found), exec_stats=None, input_files=None)
        return ReadTask(partial(_read_tokens, self._corpus, found), metadata)


def _size(found: Sequence[Bundle]) -> int:
    return 4 * sum(micro.tokens for bundle in found for micro in bundle.micros)


def _read_tokens(corpus: Artifact, found: Sequence[Bundle]) -> Iterator[pa.Table]:
    blocks = TokenBlocks.open(corpus, "train")
    for bundle in found:
        ids = b"".join(rows_of(blocks, micro).tobytes() for micro in bundle.micros)
        tokens = pa.array([[micro.tokens for micro in bundle.micros]], pa.list_(pa.int64()))
        yield pa.table({"index": [bundle.index], "tokens": tokens, "ids": pa.array([ids], pa.large_binary())})


class HarvestActor:
    """One process with the model. It is loaded with the first block, so that a failure to load is a row as well."""

    def __init__(self, job: bytes, shards: int, share: Share):
        self._job, self._shards, self._share = job, shards, share
        self._harvester: Harvester | None = None
        self._hooks: list[tuple[str, ...]] = []

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        from interp.engine.ray.blocks import failed, packed

        (row,) = table.to_pylist()
        try:
            found = self._activations(row["ids"], row["tokens"])
        except InterpError as error:
            yield from failed(row["index"], self._shards, error)
            return
        for shard, hooks in enumerate(self._hooks):
            yield packed(row["index"], shard, [[micro[hook] for hook in hooks] for micro in found])

    def _activations(self, ids: bytes, tokens: Sequence[int]) -> list[Any]:
        """Of each micro-batch of a bundle, the activations by hook point."""
        harvester = self._started()
        rows = np.frombuffer(ids, np.int32).reshape(-1, harvester.job.plan.context)
        found, begin = [], 0
        for count in tokens:
            end = begin - (-count // rows.shape[1])
            found.append(harvester.activations(rows[begin:end], count))
            begin = end
        return found

    def _started(self) -> Harvester:
        from interp.engine.harvest import Harvester

        if self._harvester is None:
            on_one_process(self._share.threads)
            job: FitJob = pickle.loads(self._job)
            self._hooks = [job.plan.shard_hooks(shard, self._shards) for shard in range(self._shards)]
            self._harvester = Harvester(job, self._share.device)
        return self._harvester
