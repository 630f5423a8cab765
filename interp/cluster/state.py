"""How a run is: what the RayJob, its pods, the queue, the driver's last word and the store say, as one `RunState`.

    phase       queued -> starting -> running -> succeeded | failed       (retrying: a new cluster after a failure)
                stopping: being removed; cancelled: by `interp cancel`; suspended, gone: by somebody else;
                unknown: the cluster cannot be asked, and the store does not know
    stages      by manifest where the store has one, else by what the driver last said

Pure: `interp.cluster.look` asks for the documents.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from interp.cluster.events import Reason, reason_of
from interp.cluster.facts import (
    Document,
    Fact,
    event_facts,
    job_facts,
    pending,
    pod_facts,
    time_of,
    when,
    workload_facts,
)

Phase = Literal[
    "queued",
    "suspended",
    "starting",
    "running",
    "retrying",
    "stopping",
    "succeeded",
    "failed",
    "cancelled",
    "gone",
    "unsubmitted",
    "unknown",
]
ENDED: tuple[Phase, ...] = ("succeeded", "failed", "cancelled", "gone", "unsubmitted")
"""Nothing goes on by itself; all but `succeeded` can be resumed."""

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
SILENT_S = 60.0
"""The driver writes at least every few seconds; after so long without a word something is the matter."""
RECENT_S = 300.0
"""While a run runs, a pod that could not be created is told of for so long after it was last tried."""


@dataclass(frozen=True)
class StageState:
    """One stage of a run.

    Attributes:
        state: waiting, running, done, cached, failed, or `not needed` (kept activations whose dictionaries are there).
        step: what it is doing.
        figures: `done`, `total`, `unit`, `rate` and what it measures.
        url: where its artifact is, or will be.
    """

    stage: str
    key: str
    state: str
    step: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    url: str = ""


@dataclass(frozen=True)
class RunState:
    """A run, as everything that is known of it says.

    Attributes:
        told: KubeRay's own words: jobDeploymentStatus and reason.
        error: the driver's own, `{"kind", "message"}`.
        store: its URL; None where it is not known.
        dashboard: Ray's, inside the cluster.
    """

    run: str
    study: str
    phase: Phase
    stages: tuple[StageState, ...]
    reason: Reason | None = None
    error: Mapping[str, Any] | None = None
    told: str = ""
    attempt: int = 0
    submitted: str = ""
    updated: str = ""
    namespace: str = ""
    store: str | None = None
    dashboard: str = ""

    @property
    def ended(self) -> bool:
        return self.phase in ENDED

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "ended": self.ended}


@dataclass(frozen=True)
class Found:
    """The documents of one run; each may be missing.

    Attributes:
        there: keys of its stages that the store has a manifest of; None if it was not asked.
        record: run.json; status: status.json; cancelled: whether cancel.json is there.
        store_error, cluster_error: that they could not be asked, in the words of whoever refused.
        missed: there is a cluster, and this one question it did not answer.
        denied: what the cluster does not let us see, in its words.
    """

    run: str
    job: Document | None = None
    pods: Sequence[Document] = ()
    events: Sequence[Document] = ()
    workloads: Sequence[Document] = ()
    record: Document | None = None
    status: Document | None = None
    cancelled: bool = False
    there: Collection[str] | None = None
    store: str | None = None
    store_error: str | None = None
    cluster_error: str | None = None
    missed: bool = False
    denied: Sequence[str] = ()


def state_of(found: Found, now: datetime | None = None) -> RunState:
    """What all of it comes to."""
    now = now or datetime.now(UTC)
    status = _current(found)
    phase = phase_of(found, status, now)
    job_status, metadata = (found.job or {}).get("status") or {}, (found.job or {}).get("metadata") or {}
    record = found.record or {}
    words = (job_status.get("jobDeploymentStatus", ""), job_status.get("reason", ""))
    return RunState(
        run=found.run,
        study=record.get("study") or (metadata.get("labels") or {}).get("interp.dev/study", ""),
        phase=phase,
        stages=tuple(_stages(found, phase, found.status)),
        reason=None if phase in ("succeeded", "cancelled") else reason_of(_facts(found, status, phase, now), found.run),
        error=(status or {}).get("error"),
        told=" ".join(word for word in words if word),
        attempt=(status or {}).get("attempt", 0),
        submitted=record.get("submitted", "") or metadata.get("creationTimestamp", ""),
        updated=(status or {}).get("updated", ""),
        namespace=metadata.get("namespace") or record.get("namespace", ""),
        store=found.store,
        dashboard=job_status.get("dashboardURL", ""),
    )


def phase_of(found: Found, status: Document | None, now: datetime) -> Phase:
    """The RayJob decides while it is there; the driver's last word when it is not."""
    if found.job is None:
        return _phase_without_job(found, status, now)
    job, said = found.job, found.job.get("status") or {}
    deployment, outcome = said.get("jobDeploymentStatus", ""), said.get("jobStatus", "")
    if outcome == "SUCCEEDED" and deployment in ("Complete", "Running"):
        return "succeeded" if deployment == "Complete" else "running"
    if deployment in ("Complete", "Failed", "ValidationFailed"):
        return "cancelled" if found.cancelled else "failed"
    if job["metadata"].get("deletionTimestamp"):
        return "stopping"
    if deployment == "Retrying":
        return "retrying"
    if (job.get("spec") or {}).get("suspend") or deployment in ("Suspending", "Suspended"):
        return "queued" if _queue(job) else "suspended"
    if deployment == "Running" and outcome in ("RUNNING", "STOPPED", "FAILED"):
        return "running"
    return "retrying" if said.get("failed") else "starting"


