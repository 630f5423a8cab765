"""The trace stage: a graph for every prompt that has one, a reason for every other, and no prompt twice."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from tiny_study import PROMPTS, artifact, make_study, make_transcoders, run

from interp.circuits.aggregate import aggregate
from interp.circuits.graph import AttributionGraph
from interp.dictionaries import build_dictionary
from interp.dictionaries.config import CrossLayerConfig, DictionaryConfig
from interp.engine.local import InProcess
from interp.errors import DictionaryError, EngineError, InterpError, StoreError
from interp.plan import make_plan
from interp.spec.study import Study
from interp.stages import trace
from interp.stages.runner import NobodyWatches, run_plan
from interp.stages.trace_worker import TraceWorker
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


@pytest.mark.parametrize("adjacency", ["none", "pruned", "full"])
def test_edges_are_kept_as_the_study_says(folder: Path, tmp_path: Path, adjacency: str) -> None:
    study = study_of(folder, tmp_path / "store", [PROMPTS[1]], adjacency=adjacency)
    run(study)
    made = artifact(study, "trace")
    (row,) = lines(made.read("index.jsonl"))
    document = AttributionGraph.load(made.local(f"graphs/{row['slug']}.json"))
    tensors = f"graphs/{row['slug']}.safetensors"
    assert (tensors in made.names()) == (adjacency != "none")
    if adjacency == "none":
        return
    graph = AttributionGraph.load(made.local(tensors))
    assert graph.slug == row["slug"] and graph.provenance == document.provenance
    again = graph.prune(0.8, 0.98) if adjacency == "full" else graph
    assert graph.edges.n_edges > document.edges.n_edges if adjacency == "full" else graph.pruning is not None
    assert torch.equal(again.adjacency().to_dense(), document.adjacency().to_dense())


def test_the_features_of_all_graphs(folder: Path, tmp_path: Path) -> None:
    """As aggregating the whole graphs gives them; the summary names the first."""
    study = study_of(folder, tmp_path / "store", [*PROMPTS, ""], adjacency="full")
    figures = run(study).stage("trace").figures
    made = artifact(study, "trace")
    slugs = [row["slug"] for row in lines(made.read("index.jsonl")) if row["status"] == "ok"]
    expected = aggregate(AttributionGraph.load(made.local(f"graphs/{slug}.safetensors")) for slug in slugs)
    rows = pq.read_table(io.BytesIO(made.read("features.parquet"))).to_pylist()
    assert rows == expected.rows()
    assert figures["top_features"] == rows[:10] and max(row["prompts"] for row in rows) == 5
    assert made.json("layers.json")["layers"] == expected.layer_rows()
    assert not [name for name in made.names() if name.startswith(("rows/", "sums/"))]


def test_the_last_token_is_cut_off_and_explained(folder: Path, tmp_path: Path) -> None:
    texts = {"two.txt": "import os\n", "one.txt": "x\n", "windows.txt": "a = 1\r\n"}
    (tmp_path / "prompts").mkdir()
    for name, text in texts.items():
        (tmp_path / "prompts" / name).write_bytes(text.encode())
    study = study_of(folder, tmp_path / "store", str(tmp_path / "prompts"), target="last-token")
    run(study)
    made = artifact(study, "trace")
    one, two, windows = lines(made.read("index.jsonl"))
    assert one["status"] == "failed" and "its own target" in one["reason"]
    assert (two["prompt"], two["target"], two["n_tokens"]) == ("import o", "s", 1 + len("import o"))
    assert (windows["prompt"], windows["target"]) == ("a = ", "1")
    graph = AttributionGraph.load(made.local(f"graphs/{two['slug']}.json"))
    assert graph.prompt == "import o" and "".join(graph.tokens) == "<s>import o"
    assert graph.nodes.logit_pos == len("import o")
    place = graph.logit_tokens.index("s")
    assert int(graph.nodes.logits[place]) == ord("s") - 33 and len(graph.logit_tokens) > 1
    assert two["target_probability"] == pytest.approx(float(graph.probabilities[place]))
    assert [row["slug"].split("-")[0] for row in (one, two, windows)] == ["one", "two", "windows"]


def test_a_target_that_rows_name(folder: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": "import os", "good": "s", "bad": "t"},
        {"prompt": "import os", "good": "s"},
        {"prompt": "import os", "good": "no single token", "bad": "t"},
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    target = {"difference": [{"column": "good"}, {"column": "bad"}]}
    study = study_of(folder, tmp_path / "store", str(tmp_path / "p.jsonl"), target=target)
    run(study)
    fine, *failed = lines(artifact(study, "trace").read("index.jsonl"))
    assert fine["status"] == "ok" and (fine["target"], fine["target_probability"]) == ("s -t", None)
    assert "'bad', which names the target, is not there" in failed[0]["reason"]
    assert "one token" in failed[1]["reason"]


def test_salient_targets_in_the_index(folder: Path, tmp_path: Path) -> None:
    study = study_of(folder, tmp_path / "store", [PROMPTS[0]])
    run(study)
    made = artifact(study, "trace")
    (row,) = lines(made.read("index.jsonl"))
    graph = AttributionGraph.load(made.local(f"graphs/{row['slug']}.json"))
    assert row["target"] == graph.logit_tokens[0]
    assert row["target_probability"] == pytest.approx(float(graph.probabilities.max()))


def test_faithfulness_when_the_study_asks(folder: Path, tmp_path: Path) -> None:
    asked = {"features": 3, "curve": [0.5, 1.0]}
    study = study_of(folder, tmp_path / "store", [PROMPTS[1]], faithfulness=asked)
    figures = run(study).stage("trace").figures
    made = artifact(study, "trace")
    (row,) = lines(made.read("index.jsonl"))
    found = made.json(f"faithfulness/{row['slug']}.json")
    assert (row["faithfulness_slope"], row["faithfulness_r2"]) == (found["slope"], found["r2"])
    for name in ("slope", "r2", "slope_readout", "r2_readout", "slope_frozen", "r2_frozen"):
        assert row[f"faithfulness_{name}"] == figures[f"faithfulness_{name}"] == found[name] is not None
    assert [point["share"] for point in found["curve"]] == [0.5, 1.0]


def test_the_rate_is_that_of_the_last_minute() -> None:
    times = iter([100.0, 110.0, 120.0, 190.0, 200.0])
    rate = trace.RecentRate(clock=lambda: next(times))
    assert [rate.at(done) for done in (1000, 1005, 1010)] == [None, 0.5, 0.5]
    assert [rate.at(done) for done in (1011, 1021)] == [pytest.approx(1 / 70), pytest.approx(11 / 80)]


def test_progress_tells_how_far_and_how_fast(folder: Path, tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []

    class Watching(NobodyWatches):
        def progressed(self, stage: Any, step: str, figures: Any) -> None:
            told.append(dict(figures))

    study = study_of(folder, tmp_path / "store", ["", *PROMPTS])
    store = Store.open(study.store)
    run_plan(make_plan(study, store), store, InProcess, Watching())
    assert [figures["done"] for figures in told] == [1, 2, 3, 4, 5, 6]
    assert {(figures["total"], figures["unit"], figures["failed"]) for figures in told} == {(6, "prompts", 1)}
    assert told[-1]["actors"] == 1 and told[-1]["rate"] > 0 and "rate" not in told[0]


def make_cross_layer(folder: Path, identity: dict[str, Any]) -> Path:
    """A random cross-layer transcoder over both layers."""
    places = [
        {"hook_in": f"layers.{i}.mlp_in", "hook_out": f"layers.{i}.mlp_out", "d_in": 32, "d_out": 32, "n_latents": 40}
        for i in range(2)
    ]
    config = CrossLayerConfig.model_validate(
        {"places": places, "activation": {"type": "topk", "k": 5}, "model": identity}
    )
    made = build_dictionary(config, seed=0)
    generator = torch.Generator().manual_seed(1)
    for parameter in made.parameters():
        parameter.data.normal_(generator=generator, std=0.1)
    made.save(folder / "cross-layer")
    return folder


@pytest.mark.parametrize("which", ["cross-layer", "adapters"])
def test_other_replacements_of_mlps(folder: Path, tmp_path: Path, which: str) -> None:
    identity = json.loads((folder / "transcoders/layers.0.mlp/config.json").read_text())["model"]
    borrowed = {"name": "mlp", "from": str(folder / "transcoders"), "mlp": "kept"}
    if which == "cross-layer":
        borrowed = {"name": "mlp", "from": str(make_cross_layer(tmp_path / "clt", identity))}
    trace = {"prompts": [PROMPTS[1]], "dictionaries": "mlp", "prune": {"nodes": 1.0, "edges": 1.0}}
    study = make_study(folder, dictionaries=[borrowed], trace=trace, store=str(tmp_path / "store"))
    run(study)
    made = artifact(study, "trace")
    (row,) = lines(made.read("index.jsonl"))
    assert row["status"] == "ok", row["reason"]
    assert row["residual"] <= 1e-4 and row["n_features"] > 0
    graph = AttributionGraph.load(made.local(f"graphs/{row['slug']}.safetensors"))
    assert graph.model["mlp"] == ("kept" if which == "adapters" else "replaced")
    assert set(graph.nodes.features[:, 0].tolist()) == {0, 1}


def test_saes_cannot_be_traced_whatever_says_so(folder: Path, tmp_path: Path) -> None:
    """Borrowed ones are seen when they are loaded."""
    hooks = {"hook_in": "layers.0.resid_post", "hook_out": "layers.0.resid_post", "d_in": 32, "d_out": 32}
    identity = json.loads((folder / "transcoders/layers.0.mlp/config.json").read_text())["model"]
    config = DictionaryConfig(kind="sae", n_latents=48, activation={"type": "topk", "k": 4}, **hooks, model=identity)
    build_dictionary(config, seed=0).save(tmp_path / "saes" / "layers.0.resid_post")
    study = make_study(
        folder,
        dictionaries=[{"name": "saes", "from": str(tmp_path / "saes")}],
        trace={"prompts": [PROMPTS[0]], "dictionaries": "saes"},
        store=str(tmp_path / "store"),
    )
    with pytest.raises(DictionaryError, match=r"(?s)made of transcoders, and 'saes'.*layers\.0\.resid_post"):
        run(study)


def test_a_rerun_does_only_what_is_left(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine fails after two prompts, as if it were killed; the next run does the other three."""
    traced: list[str] = []
    work = TraceWorker._trace

    def failing(self: Any, prompts: Any, *rest: Any) -> Any:
        if len(traced) == 2:
            raise KeyboardInterrupt
        traced.extend(prompt.text for prompt in prompts)
        return work(self, prompts, *rest)

    study = study_of(folder, tmp_path / "store", list(PROMPTS))
    with monkeypatch.context() as patched:
        patched.setattr(TraceWorker, "_trace", failing)
        with pytest.raises(KeyboardInterrupt):
            run(study)
    with monkeypatch.context() as patched:
        patched.setattr(TraceWorker, "_trace", lambda *a: traced.extend(p.text for p in a[1]) or work(*a))
        run(study)
    assert sorted(traced) == sorted(PROMPTS)
    assert [row["status"] for row in lines(artifact(study, "trace").read("index.jsonl"))] == ["ok"] * 5


