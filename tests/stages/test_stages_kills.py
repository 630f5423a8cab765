"""A driver that is killed in the middle of a fit, and of a trace, and actors that are: the next run ends as if nothing
had happened."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file
from tiny_study import artifact, make_study, make_transcoders, run

from interp.sources.prompts import Prompt
from interp.spec.study import Study
from interp.stages.dictionary_sets import dictionary_set
from interp.stages.trace_worker import TraceWorker
from interp.store import Scratch, Store
from interp.store.names import TEMPORARY

TESTS = Path(__file__).parent.parent
CHANGES: dict[str, Any] = {
    "corpus": {"tokens": 12_000},
    "trace": {"prompts": [f"def f{n}(self, x, y): return self.over(x, y) + {n} * the_cat(mat)" for n in range(12)]},
}


def start_driver(folder: Path, changes: dict[str, Any]) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    command = [sys.executable, str(TESTS / "tiny_study.py"), str(folder), "ray", json.dumps(changes)]
    return subprocess.Popen(command, env=environment, start_new_session=True)


def wait_for(driver: subprocess.Popen[bytes], reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 240
    while not reached():
        assert driver.poll() is None, "the driver ended before it could be killed"
        assert time.monotonic() < deadline, "the driver does not get there"
        time.sleep(0.02)


def kill_when(driver: subprocess.Popen[bytes], reached: Callable[[], bool]) -> None:
    """Kill the driver, and it alone, as soon as it has reached something."""
    wait_for(driver, reached)
    driver.send_signal(signal.SIGKILL)
    driver.wait()


def graphs(study: Study) -> dict[str, dict[str, Any]]:
    """Graph documents by slug."""
    made = artifact(study, "trace")
    names = [name for name in made.names() if name.startswith("graphs/") and name.endswith(".json")]
    return {name: made.json(name) for name in names}


def scratch_of(study: Study) -> Scratch:
    """The scratch of the one trace that is not finished."""
    (key,) = (path.name for path in Path(study.store).glob("trace/*"))
    return Store.open(study.store).scratch("trace", key)


def assert_same_graph(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """The same but for rounding: it depends on the number of threads, and may decide at a threshold of the pruning. So
    may the digest of dictionaries that were trained in several processes."""
    for name in ("slug", "prompt", "prompt_tokens", "generation_settings", "graph", "model", "pruning_settings"):
        ours, theirs = found["metadata"][name], expected["metadata"][name]
        if isinstance(ours, dict):
            ours, theirs = ({key: each[key] for key in each.keys() - {"dictionaries"}} for each in (ours, theirs))
        assert ours == theirs
    weights = [{(link["source"], link["target"]): link["weight"] for link in one["links"]} for one in (found, expected)]
    both = weights[0].keys() & weights[1].keys()
    assert len(both) >= 0.98 * max(map(len, weights)) > 0
    assert [weights[0][link] for link in both] == pytest.approx([weights[1][link] for link in both], rel=1e-3, abs=1e-5)


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_driver_changes_nothing(tmp_path: Path) -> None:
    changes = {**CHANGES, "store": str(tmp_path / "killed")}
    study = make_study(tmp_path, **changes)
    store = Path(study.store)

    kill_when(start_driver(tmp_path, changes), lambda: any(store.glob("fit/*/scratch/checkpoint.json")))
    assert not list(store.glob("fit/*/manifest.json"))
    kill_when(start_driver(tmp_path, changes), lambda: len(list(store.glob("trace/*/scratch/rows/*"))) >= 3)
    assert not list(store.glob("trace/*/manifest.json"))
    scratch = scratch_of(study)
    finished = [name for name in scratch.list("graphs/") if scratch.json(name.replace("graphs", "rows"))]
    before = {name: scratch.json(name)["metadata"]["info"]["create_time_ms"] for name in finished}
    run(study)

    reference = make_study(tmp_path, **{**CHANGES, "store": str(tmp_path / "whole")})
    run(reference)
    assert_same_fit(study, reference)
    found, expected = graphs(study), graphs(reference)
    assert {name: found[name]["metadata"]["info"]["create_time_ms"] for name in finished} == before
    assert found.keys() == expected.keys() and len(found) == 12
    for name, document in found.items():
        assert_same_graph(document, expected[name])


PROMPTS = [f"f{n}({'xyz'[n % 3]})" for n in range(200)]


def kill_an_actor(driver: subprocess.Popen[bytes]) -> None:
    """Kill one of the driver's actors that is at work."""
    at_work: list[psutil.Process] = []
    while not at_work:
        children = psutil.Process(driver.pid).children(recursive=True)
        with contextlib.suppress(psutil.NoSuchProcess):
            at_work = [child for child in children if "_PoolActor.run" in "".join(child.cmdline())]
    at_work[0].kill()


