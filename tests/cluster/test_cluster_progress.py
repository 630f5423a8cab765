"""status.json: what is written is read again, by other versions too, and what is no status is refused by its path."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from interp.cluster.progress import RunError, RunStatus, StageStatus
from interp.errors import StoreError
from interp.store import Store
from interp.store.runs import RunFolder

STATUS = RunStatus(
    run="tiny-1",
    state="failed",
    attempt=2,
    host="head",
    pid=17,
    started="2026-11-21T19:00:00.000+00:00",
    updated="2026-11-21T19:01:00.000+00:00",
    stages=(
        StageStatus("corpus", "aa", "cached", url="s3://b/corpus/aa"),
        StageStatus("fit", "bb", "failed", "train", {"done": 5, "fvu": 0.25, "rate": None}, 12.5),
    ),
    error=RunError("HookError", "no such hook"),
    token="t1",
)


def test_a_status_is_read_as_it_was_written(tmp_path: Path) -> None:
    folder = RunFolder(Store.open(tmp_path), "tiny-1")
    assert RunStatus.read(folder) is None
    folder.write_json("status.json", STATUS.to_json())
    found = RunStatus.read(folder)
    assert found == STATUS
    assert found is not None and found.stage("fit") == STATUS.stages[1] and found.stage("trace") is None


def test_fields_of_a_later_version_are_passed_over_and_optional_ones_may_be_missing() -> None:
    document: dict[str, Any] = {**STATUS.to_json(), "weather": "fine"}
    document["stages"] = [{**stage, "colour": 3} for stage in document["stages"]]
    document["error"] = {**document["error"], "line": 4}
    assert RunStatus.from_json(document) == STATUS
    for name in ("host", "pid", "stages", "error", "token"):
        del document[name]
    bare = RunStatus.from_json(document)
    assert (bare.stages, bare.error, bare.token, bare.host) == ((), None, "", "")


@pytest.mark.parametrize(
    ("change", "path", "expected"),
    [
        ({"state": "sleeping"}, "state", "running, succeeded, failed, stopped"),
        ({"attempt": "2"}, "attempt", "a whole number"),
        ({"attempt": True}, "attempt", "a whole number"),
        ({"updated": None}, "updated", "text"),
        ({"stages": "fit"}, "stages", "a list"),
        ({"stages": ["fit"]}, "stages[0]", "an object"),
        ({"stages": [{"stage": "fit", "key": "bb", "state": "lost"}]}, "stages[0].state", "waiting, running"),
        ({"stages": [{"stage": "fit", "state": "done"}]}, "stages[0].key", "text"),
        ({"stages": [{"stage": "fit", "key": "b", "state": "done", "figures": [1]}]}, "stages[0].figures", "an object"),
        ({"error": "broken"}, "error", "an object or null"),
        ({"error": {"message": "m"}}, "error.kind", "text"),
    ],
)
def test_what_is_no_status_is_refused_by_its_path(change: dict[str, Any], path: str, expected: str) -> None:
    with pytest.raises(StoreError) as caught:
        RunStatus.from_json({**STATUS.to_json(), **change})
    assert f": {path} is" in caught.value.what
    assert expected in str(caught.value)


def test_reading_a_status_and_the_drivers_help_load_no_torch_and_no_ray() -> None:
    program = """
import sys
import interp.cluster.progress
try:
    from ray_jobs.run_plan import main
    main(["--help"])
except SystemExit as end:
    assert end.code == 0
assert not {"torch", "ray", "transformers", "kubernetes"} & set(sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "--retry-failed" in done.stdout and "143" in done.stdout


def test_every_driver_that_begins_gets_an_attempt_of_its_own(tmp_path: Path) -> None:
    folder = RunFolder(Store.open(tmp_path), "tiny-1")
    assert [folder.begin_attempt(f"line {n}\n") for n in range(3)] == [1, 2, 3]
    # One that began after we looked has its number already.
    folder.put_piece("log", 4, 0, "somebody else\n")
    assert RunFolder(folder.store, "tiny-1").begin_attempt("mine\n") == 5
    assert [text for _, text in folder.pieces("log")] == [
        "line 0\n",
        "line 1\n",
        "line 2\n",
        "somebody else\n",
        "mine\n",
    ]
