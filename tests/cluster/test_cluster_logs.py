"""A run's log: every line once, whatever is cut, lost or told twice."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from kube_api import KubeApi

from interp.cluster import logs
from interp.cluster.client import Cluster
from interp.cluster.client_errors import Forbidden, Unauthenticated
from interp.cluster.log_lines import Resumed, Shown
from interp.cluster.logs import SUBMITTER, RunLog
from interp.store import Store
from interp.store.runs import RunFolder

RUN = "tiny-0123abcd"
START = datetime(2026, 11, 21, 20, tzinfo=UTC)


def driver_line(number: int) -> str:
    """As the driver writes them."""
    return f"{START + timedelta(milliseconds=number):%Y-%m-%dT%H:%M:%S.%f}Z INFO    interp: line {number}"


def lines(*numbers: int) -> list[str]:
    return [driver_line(number) for number in numbers]


# -- which lines have been shown


def shown_of(*sources: tuple[str, list[str]]) -> list[str]:
    shown = Shown()
    tellings = [(shown.source(name), told) for name, told in sources]
    return [line for source, told in tellings for line in told if source.is_new(line)]


def test_a_second_telling_adds_what_the_first_had_not() -> None:
    one = ["connecting", *lines(1), "(pid=7) hello", "(pid=7) hello", *lines(2)]
    two = ["connecting", *lines(1), "(pid=7) hello", "(pid=7) hello", *lines(2), "(pid=7) hello", *lines(3)]
    assert shown_of(("job", one), ("job", two)) == [*one, "(pid=7) hello", *lines(3)]
    # The store has the driver's lines alone.
    assert shown_of(("job", one), ("store", lines(1, 2, 3))) == [*one, *lines(3)]
    assert shown_of(("store", lines(1, 2)), ("job", two)) == [
        *lines(1, 2), "connecting", "(pid=7) hello", "(pid=7) hello", "(pid=7) hello", *lines(3)
    ]  # fmt: skip


def test_another_driver_may_begin_with_the_same_words() -> None:
    assert shown_of(("first", ["connecting", *lines(1)]), ("second", ["connecting", *lines(2)])) == [
        "connecting", *lines(1), "connecting", *lines(2)
    ]  # fmt: skip


@pytest.mark.parametrize("cuts", itertools.combinations(range(1, 9), 2))
def test_connections_that_begin_at_the_second_of_the_cut(cuts: tuple[int, int]) -> None:
    # Two lines of one nanosecond, equal ones at that, and stamps without their last zeros.
    stamps = ["00.1", "00.100000001", "00.9", "00.9", "01.000000000", "01", "01.5", "01.50", "02.25"]
    texts = ["a", "b", "c", "c", "d", "e", "f", "g", "h"]
    whole = [f"2026-11-21T20:00:{stamp}Z {text}" for stamp, text in zip(stamps, texts, strict=True)]
    resumed, got = Resumed(), []
    for end in (*cuts, len(whole)):
        since = None if resumed.since is None else resumed.since[:19]
        got += resumed.lines(line for line in whole[:end] if since is None or line[:19] >= since)
    assert got == texts


def test_a_clock_that_goes_back_loses_no_line() -> None:
    stamped = [f"2026-11-21T20:00:0{second}.0Z {text}" for second, text in [(1, "a"), (3, "b"), (2, "c"), (2, "d")]]
    assert list(Resumed().lines(stamped)) == ["a", "b", "c", "d"]


# -- from a cluster


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_EVERY_S", 0.05)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(Store.open(tmp_path / "store"), RUN)
    folder.write_json("run.json", {"run": RUN, "token": "t", "stages": []})
    return folder


@pytest.fixture
def cluster(kube: KubeApi) -> Cluster:
    kube.put({"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": RUN}, "spec": {"entrypoint": "x"}})
    kube.set_status("RayJob", RUN, {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"})
    return Cluster.open(None, "interp")


def submitter(kube: KubeApi, name: str, job: str = "job-1", age: int = 0) -> str:
    """A pod of KubeRay's that follows the driver."""
    made = {
        "name": name,
        "labels": {"interp.dev/run": RUN, "batch.kubernetes.io/job-name": RUN},
        "creationTimestamp": (datetime.now(UTC) - timedelta(seconds=age)).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": RUN, "uid": job}],
    }
    kube.put({"kind": "Pod", "metadata": made, "spec": {"containers": [{"name": SUBMITTER, "image": "i"}]}})
    kube.patch("Pod", name, {"status": {"phase": "Running", "containerStatuses": [_state(running={})]}})
    return name


