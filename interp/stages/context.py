"""What a stage is given when it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from interp.engine.base import Engine, Progress
    from interp.plan import PlannedStage
    from interp.spec.study import Study
    from interp.store import Artifact, Store, Writer


def no_progress(step: str, /, **figures: Any) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True)
class StageContext:
    """The study, the stage of its plan that runs, and what it runs on.

    Attributes:
        earlier: the artifact that is made anew; what is finished in it need not be computed again.
    """

    study: Study
    stage: PlannedStage
    engine: Engine
    store: Store
    progress: Progress = no_progress
    earlier: Artifact | None = None


class StageModule(Protocol):
    """A module of `interp.stages`: reads its inputs by the names that the plan gives them, writes all files to `out`.

    `VERSION` is part of every key of the stage: it goes up when the same spec would give another result.
    """

    VERSION: int

    def run(self, context: StageContext, inputs: Mapping[str, Artifact], out: Writer) -> None: ...
