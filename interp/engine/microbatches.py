"""Which tokens go where: the micro-batches of a fit in the order in which they are dealt to the training workers.

Known beforehand and from the plan alone, so that neither the number of workers nor a resume changes what is computed.
Loads no torch: processes that only deal out tokens stay small.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtyping import Int32
from numpy import ndarray

if TYPE_CHECKING:
    from interp.corpus.tokens import TokenBlocks
    from interp.training.plan import FitPlan


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

    @property
    def tokens(self) -> int:
        return self.stop - self.start


def micro_batches(plan: FitPlan, world: int, first_step: int = 0) -> Iterator[MicroBatch]:
    """All micro-batches from `first_step` on, in the order in which they are dealt to `world` workers, one to each.

    `batch_tokens` is a whole number of rounds, so micro-batch i of a step is worker (i mod world)'s: `plan.share`.
    """
    index = first_step * (plan.batch_tokens // plan.micro_tokens)
    for step in range(first_step, plan.n_steps):
        batches = plan.micro_batches(step)
        for tokens in batches + [range(0)] * (-len(batches) % world):
            yield MicroBatch(index, step, tokens.start, tokens.stop)
            index += 1


def rows_of(blocks: TokenBlocks, micro: MicroBatch) -> Int32[ndarray, "rows context"]:
    """The contexts that hold a micro-batch; the last one of the corpus may be filled up."""
    return blocks.rows(micro.start // blocks.context, -(-micro.stop // blocks.context))
