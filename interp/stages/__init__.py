"""The stages of a study, one page each: `VERSION` and `run(context, inputs, out)`.

A stage's module is loaded when the stage is run, so that naming the stages costs neither torch nor ray.
"""

from __future__ import annotations

from importlib import import_module
from typing import cast

from interp.errors import InterpError
from interp.stages.context import StageModule

STAGES: dict[str, str] = {
    "corpus": "interp.stages.corpus",
    "activations": "interp.stages.activations",
    "fit": "interp.stages.fit",
    "evaluate": "interp.stages.evaluate",
    "trace": "interp.stages.trace",
}


def load_stage(name: str) -> StageModule:
    """The module of a stage."""
    if name not in STAGES:
        raise InterpError("there is no such stage", value=name, expected=f"one of {', '.join(STAGES)}")
    return cast(StageModule, import_module(STAGES[name]))
