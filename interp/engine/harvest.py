"""Harvest: tokens of a corpus through a hooked model, up to the last hook point that training reads.

What loads a model is imported where it is needed: processes that only deal out or train never pay for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int32
from numpy import ndarray
from torch import Tensor

from interp.corpus.tokens import TokenBlocks
from interp.engine.job import FitJob
from interp.errors import ModelMismatch
from interp.training.plan import FitPlan

if TYPE_CHECKING:
    from interp.wrapper import HookedModel


@dataclass(frozen=True)
class MicroBatch:
    """A place in the stream of activations. One without tokens fills up the last step, so that all workers get alike.

    Attributes:
        index: counted from the first step.
        start, stop: its tokens, by their place in the corpus.
    """

    index: int
    step: int
    start: int
    stop: int


def micro_batches(plan: FitPlan, world: int, first_step: int = 0) -> Iterator[MicroBatch]:
    """All micro-batches from `first_step` on, in the order in which they are dealt to the workers, one to each in turn.

    `batch_tokens` is a whole number of rounds, so micro-batch i of a step is worker (i mod world)'s: `plan.share`.
    """
    index = first_step * (plan.batch_tokens // plan.micro_tokens)
    for step in range(first_step, plan.n_steps):
        for tokens in _filled(plan, step, world):
            yield MicroBatch(index, step, tokens.start, tokens.stop)
            index += 1


def _filled(plan: FitPlan, step: int, world: int) -> list[range]:
    batches = plan.micro_batches(step)
    return batches + [range(0)] * (-len(batches) % world)


class Harvester:
    """The model and the corpus of a job; both are opened when they are first needed.

    Args:
        device: where the model runs.
    """

    def __init__(self, job: FitJob, device: str):
        self.job, self.device = job, device

    @cached_property
    def hooked(self) -> HookedModel:
        from interp.models.loading import load_model
        from interp.wrapper import HookedModel

        loaded = load_model(self.job.model, device=self.device, attention="sdpa")
        trained_on = {target.config.model.fingerprint for target in self.job.plan.targets if target.config.model}
        if trained_on - {loaded.fingerprint}:
            raise ModelMismatch(
                "the model is not the one that this fit was planned for",
                value=loaded.fingerprint,
                expected=", ".join(sorted(trained_on)),
                remedy="the model has changed since the plan was made: run the study again",
            )
        return HookedModel(loaded)

    @cached_property
    def blocks(self) -> TokenBlocks:
        return TokenBlocks.open(self.job.corpus, "train")

    def rows(self, start: int, stop: int) -> Int32[ndarray, "rows context"]:
        """The contexts that hold the tokens [start, stop)."""
        context = self.blocks.context
        return self.blocks.rows(start // context, -(-stop // context))

    def activations(self, ids: Int32[ndarray, "rows context"], tokens: int) -> dict[str, Float[Tensor, "tokens d"]]:
        """One forward pass; the filling after the last of `tokens` is cut off (it is causal, so nothing saw it)."""
        batch = torch.from_numpy(np.ascontiguousarray(ids, dtype=np.int64)).to(self.device)
        cache = self.hooked.run_with_cache(batch, self.job.plan.hooks)
        return {hook: cache[hook].flatten(0, 1)[:tokens] for hook in self.job.plan.hooks}
