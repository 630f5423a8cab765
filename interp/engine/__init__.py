"""Where the work is done: in this process, or as processes of Ray. See `interp.engine.base` for the contract."""

from __future__ import annotations

from typing import Any, Literal

from interp.engine.base import Device, Engine, Outcome, Progress, WorkerSpec
from interp.engine.lazy import LazyEngine
from interp.errors import EngineError

__all__ = ["Device", "Engine", "EngineName", "LazyEngine", "Outcome", "Progress", "WorkerSpec", "open_engine"]

EngineName = Literal["ray", "inprocess"]


def open_engine(name: EngineName | str = "ray", **options: Any) -> Engine:
    """Open an engine; `options` are those of `interp.engine.ray.engine.RayEngine` (`cpus`, `gpus`, ...).

    Raises:
        EngineError: there is no engine of that name, or Ray does not start.
    """
    if name == "inprocess":
        from interp.engine.local import InProcess

        return InProcess()
    if name == "ray":
        from interp.engine.ray.engine import RayEngine

        return RayEngine(**options)
    raise EngineError("there is no such engine", value=name, expected="ray or inprocess")
