"""status.json of a run: the driver's last word on how far it is, for whoever asks from elsewhere.

    {"run", "state": "running" | "succeeded" | "failed" | "stopped", "attempt", "host", "pid", "started", "updated",
     "stages": [{"stage", "key", "state": "waiting" | "running" | "done" | "cached" | "failed", "step", "figures",
                 "seconds", "url"}],
     "error": null | {"kind", "message"}, "token"}

A driver writes it at every change of state, every two seconds while something moves, and every `HEARTBEAT_S` when
nothing does: a state `running` that was `updated` long ago is that of a driver that is gone. It is one object, so of
several attempts the latest is told of. Times are UTC, ISO 8601. Readers pass over fields that they do not know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from interp.errors import StoreError

if TYPE_CHECKING:
    from interp.store.runs import RunFolder

STATUS = "status.json"
HEARTBEAT_S = 15.0

RunState = Literal["running", "succeeded", "failed", "stopped"]
StageState = Literal["waiting", "running", "done", "cached", "failed"]

CANCELLED, TERMINATED = "Cancelled", "Terminated"
"""Kinds of `error` of a run that was stopped: by `interp cancel`, and by a signal."""


@dataclass(frozen=True)
class StageStatus:
    """How far one stage is.

    Attributes:
        step: what it is at; of one that waits for another driver, for whom.
        figures: headline numbers by name: `done`, `total`, `unit`, `rate`, `fvu`, `graphs`, ...
        seconds: since it began, or that it took.
        url: where its artifact is, once it is there.
    """

    stage: str
    key: str
    state: StageState = "waiting"
    step: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    url: str = ""


@dataclass(frozen=True)
class RunError:
    """Why a run ended without its artifacts: the name of the error's class, and what it says."""

    kind: str
    message: str


@dataclass(frozen=True)
class RunStatus:
    """How a run goes.

    Attributes:
        token: that of run.json when this attempt began: it tells a run that was submitted or resumed anew.
    """

    run: str
    state: RunState
    attempt: int
    host: str
    pid: int
    started: str
    updated: str
    stages: tuple[StageStatus, ...] = ()
    error: RunError | None = None
    token: str = ""

    def stage(self, name: str) -> StageStatus | None:
        return next((stage for stage in self.stages if stage.stage == name), None)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "stages": [asdict(stage) for stage in self.stages]}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> RunStatus:
        """What `to_json` made, by this version of interp or a later one.

        Raises:
            StoreError: a field is missing or is something else.
        """
        error = _get(data, "", "error", (Mapping, type(None)), None)
        return RunStatus(
            run=_get(data, "", "run", str),
            state=cast(RunState, _one_of(RunState, data, "", "state")),
            attempt=_get(data, "", "attempt", int),
            host=_get(data, "", "host", str, ""),
            pid=_get(data, "", "pid", int, 0),
            started=_get(data, "", "started", str),
            updated=_get(data, "", "updated", str),
            stages=tuple(
                _stage(each, f"stages[{index}]") for index, each in enumerate(_get(data, "", "stages", Sequence, ()))
            ),
            error=None
            if error is None
            else RunError(_get(error, "error", "kind", str), _get(error, "error", "message", str, "")),
            token=_get(data, "", "token", str, ""),
        )

    @staticmethod
    def read(folder: RunFolder) -> RunStatus | None:
        """The status of a run; None when no driver has begun yet.

        Raises:
            StoreError: the file is damaged, or not of a driver of interp.
        """
        data = folder.json(STATUS)
        return None if data is None else RunStatus.from_json(data)


def _stage(data: Any, where: str) -> StageStatus:
    if not isinstance(data, Mapping):
        raise _not_a_status(where, data, "an object")
    return StageStatus(
        stage=_get(data, where, "stage", str),
        key=_get(data, where, "key", str),
        state=cast(StageState, _one_of(StageState, data, where, "state")),
        step=_get(data, where, "step", str, ""),
        figures=dict(_get(data, where, "figures", Mapping, {})),
        seconds=float(_get(data, where, "seconds", (int, float), 0.0)),
        url=_get(data, where, "url", str, ""),
    )


_REQUIRED: Any = object()


def _get(data: Mapping[str, Any], where: str, name: str, kind: Any, default: Any = _REQUIRED) -> Any:
    value = data.get(name, default)
    path = f"{where}.{name}".lstrip(".")
    kinds = kind if isinstance(kind, tuple) else (kind,)
    expected = " or ".join(_WORDS.get(each, each.__name__) for each in kinds)
    if value is _REQUIRED:
        raise _not_a_status(path, None, expected)
    if not isinstance(value, kinds) or isinstance(value, bool) or (kinds == (Sequence,) and isinstance(value, str)):
        raise _not_a_status(path, value, expected)
    return value


def _one_of(states: Any, data: Mapping[str, Any], where: str, name: str) -> str:
    value = _get(data, where, name, str)
    if value not in get_args(states):
        raise _not_a_status(f"{where}.{name}".lstrip("."), value, ", ".join(get_args(states)))
    return cast(str, value)


_WORDS: dict[Any, str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    Mapping: "an object",
    Sequence: "a list",
    type(None): "null",
}


def _not_a_status(path: str, value: object, expected: str) -> StoreError:
    return StoreError(
        f"this is no status of a run: {path} is {'missing' if value is None else 'something else'}",
        value=value,
        expected=expected,
        remedy=f"if another version of interp wrote it, use that one; otherwise delete the run's {STATUS}: the next "
        "attempt writes a new one",
    )
