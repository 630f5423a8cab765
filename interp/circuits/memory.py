"""What of a prompt's budget goes where: `trace.memory` bytes, beside the model and the dictionaries.

Building a state costs, in bytes (P positions, d the width of the stream, H heads, L layers, b bytes of the model's
numbers):

    captured    L * 4 P d b                 streams, what MLPs read and write
    frozen      L * 4 P d 4                 as a state holds them
    MLP         4 P d_ff 4                  where it is kept: one layer's hidden units
    encoding    20 min(P n_latents, 4 M)    some positions of one layer at a time
    attention   4 * H P^2 * 4               what one layer's attention computes on the way
    patterns    L * H P^2 * b               to disk, each as it passes, if more than a quarter of the budget

A sweep has the rest of the budget: F bytes, after the state and one layer's pattern. They are dealt out so:

    what is worked on    20 bytes for each number of a chunk of the gradient       at most an eighth of F
    what sources write    4 bytes a number, kept from sweep to sweep                at most an eighth of F
    a target in a sweep   6 P d + 8 N: its gradient (and half of it as vectors), its row over N nodes twice
                                                                                    at most half of F
    rows                  those that are needed to choose features: what is left; more goes to disk
    edges of the graph    8 bytes each, and twice while they are put in order: half of F, when the sweeps are over

The least that will do is one target at a time, in chunks of one. Nothing here changes a result but by rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from interp.errors import EngineError

DEFAULT_MEMORY = 8_000_000_000
"""Bytes for one prompt."""

MOST_CHUNK, MOST_KEPT = 2**23, 2**26
"""Numbers; more do not make a sweep faster."""

ENCODED_AT_ONCE = 2**22
"""Activations of latents; the same whatever memory there is, so that the budget does not change a rounding."""

MOST_PROMPTS, MOST_STRETCH = 8, 1.25
"""Of prompts that are run or swept together: how many, and how much longer than the shortest the longest is."""

_SHORT = 2**14
"""Positions times the width of the stream: the forward pass of a shorter prompt costs what its calls cost."""

_WORKING, _NUMBER, _NODE, _ENCODING = 20, 4, 100, 20


@dataclass(frozen=True)
class PromptSize:
    """What a prompt's memory depends on.

    Attributes:
        d_model, n_heads: the greatest of all layers; d_ff: of MLPs that are kept, else 0.
        itemsize: bytes of the model's numbers.
        n_latents: of the layer that has the most.
    """

    n_layers: int
    n_pos: int
    d_model: int
    n_heads: int
    d_ff: int
    itemsize: int
    n_latents: int = 0

    @property
    def pattern(self) -> int:
        """Bytes of one layer's pattern."""
        return self.n_heads * self.n_pos**2 * self.itemsize

    @property
    def building(self) -> int:
        """Bytes that are needed at the same time to build a state, without patterns."""
        numbers = self.n_layers * self.n_pos * self.d_model * 4
        one_layer = 4 * (self.n_pos * self.d_ff + self.n_heads * self.n_pos**2) * _NUMBER
        encoded = min(self.n_pos * self.n_latents, max(ENCODED_AT_ONCE, self.n_latents))
        return numbers * (self.itemsize + _NUMBER) + one_layer + _ENCODING * encoded


@dataclass(frozen=True)
class SweepPlan:
    """How a prompt is swept.

    Attributes:
        batch: targets in a sweep, at most.
        chunk: numbers of the gradients that are worked on at once.
        keep: numbers of what features and embeddings write that are kept.
        rows: bytes of rows that stay in memory.
        edges: bytes that the edges of the graph may have; memory: all that there are.
    """

    batch: int
    chunk: int
    keep: int
    rows: int
    edges: int
    memory: int

    def check_edges(self, edges: int) -> None:
        """Raise if the graph's edges are more bytes than the budget has for them."""
        if edges > self.edges:
            raise too_large("the graph", self.memory - self.edges + edges, self.memory)


def spills_patterns(size: PromptSize, memory: int) -> bool:
    """Whether patterns go to disk.

    Raises:
        EngineError: the prompt cannot be frozen within the budget even so.
    """
    if size.building + size.pattern > memory:
        raise too_large(f"a prompt of {size.n_pos} tokens", size.building + size.pattern, memory)
    return size.n_layers * size.pattern > memory // 4


def batches_of(sizes: Mapping[int, PromptSize], memory: int) -> list[list[int]]:
    """Prompts in groups that are run together: short ones of like length, as many as need an eighth of the budget."""
    groups, group = list[list[int]](), list[int]()
    for place in sorted(sizes, key=lambda place: sizes[place].n_pos):
        size, first = sizes[place], sizes[group[0] if group else place]
        needed = (len(group) + 1) * (size.building + size.n_layers * size.pattern)
        short = size.n_pos * size.d_model <= _SHORT and size.n_pos <= MOST_STRETCH * first.n_pos
        if group and not (short and len(group) < MOST_PROMPTS and needed <= memory // 8):
            groups.append(group)
            group = []
        group = [*group, place]
    return [*groups, group] if group else groups


def plan_sweep(held: int, n_pos: int, d_model: int, n_nodes: int, batch: int, memory: int) -> SweepPlan:
    """What a sweep may use.

    Args:
        held: bytes that are there for the whole time: the state and one layer's pattern.
        n_nodes: of which a target's row has one number each; what is kept of them counts 100 bytes each beside rows.
        d_model: the greatest of all layers.
        batch: targets in a sweep, as the user has it.

    Raises:
        EngineError: not even one target at a time fits.
    """
    held += _NODE * n_nodes
    free, gradient = memory - held, n_pos * d_model
    target = 6 * gradient + 2 * _NUMBER * n_nodes
    if free < (least := target + _WORKING * gradient):
        raise too_large(f"a graph of {n_pos} tokens and {n_nodes} nodes", held + least, memory)
    chunk = min(MOST_CHUNK, max(gradient, free // 8 // _WORKING))
    keep = min(MOST_KEPT, free // 8 // _NUMBER)
    fits = (free // 2) // target
    batch = max(1, min(batch, fits))
    rows = max(0, free - batch * target - _WORKING * chunk - _NUMBER * keep)
    return SweepPlan(batch, chunk, keep, rows, edges=(free - _NUMBER * keep) // 2, memory=memory)


def too_large(what: str, needed: int, memory: int) -> EngineError:
    """The error for what does not fit: no fault of the prompt's, for with more memory it can be traced."""
    return EngineError(
        f"{what} does not fit into the memory of a prompt",
        value=f"at least {needed} bytes are needed",
        expected=f"at most {memory} bytes (trace.memory)",
        remedy="raise trace.memory, lower trace.max_features, or trace a shorter prompt",
    )
