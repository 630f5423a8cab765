"""A plan: the stages of a study in the order in which they run, each with its key, its inputs and its cost.

A plan is written as JSON and read back: a cluster job runs the very plan that was made elsewhere. Reading it checks
that every key is the key of its spec and that the stages have the versions of this `interp`; a difference is an error.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import ValidationError

from interp.errors import SpecError
from interp.plan.cost import Cost
from interp.plan.keys import stage_key
from interp.plan.specs import stage_of_input
from interp.plan.versions import VERSIONS, Stage
from interp.spec.study import Study

_FORMAT = "interp/plan/v1"


@dataclass(frozen=True)
class PlannedStage:
    """One artifact that is there or will be made.

    Attributes:
        spec: everything that decides the result; it becomes the manifest's.
        inputs: role -> key of the artifacts that it reads (`stage_of_input` names the stage of a role).
        cached: whether the store had it when the plan was made.
    """

    stage: Stage
    key: str
    version: int
    spec: dict[str, Any]
    inputs: dict[str, str]
    cached: bool
    cost: Cost

    def input_artifacts(self) -> dict[str, tuple[Stage, str]]:
        """role -> (stage, key)"""
        return {role: (stage_of_input(role), key) for role, key in self.inputs.items()}


@dataclass(frozen=True)
class Plan:
    """The stages of a study; the study's hub sources are pinned to commits."""

    study: Study
    stages: tuple[PlannedStage, ...]

    def stage(self, name: str) -> PlannedStage | None:
        """The stage of this name, if the study has it."""
        return next((stage for stage in self.stages if stage.stage == name), None)

    @property
    def to_do(self) -> tuple[PlannedStage, ...]:
        """What is not cached, and needed: activations are not once all that reads them is there."""
        return tuple(s for s in self.stages if not s.cached and self.is_needed(s, lambda reader: reader.cached))

    def is_needed(self, stage: PlannedStage, is_there: Callable[[PlannedStage], bool]) -> bool:
        """Whether a stage is made for its own sake, or for one that is not there yet. Kept activations are large, and
        are often removed when the dictionaries are trained."""
        if stage.stage != "activations":
            return True
        return any(not is_there(reader) for reader in self.stages if stage.key in reader.inputs.values())

    def to_json(self) -> str:
        """The plan as text, from which `from_json` makes an equal one."""
        study = self.study.model_dump(mode="json", by_alias=True)
        return json.dumps(
            {"format": _FORMAT, "study": study, "stages": [asdict(stage) for stage in self.stages]}, indent=2
        )

    @staticmethod
    def from_json(text: str) -> Plan:
        """The plan in a text that `to_json` wrote.

        Raises:
            SpecError: it is no plan, was changed, or another version of `interp` made it.
        """
        try:
            data = json.loads(text)
            if data["format"] != _FORMAT:
                raise ValueError(f"its format is {data['format']}")
            study = Study.model_validate(data["study"])
            stages = tuple(PlannedStage(**{**stage, "cost": Cost(**stage["cost"])}) for stage in data["stages"])
        except (ValueError, KeyError, TypeError, ValidationError) as error:
            raise SpecError(
                f"this is no plan: {error}", expected=_FORMAT, remedy="make it with `interp plan`"
            ) from error
        for stage in stages:
            _check(stage)
        return Plan(study, stages)


def _check(stage: PlannedStage) -> None:
    if VERSIONS.get(stage.stage) != stage.version:
        raise SpecError(
            f"the plan was made by another version of interp: its stage {stage.stage} would give another result",
            value=f"version {stage.version}",
            expected=f"version {VERSIONS.get(stage.stage)}",
            remedy="plan the study again with this version, or run it with the one that made the plan",
        )
    key = stage_key(stage.stage, stage.version, stage.spec, stage.inputs)
    if key != stage.key:
        raise SpecError(
            f"the plan was changed: the key of its stage {stage.stage} is not that of its spec",
            value=stage.key,
            expected=key,
            remedy="plan the study again",
        )
