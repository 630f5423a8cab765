"""One RayCluster and its submitter: the objects in the double, and the Ray that really runs behind them."""

from __future__ import annotations

import subprocess
import time
import urllib.error
from base64 import b64encode
from pathlib import Path
from typing import Any

import ray_pods
from job_client import ENDED
from kube_api import KubeApi
from kube_rest import KubeRest, Object
from ray_head import RayHead, end_with_parent, of_the_image

_SUBMITTER_LIMIT = 2
_MOST_CPUS = 16.0
_REST_S = 10.0


class ClusterOnThisMachine:
    """See the module.

    Attributes:
        info: of the Ray job, as Ray's dashboard last told it.
    """

    def __init__(self, kube: KubeApi, rest: KubeRest, folder: Path, job: Object, name: str) -> None:
        self.kube, self.rest, self.folder, self.job, self.name = kube, rest, folder, job, name
        self.spec = job["spec"]["rayClusterSpec"]
        self.head: RayHead | None = None
        self.info: dict[str, Any] | None = None
        self.submitter_has_ended = False
        self._submitter: Object | None = None
        self._submitters, self._job_is_known, self._read = 0, False, 0
        self._program: subprocess.Popen[bytes] | None = None
        self._left: float | None = None
        labels = {**(job["metadata"].get("labels") or {}), "ray.io/originated-from-cr-name": job["metadata"]["name"]}
        meta = {"name": name, "labels": labels, "ownerReferences": [ray_pods.owner_of(job)]}
        self.cluster = rest.create({"kind": "RayCluster", "metadata": meta, "spec": self.spec})
        rest.event(
            job, "Normal", "CreatedRayCluster", f"Created RayCluster {rest.namespace}/{name}", "rayjob-controller"
        )
        self._head_pod = self._start_head()
        for group in self.spec.get("workerGroupSpecs", []):
            for _ in range(max(group.get("replicas", 0), group.get("minReplicas", 0))):
                self._pod("worker", group["groupName"], group["template"])

    # -- the head

    def _start_head(self) -> Object:
        template = self.spec["headGroupSpec"]["template"]
        made = self._pod("head", "headgroup", template)
        container = ray_pods.container_of(template)
        if not ray_pods.UNKNOWN_IMAGE.search(container["image"]):
            try:
                env = ray_pods.environment(container, self.rest, self.folder)
            except ray_pods.MissingSecret as error:
                self._set(made, ray_pods.waiting(made, "CreateContainerConfigError", str(error)))
                self.rest.event(made, "Warning", "Failed", f"Error: {error}", "kubelet")
                return made
            self.head = RayHead(env, cpus=self._cpus(), after=self.head)
            self._keep_token(self.head.token)
        return made

    def _pod(self, node: str, group: str, template: Object) -> Object:
        prefix = f"{self.name}-head" if node == "head" else f"{self.name}-{group}-worker"
        made = ray_pods.pod(prefix, template, ray_pods.labels_of(self.name, node, group), self.cluster)
        made = self.rest.create(made)
        self.rest.event(made, "Normal", "Scheduled", f"Successfully assigned {made['metadata']['name']}", "scheduler")
        image = ray_pods.container_of(template)["image"]
        if ray_pods.UNKNOWN_IMAGE.search(image):
            missing = f'Failed to pull image "{image}": not found'
            self.rest.event(made, "Warning", "Failed", missing, "kubelet")
            self.rest.event(made, "Normal", "BackOff", f'Back-off pulling image "{image}"', "kubelet")
            self._set(made, ray_pods.waiting(made, "ImagePullBackOff", f'Back-off pulling image "{image}"'))
        else:
            state = ray_pods.waiting(made, "ContainerCreating") if node == "head" else ray_pods.running(made)
            self._set(made, state)
        return made

    def _cpus(self) -> float:
        """Of all groups at their largest; Ray Data wants four at least."""
        total = 0.0
        for group in self.spec.get("workerGroupSpecs", []):
            total += float(group.get("rayStartParams", {}).get("num-cpus", "1")) * group.get("maxReplicas", 1)
        return min(_MOST_CPUS, max(4.0, total))

    def _keep_token(self, token: str) -> None:
        """Where KubeRay keeps it, by the cluster's name."""
        self.rest.delete("Secret", self.name)
        meta = {"name": self.name, "ownerReferences": [ray_pods.owner_of(self.cluster)]}
        data = {"auth_token": b64encode(token.encode()).decode()}
        self.rest.create({"kind": "Secret", "metadata": meta, "type": "Opaque", "data": data})

    def head_is_ready(self) -> bool:
        """Starts another head where one was lost."""
        if self.head is None:
            return False
        if not self.head.is_alive():
            self._lose_head()
            return False
        if not self.head.is_ready():
            return False
        if self._head_pod.get("status", {}).get("phase") != "Running":
            self.kube.write_log(self._head_pod["metadata"]["name"], self.head.log(), namespace=self.rest.namespace)
            self._head_pod = self._set(self._head_pod, ray_pods.running(self._head_pod))
            self.rest.patch("RayCluster", self.name, {"state": "ready"}, status=True)
        return True

    def _lose_head(self) -> None:
        """KubeRay deletes a head's pod that failed, and makes another; jobs, logs and state are gone with it."""
        assert self.head is not None
        self.head.close()
        name = self._head_pod["metadata"]["name"]
        self.rest.event(self.cluster, "Normal", "DeletedHeadPod", f"Deleted head Pod {name}", "raycluster-controller")
        self.rest.delete("Pod", name)
        self._job_is_known, self.info = False, None
        self._read = self._read if self._program else 0
        self._head_pod = self._start_head()

    # -- the submitter

    def start_submitter(self, job_id: str) -> None:
        """The batch Job, once, and a pod of it."""
        name = self.job["metadata"]["name"]
        template = self.job["spec"].get("submitterPodTemplate") or self.spec["headGroupSpec"]["template"]
        batch = self.rest.get("Job", name)
        if batch is None:
            meta = {"name": name, "ownerReferences": [ray_pods.owner_of(self.job)]}
            spec = {"backoffLimit": self._submitter_limit(), "template": template}
            batch = self.rest.create({"kind": "Job", "metadata": meta, "spec": spec})
            told = f"Created Kubernetes Job {self.rest.namespace}/{name}"
            self.rest.event(self.job, "Normal", "CreatedRayJobSubmitter", told, "rayjob-controller")
        labels = {"job-name": name, "batch.kubernetes.io/job-name": name}
        self._submitter = self.rest.create(ray_pods.pod(name, template, labels, batch))
        self._set(self._submitter, ray_pods.running(self._submitter))
        self._submitters += 1
        self._program = self._start_program(template, job_id)

    def _start_program(self, template: Object, job_id: str) -> subprocess.Popen[bytes] | None:
        """The command of the template, if it has one, with what KubeRay adds to its environment."""
        assert self.head is not None
        container = ray_pods.container_of(template)
        command = [*(container.get("command") or []), *(container.get("args") or [])]
        if not command:
            return None
        self._read = 0
        env = {**of_the_image(), **ray_pods.environment(container, self.rest, self.folder), "PYTHONUNBUFFERED": "1"}
        env |= {"RAY_DASHBOARD_ADDRESS": self.head.dashboard.removeprefix("http://"), "RAY_JOB_SUBMISSION_ID": job_id}
        env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.head.token}
        self.folder.mkdir(exist_ok=True)
        with self._program_log().open("wb") as log:
            return subprocess.Popen(
                command,
                env=env,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )

    def _program_log(self) -> Path:
        return self.folder / f"submitter-{self._submitters}.log"

    def _submitter_limit(self) -> int:
        return int((self.job["spec"].get("submitterConfig") or {}).get("backoffLimit", _SUBMITTER_LIMIT))

    def follow(self, job_id: str) -> str | None:
        """One look at the job, as submitter and operator have it.

        Returns:
            Why no submitter will come any more; None while one does.
        """
        try:
            return self._follow(job_id)
        except urllib.error.HTTPError:
            raise
        except OSError:
            return None  # the head is on its way out, or very busy: the next look tells

    def _follow(self, job_id: str) -> str | None:
        if self.submitter_has_ended:
            if self.head_is_ready():
                self.info = self.head.jobs.info(job_id) if self.head is not None else None
            return None
        if self._program is not None:
            return self._follow_program(job_id)
        if self.head is None or not self.head.is_alive():
            failure = self._submitter_failed()
            if failure is None:
                self._lose_head()
            return failure
        if not self.head_is_ready():
            return None
        if self._submitter is None:
            self.start_submitter(job_id)
        self.info = self.head.jobs.info(job_id)
        if self.info is None and not self._job_is_known:
            self.head.jobs.submit(job_id, self.job["spec"]["entrypoint"])
        self._job_is_known = True
        ended = self.info is not None and self.info["status"] in ENDED
        self._copy_log(self.head.job_log(job_id), whole=ended)
        if ended:
            self._submitter_succeeded()
        return None

    def _follow_program(self, job_id: str) -> str | None:
        """It lives through the loss of a head, or it does not."""
        assert self._program is not None
        if self.head_is_ready() and self.head is not None:
            self.info = self.head.jobs.info(job_id)
            if self._submitter is None:
                self.start_submitter(job_id)
        if self._submitter is None:
            return None
        code = self._program.poll()
        self._copy_log(self._program_log(), whole=code is not None)
        if code is None:
            return None
        if code != 0:
            return self._submitter_failed()
        self._submitter_succeeded()
        return None

    def _submitter_succeeded(self) -> None:
        self._end_submitter(0)
        self._condition("Complete", "")
        self.submitter_has_ended = True

    def _submitter_failed(self) -> str | None:
        """As when its connection broke with the head. What is said if it was the last."""
        if self._submitter is not None:
            self._end_submitter(1)
        if self._submitters > self._submitter_limit():
            self._condition("Failed", "BackoffLimitExceeded")
            return "Reason: BackoffLimitExceeded. Message: Job has reached the specified backoff limit"
        return None

    def _end_submitter(self, code: int) -> None:
        assert self._submitter is not None
        name = self._submitter["metadata"]["name"]
        self._set(self._submitter, ray_pods.ended(self._submitter, code))
        self.kube.end_log(name, namespace=self.rest.namespace)
        self._submitter = None

    def _condition(self, kind: str, reason: str) -> None:
        condition = {"type": kind, "status": "True", "reason": reason, "lastTransitionTime": ray_pods.now()}
        self.rest.patch("Job", self.job["metadata"]["name"], {"conditions": [condition]}, status=True)

    def _copy_log(self, path: Path, *, whole: bool) -> None:
        """What was written since the last look, in whole lines."""
        if self._submitter is None or not path.exists():
            return
        with path.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        data = data if whole else data[: data.rfind(b"\n") + 1]
        self._read += len(data)
        if data:
            name = self._submitter["metadata"]["name"]
            self.kube.write_log(name, data.decode(errors="replace"), namespace=self.rest.namespace)

    # -- the end

    def stop_job(self, job_id: str) -> None:
        if self.head is not None and self.head.is_ready() and self.head.jobs.info(job_id) is not None:
            self.head.jobs.stop(job_id)

    def has_come_to_rest(self) -> bool:
        """No driver is left, or it was given long enough."""
        self._left = self._left or time.monotonic()
        return self.head is None or self.head.driver() is None or time.monotonic() > self._left + _REST_S

    def close(self) -> None:
        if self._program is not None:
            self._program.kill()
            self._program.wait(30)
        if self.head is not None:
            self.head.close()

    def _set(self, made: Object, status: Object) -> Object:
        return self.rest.patch("Pod", made["metadata"]["name"], status, status=True)
