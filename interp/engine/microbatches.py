"""Which tokens go where: the micro-batches of a fit, by the training worker that they are dealt to.

Known beforehand and from the plan alone, so that neither the number of workers nor a resume changes what is computed.
Loads no torch: processes that only deal out tokens stay small.

A stream carries bundles: neighbouring micro-batches of one replica, of a part of a step or of several whole steps.
Bundle i is replica (i mod replicas)'s, so bundles can be dealt out in turn.
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

BUNDLE_TOKENS = 4096
"""As many tokens as fit make a bundle, or one micro-batch: each costs Ray Data some milliseconds to pass on."""


@dataclass(frozen=True)
class MicroBatch:
    """A cut of the tokens: its step, and its tokens by their place in the corpus."""

    step: int
    start: int
    stop: int

    @property
    def tokens(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Bundle:
    """Micro-batches that travel together; in the last step there may be none, so that all replicas get as many bundles.

    Attributes:
        index: counted from the first step.
    """

    index: int
    micros: tuple[MicroBatch, ...]


def dealt(plan: FitPlan, replica: int, replicas: int, first_step: int = 0) -> Iterator[MicroBatch]:
    """The micro-batches of one replica from `first_step` on: `plan.share`."""
    for step in range(first_step, plan.n_steps):
        for tokens in plan.share(step, replica, replicas):
            yield MicroBatch(step, tokens.start, tokens.stop)


def bundles(plan: FitPlan, replicas: int, first_step: int = 0) -> Iterator[Bundle]:
    """All bundles from `first_step` on, one to each replica in turn.

    `batch_tokens` is a whole number of rounds of micro-batches, so replicas have equally many in all but the last step.
    A bundle that began before `first_step` has what is left of it.
    """
    rounds = plan.batch_tokens // plan.micro_tokens // replicas
    size = max(1, BUNDLE_TOKENS // plan.micro_tokens)
    span = max(1, size // rounds)
    turns = -(-rounds // size)
    for begin in range(first_step - first_step % span, plan.n_steps, span):
        steps = range(max(begin, first_step), min(begin + span, plan.n_steps))
        shares = [
            [MicroBatch(step, t.start, t.stop) for step in steps for t in plan.share(step, replica, replicas)]
            for replica in range(replicas)
        ]
        for turn in range(turns):
            for replica, share in enumerate(shares):
                index = (begin // span * turns + turn) * replicas + replica
                yield Bundle(index, tuple(share[turn * size : (turn + 1) * size]))


def rows_of(blocks: TokenBlocks, micro: MicroBatch) -> Int32[ndarray, "rows context"]:
    """The contexts that hold a micro-batch; the last one of the corpus may be filled up."""
    return blocks.rows(micro.start // blocks.context, -(-micro.stop // blocks.context))
