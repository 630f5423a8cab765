"""Why a run waits or has failed, and what to do: documents as clusters give them -> one reason and its next step."""

# ruff: noqa: E501 - a case is a row
from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from interp.cluster.events import ROWS
from interp.cluster.state import Found, RunState, state_of

RUN = "tiny-0123abcd"
NOW = datetime(2026, 11, 21, 20, 0, 0, tzinfo=UTC)
KEYS = {"corpus": "c" * 64, "fit": "f" * 64, "trace": "a" * 64}


def at(seconds: float) -> str:
    """So long ago."""
    return (NOW - timedelta(seconds=seconds)).isoformat()


def job(deployment: str = "", outcome: str = "", **more: Any) -> dict[str, Any]:
    queue = {"kueue.x-k8s.io/queue-name": "team"} if more.pop("queue", False) else {}
    metadata = {"name": RUN, "namespace": "interp", "creationTimestamp": at(more.pop("age", 30)), "labels": queue}
    if more.pop("deleted", False):
        metadata["deletionTimestamp"] = at(1)
    said = {"jobDeploymentStatus": deployment, "jobStatus": outcome, **more.pop("status", {})}
    return {"metadata": metadata, "spec": more, "status": {name: value for name, value in said.items() if value}}


STARTING = job("Initializing")
RUNNING = job("Running", "RUNNING", age=600)


def failed(reason: str, message: str = "", deployment: str = "Failed") -> dict[str, Any]:
    return job(deployment, "FAILED", status={"reason": reason, "message": message})


def pod(name: str = "gpu-1", phase: str = "Pending", **status: Any) -> dict[str, Any]:
    return {"metadata": {"name": name}, "status": {"phase": phase, **status}}


def waits(reason: str, message: str = "", image: str = "registry.example/interp:1") -> dict[str, Any]:
    state = {"waiting": {"reason": reason, "message": message}}
    return pod("head-x", containerStatuses=[{"name": "ray-head", "image": image, "state": state}])


def unscheduled(message: str) -> dict[str, Any]:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    return pod(conditions=[condition])


def died(reason: str, last: bool = True) -> dict[str, Any]:
    ended = {"terminated": {"exitCode": 137, "reason": reason}}
    states = {"state": {"running": {}}, "lastState": ended} if last else {"state": ended}
    return pod("gpu-2", "Running", containerStatuses=[{"name": "ray-worker", "image": "i", **states}])


def event(reason: str, message: str, about: str = RUN, age: float = 5, kind: str = "Warning") -> dict[str, Any]:
    return {
        "type": kind,
        "reason": reason,
        "message": message,
        "lastTimestamp": at(age),
        "involvedObject": {"name": about},
    }


def workload(reason: str, message: str, kind: str = "QuotaReserved", status: str = "False") -> dict[str, Any]:
    condition = {"type": kind, "status": status, "reason": reason, "message": message}
    return {"metadata": {"name": "rayjob-x"}, "spec": {}, "status": {"conditions": [condition]}}


def driver(state: str = "running", kind: str = "", message: str = "", age: float = 1, **more: Any) -> dict[str, Any]:
    error = {"kind": kind, "message": message} if kind else None
    return {"run": RUN, "state": state, "attempt": 1, "updated": at(age), "stages": [], "error": error, **more}


def told(**documents: Any) -> RunState:
    return state_of(Found(RUN, **documents), NOW)


GPU = "0/3 nodes are available: 1 node(s) had untolerated taint {nvidia.com/gpu: }, 2 Insufficient nvidia.com/gpu."
QUOTA = 'pods "x-head" is forbidden: exceeded quota: team-quota, requested: limits.memory=16G, used: limits.memory=90G'