@pytest.mark.parametrize("part", ["graphs/{}.json", "graphs/{}.safetensors", "sums/{}.safetensors"])
def test_what_is_torn_is_made_anew(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    traced: list[str] = []
    work = TraceWorker._trace
    monkeypatch.setattr(TraceWorker, "_trace", lambda *a: traced.extend(p.text for p in a[1]) or work(*a))
    study = study_of(folder, tmp_path / "store", list(PROMPTS[:3]))

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(trace, "_keep_all", killed)
        run(study)
    (scratch,) = (tmp_path / "store" / "trace").glob("*/scratch")
    torn = next(scratch.glob(part.format("p0001-*")))
    torn.write_bytes(torn.read_bytes()[:-100])
    with pytest.raises(StoreError, match="torn"):
        run(study)
    run(study)
    assert traced == [*PROMPTS[:3], PROMPTS[1]]
    assert [row["status"] for row in lines(artifact(study, "trace").read("index.jsonl"))] == ["ok"] * 3


def test_when_all_prompts_are_bad_the_stage_says_so_and_is_done(folder: Path, tmp_path: Path) -> None:
    study = study_of(folder, tmp_path / "store", ["", " "])
    assert run(study).stage("trace").figures == {"prompts": 2, "graphs": 0, "failed": 2, "retry": 0}
    assert artifact(study, "trace").json("graph-metadata.json") == {"graphs": []}


def test_when_all_prompts_fail_of_something_else_nothing_counts_as_done(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def defect(*_: Any) -> Any:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(TraceWorker, "_trace", defect)
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
