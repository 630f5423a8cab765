"""The operator's stand-in, with RayJobs made by hand: it goes about them as KubeRay does, and really runs them."""

from __future__ import annotations

import shlex
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from kube_api import KubeApi
from kube_rest import Object
from operator_stand_in import Operator

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture
def operator(kube: KubeApi, tmp_path: Path) -> Iterator[Operator]:
    with Operator(kube, tmp_path / "operator") as running:
        yield running


def rayjob(name: str, code: str, *, image: str = "registry.example/interp:1", **spec: Any) -> Object:
    container: Object = {"name": "ray-head", "image": image, "env": spec.pop("env", [])}
    container |= {"envFrom": [{"secretRef": {"name": secret}} for secret in spec.pop("secrets", [])]}
    container["volumeMounts"] = [{"name": "cache", "mountPath": "/cache"}]
    template = {"metadata": {"labels": {"interp.dev/run": name}}, "spec": {"containers": [container]}}
    group = {"groupName": "cpu", "replicas": 1, "minReplicas": 1, "maxReplicas": 4, "template": template}
    return {
        "kind": "RayJob",
        "metadata": {"name": name, "labels": {"interp.dev/run": name}},
        "spec": {
            "entrypoint": f"python -c {shlex.quote(code)}",
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 3600,
            "rayClusterSpec": {"headGroupSpec": {"template": template}, "workerGroupSpecs": [group]},
            **spec,
        },
    }


def wait(until: Callable[[], Any], seconds: float = 90) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := until()):
        assert time.monotonic() < deadline, "it does not come to that"
        time.sleep(0.05)
    return found


def status(kube: KubeApi, name: str) -> Object:
    return dict((kube.get("RayJob", name) or {}).get("status") or {})


def state(kube: KubeApi, name: str, *wanted: str) -> Object:
    wait(lambda: status(kube, name).get("jobDeploymentStatus") in wanted)
    return status(kube, name)


def pods(kube: KubeApi, node: str) -> list[Object]:
    found = kube.objects("Pod")
    if node == "submitter":
        return [pod for pod in found if "job-name" in pod["metadata"]["labels"]]
    return [pod for pod in found if pod["metadata"]["labels"].get("ray.io/node-type") == node]


def log_of(kube: KubeApi, pod: Object) -> str:
    name, container = pod["metadata"]["name"], pod["spec"]["containers"][0]["name"]
    return "\n".join(line for _, line in kube.logs.of(("interp", name, container)).lines)


def test_a_job_succeeds_with_its_environment_and_goes_after_its_time(kube: KubeApi, operator: Operator) -> None:
    secret = {"kind": "Secret", "metadata": {"name": "s3"}, "data": {"THE_KEY": b64encode(b"of the secret").decode()}}
    kube.put(secret)
    code = (
        "import os, ray; ray.init(); "
        "key = ray.get(ray.remote(lambda: os.environ['THE_KEY']).remote()); "
        "print(key, os.environ['WHERE'], ray.cluster_resources()['CPU'])"
    )
    env = [{"name": "WHERE", "value": "/cache/models"}]
    kube.put(rayjob("good", code, env=env, secrets=["s3"], ttlSecondsAfterFinished=2))
    state(kube, "good", "Running")
    cluster = operator.cluster_of("good")
    assert cluster is not None and cluster.head is not None
    family = cluster.head.processes()
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{cluster.head.dashboard}/api/jobs/", timeout=10)
    (token,) = (one["data"]["auth_token"] for one in kube.objects("Secret") if "auth_token" in one["data"])
    assert token == b64encode(cluster.head.token.encode()).decode()
    (head,), (worker,) = pods(kube, "head"), pods(kube, "worker")
    assert head["status"]["phase"] == worker["status"]["phase"] == "Running"

    ended = state(kube, "good", "Complete")
    assert operator.history["good"] == ["Initializing", "Running", "Complete"]
    assert (ended["jobStatus"], ended["succeeded"]) == ("SUCCEEDED", 1) and "failed" not in ended
    (submitter,) = pods(kube, "submitter")
    assert submitter["status"]["phase"] == "Succeeded"
    assert f"of the secret {cluster.folder}/cache/models 4.0" in log_of(kube, submitter)

    wait(lambda: not pods(kube, "head"))
    wait(lambda: not any(process.is_running() for process in family))
    assert not kube.objects("RayCluster") and len(pods(kube, "submitter")) == 1 and kube.get("RayJob", "good")
    assert not cluster.head.folder.exists()


def test_a_failed_driver_is_started_again_on_a_new_cluster_only(
    kube: KubeApi, operator: Operator, tmp_path: Path
) -> None:
    """The submitter's own tries change nothing about it."""
    tries = tmp_path / "tries"
    code = f"print('tried', file=open('{tries}', 'a')); raise SystemExit(3)"
    kube.put(rayjob("bad", code, backoffLimit=1, submitterConfig={"backoffLimit": 2}))
    first = state(kube, "bad", "Running")["rayClusterName"]
    ended = state(kube, "bad", "Failed")
    assert operator.history["bad"] == ["Initializing", "Running", "Retrying", "", "Initializing", "Running", "Failed"]
    assert tries.read_text().split() == ["tried", "tried"]
    assert ended["rayClusterName"] != first and ended["failed"] == 2
    assert (ended["jobStatus"], ended["reason"]) == ("FAILED", "AppFailed") and "exit code 3" in ended["message"]