def _state(**state: Any) -> dict[str, Any]:
    return {"name": SUBMITTER, "image": "i", "ready": True, "restartCount": 0, "state": state}


def end(kube: KubeApi, state: str = "Complete", outcome: str = "SUCCEEDED") -> None:
    kube.set_status("RayJob", RUN, {"jobDeploymentStatus": state, "jobStatus": outcome})


class Follower:
    """`logs -f` in a thread."""

    def __init__(self, cluster: Cluster | None, store: str | None, tail: int | None = None) -> None:
        self.lines: list[str] = []
        self.told: list[str] = []
        self.log = RunLog(RUN, cluster, store, self.told.append)
        self._thread = threading.Thread(target=self._run, args=(tail,), daemon=True)
        self._thread.start()

    def _run(self, tail: int | None) -> None:
        for line in self.log.follow(tail):
            self.lines.append(line)

    def has(self, count: int) -> None:
        wait_until(lambda: len(self.lines) >= count, self)

    def over(self) -> list[str]:
        self._thread.join(20)
        assert not self._thread.is_alive(), (self.lines, self.told)
        return self.lines


def wait_until(true: Callable[[], bool], about: Follower) -> None:
    until = time.monotonic() + 20
    while not true():
        assert time.monotonic() < until, (about.lines, about.told)
        time.sleep(0.01)


def put(folder: RunFolder, attempt: int, number: int, *numbers: int) -> None:
    folder.put_piece("log", attempt, number, "".join(f"{line}\n" for line in lines(*numbers)))


def test_cut_connections(kube: KubeApi, cluster: Cluster, folder: RunFolder) -> None:
    pod, expected = submitter(kube, "s-1"), []
    follower = Follower(cluster, folder.store.url)
    for number in range(0, 60, 3):
        # Lines of one instant, on both sides of a cut.
        told = [driver_line(number), f"(pid=1) step {number}", "(pid=1) again"]
        kube.write_log(pod, "\n".join(told))
        expected += told
        follower.has(len(expected))
        if number % 6 == 0:
            wait_until(lambda: kube.cut_watches() > 0, follower)
    kube.end_log(pod)
    end(kube)
    assert follower.over() == expected
    assert any("cut" in text for text in follower.told)


def test_the_head_goes_midway_and_another_driver_goes_on(kube: KubeApi, cluster: Cluster, folder: RunFolder) -> None:
    pod = submitter(kube, "s-1", age=5)
    follower = Follower(cluster, folder.store.url)
    kube.write_log(pod, "\n".join(["connecting", *lines(1, 2)]))
    follower.has(3)
    put(folder, 1, 0, 1, 2)
    put(folder, 1, 1, 3, 4)  # the pod had no time for these
    kube.remove("Pod", pod)
    follower.has(5)
    second = submitter(kube, "s-2", job="job-2")
    kube.write_log(second, "\n".join(["connecting", *lines(11)]))
    follower.has(7)
    put(folder, 2, 0, 11, 12)
    kube.remove("Pod", second)
    end(kube)
    assert follower.over() == ["connecting", *lines(1, 2, 3, 4), "connecting", *lines(11, 12)]


def test_a_second_submitter_tells_all_of_it_again(kube: KubeApi, cluster: Cluster, folder: RunFolder) -> None:
    first = submitter(kube, "s-1", age=5)
    told = ["connecting", *lines(1), "(pid=1) x", *lines(2)]
    kube.write_log(first, "\n".join(told))
    follower = Follower(cluster, folder.store.url)
    follower.has(4)
    kube.end_log(first)
    second = submitter(kube, "s-2")
    more = [*told, "(pid=1) x", *lines(3)]
    kube.write_log(second, "\n".join(more))
    put(folder, 1, 0, 1, 2, 3)
    follower.has(6)
    kube.end_log(second)
    end(kube, "Failed", "FAILED")
    assert follower.over() == more


