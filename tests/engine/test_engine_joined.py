"""A cluster that is joined: what it can hold, what waits for a node, and nodes that go while the work runs.

The cluster here is a real one, with token authentication on: a head without CPUs, as in a RayJob, and nodes that the
tests start and kill. What is done on it is done by a driver in a process of its own (below, as `python THIS NAME ..`).
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from queue import Empty, Queue
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from interp.engine.resources import Capacity, Share, pool_size, share, with_threads
from interp.errors import EngineError
from interp.plan.nodes import Nodes, cpus_each, node_memory, nodes_from_environment, nodes_of, places

GPU = Nodes(name="gpu", count=8, cpus=16, gpus=2, memory=128 * 10**9)
CPU = Nodes(name="cpu", count=4, cpus=8, memory=32 * 10**9)
MIXED, PLAIN = Capacity.of((GPU, CPU), grows=True), Capacity.of((CPU,), grows=True)

TOY_NODE = {"name": "cpu", "count": 2, "cpus": 2, "memory": 8 * 10**9}


# --- what a cluster can hold


def test_work_on_gpus_gets_one_each_and_the_gpus_part_of_the_cpus() -> None:
    each = share(MIXED, 5, "auto", "fit")
    assert (each.device, each.gpus, each.cpus, each.threads) == ("cuda", 1.0, 7.75, 8)
    assert share(MIXED, 16, "cuda", "fit") == each
    assert with_threads(each, MIXED, 3, 0.9) == each, "a process has the CPUs of its node that it reserved"
    unequal = Capacity.of((GPU, Nodes(name="small", count=1, cpus=3, gpus=1)), grows=True)
    assert share(unequal, 1, "auto", "fit").cpus == 2.5, "it runs on either"


@pytest.mark.parametrize(
    ("processes", "cpus", "threads"), [(1, 7.5, 8), (4, 7.5, 8), (5, 3.75, 4), (8, 3.75, 4), (9, 2.5, 3), (32, 0.93, 1)]
)
def test_work_on_cpus_gets_the_coarsest_parts_that_give_all_a_place(processes: int, cpus: float, threads: int) -> None:
    for capacity in (PLAIN, MIXED):
        each = share(capacity, processes, "cpu", "a stream")
        assert (each.device, each.cpus, each.threads) == ("cpu", cpus, threads)


def test_nodes_with_gpus_do_the_work_of_cpus_where_there_are_no_others() -> None:
    assert share(Capacity.of((GPU,), grows=True), 8, "cpu", "a stream").cpus == 15.5


def test_nodes_of_different_sizes_are_cut_into_parts_of_one_size() -> None:
    nodes = (Nodes(name="a", count=1, cpus=8.5), Nodes(name="b", count=2, cpus=4.5))
    assert [cpus_each(nodes, n, False) for n in (1, 2, 3, 4, 5)] == [8.0, 4.0, 4.0, 4.0, 8 / 3]
    assert places(nodes, False) == 16


@pytest.mark.parametrize(
    ("capacity", "processes", "device", "said"),
    [
        (
            MIXED,
            17,
            "auto",
            r"17 processes at once, each with a GPU[^$]*at its largest[^$]*8 x gpu \(16 CPUs and 2 GPUs\)",
        ),
        (PLAIN, 200, "cpu", r"200 processes at once[^$]*4 x cpu \(8 CPUs\)"),
        (PLAIN, 1, "cuda", r"asks for GPUs and there are none"),
        (Capacity.of((CPU,), grows=False), 200, "cpu", r"no more than it has places"),
    ],
)
def test_what_no_node_can_hold_is_refused_with_the_numbers(
    capacity: Capacity, processes: int, device: Any, said: str
) -> None:
    with pytest.raises(EngineError, match=said):
        share(capacity, processes, device, "fit")


def test_a_pool_grows_as_far_as_the_cluster() -> None:
    assert [pool_size(MIXED, 1, 64, device) for device in ("auto", "cuda", "cpu")] == [16, 16, 32]
    assert pool_size(MIXED, 1, 4, "auto") == 4
    assert pool_size(PLAIN, 40, 64, "auto") == 40, "and is refused by its share"


def test_memory_that_is_known_is_asked_of_nobody() -> None:
    assert node_memory(PLAIN.nodes, 3.75, gpu=False) == int(32e9 * 0.7) // 2
    assert node_memory(MIXED.nodes, 7.75, gpu=True) == 0, "it is not known"
    known = (GPU.model_copy(update={"gpu_memory": 141 * 10**9}), CPU)
    assert node_memory(known, 7.75, gpu=True) == 141 * 10**9
    assert node_memory((), 1, gpu=False) == 0


def test_what_the_cluster_grows_to_is_read_from_the_environment() -> None:
    said = json.dumps({"nodes": [TOY_NODE, {**TOY_NODE, "name": "gpu", "gpus": 1}]})
    found = nodes_from_environment({"INTERP_CLUSTER": said})
    assert found is not None and [(kind.name, kind.count, kind.gpus) for kind in found] == [
        ("cpu", 2, 0),
        ("gpu", 2, 1),
    ]
    assert nodes_from_environment({}) is nodes_from_environment({"INTERP_CLUSTER": " "}) is None


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ("{nodes", "Expecting property name"),
        ('{"nodes": []}', "nodes: Tuple should have at least 1 item"),
        ('{"nodes": [{"name": "cpu", "count": 0, "cpus": 8}]}', "nodes.0.count: Input should be greater"),
        ('{"nodes": [{"name": "cpu", "count": 1}]}', "nodes.0.cpus: Field required"),
        ('{"nodes": [{"name": "cpu", "count": 1, "cpus": 1, "gpu": 1}]}', "nodes.0.gpu: Extra inputs"),
    ],
)
def test_anything_else_there_is_an_error(said: str, complaint: str) -> None:
    with pytest.raises(EngineError, match="INTERP_CLUSTER does not say") as raised:
        nodes_from_environment({"INTERP_CLUSTER": said})
    assert complaint in str(raised.value)


def test_without_it_the_nodes_that_are_there_count() -> None:
    def node(cpus: float, gpus: float = 0, alive: bool = True, memory: int = 8 << 30) -> dict[str, Any]:
        return {
            "Alive": alive,
            "Resources": {"CPU": cpus, "GPU": gpus, "memory": memory, "object_store_memory": 1 << 30},
        }

    found = nodes_of([node(0), node(8), node(8, memory=(8 << 30) + 4096), node(16, 2), node(64, alive=False)])
    assert [(kind.count, kind.cpus, kind.gpus, kind.memory) for kind in found] == [
        (2, 8, 0, 9 << 30),
        (1, 16, 2, 9 << 30),
    ]
    assert nodes_of([node(0)]) == ()


def test_waiting_for_a_node_is_told_and_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    from interp.engine.ray import room

    now, said, there = [0.0], list[str](), list[dict[str, Any]]()
    monkeypatch.setenv(room.LIMIT, "600")
    monkeypatch.setattr(room, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(room.ray, "nodes", lambda: there)
    watch = room.NodeWatch(PLAIN, Share(3.75, 0, 4), 3, "a pool", said.append)

    def look_at(seconds: float) -> None:
        now[0] = seconds
        watch.look()

    for seconds in range(0, 100, 3):
        look_at(seconds)
    assert said == ["waiting for nodes (a pool: room for 3 x 3.75 CPUs)"] * 2, "once a minute"
    there.extend({"Alive": True, "Resources": {"CPU": cpus}} for cpus in (0.0, 4.0, 8.0))
    look_at(103)
    assert said[2:] == ["the nodes are there, after 103 s (a pool: room for 3 x 3.75 CPUs)"]
    there[1]["Alive"] = False
    look_at(200)
    look_at(800)
    with pytest.raises(EngineError, match=r"has not grown[^$]*waited 603 s[^$]*INTERP_NODE_WAIT_S"):
        look_at(803)
    room.NodeWatch(Capacity(4, 4), Share(1, 0, 1), 1, "on one machine", said.append).look()
    monkeypatch.setenv(room.LIMIT, "soon")
    with pytest.raises(EngineError, match="no number of seconds"):
        room.limit_from_environment()


# --- a cluster


class JoinedCluster:
    """A head that takes no work, and nodes of 2 CPUs."""

    def __init__(self, folder: Path):
        self._folder, self._running = folder, dict[str, subprocess.Popen[bytes]]()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        here = Path(__file__).parent
        plain = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "INTERP_"))}
        self.env = plain | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)]),
            "OMP_NUM_THREADS": "1",
        }

    def start_head(self) -> None:
        port = self.address.rpartition(":")[2]
        self._start(
            "head", "--head", f"--port={port}", "--num-cpus=0", "--include-dashboard=false", "--disable-usage-stats"
        )
        until(lambda: answers(self.address), 60, "a head that answers")

    def start_node(self, name: str) -> None:
        """When it returns the node is there: two that start at once on one machine get in each other's way."""
        self._start(name, f"--address={self.address}", "--num-cpus=2")
        log = self._folder / f"{name}.log"
        until(lambda: "Ray runtime started" in log.read_text(), 60, f"node: {log.read_text()[-500:]}")

    def _start(self, name: str, *arguments: str) -> None:
        command = [str(Path(sys.executable).parent / "ray"), "start", *arguments, "--num-gpus=0", "--block"]
        command += ["--object-store-memory=200000000", "--node-ip-address=127.0.0.1"]
        command += [f"--temp-dir={self._folder}"] if name == "head" else []
        with (self._folder / f"{name}.log").open("wb") as log:
            self._running[name] = subprocess.Popen(
                command, env=self.env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    @property
    def running(self) -> set[str]:
        return set(self._running)

    def node_with(self, process: str) -> str:
        """A node that runs such a process."""
        for name, node in self._running.items():
            for child in psutil.Process(node.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    if process in " ".join(child.cmdline()):
                        return name
        raise AssertionError(f"no node runs {process}")

    def kill(self, name: str) -> None:
        """All processes of a node at once, as when a machine goes."""
        process = self._running.pop(name)
        own = [process.pid]
        with contextlib.suppress(psutil.NoSuchProcess):
            own += [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
        for pid in own:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait(timeout=30)

    def stop(self) -> None:
        for name in reversed(list(self._running)):
            self.kill(name)


def answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError):
        socket.create_connection((host, int(port)), timeout=1).close()
        return True
    return False


def until(holds: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"no {what} in {seconds} s"
        time.sleep(0.05)


class Driver:
    """One of the functions below in a process of its own; the figures that it prints, a line each."""

    def __init__(self, cluster: JoinedCluster, name: str, folder: Path, **environment: str):
        env = cluster.env | {"RAY_ADDRESS": cluster.address} | environment
        command = [sys.executable, __file__, name, str(folder)]
        self._errors = (folder / f"{name}.err").open("w+")
        self._process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=self._errors, text=True)
        self._lines: Queue[dict[str, Any]] = Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(json.loads(line))

    def until(self, event: str, seconds: float = 200) -> dict[str, Any]:
        """The figures of the next such event."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(Empty):
                found = self._lines.get(timeout=0.1)
                if found["event"] == event:
                    return found
                continue
            assert self._process.poll() is None, f"the driver ended before {event}: {self._said()}"
        raise AssertionError(f"no {event} in {seconds} s: {self._said()}")

    def ends_well(self) -> None:
        assert self._process.wait(timeout=60) == 0, self._said()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._errors.close()

    def _said(self) -> str:
        self._errors.seek(0)
        return self._errors.read()[-4000:]


@pytest.fixture(scope="module")
def cluster() -> Iterator[JoinedCluster]:
    with tempfile.TemporaryDirectory(prefix="rj-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        joined = JoinedCluster(Path(folder))
        try:
            joined.start_head()
            yield joined
        finally:
            joined.stop()


@pytest.fixture
def drive(cluster: JoinedCluster, tmp_path: Path) -> Iterator[Callable[..., Driver]]:
    started: list[Driver] = []

    def start(name: str, **environment: str) -> Driver:
        started.append(Driver(cluster, name, tmp_path, **environment))
        return started[-1]

    yield start
    for driver in started:
        driver.kill()


GROWS = {"INTERP_CLUSTER": json.dumps({"nodes": [TOY_NODE]})}


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_work_waits_for_the_first_node_grows_onto_the_second_and_outlives_it(
    cluster: JoinedCluster, drive: Callable[..., Driver], tmp_path: Path
) -> None:
    refused = drive("opens")
    assert "no node that takes work" in refused.until("refused")["error"]
    driver = drive("streams", **GROWS)
    driver.until("waiting")
    cluster.start_node("first")
    assert driver.until("stream")["values"] == [n * n for n in range(12)]
    assert driver.until("outcome")["actors"] <= 2, "as many as one node holds"
    cluster.start_node("second")
    driver.until("grown")
    cluster.kill("second")
    end = driver.until("pool")
    assert end["values"] == {str(n): n * n for n in range(end["items"])} and end["errors"] == []
    assert end["lost_nodes"] > 0, "items whose node had gone were not to blame"
    assert end["actors"] == 1
    driver.until("given back")
    driver.ends_well()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mode", ["colocated", "streamed"])
def test_a_fit_of_which_a_node_goes_is_resumed_on_another(
    mode: str, cluster: JoinedCluster, drive: Callable[..., Driver], tmp_path: Path
) -> None:
    from safetensors.torch import load_file
    from torch.testing import assert_close

    for name in sorted({"first", "third"} - cluster.running):
        cluster.start_node(name)
    driver = drive(f"fit_{mode}", **GROWS)
    driver.until("checkpoint")
    gone = cluster.node_with("RayTrainWorker")
    cluster.kill(gone)
    driver.until("node lost")
    cluster.start_node(gone)
    driver.until("given back", 250)
    expected = driver.until("fitted")
    driver.ends_well()
    found, reference = (load_file(tmp_path / expected[which]) for which in ("found", "reference"))
    assert_close(found, reference, rtol=1e-3, atol=1e-4)


# --- drivers


def say(event: str, **figures: Any) -> None:
    sys.stdout.write(json.dumps({"event": event, **figures}) + "\n")
    sys.stdout.flush()


def opens(folder: Path) -> None:
    from interp.engine import open_engine

    try:
        open_engine("ray")
    except EngineError as error:
        say("refused", error=str(error))


def streams(folder: Path) -> None:
    """A stream, then a pool of items until it has been seen at its largest and small again."""
    import logging

    from toys import Squares

    from interp.engine import open_engine

    class Says(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage())
            if "waiting for nodes" in told[-1]:
                say("waiting")

    told: list[str] = []
    logging.getLogger("interp").addHandler(Says())
    logging.getLogger("interp").setLevel(logging.INFO)
    grown = threading.Event()
    shrunk = threading.Event()

    def items() -> Iterator[int]:
        number = 0
        while not shrunk.is_set():
            yield number
            number += 1

    with open_engine("ray") as engine:
        say("stream", values=list(engine.map_ordered(Squares(str(folder)), range(12), actors=1)))
        outcomes = {}
        for outcome in engine.pool(Squares(str(folder), seconds=0.2), items(), max_actors=64):
            outcomes[outcome.index] = outcome
            say("outcome", actors=outcome.actors)
            if outcome.actors == 4 and not grown.is_set():
                grown.set()
                say("grown")
            if grown.is_set() and outcome.actors <= 2:
                shrunk.set()
        say(
            "pool",
            items=len(outcomes),
            values={index: outcome.value for index, outcome in outcomes.items()},
            errors=[str(outcome.error) for outcome in outcomes.values() if outcome.error],
            lost_nodes=sum("has gone" in line for line in told),
            actors=outcome.actors,
        )
        say_when_given_back()


def say_when_given_back() -> None:
    """Nothing is held by anybody: the autoscaler may take the nodes."""
    import ray

    until(lambda: ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"], 120, "CPUs that are all free")
    say("given back")


def fit_colocated(folder: Path) -> None:
    _fit(folder, "colocated")


def fit_streamed(folder: Path) -> None:
    _fit(folder, "streamed")


def _fit(folder: Path, mode: Any) -> None:
    """One dictionary by two workers, and by one in this process."""
    from tiny_study import artifact, make_study, run

    from interp.engine import open_engine
    from interp.engine.local import InProcess
    from interp.stages.context import StageContext, no_progress
    from interp.stages.fit import fit_job
    from interp.store import Store

    # Wide, so that steps take long enough for a node to go between two of them.
    sae = {"name": "r", "kind": "sae", "at": "layers.0.resid_post", "latents": 16384}
    parts: dict[str, Any] = {"corpus": {"tokens": 140 * 128}, "trace": None}
    study = make_study(folder, **parts, dictionaries=[{**sae, "activation": {"type": "topk", "k": 6}}])
    run(make_study(folder, **parts, dictionaries=[]))
    store, corpus = Store.open(study.store), artifact(study, "corpus")
    context = StageContext(study, None, InProcess(), store, no_progress)  # type: ignore[arg-type]

    def job_of(key: str, **changes: Any) -> Any:
        return replace(fit_job(context, corpus, store.scratch("fit", key * 64)), **changes)

    def progress(step: str, /, **figures: Any) -> None:
        if step == "train" and figures["done"] < figures["total"] and job.resume_step() > 0:
            say("checkpoint")
        if step.startswith("waiting for nodes"):
            say("node lost")

    with open_engine("ray") as engine:
        job = job_of("1", mode=mode, workers=2, harvesters=1)
        engine.fit(job, progress)
        say_when_given_back()
    names = job.fetch_result(folder / "found")
    reference = job_of("2")
    InProcess().fit(reference, no_progress)
    reference.fetch_result(folder / "reference")
    (file,) = (name for name in names if name.endswith(".safetensors"))
    say("fitted", found=f"found/{file}", reference=f"reference/{file}")


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]))
