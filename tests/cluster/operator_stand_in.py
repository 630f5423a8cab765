"""Stands in for KubeRay's operator, the kubelets and the scheduler: RayJobs of the double run on a Ray of this machine.

Every RayCluster is one `ray start --head` whose processes have the environment of the head's pod: template, Secrets,
and a token. The head does the workers' work as well; it declares the logical CPUs of all groups.

How KubeRay 1.7 goes about a RayJob in K8sJobMode (read out of its rayjob_controller.go), and so this does:

    "" -> Initializing    ids and startTime are set; a manifest that it will not have is ValidationFailed
    Initializing          the RayCluster is made; until its head answers, preRunningDeadlineSeconds counts
    Running               a batch Job, the submitter, hands the entrypoint to Ray and follows its log
    Complete | Failed     when the Ray job has ended AND the submitter has; a job that was stopped is Complete
    Failed -> Retrying    while failed <= backoffLimit: cluster and submitter are removed, and all begins anew with new
                          names, ids and deadlines. Not for DeadlineExceeded, nor when the job's state cannot be had
    suspend               Initializing and Running -> Suspending, all is removed -> Suspended -> (suspend: false) -> ""
    deleted               a finalizer: the Ray job is told to stop, then everything that the RayJob owns goes
    ended                 after ttlSecondsAfterFinished the RayCluster goes, and with it a driver that may still run: a
                          deadline stops nothing by itself. The RayJob and the submitter's pod, with its log, stay

The two limits of retries are not what their names suggest. The submitter asks for its job's id before it submits, so a
second submitter only follows the job of the first; and `ray job logs --follow` ends with 0 however the job ended. So
submitterConfig.backoffLimit never starts a failed driver again: that is done by backoffLimit, with a new cluster. It is
used up when the submitter itself loses its head; if KubeRay has a new head by then, which knows of no job, the next
submitter submits anew.

A submitter's template that has a command of its own is run as it is: how often it asks, and what it survives, is its
own affair. A head that is replaced keeps address and token, as behind KubeRay's Service.

What differs: nothing waits in between (Kubernetes backs off for 10, 20, ... seconds), and no autoscaler starts pods.
"""

from __future__ import annotations

import logging
import threading
import time
import urllib.error
import uuid
from pathlib import Path
from typing import Any

import ray_pods
from job_client import ENDED
from kube_api import OPERATOR, KubeApi
from kube_rest import KubeRest, Object
from operator_cluster import ClusterOnThisMachine
from operator_validation import complaint

FINALIZER = "ray.io/rayjob-finalizer"
PERIOD_S = 0.1
_NEVER_RETRIED = ("DeadlineExceeded", "JobStatusCheckTimeoutExceeded")

logger = logging.getLogger(__name__)


