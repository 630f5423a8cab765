"""A driver that is killed in the middle of a fit, and of a trace: the next run ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_study import artifact, make_study, run

from interp.spec.study import Study
from interp.store import Store

TESTS = Path(__file__).parent.parent
CHANGES: dict[str, Any] = {
    "corpus": {"tokens": 12_000},
    "trace": {"prompts": [f"def f{n}(self, x, y): return self.over(x, y) + {n} * the_cat(mat)" for n in range(12)]},
}


def start_driver(folder: Path, changes: dict[str, Any]) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    command = [sys.executable, str(TESTS / "tiny_study.py"), str(folder), "ray", json.dumps(changes)]
    return subprocess.Popen(command, env=environment, start_new_session=True)


def kill_when(driver: subprocess.Popen[bytes], reached: Callable[[], bool]) -> None:
    """Kill the driver, and it alone, as soon as it has reached something."""
    deadline = time.monotonic() + 240
    while not reached():
        assert driver.poll() is None, "the driver ended before it could be killed"
        assert time.monotonic() < deadline, "the driver does not get there"
        time.sleep(0.02)
    driver.send_signal(signal.SIGKILL)
    driver.wait()


def graphs(study: Study) -> dict[str, dict[str, Any]]:
    """Graph documents by slug."""
    made = artifact(study, "trace")
    names = [name for name in made.names() if name.startswith("graphs/")]
    return {name: made.json(name) for name in names}


def without_times(document: dict[str, Any]) -> dict[str, Any]:
    metadata = {k: v for k, v in document["metadata"].items() if k not in ("info", "provenance")}
    return {**document, "metadata": metadata}


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
    (key,) = (path.name for path in store.glob("trace/*"))
    scratch = Store.open(study.store).scratch("trace", key)
    finished = [name for name in scratch.list("graphs/") if scratch.json(name.replace("graphs", "rows"))]
    before = {name: scratch.json(name)["metadata"]["info"]["create_time_ms"] for name in finished}
    run(study)

    reference = make_study(tmp_path, **{**CHANGES, "store": str(tmp_path / "whole")})
    run(reference)
    assert_same_fit(study, reference)
    found, expected = graphs(study), graphs(reference)
    assert {name: found[name]["metadata"]["info"]["create_time_ms"] for name in finished} == before
    assert found.keys() == expected.keys() and len(found) == 12
    assert [without_times(found[name]) for name in found] == [without_times(expected[name]) for name in found]


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
