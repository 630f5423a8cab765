"""What containers of the double have written: lines with the time at which they came."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime

from kube_kinds import Object, Refused

Place = tuple[str, str, str]  # namespace, pod, container


@dataclass
class Written:
    lines: list[tuple[datetime, str]] = field(default_factory=list)
    ended: bool = False


class PodLogs:
    def __init__(self, changed: threading.Condition) -> None:
        self.changed = changed
        self._of: dict[Place, Written] = {}

    def write(self, place: Place, text: str, at: datetime | None = None) -> None:
        with self.changed:
            written = self._of.setdefault(place, Written())
            when = at or datetime.now(UTC)
            written.lines += [(when, line) for line in text.splitlines()]
            self.changed.notify_all()

    def end(self, place: Place) -> None:
        """The container is over: who follows its log comes to the end of it."""
        with self.changed:
            self._of.setdefault(place, Written()).ended = True
            self.changed.notify_all()

    def drop(self, namespace: str, pod: str) -> None:
        with self.changed:
            self._of = {place: written for place, written in self._of.items() if place[:2] != (namespace, pod)}
            self.changed.notify_all()

    def of(self, place: Place) -> Written:
        return self._of.get(place, Written())


def container_of(pod: Object, wanted: str | None) -> str:
    """The container whose log is asked for, or the API server's refusal."""
    name = pod["metadata"]["name"]
    spec = pod.get("spec", {})
    containers = [one["name"] for one in spec.get("containers", ())]
    first = [one["name"] for one in spec.get("initContainers", ())]
    if wanted is None:
        default = (pod["metadata"].get("annotations") or {}).get("kubectl.kubernetes.io/default-container")
        if len(containers) == 1 or default in containers:
            return default if default in containers else containers[0]
        raise Refused(
            400,
            "BadRequest",
            f"a container name must be specified for pod {name}, choose one of: [{' '.join(containers)}]"
            + (f" or one of the init containers: [{' '.join(first)}]" if first else ""),
        )
    if wanted not in containers + first:
        raise Refused(400, "BadRequest", f"container {wanted} is not valid for pod {name}")
    return wanted


def require_started(pod: Object, container: str, written: Written) -> None:
    """A container that waits has no log: the kubelet says what it waits for."""
    name = pod["metadata"]["name"]
    status = pod.get("status", {})
    state = next((one for one in status.get("containerStatuses", ()) if one["name"] == container), None)
    waiting = (state or {}).get("state", {}).get("waiting")
    if written.lines or (state is not None and waiting is None) or (state is None and status.get("phase") != "Pending"):
        return
    reason = (waiting or {}).get("reason", "ContainerCreating")
    trouble = {"ErrImagePull": "image can't be pulled", "ImagePullBackOff": "trying and failing to pull image"}
    raise Refused(
        400,
        "BadRequest",
        f'container "{container}" in pod "{name}" is waiting to start: {trouble.get(reason, reason)}',
    )


def seconds_of(text: str) -> datetime:
    """A sinceTime: what the API server passes on to the kubelet has whole seconds only."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC).replace(microsecond=0)
    except ValueError as error:
        raise Refused(400, "BadRequest", f"invalid sinceTime: {text!r}") from error


def stamped(when: datetime, line: str) -> str:
    return f"{when.strftime('%Y-%m-%dT%H:%M:%S.%f')}000Z {line}"
