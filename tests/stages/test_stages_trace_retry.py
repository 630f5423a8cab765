"""Prompts that failed by no fault of their own: told apart, and tried again without anything else being done twice."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from tiny_study import PROMPTS, artifact, make_study, make_transcoders, run

from interp.engine.local import InProcess
from interp.errors import EngineError, InterpError, ModelError, StoreAccessError
from interp.plan import make_plan
from interp.spec.study import Study
from interp.stages.runner import StageSummary, run_plan
from interp.stages.trace_worker import TraceWorker
from interp.store import Store

LONG = "x = " + "self" * 40
WORK = TraceWorker._alone


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("retry")
    make_transcoders(folder)
    return folder


def study_of(folder: Path, store: Path, prompts: list[str], **changes: Any) -> Study:
    borrowed = [{"name": "mlp", "from": str(folder / "transcoders")}]
    return make_study(folder, dictionaries=borrowed, trace={"prompts": prompts, **changes}, store=str(store))


def retry(study: Study) -> StageSummary:
    store = Store.open(study.store)
    (summary,) = run_plan(make_plan(study, store), store, InProcess, retry_failed=True).stages
    return summary


def lines(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.splitlines()]


def failing(monkeypatch: pytest.MonkeyPatch, errors: dict[str, Exception]) -> list[str]:
    """Let these prompts fail; what was traced."""
    traced: list[str] = []

    def work(self: Any, prompt: Any, *rest: Any) -> Any:
        traced.append(prompt.text)
        if prompt.text in errors:
            raise errors[prompt.text]
        return WORK(self, prompt, *rest)

    monkeypatch.setattr("interp.stages.trace.MOST_PROMPTS", 1)
    monkeypatch.setattr(TraceWorker, "_alone", work)
    return traced


def test_when_every_prompt_is_refused_for_memory_nothing_counts_as_done(folder: Path, tmp_path: Path) -> None:
    study = study_of(folder, tmp_path / "store", [PROMPTS[0], "", PROMPTS[1]], memory=1000)
    with pytest.raises(EngineError, match=r"does not fit into the memory[\s\S]*raise trace.memory"):
        run(study)
    with pytest.raises(InterpError, match="never finished"):
        artifact(study, "trace")
    more = study_of(folder, tmp_path / "store", [PROMPTS[0], "", PROMPTS[1]])
    assert run(more).stage("trace").figures["graphs"] == 2


def test_a_refusal_for_memory_is_mended_by_more_of_it(folder: Path, tmp_path: Path) -> None:
    prompts = [PROMPTS[1], "", LONG, PROMPTS[3]]
    small = study_of(folder, tmp_path / "store", prompts, memory=600_000, max_features=20)
    figures = run(small).stage("trace").figures
    assert (figures["graphs"], figures["failed"], figures["retry"]) == (2, 2, 1)
    failed = {row["prompt"]: row for row in lines(artifact(small, "trace").read("failed.jsonl"))}
    assert {prompt: row["retry"] for prompt, row in failed.items()} == {"": False, LONG: True}
    assert "raise trace.memory" in failed[LONG]["reason"]
    large = study_of(folder, tmp_path / "store", prompts, max_features=20)
    assert run(large).stage("trace").cached
    summary = retry(large)
    assert not summary.cached
    assert [summary.figures[name] for name in ("graphs", "failed", "retry")] == [3, 1, 0]
    assert retry(large).cached


ERRORS: dict[str, Exception] = {
    PROMPTS[1]: EngineError("this item killed its worker 3 times"),
    PROMPTS[2]: StoreAccessError("no space left"),
    PROMPTS[3]: ModelError("numbers are not finite"),
}


def test_only_what_can_be_retried_is_and_the_result_is_as_if_nothing_had_failed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = ["", *PROMPTS]
    changes: dict[str, Any] = {"adjacency": "pruned", "faithfulness": {"features": 2, "curve": [1.0]}}
    study = study_of(folder, tmp_path / "store", prompts, **changes)
    with monkeypatch.context() as patched:
        failing(patched, ERRORS)
        assert run(study).stage("trace").figures["retry"] == 2
    before = artifact(study, "trace")
    rows = lines(before.read("index.jsonl"))
    assert [row["retry"] for row in rows] == [False, False, True, True, False, False]
    assert pq.read_table(io.BytesIO(before.read("index.parquet"))).to_pylist() == rows
    finished = {name: before.read(name) for name in before.names() if name.startswith(("graphs/", "faithfulness/"))}
    with monkeypatch.context() as patched:
        own_fault = {PROMPTS[3]: ERRORS[PROMPTS[3]]}
        traced = failing(patched, own_fault)
        retry(study)
    assert traced == [PROMPTS[1], PROMPTS[2]]
    made = artifact(study, "trace")
    after = {row["slug"]: row for row in lines(made.read("index.jsonl"))}
    assert [row["status"] for row in after.values()] == ["failed", "ok", "ok", "ok", "failed", "ok"]
    assert all(after[row["slug"]] == row for row in rows if not row["retry"])
    assert len(finished) == 6 and all(made.read(name) == data for name, data in finished.items())

    whole = study_of(folder, tmp_path / "whole", prompts, **changes)
    with monkeypatch.context() as patched:
        failing(patched, own_fault)
        run(whole)
    expected = artifact(whole, "trace")
    assert made.names() == expected.names()
    for name in ("features.parquet", "layers.json", "failed.jsonl"):
        assert made.read(name) == expected.read(name)
    assert made.json("summary.json")["top_features"] == expected.json("summary.json")["top_features"]


def test_what_was_there_stays_until_the_rest_is_done_and_a_kill_loses_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_of(folder, tmp_path / "store", list(PROMPTS))
    unlucky = [PROMPTS[0], PROMPTS[2], PROMPTS[4]]
    with monkeypatch.context() as patched:
        failing(patched, dict.fromkeys(unlucky, EngineError("lost its worker")))
        run(study)
    before = artifact(study, "trace")
    traced: list[str] = []

    def killed(self: Any, prompt: Any, *rest: Any) -> Any:
        assert artifact(study, "trace").manifest == before.manifest
        before.verify()
        if len(traced) == 1:
            raise KeyboardInterrupt
        traced.append(prompt.text)
        return WORK(self, prompt, *rest)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(TraceWorker, "_alone", killed)
        retry(study)
    assert artifact(study, "trace").manifest == before.manifest and run(study).stage("trace").cached
    before.verify()
    with monkeypatch.context() as patched:
        more = failing(patched, {})
        retry(study)
    assert [*traced, *more] == unlucky
    assert artifact(study, "trace").json("summary.json")["graphs"] == 5


def test_a_retry_that_fails_again_can_be_tried_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_of(folder, tmp_path / "store", list(PROMPTS[:3]))
    with monkeypatch.context() as patched:
        failing(patched, dict.fromkeys(PROMPTS[1:3], EngineError("lost its worker")))
        run(study)
    with monkeypatch.context() as patched:
        failing(patched, {PROMPTS[2]: EngineError("lost its worker")})
        assert retry(study).figures["retry"] == 1
    assert retry(study).figures["graphs"] == 3
