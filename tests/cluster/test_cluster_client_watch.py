"""Watching a RayJob through cuts, restarts and a server that forgets: nothing is missed and nothing told twice."""

from __future__ import annotations

import time

import pytest
from client_cases import after, pod, rayjob, verbs
from kube_api import KubeApi

from interp.cluster.client import Cluster
from interp.cluster.client_errors import Forbidden, Unreachable


def test_a_watch_tells_what_is_there_and_what_changes(cluster: Cluster, kube: KubeApi) -> None:
    cluster.create_job(rayjob())
    cluster.create_job(rayjob("other"))

    def running() -> None:
        kube.set_status("RayJob", "other", {"jobStatus": "FAILED"})
        kube.set_status("RayJob", "run", {"jobStatus": "RUNNING"})

    thread = after(0.2, running, lambda: kube.remove("RayJob", "run"))
    told = [(one.kind, one.object["metadata"]["name"]) for one in cluster.watch_job("run", seconds=1.2)]
    thread.join()
    assert told == [("ADDED", "run"), ("MODIFIED", "run"), ("DELETED", "run")]


def test_a_watch_waits_for_a_job_and_ends_in_time(cluster: Cluster, kube: KubeApi) -> None:
    start = time.monotonic()
    thread = after(0.2, lambda: kube.put(rayjob()))
    told = [one.kind for one in cluster.watch_job("run", seconds=0.7)]
    thread.join()
    assert told == ["ADDED"]
    assert 0.6 < time.monotonic() - start < 1.5


def test_a_watch_goes_on_after_cuts_without_missing_or_repeating(cluster: Cluster, kube: KubeApi) -> None:
    cluster.create_job(rayjob())
    cuts: list[int] = []

    def change() -> None:
        for number in range(8):
            kube.set_status("RayJob", "run", {"step": number})
            time.sleep(0.15)
            if number in (2, 5):
                cuts.append(kube.cut_watches())

    thread = after(0.2, change)
    told = [one.object.get("status", {}).get("step") for one in cluster.watch_job("run", seconds=2.5)]
    thread.join()
    assert cuts == [1, 1]
    assert told == [None, *range(8)]
    assert verbs(kube).count("list") == 1


def test_a_watch_lists_again_after_410(cluster: Cluster, kube: KubeApi) -> None:
    cluster.create_job(rayjob())
    told = []

    def lost_change() -> None:
        # While the watch is cut, the job changes and the server forgets.
        assert kube.cut_watches() == 1
        kube.set_status("RayJob", "run", {"jobStatus": "RUNNING"})
        kube.forget_history()

    thread = after(0.4, lost_change, lambda: kube.set_status("RayJob", "run", {"jobStatus": "SUCCEEDED"}))
    for one in cluster.watch_job("run", seconds=2):
        told.append((one.kind, one.object.get("status")))
    thread.join()
    assert told[0] == ("ADDED", None) and told[-1] == ("MODIFIED", {"jobStatus": "SUCCEEDED"})
    assert verbs(kube).count("list") == 2


def test_listing_again_does_not_repeat_what_was_told(cluster: Cluster, kube: KubeApi) -> None:
    cluster.create_job(rayjob())
    cut: list[int] = []
    thread = after(0.4, lambda: (kube.forget_history(), cut.append(kube.cut_watches())))
    assert [one.kind for one in cluster.watch_job("run", seconds=1.5)] == ["ADDED"]
    thread.join()
    assert cut == [1] and verbs(kube).count("list") == 2


def test_a_watch_that_starts_too_late_lists_again(cluster: Cluster, kube: KubeApi) -> None:
    cluster.create_job(rayjob())
    told = []
    for one in cluster.watch_job("run", seconds=1):
        told.append((one.kind, one.object.get("status")))
        if len(told) == 1:
            kube.set_status("RayJob", "run", {"jobStatus": "RUNNING"})
            kube.forget_history()
    assert told == [("ADDED", None), ("MODIFIED", {"jobStatus": "RUNNING"})]
    assert verbs(kube).count("list") == 2


def test_a_job_that_was_replaced_while_nobody_looked_is_told_as_two(cluster: Cluster, kube: KubeApi) -> None:
    old = cluster.create_job(rayjob())["metadata"]["uid"]
    told = []
    for one in cluster.watch_job("run", seconds=1):
        told.append((one.kind, one.object["metadata"]["uid"] == old))
        if len(told) == 1:
            kube.remove("RayJob", "run")
            kube.put(rayjob())
            kube.forget_history()
    assert told == [("ADDED", True), ("DELETED", True), ("ADDED", False)]


def test_a_watch_outlives_a_restart_of_the_server(cluster: Cluster, kube: KubeApi) -> None:
    cluster.create_job(rayjob())
    change = lambda: kube.set_status("RayJob", "run", {"jobStatus": "RUNNING"})  # noqa: E731
    thread = after(0.3, kube.stop, change, kube.start)
    told = [one.object.get("status") for one in cluster.watch_job("run", seconds=3)]
    thread.join()
    assert told == [None, {"jobStatus": "RUNNING"}]


def test_a_watch_that_is_forbidden_says_so(cluster: Cluster, kube: KubeApi) -> None:
    cluster.create_job(rayjob())
    kube.deny("watch", "rayjobs.ray.io")
    with pytest.raises(Forbidden, match=r"watch rayjobs\.ray\.io in namespace interp"):
        list(cluster.watch_job("run", seconds=5))


def test_a_quiet_job_is_not_listed_again_though_others_change(cluster: Cluster, kube: KubeApi) -> None:
    kube.bookmark_every, kube.store.remembered = 0.1, 5
    cluster.create_job(rayjob())

    def others() -> None:
        for number in range(10):
            kube.put(pod(f"p{number}"))

    def changed() -> None:
        kube.set_status("RayJob", "run", {"jobStatus": "RUNNING"})

    thread = after(0.4, others, kube.cut_watches, changed)
    told = [one.object.get("status") for one in cluster.watch_job("run", seconds=1.6)]
    thread.join()
    assert told == [None, {"jobStatus": "RUNNING"}]
    assert verbs(kube).count("list") == 1


def test_a_watch_gives_up_on_a_server_that_stays_away(
    cluster: Cluster, kube: KubeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("interp.cluster.client_watch._PATIENCE", 0.5)
    cluster.create_job(rayjob())
    told = cluster.watch_job("run", seconds=60)
    assert next(told).kind == "ADDED"
    kube.stop()
    start = time.monotonic()
    with pytest.raises(Unreachable, match="refuses connections"):
        next(told)
    assert 0.4 < time.monotonic() - start < 10