def test_it_goes_on_from_the_store_while_the_api_is_away(kube: KubeApi, cluster: Cluster, folder: RunFolder) -> None:
    pod = submitter(kube, "s-1")
    kube.write_log(pod, "\n".join(lines(1, 2)))
    log = RunLog(RUN, Cluster(cluster.namespace, cluster.api.__class__(cluster.connection, 1.0)), folder.store.url)
    follower = Follower(log.cluster, folder.store.url)
    follower.has(2)
    kube.stop()
    put(folder, 1, 0, 1, 2)
    put(folder, 1, 1, 3)
    follower.has(3)
    kube.start()
    kube.write_log(pod, "\n".join([*lines(3), "(pid=1) late", *lines(4)]))
    follower.has(5)
    kube.end_log(pod)
    end(kube)
    assert follower.over() == [*lines(1, 2, 3), "(pid=1) late", *lines(4)]
    assert any("does not answer" in text for text in follower.told)


def test_a_pod_that_waits_has_nothing_to_tell_yet(kube: KubeApi, cluster: Cluster, folder: RunFolder) -> None:
    pod = submitter(kube, "s-1")
    waiting = {"phase": "Pending", "containerStatuses": [_state(waiting={"reason": "ContainerCreating"})]}
    kube.patch("Pod", pod, {"status": waiting})
    follower = Follower(cluster, folder.store.url)
    wait_until(lambda: sum(request.subresource == "log" for request in kube.requests) > 2, follower)
    kube.patch("Pod", pod, {"status": {"phase": "Running", "containerStatuses": [_state(running={})]}})
    kube.write_log(pod, driver_line(1))
    follower.has(1)
    kube.end_log(pod)
    end(kube)
    assert follower.over() == lines(1) and follower.told == []


def test_a_submitter_beside_the_head(kube: KubeApi, cluster: Cluster) -> None:
    made = {"name": "head", "labels": {"interp.dev/run": RUN, "ray.io/node-type": "head"}}
    containers = [{"name": name, "image": "i"} for name in ("ray-head", SUBMITTER)]
    kube.put({"kind": "Pod", "metadata": made, "spec": {"containers": containers}})
    kube.patch("Pod", "head", {"status": {"phase": "Running", "containerStatuses": [_state(running={})]}})
    kube.write_log("head", "raylet started", container="ray-head")
    kube.write_log("head", driver_line(1), container=SUBMITTER)
    assert list(RunLog(RUN, cluster, None).so_far()) == lines(1)


def test_from_the_store_alone(folder: RunFolder) -> None:
    put(folder, 1, 0, 1, 2)
    follower = Follower(None, folder.store.url)
    follower.has(2)
    put(folder, 2, 0, 3)
    follower.has(3)
    status = {"run": RUN, "state": "running", "token": "t", "updated": datetime.now(UTC).isoformat(), "stages": []}
    folder.write_json("status.json", {**status, "state": "failed", "attempt": 2})
    assert follower.over() == lines(1, 2, 3)


def test_what_was_before_comes_in_the_order_of_its_time(kube: KubeApi, cluster: Cluster, folder: RunFolder) -> None:
    put(folder, 1, 0, 1, 2)  # of a pod that is gone
    put(folder, 2, 0, 11, 12)
    pod = submitter(kube, "s-2", job="job-2")
    kube.write_log(pod, "\n".join(["connecting", *lines(11), "(pid=1) x"]))
    whole = [*lines(1, 2), "connecting", *lines(11), "(pid=1) x", *lines(12)]
    assert sorted(RunLog(RUN, cluster, folder.store.url).so_far()) == sorted(whole)
    got = list(RunLog(RUN, cluster, None).so_far())
    assert got == ["connecting", *lines(11), "(pid=1) x"]  # without a store it is what the pod has
    assert list(RunLog(RUN, cluster, folder.store.url).so_far()) == whole
    assert list(RunLog(RUN, cluster, folder.store.url).so_far(2)) == whole[-2:]
    assert list(RunLog(RUN, cluster, folder.store.url).so_far(0)) == []
    follower = Follower(cluster, folder.store.url, tail=1)
    follower.has(1)
    kube.write_log(pod, driver_line(13))
    follower.has(2)
    kube.end_log(pod)
    end(kube)
    assert follower.over() == lines(12, 13)


