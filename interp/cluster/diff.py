"""What differs between two plans: stage by stage the keys, and the fields of the specs that make them differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from interp.plan.plan import Plan, PlannedStage

ABSENT = "(absent)"


@dataclass(frozen=True)
class Field:
    """A dotted field and its values in the one plan and in the other; `(absent)` where it has none."""

    path: str
    now: Any
    then: Any


@dataclass(frozen=True)
class StageDifference:
    """One stage whose key differs, or that one of the plans does not have."""

    stage: str
    now: str | None
    then: str | None
    fields: tuple[Field, ...]


@dataclass(frozen=True)
class Difference:
    """Attributes:
    stages: those that would give another result.
    settings: fields of the studies that change no result: where and how it is computed.
    """

    stages: tuple[StageDifference, ...]
    settings: tuple[Field, ...]

    def to_json(self) -> dict[str, Any]:
        return {"equal": not self.stages, **asdict(self)}


def difference(now: Plan, then: Plan) -> Difference:
    """Of the study as it is now, and of a run."""
    names = dict.fromkeys(stage.stage for plan in (then, now) for stage in plan.stages)
    stages = tuple(
        StageDifference(name, _key(a), _key(b), tuple(_fields(_decisive(a), _decisive(b))))
        for name in names
        for a, b in [(now.stage(name), then.stage(name))]
        if _key(a) != _key(b)
    )
    study_now, study_then = (plan.study.model_dump(mode="json", by_alias=True) for plan in (now, then))
    return Difference(stages, () if stages else tuple(_fields(study_now, study_then)))


def _key(stage: PlannedStage | None) -> str | None:
    return None if stage is None else stage.key


def _decisive(stage: PlannedStage | None) -> dict[str, Any]:
    """All that the key is made of."""
    return {} if stage is None else {"version": stage.version, "inputs": stage.inputs, **stage.spec}


def _fields(now: Any, then: Any, path: str = "") -> Iterator[Field]:
    if now == then:
        return
    if isinstance(now, Mapping) and isinstance(then, Mapping):
        for name in dict.fromkeys([*then, *now]):
            yield from _fields(now.get(name, ABSENT), then.get(name, ABSENT), f"{path}.{name}".lstrip("."))
    elif isinstance(now, list | tuple) and isinstance(then, list | tuple):
        for index in range(max(len(now), len(then))):
            a, b = (values[index] if index < len(values) else ABSENT for values in (now, then))
            yield from _fields(a, b, f"{path}[{index}]")
    else:
        yield Field(path, now, then)