@pytest.mark.ray
@pytest.mark.slow
def test_200_prompts_with_actors_and_the_driver_killed(tmp_path: Path) -> None:
    """200 graphs, none twice, none wrong."""
    folder = make_transcoders(tmp_path)
    changes = {
        "dictionaries": [{"name": "mlp", "from": str(folder)}],
        "trace": {"prompts": PROMPTS, "dictionaries": "mlp", "actors": {"min": 2, "max": 2}},
    }
    study = make_study(tmp_path, **changes)
    store = Path(study.store)

    def finished() -> int:
        rows = store.glob("trace/*/scratch/rows/*")
        return sum(not row.name.startswith(TEMPORARY) for row in rows)  # one that is being written may never be whole

    driver = start_driver(tmp_path, changes)
    for enough in (20, 60):
        wait_for(driver, lambda enough=enough: finished() >= enough)
        kill_an_actor(driver)
    kill_when(driver, lambda: finished() >= 100)
    scratch = scratch_of(study)
    before = {name: scratch.json(name)["metadata"]["info"]["create_time_ms"] for name in scratch.list("rows/")}
    assert 100 <= len(before) < 200
    run(study)

    made = artifact(study, "trace")
    rows = [json.loads(line) for line in made.read("index.jsonl").splitlines()]
    assert [row["prompt"] for row in rows] == PROMPTS and {row["status"] for row in rows} == {"ok"}
    found = graphs(study)
    assert set(found) == {f"graphs/{row['slug']}.json" for row in rows} and len(found) == 200
    made_at = {name: document["metadata"]["info"]["create_time_ms"] for name, document in found.items()}
    assert {name: made_at[name.replace("rows/", "graphs/")] for name in before} == before
    assert made.json("summary.json")["graphs"] == 200
    assert_same_as_in_process(study, found, tmp_path)


def assert_same_as_in_process(study: Study, found: dict[str, dict[str, Any]], folder: Path) -> None:
    """A sample of the graphs, computed anew in this process."""
    assert study.trace is not None
    scratch = Store.open(str(folder / "elsewhere")).scratch("trace", "sample")
    work = TraceWorker(study.model, dictionary_set(study, "mlp", {}), study.trace, scratch, {}, "cpu").start()
    for index in range(0, 200, 9):
        (row,) = work([Prompt.of(index, PROMPTS[index])])
        assert isinstance(row, dict)
        name = f"graphs/{row['slug']}.json"
        assert_same_graph(found[name], scratch.json(name))


def assert_same_fit(study: Study, reference: Study) -> None:
    found, expected = artifact(study, "fit"), artifact(reference, "fit")
    weights = [name for name in expected.names() if name.endswith(".safetensors")]
    assert len(weights) == 3
    for name in weights:
        for tensor, value in load_file(expected.local(name)).items():
            torch.testing.assert_close(load_file(found.local(name))[tensor], value, rtol=1e-5, atol=1e-6)
    rows = [[json.loads(line) for line in one.read("metrics.jsonl").splitlines()] for one in (found, expected)]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]] == list(range(94))
    assert [row["tokens"] for row in rows[0]] == [row["tokens"] for row in rows[1]]
