"""What is done about a prompt for which memory ran out: it is traced once more, with half of `trace.memory`.

A smaller budget makes sweeps of fewer targets and sends rows and patterns to disk; it changes a graph but by rounding.
Each death of a worker halves the budget as well: most often it was memory that it died of.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from interp.errors import EngineError
from interp.sources.prompts import Prompt
from interp.spec.trace import TraceSpec

R = TypeVar("R")

logger = logging.getLogger(__name__)


Group = tuple[Prompt, ...]
"""Prompts that go to an actor together; most often one."""


@dataclass(frozen=True)
class Smaller:
    """Prompts that are traced with a part of their budget: halved so many times."""

    prompts: Group
    halvings: int


Item = Group | Smaller
"""What an actor is given."""


def smaller(item: Item) -> Smaller:
    """What is tried in place of prompts whose worker died."""
    return Smaller(item.prompts, item.halvings + 1) if isinstance(item, Smaller) else Smaller(item, 1)


def halved(spec: TraceSpec, halvings: int) -> TraceSpec:
    """A trace with a part of its budget."""
    parts = 2**halvings
    return spec.model_copy(update={"memory": max(1, spec.memory // parts), "batch": max(1, spec.batch // parts)})


def within_memory(spec: TraceSpec, halvings: int, work: Callable[[TraceSpec], R]) -> R:
    """Do the work; where memory runs out, once more with half as much.

    Raises:
        EngineError: there is no memory for it, whatever its budget.
    """
    try:
        return _with_part(spec, halvings, work)
    except Exception as error:
        if not lacks_memory(error):
            raise
        logger.warning("memory ran out (%s): once more, with half of it", _first_line(error))
    # Here, where the error and all that its frames held is gone.
    _give_back()
    return _with_part(spec, halvings + 1, work)


def lacks_memory(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, says that memory could not be had."""
    from interp.circuits.rows import out_of_memory

    while error is not None:
        if out_of_memory(error):
            return True
        error = error.__cause__
    return False


def _with_part(spec: TraceSpec, halvings: int, work: Callable[[TraceSpec], R]) -> R:
    part = halved(spec, halvings)
    try:
        return work(part)
    except EngineError as error:
        if not halvings:
            raise
        raise EngineError(
            "memory ran out, and a smaller budget did not help",
            value=f"{error.what}, with a trace.memory of {part.memory} bytes",
            expected=f"a machine that has {spec.memory} bytes (trace.memory) for each actor, beside the model",
            remedy="let fewer actors share a machine, lower trace.max_features, or trace a shorter prompt",
        ) from error


def _give_back() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
