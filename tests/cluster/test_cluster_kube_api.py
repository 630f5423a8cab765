"""The API server's double is as strict as an API server. Plain HTTP here: nothing of the client that it will test."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from kube_api import TOKENS, KubeApi
from kube_schemas import schema_folder

TOKEN = next(iter(TOKENS))
JOBS = "/apis/ray.io/v1/namespaces/interp/rayjobs"
PODS = "/api/v1/namespaces/interp/pods"


class Http:
    def __init__(self, kube: KubeApi) -> None:
        self.kube, self.session = kube, requests.Session()
        self.session.trust_env = False
        self.session.headers["Authorization"] = f"Bearer {TOKEN}"

    def __call__(self, method: str, path: str, body: Any = None, **more: Any) -> requests.Response:
        data = None if body is None else json.dumps(body)
        headers = {"Content-Type": "application/json", **more.pop("headers", {})}
        return self.session.request(method, self.kube.url + path, data=data, headers=headers, timeout=10, **more)

    def merge(self, path: str, body: Any, media: str = "application/merge-patch+json") -> requests.Response:
        return self("PATCH", path, body, headers={"Content-Type": media})

    def watch(self, path: str, **query: Any) -> Iterator[dict[str, Any]]:
        answer = self("GET", path, params={"watch": "1", "timeoutSeconds": 5, **query}, stream=True)
        for line in answer.iter_lines():
            yield json.loads(line)


@pytest.fixture
def http(kube: KubeApi) -> Http:
    return Http(kube)


def rayjob(name: str, **more: Any) -> dict[str, Any]:
    metadata = {"name": name, **more.pop("metadata", {})}
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": metadata, "spec": {"entrypoint": "true"}, **more}


def test_create_stamps_an_object_and_refuses_a_second_one(http: Http) -> None:
    made = http("POST", JOBS, rayjob("one"))
    assert made.status_code == 201
    metadata = made.json()["metadata"]
    assert metadata["namespace"] == "interp" and metadata["uid"] and metadata["creationTimestamp"].endswith("Z")
    assert int(metadata["resourceVersion"]) > 0
    again = http("POST", JOBS, rayjob("one"))
    assert again.status_code == 409
    status = again.json()
    assert status["kind"] == "Status" and status["reason"] == "AlreadyExists"
    assert status["message"] == 'rayjobs.ray.io "one" already exists'
    assert http("GET", JOBS + "/one").json()["metadata"] == metadata


def test_what_is_absent_is_a_status_object(http: Http) -> None:
    answer = http("GET", JOBS + "/none")
    assert answer.status_code == 404
    assert answer.json() == {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": 'rayjobs.ray.io "none" not found',
        "reason": "NotFound",
        "details": {"name": "none", "group": "ray.io", "kind": "rayjobs"},
        "code": 404,
    }
    absent = http("POST", JOBS.replace("/interp/", "/elsewhere/"), rayjob("one")).json()
    assert absent["message"] == 'namespaces "elsewhere" not found' and absent["details"]["kind"] == "namespaces"


def test_a_kind_without_its_definition_is_served_by_nobody(http: Http, kube: KubeApi) -> None:
    http("POST", JOBS, rayjob("one"))
    kube.uninstall("rayjobs.ray.io")
    answer = http("GET", JOBS)
    assert (answer.status_code, answer.text) == (404, "404 page not found\n")
    assert "rayjobs" not in [one["name"] for one in http("GET", "/apis/ray.io/v1").json()["resources"]]
    assert http("GET", "/apis/nobody.example").status_code == 404
    assert kube.objects("RayJob") == []


def test_status_is_a_subresource_of_its_own(http: Http) -> None:
    made = http("POST", JOBS, rayjob("one", status={"jobStatus": "SUCCEEDED"})).json()
    assert "status" not in made
    http.merge(JOBS + "/one", {"status": {"jobStatus": "RUNNING"}, "spec": {"suspend": True}})
    assert "status" not in http("GET", JOBS + "/one").json()
    change = {"status": {"jobStatus": "RUNNING"}, "spec": {"suspend": False}, "metadata": {"labels": {"a": "b"}}}
    http.merge(JOBS + "/one/status", change)
    now = http("GET", JOBS + "/one").json()
    assert now["status"] == {"jobStatus": "RUNNING"} and now["spec"]["suspend"] is True
    assert "labels" not in now["metadata"]
    now["spec"]["entrypoint"] = "false"
    del now["status"]
    replaced = http("PUT", JOBS + "/one", now).json()
    assert replaced["status"] == {"jobStatus": "RUNNING"} and replaced["metadata"]["generation"] == 3


def test_a_stale_update_conflicts(http: Http) -> None:
    old = http("POST", JOBS, rayjob("one")).json()
    http.merge(JOBS + "/one", {"metadata": {"labels": {"a": "b"}}})
    answer = http("PUT", JOBS + "/one", old)
    assert answer.status_code == 409 and answer.json()["reason"] == "Conflict"
    assert "the object has been modified" in answer.json()["message"]
    stale = {"metadata": {"resourceVersion": old["metadata"]["resourceVersion"]}, "spec": {"suspend": True}}
    assert http.merge(JOBS + "/one", stale).status_code == 409
    del old["metadata"]["resourceVersion"]
    assert http("PUT", JOBS + "/one", old).status_code == 422


def test_a_patch_that_changes_nothing_makes_no_version(http: Http) -> None:
    made = http("POST", JOBS, rayjob("one")).json()
    assert http.merge(JOBS + "/one", {"spec": {"entrypoint": "true"}}).json() == made


def test_merge_patches_only_and_strategic_ones_for_kinds_of_kubernetes(http: Http, kube: KubeApi) -> None:
    http("POST", JOBS, rayjob("one", metadata={"labels": {"a": "b", "c": "d"}}))
    assert http.merge(JOBS + "/one", {"metadata": {"labels": {"a": None}}}).json()["metadata"]["labels"] == {"c": "d"}
    patch = [{"op": "remove", "path": "/spec"}]
    assert http.merge(JOBS + "/one", patch, "application/json-patch+json").status_code == 415
    strategic = "application/strategic-merge-patch+json"
    assert http.merge(JOBS + "/one", {"spec": {}}, strategic).status_code == 415
    kube.put({"kind": "Pod", "metadata": {"name": "p"}})
    labelled = http.merge(PODS + "/p", {"metadata": {"labels": {"a": "b"}}}, strategic)
    assert labelled.json()["metadata"]["labels"] == {"a": "b"}


@pytest.mark.parametrize(
    ("selector", "names"),
    [
        ("tier=a", ["one"]),
        ("tier!=a", ["two", "three"]),
        ("tier in (a, b)", ["one", "two"]),
        ("tier notin (a),tier", ["two"]),
        ("!tier", ["three"]),
        ("app.kubernetes.io/name==x,tier=b", ["two"]),
    ],
)
def test_label_selectors(http: Http, selector: str, names: list[str]) -> None:
    for name, labels in {
        "one": {"tier": "a"},
        "two": {"tier": "b", "app.kubernetes.io/name": "x"},
        "three": {},
    }.items():
        http("POST", JOBS, rayjob(name, metadata={"labels": labels}))
    found = http("GET", JOBS, params={"labelSelector": selector}).json()["items"]
    assert sorted(one["metadata"]["name"] for one in found) == sorted(names)


def test_selectors_that_are_none_are_refused(http: Http) -> None:
    assert http("GET", JOBS, params={"labelSelector": "tier in a"}).status_code == 400
    refused = http("GET", JOBS, params={"fieldSelector": "spec.entrypoint=true"})
    assert refused.status_code == 400 and "field label not supported: spec.entrypoint" in refused.json()["message"]


def test_field_selectors(http: Http, kube: KubeApi) -> None:
    for number, (kind, name) in enumerate([("RayJob", "one"), ("RayJob", "two"), ("Pod", "one")]):
        involved = {"kind": kind, "name": name}
        kube.put({"kind": "Event", "metadata": {"name": f"e{number}"}, "involvedObject": involved, "reason": "Seen"})
    query = {"fieldSelector": "involvedObject.kind=RayJob,involvedObject.name=one"}
    found = http("GET", "/api/v1/namespaces/interp/events", params=query).json()["items"]
    assert [one["metadata"]["name"] for one in found] == ["e0"]
    assert "kind" not in found[0]


def test_lists_come_in_pages(http: Http, kube: KubeApi) -> None:
    for number in range(5):
        http("POST", JOBS, rayjob(f"job-{number}"))
    first = http("GET", JOBS, params={"limit": 2}).json()
    assert first["metadata"]["remainingItemCount"] == 3
    query = {"limit": 3, "continue": first["metadata"]["continue"]}
    rest = http("GET", JOBS, params=query).json()
    names = [one["metadata"]["name"] for one in first["items"] + rest["items"]]
    assert names == [f"job-{number}" for number in range(5)] and "continue" not in rest["metadata"]
    kube.forget_history()
    assert http("GET", JOBS, params=query).status_code == 410


def test_names_and_labels_have_rules(http: Http) -> None:
    for metadata in ({"name": "Upper"}, {"name": "a" * 254}, {"name": "a", "labels": {"x": "no spaces"}}, {"name": ""}):
        answer = http("POST", JOBS, rayjob("one", metadata=metadata))
        assert (answer.status_code, answer.json()["reason"]) == (422, "Invalid"), metadata
    generated = rayjob("", metadata={"name": "", "generateName": "made-"})
    names = {http("POST", JOBS, generated).json()["metadata"]["name"] for _ in range(2)}
    assert len(names) == 2 and all(name.startswith("made-") for name in names)


def test_a_watch_sees_every_change_from_a_version_on(http: Http, kube: KubeApi) -> None:
    version = http("GET", JOBS).json()["metadata"]["resourceVersion"]
    http("POST", JOBS, rayjob("one"))
    kube.set_status("RayJob", "one", {"jobStatus": "RUNNING"})
    http("POST", JOBS, rayjob("two"))
    http("DELETE", JOBS + "/one")
    seen = [
        (one["type"], one["object"]["metadata"]["name"])
        for one in http.watch(JOBS, resourceVersion=version, timeoutSeconds=1)
    ]
    assert seen == [("ADDED", "one"), ("MODIFIED", "one"), ("ADDED", "two"), ("DELETED", "one")]


def test_a_watch_with_a_selector_tells_coming_and_going(http: Http, kube: KubeApi) -> None:
    version = http("GET", JOBS).json()["metadata"]["resourceVersion"]
    http("POST", JOBS, rayjob("one"))
    for labels in ({"seen": "yes"}, {"other": "x"}, {"seen": None}):
        http.merge(JOBS + "/one", {"metadata": {"labels": labels}})
    events = http.watch(JOBS, resourceVersion=version, labelSelector="seen=yes", timeoutSeconds=1)
    assert [one["type"] for one in events] == ["ADDED", "MODIFIED", "DELETED"]


def test_a_watch_ends_in_time_and_says_where_it_is(http: Http, kube: KubeApi) -> None:
    kube.bookmark_every = 0.3
    start = time.monotonic()
    events = list(http.watch(JOBS, allowWatchBookmarks="true", timeoutSeconds=1))
    assert 0.9 < time.monotonic() - start < 3
    assert {one["type"] for one in events} == {"BOOKMARK"}
    assert events[-1]["object"]["metadata"]["resourceVersion"] == str(kube.store.version)


def test_a_watch_from_a_version_that_is_forgotten_is_gone(http: Http, kube: KubeApi) -> None:
    version = http("GET", JOBS).json()["metadata"]["resourceVersion"]
    kube.forget_history()
    (event,) = http.watch(JOBS, resourceVersion=version)
    assert event["type"] == "ERROR" and (event["object"]["code"], event["object"]["reason"]) == (410, "Expired")


def test_a_cut_watch_has_no_end(http: Http, kube: KubeApi) -> None:
    threading.Timer(0.3, kube.cut_watches).start()
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        list(http.watch(JOBS))


def owned(kube: KubeApi, name: str, owner: str, **more: Any) -> None:
    uid = kube.get("RayJob", owner)["metadata"]["uid"]
    reference = {"apiVersion": "ray.io/v1", "kind": "RayJob", "name": owner, "uid": uid}
    kube.put({"kind": "Pod", "metadata": {"name": name, "ownerReferences": [reference], **more}})


def test_deleting_in_the_foreground_waits_for_dependents(http: Http, kube: KubeApi) -> None:
    http("POST", JOBS, rayjob("one"))
    owned(kube, "held", "one", finalizers=["test/hold"])
    owned(kube, "free", "one")
    held = http("DELETE", JOBS + "/one", {"propagationPolicy": "Foreground"}).json()
    assert held["metadata"]["deletionTimestamp"] and held["metadata"]["finalizers"] == ["foregroundDeletion"]
    assert [pod["metadata"]["name"] for pod in kube.objects("Pod")] == ["held"]
    http.merge(PODS + "/held", {"metadata": {"finalizers": None}})
    assert kube.objects("Pod") == [] and kube.objects("RayJob") == []


def test_finalizers_hold_an_object(http: Http, kube: KubeApi) -> None:
    http("POST", JOBS, rayjob("one", metadata={"finalizers": ["ray.io/x"]}))
    owned(kube, "dependent", "one")
    http("DELETE", JOBS + "/one")
    assert "deletionTimestamp" in http("GET", JOBS + "/one").json()["metadata"]
    http.merge(JOBS + "/one", {"metadata": {"finalizers": []}})
    assert http("GET", JOBS + "/one").status_code == 404
    assert kube.objects("Pod") == []
    assert http("DELETE", JOBS + "/one").status_code == 404


def test_logs_by_container_time_and_number(http: Http, kube: KubeApi) -> None:
    kube.put({"kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}, {"name": "b"}]}})
    kube.write_log("p", "1\n2\n3")
    assert http("GET", PODS + "/p/log").json()["message"].endswith("choose one of: [a b]")
    assert http("GET", PODS + "/p/log", params={"container": "c"}).status_code == 400
    assert http("GET", PODS + "/p/log", params={"container": "a", "tailLines": 2}).text == "2\n3\n"
    stamped = http("GET", PODS + "/p/log", params={"container": "a", "timestamps": "true"}).text.splitlines()
    assert [line.split(" ")[1] for line in stamped] == ["1", "2", "3"]
    # Only whole seconds count, as with a kubelet.
    since = http("GET", PODS + "/p/log", params={"container": "a", "sinceTime": stamped[-1].split(" ")[0]}).text
    assert since == "1\n2\n3\n"
    assert http("GET", PODS + "/p/log", params={"container": "a", "sinceTime": "2100-01-01T00:00:00Z"}).text == ""


def test_a_followed_log_ends_with_its_container(http: Http, kube: KubeApi) -> None:
    kube.put({"kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}]}})
    kube.write_log("p", "first")
    threading.Timer(0.2, lambda: (kube.write_log("p", "last"), kube.end_log("p"))).start()
    assert http("GET", PODS + "/p/log", params={"follow": "true"}).text == "first\nlast\n"


def test_a_container_that_waits_has_no_log(http: Http, kube: KubeApi) -> None:
    status = {
        "phase": "Pending",
        "containerStatuses": [{"name": "a", "state": {"waiting": {"reason": "ErrImagePull"}}}],
    }
    kube.put({"kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}]}, "status": status})
    message = 'container "a" in pod "p" is waiting to start: image can\'t be pulled'
    assert http("GET", PODS + "/p/log").json()["message"] == message


def test_who_is_unknown_and_who_may_not(http: Http, kube: KubeApi) -> None:
    assert http("GET", JOBS, headers={"Authorization": "Bearer other"}).status_code == 401
    kube.deny("list", "rayjobs.ray.io")
    kube.deny("get", "pods/log")
    answer = http("GET", JOBS)
    assert answer.status_code == 403
    assert answer.json()["message"] == (
        'rayjobs.ray.io is forbidden: User "tester" cannot list resource "rayjobs" '
        'in API group "ray.io" in the namespace "interp"'
    )
    review = {"spec": {"resourceAttributes": {"verb": "get", "resource": "pods", "subresource": "log"}}}
    path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
    assert http("POST", path, review).json()["status"]["allowed"] is False
    review["spec"]["resourceAttributes"]["subresource"] = ""
    assert http("POST", path, review).json()["status"]["allowed"] is True


def test_faults_come_as_told(http: Http, kube: KubeApi) -> None:
    kube.fail_next(2, 503)
    assert [http("GET", JOBS).status_code for _ in range(3)] == [503, 503, 200]
    kube.lose_next(1)
    with pytest.raises(requests.exceptions.ConnectionError):
        http("POST", JOBS, rayjob("one"))
    assert kube.get("RayJob", "one") is not None


def test_a_server_that_comes_back_has_its_objects_and_its_port(http: Http, kube: KubeApi) -> None:
    http("POST", JOBS, rayjob("one"))
    url = kube.url
    kube.stop()
    with pytest.raises(requests.exceptions.ConnectionError):
        http("GET", JOBS + "/one")
    kube.start()
    assert kube.url == url and http("GET", JOBS + "/one").status_code == 200


@pytest.mark.skipif(schema_folder() is None, reason="INTERP_KUBERAY_SCHEMAS names no folder")
def test_rayjobs_are_held_against_kuberays_schema(http: Http) -> None:
    wrong = rayjob("one", spec={"entrypoint": 3, "rayClusterSpec": {"headGroupSpec": {}}})
    answer = http("POST", JOBS, wrong)
    assert answer.status_code == 422 and "spec.entrypoint" in answer.json()["message"]
    unknown = rayjob("one", spec={"entrypoint": "true", "typo": 1})
    strict = http("POST", JOBS, unknown, params={"fieldValidation": "Strict"})
    assert strict.status_code == 400 and 'unknown field "spec.typo"' in strict.json()["message"]
    assert "typo" not in http("POST", JOBS, unknown).json()["spec"]


def test_requests_are_remembered(http: Http, kube: KubeApi, tmp_path: Path) -> None:
    http("GET", JOBS + "/one")
    last = kube.requests[-1]
    assert (last.user, last.verb, last.resource, last.key) == ("tester", "get", "rayjobs.ray.io", ("interp", "one"))
