"""Prompts that an actor gets together: which they are, and that each has its own fate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_study import artifact, make_study, make_transcoders, run

from interp.circuits.attribution import AttributionComputer
from interp.circuits.graph import AttributionGraph
from interp.circuits.replacement_model import ReplacementModel
from interp.sources.prompts import Prompt
from interp.spec.study import Study
from interp.stages.trace import groups_of
from interp.stages.trace_worker import TraceWorker

TEXTS = ["import", "def f(x", "x" * 40, "class A", "import", "return"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trace-groups")
    make_transcoders(folder)
    return folder


def study_of(folder: Path, store: Path, **changes: Any) -> Study:
    borrowed = [{"name": "mlp", "from": str(folder / "transcoders")}]
    trace = {"prompts": TEXTS, "actors": {"min": 1, "max": 1}, "max_features": 16, "max_tokens": 30, **changes}
    return make_study(folder, dictionaries=borrowed, trace=trace, store=str(store))


def rows_of(study: Study) -> list[dict[str, Any]]:
    return [json.loads(line) for line in artifact(study, "trace").read("index.jsonl").splitlines()]


def test_groups_are_short_prompts_of_like_length() -> None:
    prompts = [Prompt.of(index, "x" * n) for index, n in enumerate([40, 10, 11, 2000, 10, 41, 2000, 12])]
    groups = groups_of(prompts, 64, 1)
    assert [[prompt.index for prompt in group] for group in groups] == [[0, 5], [1, 2, 4, 7], [3], [6]]
    assert all(len(group) == 1 for group in groups_of(prompts, None, 1) + groups_of(prompts, 8192, 1))
    # No actor waits while another has all the work.
    assert all(len(group) == 1 for group in groups_of(prompts, 64, 4))
    assert max(map(len, groups_of([Prompt.of(i, "x") for i in range(100)], 64, 1))) == 8


def test_graphs_of_a_group_are_those_of_its_prompts(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them is too long: it has its reason, and stops no other."""
    together: list[int] = []
    compute = AttributionComputer.compute_graphs
    monkeypatch.setattr(
        AttributionComputer, "compute_graphs", lambda self, s, **k: together.append(len(s)) or compute(self, s, **k)
    )
    study, other = study_of(folder, tmp_path / "store"), study_of(folder, tmp_path / "other")
    run(study)
    assert max(together) > 1
    together.clear()
    monkeypatch.setattr("interp.stages.trace.MOST_PROMPTS", 1)
    run(other)
    assert set(together) <= {0, 1}
    for row, alone in zip(rows_of(study), rows_of(other), strict=True):
        assert (row["status"], row["reason"]) == (alone["status"], alone["reason"])
        assert (row["status"] == "failed") == (row["prompt"] == "x" * 40)
        if row["status"] == "ok":
            name = f"graphs/{row['slug']}.safetensors"
            found, expected = (AttributionGraph.load(artifact(one, "trace").local(name)) for one in (study, other))
            assert found.nodes.features.tolist() == expected.nodes.features.tolist()
            difference = (found.adjacency().to_dense() - expected.adjacency().to_dense()).abs().max()
            assert difference <= 1e-5 * expected.adjacency().to_dense().abs().max()


def test_prompts_of_a_group_that_is_lost_are_tried_one_by_one(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of an actor that dies of one of them: that one fails; what was written before is not done again."""
    built: list[int] = []
    build, write = ReplacementModel.build_many, TraceWorker._write

    def dying(self: Any, prompt: Any, *rest: Any) -> Any:
        if prompt.text == "class A":
            raise ZeroDivisionError("a defect")
        return write(self, prompt, *rest)

    monkeypatch.setattr(TraceWorker, "_write", dying)
    monkeypatch.setattr(ReplacementModel, "build_many", lambda s, p, **k: built.append(len(p)) or build(s, p, **k))
    study = study_of(folder, tmp_path / "store")
    run(study)
    failed = {row["prompt"]: row["reason"] for row in rows_of(study) if row["status"] == "failed"}
    assert set(failed) == {"x" * 40, "class A"} and "a defect" in failed["class A"]
    assert max(built) > 1
    assert len(rows_of(study)) == len(TEXTS)
