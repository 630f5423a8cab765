"""Where the activations of a micro-batch come from: what a training worker's session is given.

    Harvested   the model of the job, in this process
    Cached      an artifact of activations; no model is loaded
    (streamed)  blocks of Ray Data, `interp.engine.ray.blocks`

Whatever gives them, the cuts are the same, and each forward pass is of one micro-batch: so are the activations.
Loads no model library before it needs one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from interp.engine.job import FitJob
from interp.engine.microbatches import MicroBatch, rows_of

if TYPE_CHECKING:
    from interp.training.session import Activations


class MicroSource(Protocol):
    """Gives the activations of micro-batches; they are asked for in the order of `dealt`, each once."""

    def activations(self, micro: MicroBatch) -> Activations: ...

    def close(self) -> None:
        """Called when nothing more is asked for."""


class Harvested:
    """Runs the model of a job, up to the last of `hooks`."""

    def __init__(self, job: FitJob, device: str, hooks: Sequence[str]):
        from interp.corpus.tokens import TokenBlocks
        from interp.engine.harvest import Harvester

        self._harvester = Harvester(job, device, hooks)
        self._blocks = TokenBlocks.open(job.corpus, "train")

    def activations(self, micro: MicroBatch) -> Activations:
        return self._harvester.activations(rows_of(self._blocks, micro), micro.tokens)

    def close(self) -> None:
        """There is nothing to end."""


class Cached:
    """Reads a job's cache of activations."""

    def __init__(self, job: FitJob, hooks: Sequence[str]):
        from interp.engine.cached import CachedActivations

        assert job.cache is not None
        self._cached = CachedActivations(job.cache, hooks)

    def activations(self, micro: MicroBatch) -> Activations:
        return self._cached.rows(micro.start, micro.stop)

    def close(self) -> None:
        self._cached.close()


def own_source(job: FitJob, device: str, hooks: Sequence[str]) -> MicroSource:
    """What a worker reads that is sent nothing."""
    return Harvested(job, device, hooks) if job.cache is None else Cached(job, hooks)