class Operator:
    """One namespace's RayJobs. `with Operator(kube, folder) as operator:`"""

    def __init__(self, kube: KubeApi, folder: Path, *, namespace: str = "interp") -> None:
        self.kube, self.folder, self.namespace = kube, folder, namespace
        folder.mkdir(parents=True, exist_ok=True)
        self.rest = KubeRest.of(kube.kubeconfig(folder / "kubeconfig", user=OPERATOR, namespace=namespace), namespace)
        self.clusters: dict[str, ClusterOnThisMachine] = {}
        self.history: dict[str, list[str]] = {}
        """Of every RayJob, the states it went through."""
        self.tokens: set[str] = set()
        """Of all clusters that there were: what Ray must keep to itself."""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="operator", daemon=True)

    def __enter__(self) -> Operator:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(60)
        for cluster in list(self.clusters.values()):
            cluster.close()

    # -- faults, for tests

    def cluster_of(self, run: str) -> ClusterOnThisMachine | None:
        """What runs for a RayJob now."""
        status = (self.kube.get("RayJob", run, self.namespace) or {}).get("status") or {}
        return self.clusters.get(status.get("rayClusterName", ""))

    def kill_driver(self, run: str) -> None:
        """SIGKILL, as for want of memory."""
        cluster = self.cluster_of(run)
        driver = cluster.head.driver() if cluster is not None and cluster.head is not None else None
        assert driver is not None, f"{run} has no driver"
        driver.kill()

    def kill_worker(self, run: str, title: str, *, seconds: float = 60) -> None:
        """SIGKILL for a process of Ray's whose title has this, as soon as there is one."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            cluster = self.cluster_of(run)
            worker = cluster.head.worker(title) if cluster is not None and cluster.head is not None else None
            if worker is not None:
                worker.kill()
                return
            time.sleep(0.02)
        raise AssertionError(f"{run} has no worker {title}")

    def lose_head(self, run: str) -> None:
        """The node of the head fails, with all that ran there."""
        cluster = self.cluster_of(run)
        assert cluster is not None and cluster.head is not None, f"{run} has no head"
        cluster.head.kill()

    # -- reconciling

    def _work(self) -> None:
        while not self._over.wait(PERIOD_S):
            try:
                jobs = self.rest.list("RayJob")
                for job in jobs:
                    self._reconcile(job)
                self._release_orphans({job["metadata"]["uid"] for job in jobs})
            except urllib.error.HTTPError as error:
                # A conflict, or an object that went meanwhile: the next look sees what is there now.
                logger.info("%s %s: %s", error.code, error.url, error.read()[:500])
            except OSError as error:
                logger.info("the API does not answer: %s", error)
            except Exception:
                logger.exception("the operator's stand-in failed")

    def _reconcile(self, job: Object) -> None:
        if job["metadata"].get("deletionTimestamp"):
            return self._finalize(job)
        before = dict(job.get("status") or {})
        state = before.get("jobDeploymentStatus", "")
        wrong = complaint(job) if state == "" else None
        if wrong is not None:
            reported = {"jobDeploymentStatus": "ValidationFailed", "reason": "ValidationFailed", "message": wrong}
            return self._report(job, before, before | reported)
        step = {
            "": self._begin,
            "Initializing": self._initialize,
            "Running": self._run,
            "Suspending": self._remove,
            "Retrying": self._remove,
            "Suspended": self._wait,
            "Complete": self._keep,
            "Failed": self._keep,
        }.get(state)
        if step is not None:
            self._report(job, before, before | step(job, before))

    def _report(self, job: Object, before: Object, after: Object) -> None:
        """Counts a failure, decides on another try, and patches the status if it changed."""
        name, state = job["metadata"]["name"], after.get("jobDeploymentStatus", "")
        if state == "Failed" and before.get("jobDeploymentStatus") != "Failed":
            after["failed"] = before.get("failed", 0) + 1
            if after["failed"] <= job["spec"].get("backoffLimit", 0) and after["reason"] not in _NEVER_RETRIED:
                state = after["jobDeploymentStatus"] = "Retrying"
        if state == "Complete" and after.get("jobStatus") == "SUCCEEDED" and before.get("jobDeploymentStatus") != state:
            after["succeeded"] = before.get("succeeded", 0) + 1
        if after == before:
            return
        if state in ("Complete", "Failed", "ValidationFailed"):
            after.setdefault("endTime", ray_pods.now())
        if state != before.get("jobDeploymentStatus", ""):
            self.history.setdefault(name, []).append(state)
        self.rest.patch("RayJob", name, after, status=True)

    def _begin(self, job: Object, status: Object) -> Object:
        name = job["metadata"]["name"]
        if FINALIZER not in (job["metadata"].get("finalizers") or []):
            finalizers = [*(job["metadata"].get("finalizers") or []), FINALIZER]
            self.rest.patch("RayJob", name, {"metadata": {"finalizers": finalizers}})
        made = {"jobId": f"{name}-{uuid.uuid4().hex[:5]}", "rayClusterName": f"{name}-{uuid.uuid4().hex[:5]}"}
        return made | {"jobDeploymentStatus": "Initializing", "startTime": ray_pods.now()}

    def _initialize(self, job: Object, status: Object) -> Object:
        if (stopped := self._stopped(job, status, "preRunningDeadlineSeconds")) is not None:
            return stopped
        cluster = self._cluster(job, status)
        if not cluster.head_is_ready():
            return {}
        assert cluster.head is not None
        self.tokens.add(cluster.head.token)
        cluster.start_submitter(status["jobId"])
        return {"jobDeploymentStatus": "Running", "dashboardURL": cluster.head.dashboard.removeprefix("http://")}

    def _run(self, job: Object, status: Object) -> Object:
        if (stopped := self._stopped(job, status)) is not None:
            return stopped
        cluster = self._cluster(job, status)
        failure = cluster.follow(status["jobId"])
        if failure is not None:
            reason = "AppFailed" if status.get("jobStatus") == "FAILED" else "SubmissionFailed"
            told = status.get("message", "") if reason == "AppFailed" else f"Job submission has failed. {failure}"
            return {"jobDeploymentStatus": "Failed", "reason": reason, "message": told}
        info = cluster.info
        if info is None:
            return {}
        found: dict[str, Any] = {"jobStatus": info["status"], "message": info.get("message") or ""}
        if info["status"] in ENDED and cluster.submitter_has_ended:
            failed = info["status"] == "FAILED"
            found["jobDeploymentStatus"] = "Failed" if failed else "Complete"
            found |= {"reason": "AppFailed"} if failed else {}
        return found

    def _stopped(self, job: Object, status: Object, *more: str) -> Object | None:
        """What suspending, or a deadline that has passed, makes of the status."""
        if job["spec"].get("suspend"):
            return {"jobDeploymentStatus": "Suspending"}
        reasons = {
            "activeDeadlineSeconds": "DeadlineExceeded",
            "preRunningDeadlineSeconds": "PreRunningDeadlineExceeded",
        }
        for field in ("activeDeadlineSeconds", *more):
            limit = job["spec"].get(field)
            if limit is not None and ray_pods.seconds_since(status["startTime"]) >= limit:
                message = f"The RayJob has passed the {field}. StartTime: {status['startTime']}. {field}: {limit}"
                return {"jobDeploymentStatus": "Failed", "reason": reasons[field], "message": message}
        return None

    def _remove(self, job: Object, status: Object) -> Object:
        """All that was made for this try; then what is remembered of it, but the count of failures."""
        self._release(status.get("rayClusterName", ""))
        self.rest.delete("Job", job["metadata"]["name"])
        suspended = status["jobDeploymentStatus"] == "Suspending"
        forgotten = dict.fromkeys(name for name in status if name not in ("failed", "succeeded"))
        return forgotten | {"jobDeploymentStatus": "Suspended" if suspended else "", "jobStatus": ""}

    def _wait(self, job: Object, status: Object) -> Object:
        return {} if job["spec"].get("suspend") else {"jobDeploymentStatus": ""}

    def _keep(self, job: Object, status: Object) -> Object:
        name = status.get("rayClusterName", "")
        lasts = job["spec"].get("ttlSecondsAfterFinished", 0)
        if job["spec"].get("shutdownAfterJobFinishes") and ray_pods.seconds_since(status["endTime"]) >= lasts:
            self._release(name)
        return {}

    def _finalize(self, job: Object) -> None:
        status = job.get("status") or {}
        cluster = self.clusters.get(status.get("rayClusterName", ""))
        if cluster is not None and status.get("jobStatus") not in ENDED:
            cluster.stop_job(status["jobId"])
        kept = [name for name in job["metadata"].get("finalizers") or [] if name != FINALIZER]
        if kept != job["metadata"].get("finalizers"):
            self.rest.patch("RayJob", job["metadata"]["name"], {"metadata": {"finalizers": kept or None}})

    # -- clusters

    def _cluster(self, job: Object, status: Object) -> ClusterOnThisMachine:
        name = status["rayClusterName"]
        if name not in self.clusters:
            self.clusters[name] = ClusterOnThisMachine(self.kube, self.rest, self.folder / name, job, name)
        return self.clusters[name]

    def _release(self, name: str) -> None:
        if name in self.clusters:
            self.rest.delete("RayCluster", name)
            self.clusters.pop(name).close()

    def _release_orphans(self, jobs: set[str]) -> None:
        """The pods of a RayJob that is gone are given time to end, as their template says, at most a few seconds."""
        for name, cluster in list(self.clusters.items()):
            if cluster.job["metadata"]["uid"] not in jobs and cluster.has_come_to_rest():
                self.clusters.pop(name).close()
