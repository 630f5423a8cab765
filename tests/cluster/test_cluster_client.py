"""The client against the API server's double: what it asks, what it asks again, and what it costs to load."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import pytest
from client_cases import after, pod, rayjob, verbs
from kube_api import KubeApi

from interp.cluster.client import Cluster
from interp.cluster.client_errors import Absent, AlreadyThere, Forbidden, Invalid, NotStarted, Unreachable

# -- RayJobs


def test_a_job_is_made_found_and_deleted(cluster: Cluster, kube: KubeApi) -> None:
    assert cluster.job("run") is None
    made = cluster.create_job(rayjob(labels={"interp.dev/run": "run"}))
    # What the server does not know is refused, not dropped.
    assert kube.requests[-1].query["fieldValidation"] == "Strict"
    assert made["metadata"]["uid"] and cluster.job("run") == made
    cluster.create_job(rayjob("other"))
    assert [one["metadata"]["name"] for one in cluster.jobs("interp.dev/run=run")] == ["run"]
    assert [one["metadata"]["name"] for one in cluster.jobs()] == ["other", "run"]
    kube.set_status("RayJob", "run", {"jobStatus": "RUNNING"})
    changed = cluster.job("run")
    assert changed is not None and changed["status"] == {"jobStatus": "RUNNING"}
    assert cluster.delete_job("run") and cluster.job("run") is None
    assert not cluster.delete_job("run")


def test_a_second_job_of_a_name_is_refused(cluster: Cluster, kube: KubeApi) -> None:
    cluster.create_job(rayjob())
    with pytest.raises(AlreadyThere, match="run is there already"):
        cluster.create_job(rayjob())
    assert len(kube.objects("RayJob")) == 1


def test_deleting_a_job_takes_its_dependents_with_it(cluster: Cluster, kube: KubeApi) -> None:
    uid = cluster.create_job(rayjob())["metadata"]["uid"]
    reference = {"apiVersion": "ray.io/v1", "kind": "RayJob", "name": "run", "uid": uid}
    kube.put(
        {"kind": "RayCluster", "metadata": {"name": "of-run", "ownerReferences": [reference], "finalizers": ["x"]}}
    )
    assert cluster.delete_job("run")
    still = cluster.job("run")
    assert still is not None and still["metadata"]["finalizers"] == ["foregroundDeletion"]
    kube.patch("RayCluster", "of-run", {"metadata": {"finalizers": None}})
    assert kube.objects("RayCluster") == [] and cluster.job("run") is None


def test_a_job_that_took_anothers_name_is_not_deleted(cluster: Cluster, kube: KubeApi) -> None:
    old = cluster.create_job(rayjob())["metadata"]["uid"]
    kube.remove("RayJob", "run")
    new = cluster.create_job(rayjob())["metadata"]["uid"]
    assert old != new and not cluster.delete_job("run", uid=old)
    assert [one["metadata"]["uid"] for one in kube.objects("RayJob")] == [new]
    assert cluster.delete_job("run", uid=new) and kube.objects("RayJob") == []


def test_an_object_that_the_server_does_not_accept(cluster: Cluster) -> None:
    with pytest.raises(Invalid, match=r"metadata\.name.*RFC 1123"):
        cluster.create_job(rayjob("Upper"))


# -- again


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_cannot_answer_is_asked_again(cluster: Cluster, kube: KubeApi, status: int) -> None:
    cluster.create_job(rayjob())
    kube.fail_next(1 if status == 429 else 3, status)
    assert cluster.job("run") is not None
    assert cluster.jobs() != []


def test_a_server_that_never_can_is_given_up(kube: KubeApi) -> None:
    cluster = Cluster.open(None, "interp", timeout=1)
    kube.fail_next(100, 503)
    start = time.monotonic()
    with pytest.raises(Unreachable, match=r"cannot answer now.*\n.*HTTP 503"):
        cluster.jobs()
    assert time.monotonic() - start < 3
    assert 3 <= len(kube.requests) - 1 <= 5


def test_what_is_refused_for_good_is_not_asked_again(cluster: Cluster, kube: KubeApi) -> None:
    kube.fail_next(1, 403)
    with pytest.raises(Forbidden):
        cluster.jobs()
    assert verbs(kube) == ["list"]


def test_a_create_whose_answer_was_lost_finds_itself(cluster: Cluster, kube: KubeApi) -> None:
    kube.lose_next(1)
    made = cluster.create_job(rayjob())
    assert made["metadata"]["uid"] == kube.objects("RayJob")[0]["metadata"]["uid"]
    assert verbs(kube) == ["create", "create", "get"]


def test_a_create_whose_answer_was_lost_does_not_take_anothers(cluster: Cluster, kube: KubeApi) -> None:
    kube.put(rayjob())
    kube.lose_next(1)
    # The first try is refused with 409, which is lost; the second one hears it.
    with pytest.raises(AlreadyThere):
        cluster.create_job(rayjob())
    assert verbs(kube) == ["create", "create", "get"]


def test_a_deletion_whose_answer_was_lost_is_one(cluster: Cluster, kube: KubeApi) -> None:
    cluster.create_job(rayjob())
    kube.lose_next(1)
    assert cluster.delete_job("run")
    assert cluster.job("run") is None


def test_a_server_that_restarts_is_waited_for(cluster: Cluster, kube: KubeApi) -> None:
    cluster.create_job(rayjob())
    kube.stop()
    thread = after(0.3, kube.start)
    try:
        assert cluster.job("run") is not None
    finally:
        thread.join()


def test_a_server_that_is_slow_has_a_limit(kube: KubeApi) -> None:
    cluster = Cluster.open(None, "interp", timeout=0.5)
    kube.delay(1.5)
    start = time.monotonic()
    with pytest.raises(Unreachable, match="no answer within"):
        cluster.jobs()
    assert time.monotonic() - start < 1.4


# -- what explains a job


def test_pods_and_events_say_what_they_are(cluster: Cluster, kube: KubeApi) -> None:
    for number in range(3):
        labels = {"ray.io/cluster": "a" if number < 2 else "b"}
        kube.put({"kind": "Pod", "metadata": {"name": f"p{number}", "labels": labels}, "status": {"phase": "Running"}})
    found = cluster.pods("ray.io/cluster=a")
    assert [(one["kind"], one["metadata"]["name"], one["status"]["phase"]) for one in found] == [
        ("Pod", "p0", "Running"),
        ("Pod", "p1", "Running"),
    ]
    for name, about, when in [
        ("late", "p0", "2026-01-02"),
        ("early", "p0", "2026-01-01"),
        ("other", "p1", "2026-01-01"),
    ]:
        involved = {"kind": "Pod", "name": about}
        stamp = f"{when}T00:00:00Z"
        kube.put({"kind": "Event", "metadata": {"name": name}, "involvedObject": involved, "lastTimestamp": stamp})
    assert [one["metadata"]["name"] for one in cluster.events("Pod", "p0")] == ["early", "late"]


def test_long_lists_are_read_whole(cluster: Cluster, kube: KubeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("interp.cluster.client._PAGE", 2)
    for number in range(5):
        kube.put(pod(f"p{number}"))
    names = [f"p{number}" for number in range(5)]
    assert [one["metadata"]["name"] for one in cluster.pods("")] == names
    assert verbs(kube) == ["list"] * 3


def test_a_list_that_the_server_forgets_between_pages_is_read_anew(
    cluster: Cluster, kube: KubeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("interp.cluster.client._PAGE", 2)
    for number in range(5):
        kube.put(pod(f"p{number}"))
    call = type(cluster.api).call

    def forgetful(api: Any, asked: Any, *, query: Any = None, **more: Any) -> Any:
        if "continue" in (query or {}):
            kube.remove("Pod", "p0")
            kube.forget_history()
        return call(api, asked, query=query, **more)

    monkeypatch.setattr(type(cluster.api), "call", forgetful)
    assert [one["metadata"]["name"] for one in cluster.pods("")] == [f"p{number}" for number in range(1, 5)]


def test_queues_are_told_where_kueue_is(cluster: Cluster, kube: KubeApi) -> None:
    for name, owner in [("mine", "run"), ("other", "else")]:
        reference = {"apiVersion": "ray.io/v1", "kind": "RayJob", "name": owner, "uid": "u"}
        kube.put({"kind": "Workload", "metadata": {"name": name, "ownerReferences": [reference]}})
    kube.put({"kind": "LocalQueue", "metadata": {"name": "gpus"}})
    assert [one["metadata"]["name"] for one in cluster.workloads("run")] == ["mine"]
    assert cluster.exists("LocalQueue", "gpus") and not cluster.exists("LocalQueue", "cpus")
    for resource in ("workloads", "localqueues", "clusterqueues"):
        kube.uninstall(f"{resource}.kueue.x-k8s.io")
    assert cluster.workloads("run") == [] and not cluster.exists("LocalQueue", "gpus")


def test_logs_of_containers(cluster: Cluster, kube: KubeApi) -> None:
    kube.put(pod("p"))
    kube.write_log("p", "one\ntwo — ü\nthree")
    assert list(cluster.pod_log("p", timestamps=False)) == ["one", "two — ü", "three"]
    assert list(cluster.pod_log("p", timestamps=False, tail=1, container="ray")) == ["three"]
    stamp, _, text = next(iter(cluster.pod_log("p"))).partition(" ")
    assert text == "one" and stamp.endswith("Z")
    assert list(cluster.pod_log("p", since="2100-01-01T00:00:00Z")) == []
    with pytest.raises(Invalid, match="container other is not valid"):
        list(cluster.pod_log("p", container="other"))
    with pytest.raises(Absent, match="no pods/log none"):
        list(cluster.pod_log("none"))
    waiting = {"containerStatuses": [{"name": "ray", "state": {"waiting": {"reason": "ContainerCreating"}}}]}
    kube.put(pod("new", status={"phase": "Pending", **waiting}))
    with pytest.raises(NotStarted, match="waiting to start: ContainerCreating"):
        list(cluster.pod_log("new"))


def test_following_a_log_until_its_end_and_until_a_cut(cluster: Cluster, kube: KubeApi) -> None:
    kube.put(pod("p"))
    kube.write_log("p", "one")
    thread = after(0.2, lambda: kube.write_log("p", "two"), kube.cut_watches, lambda: kube.end_log("p"))
    lines = cluster.pod_log("p", follow=True, timestamps=False)
    assert [next(lines), next(lines)] == ["one", "two"]
    with pytest.raises(Unreachable, match="the connection was cut"):
        next(lines)
    thread.join()
    assert list(cluster.pod_log("p", follow=True, timestamps=False)) == ["one", "two"]


def test_lines_of_a_followed_log_come_at_once(cluster: Cluster, kube: KubeApi) -> None:
    kube.put(pod("p"))
    kube.write_log("p", "one")
    lines = cluster.pod_log("p", follow=True, timestamps=False)
    assert next(lines) == "one"
    written = time.monotonic()
    kube.write_log("p", "two")
    assert next(lines) == "two" and time.monotonic() - written < 0.5
    lines.close()
    deadline = time.monotonic() + 5
    while kube.streams() and time.monotonic() < deadline:
        kube.write_log("p", "more")
        time.sleep(0.05)
    assert kube.streams() == 0


# -- rights and existence


def test_what_may_be_done(cluster: Cluster, kube: KubeApi) -> None:
    kube.deny("create", "rayjobs.ray.io")
    kube.deny("get", "pods/log")
    assert not cluster.can("create", "rayjobs", "ray.io") and cluster.can("get", "rayjobs", "ray.io")
    assert not cluster.can("get", "pods/log") and cluster.can("get", "pods")


def test_what_is_there(cluster: Cluster, kube: KubeApi) -> None:
    kube.put({"kind": "Secret", "metadata": {"name": "s3"}, "data": {"key": "cGxhbnRlZA=="}})
    kube.put({"kind": "PersistentVolumeClaim", "metadata": {"name": "cache"}})
    present = {
        "Namespace": "interp",
        "Secret": "s3",
        "ServiceAccount": "default",
        "PersistentVolumeClaim": "cache",
        "CustomResourceDefinition": "rayjobs.ray.io",
    }
    for kind, name in present.items():
        assert cluster.exists(kind, name), kind  # type: ignore[arg-type]
        assert not cluster.exists(kind, "none.ray.io"), kind  # type: ignore[arg-type]
    kube.deny("get", "secrets")
    with pytest.raises(Forbidden, match="not allowed: get secrets s3 in namespace interp"):
        cluster.exists("Secret", "s3")


def test_a_secrets_content_is_never_asked_for(cluster: Cluster, kube: KubeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    kube.put({"kind": "Secret", "metadata": {"name": "s3"}, "data": {"key": "cGxhbnRlZA=="}})
    seen: list[Any] = []
    call = type(cluster.api).call
    monkeypatch.setattr(type(cluster.api), "call", lambda *args, **more: seen.append(call(*args, **more)) or seen[-1])
    assert cluster.exists("Secret", "s3")
    assert seen[-1]["kind"] == "PartialObjectMetadata" and "cGxhbnRlZA==" not in str(seen)


def test_importing_the_client_is_cheap(kube: KubeApi) -> None:
    script = (
        "import sys, time; import interp.cluster.client as c; loaded = {'kubernetes', 'urllib3', 'torch', 'ray'}"
        " & set(sys.modules); assert not loaded, loaded; print(c.Cluster.open(None, 'interp').job('none'));"
        " assert not {'torch', 'ray'} & set(sys.modules)"
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "None\n", "")
    # It takes 0.6 s on a machine that does nothing else.
    assert time.monotonic() - start < 10
