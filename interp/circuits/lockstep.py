"""Several prompts side by side, round by round: what each of them waits for is computed in one sweep.

The work on a prompt is a generator that asks for rows and is sent them, so that it need not know whether it is alone.
Alone, its rows are computed as it reads them. Together, all prompts of a stack go as far as their next question, one
pass answers all of these (`interp.circuits.stacked`), and so on; a prompt that fails leaves the others.

Which prompts make a stack was measured: what a stack saves are calls, and what it costs are gathers and padding. Per
prompt and round, with 2 to 8 prompts on one CPU thread, T targets, P positions:

    T * P * d_model      2^14    2^15    2^16    2^17    2^18         (6 layers of d 128, 12 of d 256)
    times as fast      2.4-3.0  1.5-2.0 1.4-1.7 1.1-1.2 0.8-0.9       (d 768: 1.1 at 2^17, 1.0 at 2^18)
    T * nodes            2^18    2^19
    times as fast      1.2-1.3  0.8-1.0

So a stack has up to 8 prompts whose lengths are within a quarter, each with T * P * d_model at most 2^17 and T * nodes
at most 2^18 (T: targets of a round of the selection, or all features where all have rows), and what all of its sources
write, padded, is at most 2^24 numbers and an eighth of the memory. Prompts whose MLPs are kept are not stacked: their
linear maps differ by position and would be made for each target anew.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

from interp.circuits.memory import MOST_PROMPTS, MOST_STRETCH
from interp.circuits.rows import NodeRows, RowComputer, out_of_memory
from interp.circuits.selection import round_size
from interp.circuits.stacked import Stack
from interp.circuits.state import ReplacementState
from interp.circuits.targets import FeatureTargets, Targets
from interp.errors import InterpError

logger = logging.getLogger(__name__)

_MOST_GRADIENT, _MOST_ROWS, _MOST_WRITTEN = 2**17, 2**18, 2**24
_LEAST_SHARE = 2**28
"""Bytes of memory for each prompt of a stack: more than any that is small enough to be in one needs."""

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Wanted:
    """Rows that a prompt needs."""

    rows: RowComputer
    targets: Targets
    nodes: Int[Tensor, "targets"]

    @classmethod
    def features(cls, rows: RowComputer, features: Int[Tensor, "features"]) -> Wanted:
        """The rows of some features."""
        return cls(rows, FeatureTargets(rows.state, rows.state.features.index[features]), features)


Work = Generator[Wanted, Iterable[NodeRows], T]


def alone(work: Work[T]) -> T:
    """The work on one prompt."""
    try:
        wanted = next(work)
        while True:
            wanted = work.send(wanted.rows.of(wanted.targets, wanted.nodes))
    except StopIteration as stop:
        result: T = stop.value
        return result


def together(works: Sequence[Work[T]]) -> list[T | InterpError]:
    """The work on some prompts that make a stack: of each what comes of it, or the error that it ends in."""
    running = _Running(works)
    if len(works) > 1:
        running.in_step()
    return [running.done[place] if place in running.done else _attempt(work) for place, work in enumerate(works)]


def _attempt(work: Work[T]) -> T | InterpError:
    try:
        return alone(work)
    except InterpError as error:
        return error


class _Running(Generic[T]):
    """Works that go on in step.

    Attributes:
        waiting: what each wants next; done: what came of each that has ended.
    """

    def __init__(self, works: Sequence[Work[T]]):
        self.works = works
        self.waiting: dict[int, Wanted] = {}
        self.done: dict[int, T | InterpError] = {}

    def in_step(self) -> None:
        """Go on until all have ended."""
        for place in range(len(self.works)):
            self._go_on(place, None)
        places = list(self.waiting)
        computers = [self.waiting[place].rows for place in places]
        stack = Stack([each.state for each in computers], [each.nodes for each in computers]) if places else None
        while stack is not None and self.waiting:
            found = _answers(stack, [self.waiting.get(place) for place in places])
            for place, rows in zip(places, found, strict=True):
                if rows is not None:
                    self._go_on(place, rows)

    def _go_on(self, place: int, rows: Iterable[NodeRows] | InterpError | None) -> None:
        self.waiting.pop(place, None)
        work = self.works[place]
        try:
            if isinstance(rows, InterpError):
                self.waiting[place] = work.throw(rows)
            else:
                self.waiting[place] = next(work) if rows is None else work.send(rows)
        except StopIteration as stop:
            self.done[place] = stop.value
        except InterpError as error:
            self.done[place] = error


def _answers(stack: Stack, wanted: Sequence[Wanted | None]) -> list[Iterable[NodeRows] | InterpError | None]:
    """Rows for each prompt that waits for some."""
    try:
        found = stack.rows([None if each is None else each.targets for each in wanted])
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        logger.warning("out of memory with %d prompts in a sweep: going on with one at a time", len(wanted))
        return [None if each is None else each.rows.of(each.targets, each.nodes) for each in wanted]
    answers = list[Iterable[NodeRows] | InterpError | None]()
    for each, rows in zip(wanted, found, strict=True):
        try:
            answers.append(None if each is None or rows is None else [each.rows.taken(rows, each.nodes)])
        except InterpError as error:
            answers.append(error)
    return answers


def stacks_of(states: Sequence[ReplacementState], max_features: int | None, memory: int) -> list[list[int]]:
    """The prompts, by their place, in groups that are swept together; most are alone where the rule says so."""
    most = min(MOST_PROMPTS, memory // _LEAST_SHARE)
    written = min(_MOST_WRITTEN, memory // 8 // 4)
    small = [place for place, state in enumerate(states) if _is_small(state, max_features)]
    groups = [[place] for place in sorted(set(range(len(states))) - set(small))]
    group: list[int] = []
    for place in sorted(small, key=lambda place: states[place].n_pos):
        longer = [states[each] for each in [*group, place]]
        like = longer[-1].n_pos <= MOST_STRETCH * longer[0].n_pos
        if group and not (like and len(longer) <= most and _written(longer) <= written):
            groups.append(group)
            group = []
        group = [*group, place]
    return [*groups, group] if group else groups


def _is_small(state: ReplacementState, max_features: int | None) -> bool:
    """Whether a round of this prompt is bound by calls."""
    if state.replacement.keeps_mlp:
        return False
    active = len(state.features)
    targets = active if max_features is None or active <= max_features else round_size(max_features)
    nodes = active + (2 * state.n_layers + 1) * state.n_pos
    width = max(layer.block.d_model for layer in state.layers)
    return targets * state.n_pos * width <= _MOST_GRADIENT and targets * nodes <= _MOST_ROWS


def _written(states: Sequence[ReplacementState]) -> int:
    """Numbers that all sources write in a stack of these prompts."""
    n_pos, replacement = max(state.n_pos for state in states), states[0].replacement
    numbers = 0
    most = [max(_fullest(state, layer) for state in states) for layer in range(states[0].n_layers)]
    for layer, frozen in enumerate(states[0].layers):
        columns = 3 + sum(most[source] for source in replacement.writers(layer))
        numbers += len(states) * n_pos * columns * frozen.block.d_model
    return numbers


def _fullest(state: ReplacementState, layer: int) -> int:
    """Features at the position of a layer that has most."""
    starts = torch.tensor(state.features.starts[layer * state.n_pos : (layer + 1) * state.n_pos + 1])
    return int(starts.diff().max())