def test_a_deadline_is_final_and_stops_nothing_by_itself(kube: KubeApi, operator: Operator, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    code = f"import time; open('{begun}', 'w'); time.sleep(600)"
    kube.put(rayjob("late", code, backoffLimit=2, activeDeadlineSeconds=3600, ttlSecondsAfterFinished=2))
    wait(begun.exists)
    cluster = operator.cluster_of("late")
    assert cluster is not None and cluster.head is not None
    driver = cluster.head.driver()
    assert driver is not None
    kube.patch("RayJob", "late", {"spec": {"activeDeadlineSeconds": 1}})
    ended = state(kube, "late", "Failed", "Retrying")
    assert (ended["jobDeploymentStatus"], ended["reason"], ended["failed"]) == ("Failed", "DeadlineExceeded", 1)
    assert driver.is_running()
    wait(lambda: not driver.is_running() or driver.status() == psutil.STATUS_ZOMBIE)


def test_a_deleted_job_is_told_to_stop(kube: KubeApi, operator: Operator, tmp_path: Path) -> None:
    told, begun = tmp_path / "told", tmp_path / "begun"
    code = (
        f"import signal, sys, time; signal.signal(15, lambda *_: (open('{told}', 'w'), sys.exit(1))); "
        f"open('{begun}', 'w'); time.sleep(600)"
    )
    kube.put(rayjob("stopped", code))
    wait(begun.exists)
    kube.remove("RayJob", "stopped", policy="Foreground")
    wait(lambda: kube.get("RayJob", "stopped") is None)
    wait(lambda: not operator.clusters)
    assert told.exists()
    assert not kube.objects("Pod") and not kube.objects("Job") and not kube.objects("RayCluster")


def test_a_suspended_job_waits_and_one_that_runs_gives_all_back(
    kube: KubeApi, operator: Operator, tmp_path: Path
) -> None:
    begun = tmp_path / "begun"
    kube.put(rayjob("queued", f"import time; open('{begun}', 'w'); time.sleep(600)", suspend=True))
    state(kube, "queued", "Suspended")
    assert not kube.objects("Pod") and not operator.clusters
    kube.patch("RayJob", "queued", {"spec": {"suspend": False}})
    wait(begun.exists)
    kube.patch("RayJob", "queued", {"spec": {"suspend": True}})
    left = state(kube, "queued", "Suspended")
    assert not kube.objects("Pod") and not kube.objects("Job") and not operator.clusters
    assert not {"jobId", "rayClusterName", "dashboardURL"} & left.keys()
    passed = ["Initializing", "Suspending", "Suspended", "", "Initializing", "Running", "Suspending", "Suspended"]
    assert operator.history["queued"] == passed


@pytest.mark.parametrize("own_program", [False, True])
def test_a_job_whose_head_is_lost_is_submitted_to_another(
    kube: KubeApi, operator: Operator, tmp_path: Path, own_program: bool
) -> None:
    """KubeRay's submitter fails, and the next one submits anew; interp's own lives through it."""
    begun = tmp_path / "begun"
    code = (
        f"import os, time; seen = os.path.exists('{begun}'); print('seen', seen, flush=True); "
        f"open('{begun}', 'w'); time.sleep(0 if seen else 600)"
    )
    job = rayjob("beheaded", code, submitterConfig={"backoffLimit": 0 if own_program else 1})
    if own_program:
        command = ["python", "-m", "ray_jobs.submitter", job["spec"]["entrypoint"]]
        container = {"name": "ray-job-submitter", "image": "registry.example/interp:1", "command": command}
        job["spec"]["submitterPodTemplate"] = {"spec": {"containers": [container]}}
    kube.put(job)
    wait(begun.exists)
    (lost,) = pods(kube, "head")
    operator.lose_head("beheaded")
    ended = state(kube, "beheaded", "Complete", "Failed")
    assert ended["jobStatus"] == "SUCCEEDED"
    assert operator.history["beheaded"] == ["Initializing", "Running", "Complete"]
    assert [pod["metadata"]["name"] for pod in pods(kube, "head")] != [lost["metadata"]["name"]]
    submitters = pods(kube, "submitter")
    assert sorted(pod["status"]["phase"] for pod in submitters) == ["Failed", "Succeeded"][int(own_program) :]
    assert "seen True" in "".join(log_of(kube, pod) for pod in submitters)


def test_what_cannot_start_says_why(kube: KubeApi, operator: Operator) -> None:
    kube.put(rayjob("unpulled", "pass", image="registry.example/does-not-exist:1", preRunningDeadlineSeconds=2))
    kube.put(rayjob("unsecret", "pass", secrets=["absent"], preRunningDeadlineSeconds=2))
    kube.put(rayjob("invalid", "pass", shutdownAfterJobFinishes=False))
    assert "cannot have TTLSecondsAfterFinished" in state(kube, "invalid", "ValidationFailed")["message"]
    for name, waits_for in {"unpulled": "ImagePullBackOff", "unsecret": "CreateContainerConfigError"}.items():
        assert state(kube, name, "Failed")["reason"] == "PreRunningDeadlineExceeded"
        (head,) = (one for one in pods(kube, "head") if one["metadata"]["labels"]["interp.dev/run"] == name)
        assert head["status"]["phase"] == "Pending"
        assert head["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == waits_for
        reasons = [
            one["reason"] for one in kube.objects("Event") if one["involvedObject"]["name"] == head["metadata"]["name"]
        ]
        assert "Failed" in reasons