def _phase_without_job(found: Found, status: Document | None, now: datetime) -> Phase:
    last = (status or {}).get("state", "")
    if last == "succeeded":
        return "succeeded"
    if found.cancelled:
        return "cancelled"
    if last == "failed":
        # KubeRay may be trying again: a cluster that will answer in a moment says so.
        return "unknown" if found.missed else "failed"
    quiet = _seconds((status or {}).get("updated"), now)
    if last == "running" and quiet is not None and quiet <= SILENT_S:
        return "running"
    if found.cluster_error is not None:
        return "unknown"
    return "unsubmitted" if status is None else "gone"


def _current(found: Found) -> Document | None:
    """The driver's last word, unless it is about an earlier RayJob of this run."""
    if found.status is None:
        return None
    token, said = (found.record or {}).get("token"), found.status.get("token")
    if token and said:
        return found.status if token == said else None
    if found.job is None:
        return found.status
    created = time_of((found.job["metadata"]).get("creationTimestamp"))
    updated = time_of(found.status.get("updated"))
    return None if created and updated and updated < created else found.status


def _stages(found: Found, phase: Phase, status: Document | None) -> Iterator[StageState]:
    told = {stage.get("stage"): stage for stage in (status or {}).get("stages") or ()}
    planned = (found.record or {}).get("stages") or list(told.values())
    there = {stage["stage"] for stage in planned if stage["key"] in (found.there or ())}
    for stage in planned:
        said = told.get(stage["stage"]) or {}
        if said.get("key") not in (None, stage["key"]):
            said = {}
        yield StageState(
            stage["stage"],
            stage["key"],
            _stage_state(stage, said.get("state", "waiting"), there, found, phase),
            said.get("step") or "",
            said.get("figures") or {},
            said.get("seconds") or 0.0,
            said.get("url") or "",
        )


def _stage_state(stage: Document, said: str, there: Collection[str], found: Found, phase: Phase) -> str:
    if stage["stage"] in there:
        return "cached" if stage.get("cached") or said == "cached" else "done"
    if stage["stage"] == "activations" and "fit" in there:
        return "not needed"
    if said in ("done", "cached") and found.there is not None:
        return "removed"  # the driver made it, and the store has it no more
    if said == "running" and phase not in ("running", "retrying", "stopping"):
        return "failed" if phase == "failed" else "waiting"
    return said


def _facts(found: Found, status: Document | None, phase: Phase, now: datetime) -> Iterator[Fact]:
    error = (status or {}).get("error")
    yield from job_facts(found.job)
    if phase == "failed" and error:
        # The driver said why; a worker that still waits for a node when all is over did not cause it.
        yield from pod_facts([pod for pod in found.pods if pod not in pending(found.pods)])
    else:
        yield from pod_facts(found.pods)
        yield from event_facts(_of_now(found, phase, now))
    if phase in ("queued", "suspended"):
        yield from workload_facts(found.workloads)
    if error and phase in ("failed", "retrying", "starting", "stopping"):
        yield Fact("driver", error.get("kind") or "", error.get("message") or "", found.run)
    yield from _silences(found, status, phase, now)


def _of_now(found: Found, phase: Phase, now: datetime) -> Iterator[Document]:
    """What happened to a pod that runs by now is over, and so are creations that were refused before the run began."""
    waiting = {pod["metadata"]["name"] for pod in pending(found.pods)}
    begun = {pod["metadata"]["name"] for pod in found.pods} - waiting
    for event in found.events:
        about = (event.get("involvedObject") or event.get("regarding") or {}).get("name", "")
        age = _seconds(when(event), now)
        if about in waiting or (about not in begun and (phase != "running" or age is None or age < RECENT_S)):
            yield event


def _silences(found: Found, status: Document | None, phase: Phase, now: datetime) -> Iterator[Fact]:
    """What one sees by nobody saying anything, or by not being able to ask."""
    if found.cluster_error is not None:
        yield Fact("seen", "ClusterUnreachable", found.cluster_error)
    if found.denied:
        yield Fact("seen", "NotAllowed", "; ".join(found.denied))
    if phase == "gone":
        yield Fact("seen", "Gone", f"the driver's last word was at {(status or {}).get('updated', 'no time')}")
    if found.job is None and found.cluster_error is None and phase == "running":
        yield Fact("seen", "Elsewhere", f"its last word was at {(status or {}).get('updated')}")
    if found.job is None and phase == "unknown" and (status or {}).get("state") == "running":
        yield Fact("seen", "DriverSilent", f"its last word was at {(status or {}).get('updated', 'no time')}")
    if found.job is not None and found.store_error is None:
        begun = ((found.job.get("status") or {}).get("rayJobInfo") or {}).get("startTime")
        quiet = _seconds((status or {}).get("updated") or begun, now)
        if phase == "running" and quiet is not None and quiet > SILENT_S:
            yield Fact("seen", "DriverSilent", f"its last word was {quiet:.0f} s ago; it writes every few seconds")
    if found.job is not None and phase in ("starting", "queued"):
        age = _seconds(found.job["metadata"].get("creationTimestamp"), now)
        told = (found.job.get("status") or {}).get("jobDeploymentStatus")
        if phase == "starting" and not told and age is not None and age > SILENT_S:
            yield Fact("seen", "OperatorSilent", f"the RayJob was made {age:.0f} s ago and has no status")
        if phase == "queued" and not found.workloads and age is not None and age > SILENT_S:
            yield Fact("seen", "QueueSilent", f"the RayJob has waited for {age:.0f} s; it has no Workload")
    if found.store_error is not None:
        yield Fact("seen", "StoreUnreachable", found.store_error)


def _queue(job: Document) -> str:
    return str((job["metadata"].get("labels") or {}).get(QUEUE_LABEL, ""))


def _seconds(since: str | None, now: datetime) -> float | None:
    then = time_of(since)
    return None if then is None else (now - then).total_seconds()