def test_reading_never_writes(kube: KubeApi, cluster: Cluster, folder: RunFolder) -> None:
    pod = submitter(kube, "s-1")
    kube.write_log(pod, driver_line(1))
    end(kube)
    kube.end_log(pod)
    before: Iterator[Any] = iter(sorted(stat.path for stat in folder.store.backend.objects("")))
    assert Follower(cluster, folder.store.url).over() == lines(1)
    assert {request.verb for request in kube.requests} <= {"get", "list", "watch"}
    assert sorted(stat.path for stat in folder.store.backend.objects("")) == list(before)


def last_word(folder: RunFolder, state: str) -> None:
    document = {"run": RUN, "state": state, "token": "t", "updated": datetime.now(UTC).isoformat(), "stages": []}
    folder.write_json("status.json", {**document, "attempt": 1})


@pytest.mark.parametrize("status", [401, 403])
def test_an_api_that_refuses_for_good_leaves_the_store(
    status: int, kube: KubeApi, cluster: Cluster, folder: RunFolder
) -> None:
    put(folder, 1, 0, 1, 2)
    last_word(folder, "running")
    kube.fail_next(10**6, status, "no")
    follower = Follower(cluster, folder.store.url)
    follower.has(2)
    put(folder, 1, 1, 3)
    last_word(folder, "failed")
    assert follower.over() == lines(1, 2, 3)
    assert any("reading the store" in text for text in follower.told)


@pytest.mark.parametrize(("status", "error"), [(401, Unauthenticated), (403, Forbidden)])
def test_an_api_that_refuses_for_good_where_there_is_no_store(
    status: int, error: type[Exception], kube: KubeApi, cluster: Cluster
) -> None:
    kube.fail_next(10**6, status, "no")
    with pytest.raises(error):
        list(RunLog(RUN, cluster, None).follow())


def test_a_run_that_ended_while_the_api_is_away(kube: KubeApi, cluster: Cluster, folder: RunFolder) -> None:
    put(folder, 1, 0, 1)
    last_word(folder, "failed")
    hasty = Cluster(cluster.namespace, cluster.api.__class__(cluster.connection, 0.3))
    kube.stop()
    log = RunLog(RUN, hasty, folder.store.url)
    assert log.state() is None, "KubeRay may be trying again"
    last_word(folder, "succeeded")
    assert Follower(hasty, folder.store.url).over() == lines(1)


def test_the_last_lines_are_found_without_reading_all(
    kube: KubeApi, cluster: Cluster, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(100):
        put(folder, 1, number, 2 * number, 2 * number + 1)
    pod = submitter(kube, "s-1")
    kube.write_log(pod, "\n".join(["connecting", *lines(196), "(pid=1) x", *lines(197)]))
    read = list[str]()
    text = RunFolder.text
    monkeypatch.setattr(RunFolder, "text", lambda self, name: (read.append(name), text(self, name))[1])
    whole = [*lines(*range(190, 196)), "connecting", *lines(196), "(pid=1) x", *lines(197, 198, 199)]
    for tail in (1, 4, 8):
        assert list(RunLog(RUN, cluster, folder.store.url).so_far(tail)) == whole[-tail:]
    assert len(read) < 60
    follower = Follower(None, folder.store.url, tail=3)
    follower.has(3)
    put(folder, 1, 100, 200)
    last_word(folder, "succeeded")
    assert follower.over() == lines(197, 198, 199, 200)