CASES: list[tuple[str, dict[str, Any], str, str, str]] = [
    # what it is, documents, phase, kind, a part of the next step
    ("image", {"job": STARTING, "pods": [waits("ErrImagePull", "not found")]}, "starting", "image", "`image`"),
    ("back-off", {"job": STARTING, "pods": [waits("ImagePullBackOff")]}, "starting", "image", "image_pull_secrets"),
    ("bad name", {"job": STARTING, "pods": [waits("InvalidImageName")]}, "starting", "image", f"interp resume {RUN}"),
    ("image event", {"job": STARTING, "pods": [pod()], "events": [event("Failed", 'Failed to pull image "i"', "gpu-1")]},
     "starting", "image", "was pushed"),
    ("image, then time", {"job": failed("PreRunningDeadlineExceeded"), "pods": [waits("ImagePullBackOff")]},
     "failed", "image", "`image`"),
    ("gpu", {"job": RUNNING, "pods": [unscheduled(GPU)], "status": driver()}, "running", "no-gpu", "gpu_resource"),
    ("gpu event", {"job": RUNNING, "pods": [pod()], "status": driver(),
                   "events": [event("FailedScheduling", GPU, "gpu-1")]}, "running", "no-gpu", "wait for others"),
    ("failed while a worker waits", {"job": failed("AppFailed", "exit code 1"), "pods": [unscheduled(GPU)],
                                     "status": driver("failed", "RuntimeError", "CUDA error")},
     "failed", "app", f"interp logs {RUN}"),
    ("cpu", {"job": STARTING, "pods": [unscheduled("0/2 nodes are available: 2 Insufficient cpu.")]},
     "starting", "no-cpu", "lower `cpus`"),
    ("memory", {"job": STARTING, "pods": [unscheduled("0/2 nodes: 1 Insufficient cpu, 2 Insufficient memory.")]},
     "starting", "no-memory", "lower `memory`"),
    ("disk", {"job": STARTING, "pods": [unscheduled("0/2 nodes: 2 Insufficient ephemeral-storage.")]},
     "starting", "no-storage", "cache.size"),
    ("taint", {"job": STARTING, "pods": [unscheduled("0/2 nodes: 2 node(s) had untolerated taint {team: vision}.")]},
     "starting", "tainted", "toleration of team"),
    ("labels", {"job": STARTING, "pods": [unscheduled("0/2 nodes: 2 node(s) didn't match Pod's node affinity/selector.")]},
     "starting", "no-node", "node_selector"),
    ("elsewise", {"job": STARTING, "pods": [unscheduled("0/2 nodes: 2 node(s) were unschedulable.")]},
     "starting", "unscheduled", "kubectl describe pod gpu-1"),
    ("claim", {"job": STARTING, "pods": [unscheduled("pod has unbound immediate PersistentVolumeClaims.")]},
     "starting", "volume", "cache.claim"),
    ("no claim", {"job": STARTING, "pods": [unscheduled('persistentvolumeclaim "cache" not found')]},
     "starting", "volume", "cache.claim"),
    ("mount", {"job": STARTING, "pods": [pod()], "events": [event("FailedMount", "MountVolume.SetUp failed", "gpu-1")]},
     "starting", "volume", "kubectl describe pod gpu-1"),
    ("quota", {"job": STARTING, "events": [event("FailedCreate", QUOTA)]}, "starting", "quota", "larger quota"),
    ("quota of workers", {"job": RUNNING, "status": driver(), "events": [event("FailedToCreateWorkerPod", QUOTA)]},
     "running", "quota", "larger quota"),
    ("limits", {"job": STARTING, "events": [event("FailedCreate", "maximum memory usage per Container is 8Gi")]},
     "starting", "limits", "lower cpus or memory"),
    ("security", {"job": STARTING, "events": [event("FailedCreate", 'violates PodSecurity "restricted:latest": x')]},
     "starting", "pod-security", "pod-security labels"),
    ("account", {"job": STARTING, "events": [event("FailedCreate", 'error looking up service account i/w: serviceaccount '
                                                                   '"w" not found')]},
     "starting", "service-account", "service_account"),
    ("webhook", {"job": STARTING, "events": [event("FailedToCreateRayCluster", 'admission webhook "x" denied')]},
     "starting", "forbidden", "admission rule"),
    ("queue", {"job": job(queue=True, suspend=True), "workloads": [workload("Pending", "insufficient unused quota")]},
     "queued", "queue", "kubectl get workloads"),
    ("queue off", {"job": job(queue=True, suspend=True),
                   "workloads": [workload("Inadmissible", "LocalQueue team doesn't exist")]}, "queued", "queue-off", "`queue`"),
    ("queue preempted", {"job": job("Suspended", queue=True, suspend=True),
                         "workloads": [workload("Preempted", "by another", "Evicted", "True")]},
     "queued", "queue-preempted", "admitted again"),
    ("queue silent", {"job": job(queue=True, suspend=True, age=90)}, "queued", "queue-silent", "RayJob integration"),
    ("oom before", {"job": RUNNING, "pods": [died("OOMKilled")], "status": driver()}, "running", "out-of-memory", "more memory"),
    ("oom now", {"job": failed("AppFailed", "exit code 137"), "pods": [died("OOMKilled", last=False)]},
     "failed", "out-of-memory", "trace.memory"),
    ("crash loop", {"job": STARTING, "pods": [waits("CrashLoopBackOff", "back-off 5m0s restarting failed container")]},
     "starting", "crash-loop", "kubectl logs --previous head-x"),
    ("secret", {"job": STARTING, "pods": [waits("CreateContainerConfigError", 'secret "interp-s3" not found')]},
     "starting", "secret", "create the Secret interp-s3"),
    ("secret key", {"job": STARTING, "pods": [waits("CreateContainerConfigError", "couldn't find key token in Secret i/s")]},
     "starting", "secret", "add the key"),
    ("container", {"job": STARTING, "pods": [waits("RunContainerError", "no such user")]},
     "starting", "container", "the image"),
    ("queue gave up", {"job": job(queue=True, suspend=True), "workloads": [{**workload("Pending", "x"), "spec": {"active": False}}]},
     "queued", "queue-deactivated", f"interp resume {RUN}"),
    ("configmap", {"job": STARTING, "pods": [waits("CreateContainerConfigError", 'configmap "settings" not found')]},
     "starting", "configmap", "create the ConfigMap settings"),
    ("evicted", {"job": RUNNING, "pods": [pod("gpu-3", "Failed", reason="Evicted", message="low on ephemeral-storage")],
                 "status": driver()}, "running", "evicted", "nothing if it was once"),
    ("preempted", {"job": RUNNING, "status": driver(), "pods": [pod("gpu-3", "Running", conditions=[
        {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "message": "preempting"}])]},
     "running", "preempted", "priority_class"),
    ("node", {"job": RUNNING, "status": driver(), "pods": [pod("gpu-3", "Failed", reason="NodeShutdown")]},
     "running", "node-lost", "with a new pod"),
    ("deadline", {"job": failed("DeadlineExceeded", "passed the activeDeadlineSeconds")}, "failed", "deadline", f"interp resume {RUN} --profile"),
    ("start", {"job": failed("PreRunningDeadlineExceeded")}, "failed", "start-deadline", f"interp resume {RUN} --profile"),
    ("submission", {"job": failed("SubmissionFailed", "no head")}, "failed", "submission", f"interp logs {RUN}"),
    ("app", {"job": failed("AppFailed", "exit code 1")}, "failed", "app", f"interp resume {RUN}"),
    ("study", {"job": failed("AppFailed"), "status": driver("failed", "HookError", "no layers.9.mlp")},
     "failed", "study", "interp validate"),
    ("store", {"job": failed("AppFailed"), "status": driver("failed", "StoreAccessError", "no bucket")},
     "failed", "store", "AWS_ENDPOINT_URL"),
    ("lock", {"job": failed("AppFailed"), "status": driver("failed", "LockHeld", "held by a")}, "failed", "locked", "interp list"),
    ("driver", {"job": failed("AppFailed"), "status": driver("failed", "RuntimeError", "boom")}, "failed", "app", "interp logs"),
    ("invalid", {"job": failed("", "backoffLimit must be positive", "ValidationFailed")}, "failed", "invalid", f"interp resume {RUN} --profile"),
    ("other", {"job": failed("JobStatusCheckTimeoutExceeded")}, "failed", "failed", "interp logs"),
    ("silent in the store", {"cluster_error": "refused", "status": driver(age=61)},
     "unknown", "driver-silent", f"interp cancel {RUN}"),
    ("elsewhere", {"record": {"token": "t"}, "status": driver("running", age=59)}, "running", "elsewhere", "--profile"),
    ("denied", {"job": RUNNING, "status": driver(), "denied": ["not allowed: list pods"]},
     "running", "not-allowed", "profile check"),
    ("silent", {"job": RUNNING, "status": driver(age=61)}, "running", "driver-silent", f"interp cancel {RUN}"),
    ("operator", {"job": job(age=90)}, "starting", "operator-silent", "operator runs"),
    ("gone", {"record": {"token": "t"}, "status": driver("running", age=900)}, "gone", "gone", f"interp resume {RUN}"),
    ("no s3", {"job": RUNNING, "store_error": "no answer"}, "running", "store-unreachable", "for this machine"),
    ("no api", {"cluster_error": "refused", "status": driver()}, "running", "cluster-unreachable", "interp profile check"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("documents", "phase", "kind", "step"), [case[1:] for case in CASES], ids=[c[0] for c in CASES]
)
def test_reason_and_next_step(documents: dict[str, Any], phase: str, kind: str, step: str) -> None:
    state = told(**documents)
    assert state.phase == phase
    assert state.reason is not None, "there is a reason"
    assert state.reason.kind == kind
    assert step in state.reason.next_step
    assert state.reason.what and state.reason.why and "{" not in state.reason.what + state.reason.next_step


def test_every_cause_is_among_the_cases() -> None:
    assert {row.kind for row in ROWS} == {case[3] for case in CASES}


def test_the_words_of_the_cluster_are_repeated() -> None:
    reason = told(job=STARTING, pods=[waits("ErrImagePull", "manifest for x:9\n not found", "x:9")]).reason
    assert reason is not None
    assert (reason.what, reason.why) == ("the image of head-x cannot be had: x:9", "manifest for x:9 not found")


@pytest.mark.parametrize("resource", ["nvidia.com/gpu", "nvidia.com/mig-1g.5gb", "amd.com/gpu", "example.org/gpu"])
def test_the_gpus_that_lack_are_named(resource: str) -> None:
    reason = told(job=STARTING, pods=[unscheduled(f"0/2 nodes are available: 2 Insufficient {resource}.")]).reason
    assert reason is not None and reason.what == f"no node has a free GPU for gpu-1 ({resource})"


@pytest.mark.parametrize(
    "documents",
    [
        {"job": job("Complete", "SUCCEEDED"), "pods": [died("OOMKilled")], "status": driver("succeeded")},
        {"job": RUNNING, "pods": [pod("gpu-1", "Running")], "status": driver(),
         "events": [event("FailedScheduling", GPU, "gpu-1")]},
        {"job": RUNNING, "status": driver(), "events": [event("FailedCreate", QUOTA, age=900)]},
        {"job": RUNNING, "status": driver(), "events": [event("Created", "Created head pod", kind="Normal")]},
        {"job": RUNNING, "status": driver(age=20)},
        {"job": job(age=10)},
        {"record": {"token": "t"}, "cancelled": True, "status": driver("stopped", "Cancelled", "by me")},
    ],
    ids=["succeeded", "the pod runs by now", "refused long ago", "news", "heard of lately", "just made", "cancelled"],
)  # fmt: skip
def test_what_is_over_or_well_is_no_reason(documents: dict[str, Any]) -> None:
    assert told(**documents).reason is None


@pytest.mark.parametrize(
    ("documents", "phase"),
    [
        ({}, "unsubmitted"),
        ({"job": job()}, "starting"),
        ({"job": job("Initializing", status={"failed": 1})}, "retrying"),
        ({"job": job("Running")}, "starting"),
        ({"job": job("Running", "SUCCEEDED")}, "running"),
        ({"job": job("Retrying", "FAILED")}, "retrying"),
        ({"job": job("Complete", "SUCCEEDED")}, "succeeded"),
        ({"job": job("Complete", "STOPPED")}, "failed"),
        ({"job": job("Complete", "STOPPED"), "cancelled": True}, "cancelled"),
        ({"job": job("Suspended", suspend=True)}, "suspended"),
        ({"job": job("Running", "RUNNING", deleted=True)}, "stopping"),
        ({"cluster_error": "refused"}, "unknown"),
        ({"status": driver("succeeded")}, "succeeded"),
        ({"status": driver("failed", "RuntimeError")}, "failed"),
        ({"status": driver("failed", "RuntimeError"), "cancelled": True}, "cancelled"),
        # A cluster that missed a question may be trying again; where there is none, the store has the last word.
        ({"status": driver("failed", "RuntimeError"), "cluster_error": "refused", "missed": True}, "unknown"),
        ({"status": driver("failed", "RuntimeError"), "cluster_error": "no cluster"}, "failed"),
        ({"record": {"token": "new"}, "status": driver("failed", token="old")}, "unsubmitted"),
    ],
)
def test_phases(documents: dict[str, Any], phase: str) -> None:
    state = told(**documents)
    assert state.phase == phase
    assert state.ended == (phase in ("unsubmitted", "succeeded", "failed", "cancelled"))


def test_the_word_of_an_earlier_driver_is_not_this_ones() -> None:
    old = driver("failed", "RuntimeError", "boom", age=100)
    assert told(job=job("Initializing", age=50), status=old).error is None
    assert told(job=job("Initializing", age=500), status=old).error == {"kind": "RuntimeError", "message": "boom"}
    # Tokens say it better than clocks.
    new = {**old, "token": "t"}
    assert told(job=job("Initializing", age=50), status=new, record={"token": "t"}).error is not None
    assert told(job=job("Initializing", age=500), status=new, record={"token": "u"}).error is None


def test_stages_are_what_the_store_has_and_else_what_the_driver_says() -> None:
    planned = [{"stage": stage, "key": key, "cached": stage == "corpus"} for stage, key in KEYS.items()]
    figures = {"done": 3, "total": 10, "unit": "tokens", "rate": 2.0}
    said = [
        {"stage": "corpus", "key": KEYS["corpus"], "state": "cached", "figures": {}, "seconds": 0},
        {"stage": "fit", "key": KEYS["fit"], "state": "running", "step": "steps", "figures": figures, "seconds": 4},
    ]
    record, status = {"stages": planned}, driver(stages=said)

    def states(**documents: Any) -> dict[str, str]:
        return {s.stage: s.state for s in told(record=record, **documents).stages}

    there = [KEYS["corpus"]]
    assert states(job=RUNNING, status=status, there=there) == {"corpus": "cached", "fit": "running", "trace": "waiting"}
    state = told(job=RUNNING, record=record, status=status, there=there).stages[1]
    assert (state.step, state.figures, state.seconds) == ("steps", figures, 4)
    # The manifest is there a moment before the driver says so; and a new cluster has not begun with it yet.
    assert states(job=RUNNING, status=status, there=[*there, KEYS["fit"]])["fit"] == "done"
    assert states(job=failed("AppFailed"), status=status, there=there)["fit"] == "failed"
    assert states(job=STARTING, status=status, there=there)["fit"] == "waiting"
    # The artifact was removed; or the store was not asked.
    assert states(job=RUNNING, status=status, there=[])["corpus"] == "removed"
    assert states(job=RUNNING, status=status)["corpus"] == "cached"
    # A plan that was changed: the driver speaks of another fit.
    other = driver(stages=[{**said[1], "key": "other"}])
    assert states(job=RUNNING, status=other, there=there)["fit"] == "waiting"


def test_kept_activations_are_not_needed_once_their_dictionaries_are_there() -> None:
    planned = [{"stage": s, "key": s * 9, "cached": False} for s in ("activations", "fit")]
    state = told(job=RUNNING, record={"stages": planned}, there=["fit" * 9])
    assert [stage.state for stage in state.stages] == ["not needed", "done"]
