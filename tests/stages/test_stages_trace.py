"""The trace stage: a graph for every prompt that has one, a reason for every other, and no prompt twice."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from tiny_study import PROMPTS, artifact, make_study, make_transcoders, run

from interp.circuits.graph import AttributionGraph
from interp.engine.local import InProcess
from interp.errors import EngineError, InterpError
from interp.plan import make_plan
from interp.spec.study import Study
from interp.stages import trace
from interp.stages.runner import run_plan
from interp.store import Store


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trace")
    make_transcoders(folder)
    return folder


def study_of(folder: Path, store: Path, prompts: list[str] | str, **changes: Any) -> Study:
    borrowed = [{"name": "mlp", "from": str(folder / "transcoders")}]
    trace = {"prompts": prompts, "actors": {"min": 1, "max": 1}, **changes}
    return make_study(folder, dictionaries=borrowed, trace=trace, store=str(store))


def lines(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.splitlines()]


def test_every_prompt_has_a_graph_or_a_reason(folder: Path, tmp_path: Path) -> None:
    study = study_of(folder, tmp_path / "store", [PROMPTS[0], "  ", PROMPTS[1], "x" * 80], max_tokens=60)
    summary = run(study)
    made = artifact(study, "trace")
    rows = lines(made.read("index.jsonl"))
    assert [row["status"] for row in rows] == ["ok", "failed", "ok", "failed"]
    assert [row["prompt"] for row in rows] == [PROMPTS[0], "  ", PROMPTS[1], "x" * 80]
    assert pq.read_table(io.BytesIO(made.read("index.parquet"))).to_pylist() == rows
    reasons = {row["prompt"]: row["reason"] for row in lines(made.read("failed.jsonl"))}
    assert "empty" in reasons["  "] and "81 tokens" in reasons["x" * 80]
    listed = [metadata["slug"] for metadata in made.json("graph-metadata.json")["graphs"]]
    assert listed == [row["slug"] for row in rows if row["status"] == "ok"]
    assert summary.stage("trace").figures["graphs"] == 2 and summary.stage("trace").figures["failed"] == 2


def test_a_graph_is_exact_and_says_where_it_comes_from(folder: Path, tmp_path: Path) -> None:
    study = study_of(folder, tmp_path / "store", [PROMPTS[2]], prune={"nodes": 1.0, "edges": 1.0})
    run(study)
    made = artifact(study, "trace")
    (row,) = lines(made.read("index.jsonl"))
    graph = AttributionGraph.load(made.local(f"graphs/{row['slug']}.json"))
    assert row["residual"] == graph.residual <= 1e-4
    assert (row["n_features"], row["n_edges"]) == (graph.nodes.n_features, len(graph.edges.weights))
    assert row["n_tokens"] == 1 + len(PROMPTS[2]) == graph.nodes.n_pos
    assert row["n_active"] >= row["n_features"] > 0
    assert graph.prompt == PROMPTS[2]
    assert graph.provenance["key"] == made.key
    assert graph.provenance["dictionaries"] == str(folder / "transcoders")
    assert "name" not in graph.provenance


def test_a_rerun_does_only_what_is_left(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine fails after two prompts, as if it were killed; the next run does the other three."""
    traced: list[str] = []
    work = trace.TraceWorker._trace

    def failing(self: Any, prompt: Any, *rest: Any) -> Any:
        if len(traced) == 2:
            raise KeyboardInterrupt
        traced.append(prompt.text)
        return work(self, prompt, *rest)

    study = study_of(folder, tmp_path / "store", list(PROMPTS))
    with monkeypatch.context() as patched:
        patched.setattr(trace.TraceWorker, "_trace", failing)
        with pytest.raises(KeyboardInterrupt):
            run(study)
    with monkeypatch.context() as patched:
        patched.setattr(trace.TraceWorker, "_trace", lambda *a: traced.append(a[1].text) or work(*a))
        run(study)
    assert sorted(traced) == sorted(PROMPTS)
    assert [row["status"] for row in lines(artifact(study, "trace").read("index.jsonl"))] == ["ok"] * 5


def test_when_all_prompts_are_bad_the_stage_says_so_and_is_done(folder: Path, tmp_path: Path) -> None:
    study = study_of(folder, tmp_path / "store", ["", " "])
    assert run(study).stage("trace").figures == {"prompts": 2, "graphs": 0, "failed": 2}
    assert artifact(study, "trace").json("graph-metadata.json") == {"graphs": []}


def test_when_all_prompts_fail_of_something_else_nothing_counts_as_done(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def defect(*_: Any) -> Any:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(trace.TraceWorker, "_trace", defect)
    study = study_of(folder, tmp_path / "store", [PROMPTS[0]])
    with pytest.raises(EngineError, match="a defect"):
        run(study)
    with pytest.raises(InterpError, match="never finished"):
        artifact(study, "trace")


def test_a_cached_run_opens_no_engine(folder: Path, tmp_path: Path) -> None:
    study = study_of(folder, tmp_path / "store", [PROMPTS[0]])
    first = run(study)
    store = Store.open(study.store)

    def factory() -> InProcess:
        raise AssertionError("opened")

    again = run_plan(make_plan(study, store), store, factory)
    assert [stage.cached for stage in first.stages] == [False]
    assert [stage.cached for stage in again.stages] == [True]
    assert again.stages[0].figures == first.stages[0].figures


def test_processes_of_their_own_cannot_share_a_store_in_memory(folder: Path) -> None:
    class Elsewhere(InProcess):
        separate_processes = True

    study = study_of(folder, folder, [PROMPTS[0]])
    store = Store.open("memory://elsewhere")
    with pytest.raises(EngineError, match="cannot see a store"):
        run_plan(make_plan(study, store), store, Elsewhere)
    assert run_plan(make_plan(study, store), store, InProcess).stages[0].figures["graphs"] == 1


def test_prompts_without_a_bos_token_when_the_study_says_so(folder: Path, tmp_path: Path) -> None:
    study = study_of(folder, tmp_path / "store", [PROMPTS[3]], bos="never")
    run(study)
    (row,) = lines(artifact(study, "trace").read("index.jsonl"))
    assert row["n_tokens"] == len(PROMPTS[3])
