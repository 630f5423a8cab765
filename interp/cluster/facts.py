"""What the documents of a run's objects say about why it does not get on: pods, events, Workloads, the RayJob.

Each finding is a `Fact`: where it stands, the word that Kubernetes uses for it, and its message; what each means is in
`interp.cluster.events`. Pure functions over the API's own dicts, none of which need be complete.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

Document = Mapping[str, Any]
Where = Literal["job", "pod", "scheduling", "waiting", "terminated", "creation", "volume", "workload", "driver", "seen"]


@dataclass(frozen=True)
class Fact:
    """One finding.

    Attributes:
        where: kind of document that it was read from; `seen` is what an onlooker finds (somebody is silent).
        reason: the word for it, such as `ErrImagePull`.
        about: the pod, or other object, that it is about.
        image: of the container that it is about.
    """

    where: Where
    reason: str
    message: str = ""
    about: str = ""
    image: str = ""


def job_facts(job: Document | None) -> Iterator[Fact]:
    """Why KubeRay gave a RayJob up."""
    status = (job or {}).get("status") or {}
    deployment, name = status.get("jobDeploymentStatus", ""), name_of(job or {})
    reason = status.get("reason") or ("ValidationFailed" if deployment == "ValidationFailed" else "")
    if deployment in ("Failed", "ValidationFailed", "Retrying") and reason:
        yield Fact("job", reason, status.get("message") or "", name)


def pod_facts(pods: Iterable[Document]) -> Iterator[Fact]:
    """What pods and their containers wait for or died of."""
    for pod in pods:
        name, status = name_of(pod), pod.get("status") or {}
        if status.get("reason"):
            yield Fact("pod", status["reason"], status.get("message") or "", name)
        for condition in status.get("conditions") or ():
            if condition.get("type") == "DisruptionTarget" and condition.get("status") == "True":
                yield Fact("pod", condition.get("reason") or "DisruptionTarget", condition.get("message") or "", name)
            if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
                yield Fact("scheduling", condition.get("reason") or "", condition.get("message") or "", name)
        for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
            yield from _container_facts(name, container)


def _container_facts(pod: str, container: Document) -> Iterator[Fact]:
    image, current = container.get("image") or "", container.get("state") or {}
    if waiting := current.get("waiting"):
        yield Fact("waiting", waiting.get("reason") or "", waiting.get("message") or "", pod, image)
    for state in (current, container.get("lastState") or {}):
        ended = state.get("terminated")
        if ended and (ended.get("exitCode") or ended.get("reason") not in (None, "Completed")):
            message = ended.get("message") or f"exit code {ended.get('exitCode')}"
            yield Fact("terminated", ended.get("reason") or "Error", message, pod, image)


_EVENTS: Mapping[str, Where] = {
    "FailedScheduling": "scheduling",
    "FailedMount": "volume",
    "FailedAttachVolume": "volume",
    "Evicted": "pod",
    "Preempted": "pod",
}


def event_facts(events: Iterable[Document]) -> Iterator[Fact]:
    """What happened lately, the latest first; what went well is no finding."""
    for event in sorted(events, key=when, reverse=True):
        reason, message = event.get("reason") or "", event.get("message") or event.get("note") or ""
        about = (event.get("involvedObject") or event.get("regarding") or {}).get("name", "")
        if event.get("type") == "Normal" and reason not in ("Preempted", "Evicted"):
            continue
        if reason in _EVENTS:
            yield Fact(_EVENTS[reason], reason, message, about)
        elif reason.startswith("FailedCreate") or reason.startswith("FailedToCreate"):
            yield Fact("creation", reason, message, about)
        elif reason in ("Failed", "InspectFailed", "ErrImageNeverPull") and "image" in message.lower():
            yield Fact("waiting", "ErrImagePull", message, about)


def when(event: Document) -> str:
    """The time at which it was last seen."""
    series = event.get("series") or {}
    found = series.get("lastObservedTime") or event.get("lastTimestamp") or event.get("eventTime")
    return str(found or event.get("firstTimestamp") or "")


def workload_facts(workloads: Iterable[Document]) -> Iterator[Fact]:
    """Why Kueue does not let a run begin, or took its place away."""
    for workload in workloads:
        name, found = name_of(workload), conditions(workload)
        if is_true(found.get("Admitted")):
            continue
        evicted = found.get("Evicted")
        if is_true(evicted) and evicted is not None and evicted.get("reason") != "Deactivated":
            yield Fact("workload", evicted.get("reason") or "Evicted", evicted.get("message") or "", name)
        if (workload.get("spec") or {}).get("active") is False:
            yield Fact("workload", "Deactivated", (evicted or {}).get("message") or "", name)
        reserved = found.get("QuotaReserved")
        if reserved is not None and not is_true(reserved):
            yield Fact("workload", reserved.get("reason") or "Pending", reserved.get("message") or "", name)
        for check in (workload.get("status") or {}).get("admissionChecks") or ():
            if check.get("state") in ("Retry", "Rejected"):
                message = f"{check.get('name')}: {check.get('message') or check['state']}"
                yield Fact("workload", "AdmissionCheck", message, name)
        if not found:
            yield Fact("workload", "Pending", "Kueue has not looked at it yet", name)


def pending(pods: Sequence[Document]) -> list[Document]:
    """Pods that have not begun, and that nobody is removing."""
    return [
        pod
        for pod in pods
        if (pod.get("status") or {}).get("phase") == "Pending" and not pod["metadata"].get("deletionTimestamp")
    ]


def conditions(document: Document) -> dict[str, Document]:
    """By type."""
    return {one.get("type", ""): one for one in (document.get("status") or {}).get("conditions") or ()}


def is_true(condition: Document | None) -> bool:
    return condition is not None and condition.get("status") == "True"


def name_of(document: Document) -> str:
    return str((document.get("metadata") or {}).get("name", ""))


def time_of(text: str | None) -> datetime | None:
    """An RFC 3339 time; None where there is none or it is not one."""
    try:
        found = datetime.fromisoformat(text) if text else None
    except ValueError:
        return None
    return found if found is not None and found.tzinfo else None
