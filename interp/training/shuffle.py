"""Token shuffling: the tokens of a window of steps change places before they are trained on.

Tokens of one context are alike, and a step that is made of a few contexts has a gradient that leans their way. Here
micro-batch j of every step of a window is lane j; a lane's tokens are permuted and cut again into the same lengths.

    raw     step 0: [lane 0 | lane 1]   step 1: [lane 0 | lane 1]  ...  one window of S = shuffle_tokens / batch_tokens
    mixed   the same cuts; what a lane has in a step comes from all of the window's steps

A window holds whole steps, and the last one what is left of them. The permutation depends on (seed, window, lane)
alone. Workers are dealt lanes, as they are dealt micro-batches, so their number changes nothing, and each holds its own
lanes only. A run that is resumed reads its window again from the window's first step: nothing of it is stored.

Memory is one window and a micro-batch. The rows that a micro-batch leaves are overwritten in place by a raw micro-batch
of the next window: of slots s, listed in the order in which they leave, s[i] takes token i of the next window, whose
slots are then left in the order s[permutation]. A token costs one row read and one row written, about
0.3 microseconds at 256 float32 (`benchmarks.shuffle`); one permutation serves all hook points, so they stay aligned.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int64
from torch import Tensor

from interp.training.plan import FitPlan, WorkerPlace

if TYPE_CHECKING:
    from interp.training.session import Activations


def steps_of(
    plan: FitPlan, raw: Iterator[Activations], first_step: int, place: WorkerPlace, device: torch.device | None = None
) -> Iterator[tuple[int, Iterable[Activations]]]:
    """(step, its micro-batches) from `first_step` to the last step, mixed if the plan says so.

    The micro-batches of a step are made as they are asked for, and all must be before the next step is.

    Args:
        raw: what `plan.share` deals to this worker, micro-batch after micro-batch, from `plan.stream_start(first_step)`
            on; it is read no further ahead than one window.
        device: where a window is held; by default where the activations come from.
    """
    if plan.window_steps == 1:
        for step in range(first_step, plan.n_steps):
            yield step, islice(raw, len(plan.share(step, place.replica, place.replicas)))
        return
    window = _Window(plan, raw, first_step, place, device)
    for step in range(first_step, plan.n_steps):
        yield step, window.step(step)


class _Window:
    """The lanes of one worker."""

    def __init__(
        self,
        plan: FitPlan,
        raw: Iterator[Activations],
        first_step: int,
        place: WorkerPlace,
        device: torch.device | None,
    ):
        self._plan, self._raw, self._device = plan, raw, device
        self._lanes: dict[int, _Lane] = {}
        self._replica, self._replicas = place.replica, place.replicas
        start = plan.stream_start(first_step)
        self._fill(start)
        for step in range(start, first_step):
            for _ in self.step(step, read=False):
                pass

    def step(self, step: int, read: bool = True) -> Iterator[Activations]:
        """The mixed micro-batches of a step; a raw one of the next window comes in for each. Without `read` they only
        make room."""
        plan, coming = self._plan, step + self._plan.window_steps
        arriving = dict(self._dealt(coming)) if coming < plan.n_steps else {}
        for number, tokens in self._dealt(step):
            lane = self._lanes[number]
            slots = lane.leave(len(tokens))
            rows = lane.rows(slots) if read else {}
            if number in arriving:
                lane.put(slots[: len(arriving[number])], next(self._raw))
            yield rows
        if (step + 1) % plan.window_steps == 0:
            for number, lane in self._lanes.items():
                lane.arrived(self._length(number, step + 1), self._seed(step + 1, number))

    def _fill(self, start: int) -> None:
        """Read the window that begins with step `start`."""
        taken: dict[int, int] = {}
        for step in range(start, min(start + self._plan.window_steps, self._plan.n_steps)):
            for number, tokens in self._dealt(step):
                if number not in self._lanes:
                    self._lanes[number] = _Lane(self._length(number, start), self._device)
                begin = taken.get(number, 0)
                self._lanes[number].put(torch.arange(begin, begin + len(tokens)), next(self._raw))
                taken[number] = begin + len(tokens)
        for number, lane in self._lanes.items():
            lane.mix(torch.arange(taken[number]), self._seed(start, number))

    def _dealt(self, step: int) -> Iterator[tuple[int, range]]:
        """This worker's lanes in a step, and the tokens of each."""
        own = self._plan.share(step, self._replica, self._replicas)
        return ((self._replica + i * self._replicas, tokens) for i, tokens in enumerate(own))

    def _length(self, number: int, start: int) -> int:
        """Tokens of a lane in the window that begins with step `start`."""
        steps = range(start, min(start + self._plan.window_steps, self._plan.n_steps))
        return sum(len(tokens) for step in steps for tokens in self._plan.micro_batches(step)[number : number + 1])

    def _seed(self, start: int, number: int) -> int:
        key = f"{self._plan.seed}/shuffle/{start // self._plan.window_steps}/{number}"
        return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1


class _Lane:
    """One lane's tokens: a row in a slot for each, at every hook point.

    Args:
        size: slots.
    """

    def __init__(self, size: int, device: torch.device | None):
        self._size, self._device = size, device
        self._held: dict[str, Tensor] = {}
        self._slots = self._next = torch.empty(0, dtype=torch.int64)
        self._left = 0

    def put(self, slots: Int64[Tensor, "tokens"], acts: Activations) -> None:
        """Write tokens into slots."""
        for hook, values in acts.items():
            if hook not in self._held:
                self._held[hook] = values.new_empty((self._size, *values.shape[1:]), device=self._device)
            held = self._held[hook]
            held.index_copy_(0, slots.to(held.device), values.to(held.device))

    def rows(self, slots: Int64[Tensor, "tokens"]) -> Mapping[str, Tensor]:
        """The tokens in slots."""
        return {hook: held.index_select(0, slots.to(held.device)) for hook, held in self._held.items()}

    def mix(self, slots: Int64[Tensor, "tokens"], seed: int) -> None:
        """Say in which slots a window's tokens lie, in their order; they leave in another."""
        order = torch.randperm(len(slots), generator=torch.Generator().manual_seed(seed))
        self._slots, self._left = slots[order], 0

    def leave(self, tokens: int) -> Int64[Tensor, "tokens"]:
        """The slots of the next tokens to leave."""
        self._left += tokens
        slots = self._slots[self._left - tokens : self._left]
        return slots if self._device is None else slots.to(self._device)  # once, for all hook points

    def arrived(self, tokens: int, seed: int) -> None:
        """All of the next window has come, into the slots that this one has left."""
        self.mix(self._slots[:tokens], seed)
