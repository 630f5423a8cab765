"""Sweeps: a list where a dictionary has one number makes one dictionary of each value, trained from one forward pass.

    {name: mlp, ..., activation: {type: topk, k: [32, 64]}, expansion: [8, 32]}
    -> mlp-k32-x8, mlp-k32-x32, mlp-k64-x8, mlp-k64-x32

Lists may stand at the keys of `SWEPT`; several make every combination, the first key varying slowest. The names tell
the values: `-k32`, `-l1-0p5`, `-l0-0p5`, `-x8`, `-n4096`, with `p` for the point and 4K written out. A list of one
value names it too, so that a sweep can be cut down to a value without another name for what remains.

It is done on plain data, before validation: what follows knows dictionaries of one value each, and a study that is
written out (a plan, `study.yaml`) is the expanded one. `Sweep.path` leads back to where the user wrote something.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from interp.spec.base import parse_quantity

Path = tuple[str | int, ...]

SWEPT: Mapping[Path, str] = {
    ("activation", "k"): "k",
    ("activation", "l1"): "l1-",
    ("activation", "l0"): "l0-",
    ("expansion",): "x",
    ("latents",): "n",
}
"""Where a list may stand in a dictionary, and what stands before its value in the name."""

LONGEST_NAME = 100
"""Characters; folders have these names."""


@dataclass(frozen=True)
class Origin:
    """Where an expanded dictionary comes from.

    Attributes:
        index: of the user's dictionary.
        name: that it has there.
        values: which value of the list at each swept key.
    """

    index: int
    name: Any
    values: Mapping[Path, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Sweep:
    """A study's data without lists of values, and what is wrong with those that it had."""

    data: Any
    origins: tuple[Origin, ...] = ()
    problems: tuple[tuple[Path, str], ...] = ()

    def origin(self, path: Path) -> Origin | None:
        """Of the swept dictionary that a path of the expanded data leads into; None: it leads into none."""
        if len(path) < 2 or path[0] != "dictionaries" or not isinstance(path[1], int) or path[1] >= len(self.origins):
            return None
        return self.origins[path[1]]

    def path(self, path: Path, *, key: bool = False) -> Path:
        """The user's path to what is at `path` of the expanded data.

        Args:
            key: it is about the key, not about its value, which may be one of a list.
        """
        origin = self.origin(path)
        if origin is None:
            return path
        below = path[2:]
        value = () if key else tuple(index for at, index in origin.values.items() if at == below)
        return ("dictionaries", origin.index, *below, *value)


def expand(data: Any) -> Sweep:
    """One dictionary of each combination of values. What is no sweep stays as it is, whatever it is."""
    listed = data.get("dictionaries") if isinstance(data, Mapping) else None
    if not isinstance(listed, list | tuple) or not any(_lists(one) for one in listed):
        return Sweep(data)
    expanded: list[Any] = []
    origins: list[Origin] = []
    problems: dict[Path, str] = {}
    for index, one in enumerate(listed):
        lists = _lists(one)
        problems |= {("dictionaries", index, *at): what for at, what in _wrong(lists)}
        # An empty list stays where it is, and of equal values the first: their problem is told once.
        chosen = {at: _different(values) for at, values in lists.items() if values}
        for numbers in product(*chosen.values()):
            values = dict(zip(chosen, numbers, strict=True))
            made = _with(one, {at: lists[at][number] for at, number in values.items()}) if lists else one
            if lists and isinstance(made.get("name"), str) and len(made["name"]) > LONGEST_NAME:
                problems["dictionaries", index, "name"] = _too_long(made["name"])
            expanded.append(made)
            origins.append(Origin(index, one.get("name") if lists else None, values))
    return Sweep({**data, "dictionaries": expanded}, tuple(origins), tuple(problems.items()))


def _lists(dictionary: Any) -> dict[Path, Sequence[Any]]:
    """The lists of a trained dictionary, by where they stand."""
    if not isinstance(dictionary, Mapping) or {"from", "source"} & set(dictionary):
        return {}
    found = {at: _at(dictionary, at) for at in SWEPT}
    return {at: value for at, value in found.items() if isinstance(value, list | tuple)}


def _at(dictionary: Mapping[str, Any], path: Path) -> Any:
    value: Any = dictionary
    for step in path:
        value = value.get(step) if isinstance(value, Mapping) else None
    return value


def _with(dictionary: Mapping[str, Any], values: Mapping[Path, Any]) -> dict[str, Any]:
    made = dict(dictionary)
    for at, value in values.items():
        if len(at) == 1:
            made[str(at[0])] = value
        else:
            made[str(at[0])] = {**made[str(at[0])], at[1]: value}
    if isinstance(made.get("name"), str):
        made["name"] += "".join(f"-{SWEPT[at]}{spelled(value)}" for at, value in values.items())
    return made


def spelled(value: Any) -> str:
    """A value in a name: 32, 0p5, 1e-06, 4096 (of 4.096K). What is no number is refused later; it needs some name."""
    number = _number(value)
    if number is None:
        return "invalid"
    return (str(int(number)) if number == int(number) and abs(number) < 1e15 else repr(number)).replace(".", "p")


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        number = float(parse_quantity(value))
    except (TypeError, ValueError):
        return None
    return number if abs(number) < float("inf") else None


def _wrong(lists: Mapping[Path, Sequence[Any]]) -> Iterator[tuple[Path, str]]:
    for at, values in lists.items():
        if not values:
            yield at, "an empty list makes no dictionary: give one value or several"
        for index in sorted(set(range(len(values))) - set(_different(values))):
            nested = isinstance(values[index], list | tuple)
            what = (
                "a value belongs here, not a list" if nested else f"the value stands twice in the list: {values[index]}"
            )
            yield (*at, index), what


def _different(values: Sequence[Any]) -> list[int]:
    """Which values to take: of equal numbers the first, and no lists."""
    numbers = [_number(value) for value in values]
    single = (i for i, value in enumerate(values) if not isinstance(value, list | tuple))
    return [i for i in single if numbers[i] is None or numbers[i] not in numbers[:i]]


def _too_long(name: str) -> str:
    return f"{name!r} would be one of the names, of {len(name)} characters; at most {LONGEST_NAME}: take a shorter name"
