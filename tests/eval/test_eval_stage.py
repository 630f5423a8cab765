"""The evaluation stage: every dictionary of a study, fitted or borrowed, on its held-out tokens."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_models
import torch
from safetensors.torch import load, save_file

from interp.corpus.tokens import SUMMARY, CorpusSummary, TokenBlocks, write_shards
from interp.dictionaries import DictionaryConfig, ModelIdentity, build_dictionary
from interp.engine import Engine
from interp.engine.local import InProcess
from interp.errors import CorpusError, DictionaryError, ModelMismatch
from interp.eval import Evaluator
from interp.eval.evaluation import hook_points, mean_activations
from interp.plan import Plan, make_plan
from interp.sources.resolve import resolve_model
from interp.spec.dictionary import TrainedDictionary
from interp.spec.study import ModelSpec, Study
from interp.stages import evaluate as stage
from interp.stages.context import StageContext
from interp.stages.dictionary_sets import dictionary_sets
from interp.store import Artifact, Store
from interp.wrapper import HookedModel

CONTEXT, HOLDOUT = 8, 60
METRICS = ("fvu", "l0", "dead", "cosine", "ce_recovered", "kl")

TRAINED = [
    {"name": "mlp", "kind": "skip-transcoder", "at": "layers.*.mlp", "activation": {"type": "topk", "k": 4}},
    {"name": "resid", "kind": "sae", "at": "layers.1.resid_post", "activation": {"type": "relu"}},
]


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("model")
    tiny_models.make("llama").save_pretrained(path)
    backend = Tokenizer(models.WordLevel({f"w{i}": i for i in range(tiny_models.VOCAB)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="w0", eos_token="w1").save_pretrained(path)
    return path


def study(model: Path, dictionaries: list[Any], **evaluate: Any) -> Study:
    return Study.model_validate(
        {
            "apiVersion": "interp/v1",
            "kind": "Study",
            "metadata": {"name": "test"},
            "model": {"source": str(model)},
            "corpus": {"source": "builtin://python-stdlib", "context": CONTEXT, "tokens": 64, "holdout": HOLDOUT},
            "dictionaries": [d if "from" in d else {**d, "latents": 48} for d in dictionaries],
            "fit": {"batch_tokens": 1024},
            "evaluate": evaluate,
            "store": "memory://unused",
        }
    )


def make_corpus(store: Store, key: str, folder: Path) -> Artifact:
    rows = np.random.default_rng(0).integers(2, tiny_models.VOCAB, (8, CONTEXT)).astype(np.int32)
    summary = CorpusSummary(CONTEXT, 0, HOLDOUT, 3, 0, "bos", 1, tiny_models.VOCAB, "revision", {})
    with store.create("corpus", key, spec={}, inputs={}) as out:
        for path, name in write_shards(rows, "holdout", folder, 3):
            out.put(path, name)
        out.write_json(SUMMARY, summary.to_json())
    return store.get("corpus", key)


def make_fit(store: Store, plan: Plan, folder: Path, fingerprint: str | None = None) -> Artifact:
    """Random dictionaries where the study wants trained ones."""
    hooked = HookedModel(plan.study.model)
    identity = ModelIdentity(source="tiny", fingerprint=fingerprint or hooked.fingerprint)
    for spec in plan.study.trained:
        for at, hook_in, hook_out in _places(spec):
            config = DictionaryConfig(
                kind=spec.kind,
                hook_in=hook_in,
                hook_out=hook_out,
                d_in=32,
                d_out=32,
                n_latents=spec.width(32),
                activation=spec.activation,
                model=identity,
            )
            build_dictionary(config, seed=len(at)).save(folder / spec.name / at)
    planned = plan.stage("fit")
    assert planned is not None
    with store.create("fit", planned.key, spec=planned.spec, inputs=planned.inputs) as out:
        out.put_dir(folder)
        out.write("metrics.jsonl", b"{}\n")
    return store.get("fit", planned.key)


def _places(spec: TrainedDictionary) -> list[tuple[str, str, str]]:
    if spec.kind == "sae":
        return [(at, at, at) for at in spec.at]
    return [(f"layers.{i}.mlp", f"layers.{i}.mlp_in", f"layers.{i}.mlp_out") for i in range(3)]


def run(plan: Plan, store: Store, inputs: dict[str, Artifact], engine: Any = None) -> Artifact:
    planned = plan.stage("evaluate")
    assert planned is not None
    context = StageContext(study=plan.study, stage=planned, engine=engine or InProcess(), store=store)
    with store.create("evaluate", planned.key, spec=planned.spec, inputs=planned.inputs) as out:
        stage.run(context, inputs, out)
    return store.get("evaluate", planned.key)


class Made:
    """A store with the corpus and the dictionaries of a study."""

    def __init__(self, folder: Path, model: Path, **evaluate: Any):
        self.store = Store.open(folder / "store")
        self.plan = make_plan(study(model, TRAINED, **evaluate), self.store)
        corpus = self.plan.stage("corpus")
        assert corpus is not None
        self.corpus = make_corpus(self.store, corpus.key, folder / "shards")
        self.fit = make_fit(self.store, self.plan, folder / "dictionaries")
        self.inputs = {"corpus": self.corpus, "fit": self.fit}


def numbers(rows: list[dict[str, Any]]) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if isinstance(value, (int, float))} for row in rows]


def test_rows_of_every_dictionary_and_set(tmp_path: Path, model_path: Path) -> None:
    made = Made(tmp_path, model_path)
    artifact = run(made.plan, made.store, made.inputs)
    rows = artifact.json("evaluation.json")
    places = [("mlp", f"layers.{i}.mlp") for i in range(3)]
    assert [(row["dictionary"], row["at"]) for row in rows] == [
        *places,
        ("mlp", "all"),
        ("resid", "layers.1.resid_post"),
    ]
    assert all(row["tokens"] == HOLDOUT for row in rows)
    table = pq.read_table(io.BytesIO(artifact.read("evaluation.parquet"))).to_pylist()
    assert [{name: value for name, value in row.items() if value is not None} for row in table] == rows
    fired = load(artifact.read("firing.safetensors"))
    assert set(fired) == {"mlp/layers.0.mlp", "mlp/layers.1.mlp", "mlp/layers.2.mlp", "resid/layers.1.resid_post"}
    assert int(fired["mlp/layers.0.mlp"].sum()) == pytest.approx(rows[0]["l0"] * HOLDOUT)


def test_figures_are_those_of_one_pass_over_all_tokens(tmp_path: Path, model_path: Path) -> None:
    made = Made(tmp_path, model_path, batch=2)
    rows = run(made.plan, made.store, made.inputs).json("evaluation.json")
    hooked = HookedModel(made.plan.study.model)
    blocks = TokenBlocks.open(made.corpus, "holdout")
    tokens, lengths = blocks.rows(0, 8), blocks.lengths(0, 8)
    assert lengths.tolist() == [8] * 7 + [4]
    sets = {one.name: one.load(hooked) for one in dictionary_sets(made.plan.study, made.inputs)}
    means = mean_activations(hooked, hook_points(sets), tokens, lengths, 8)
    expected = Evaluator(hooked, sets, METRICS, batch=8, means=means)(tokens, lengths).rows(METRICS)
    for row, wanted in zip(numbers(rows), numbers(expected), strict=True):
        assert row == pytest.approx(wanted, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("batch", [1, 3])
def test_shards_change_nothing(tmp_path: Path, model_path: Path, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(tmp_path, model_path, batch=batch)
    whole = run(made.plan, made.store, made.inputs).json("evaluation.json")
    monkeypatch.setattr(stage, "SHARD_TOKENS", CONTEXT)
    other = Store.open(tmp_path / "other")
    parts = run(made.plan, other, made.inputs).json("evaluation.json")
    for row, wanted in zip(numbers(parts), numbers(whole), strict=True):
        assert row == pytest.approx(wanted, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("tokens", [1, 8, 13, HOLDOUT])
def test_the_token_budget_is_exact(tmp_path: Path, model_path: Path, tokens: int) -> None:
    made = Made(tmp_path, model_path, tokens=tokens, metrics=["fvu", "l0"])
    rows = run(made.plan, made.store, made.inputs).json("evaluation.json")
    assert all(row["tokens"] == tokens for row in rows)
    assert all(set(row) == {"dictionary", "at", "tokens", "fvu", "l0"} for row in rows)
    shards = list(stage.shards(TokenBlocks.open(made.corpus, "holdout"), tokens, rows=2))
    assert sum(int(shard.lengths.sum()) for shard in shards) == tokens
    assert all(len(shard.rows) == len(shard.lengths) > 0 for shard in shards)


def test_more_tokens_than_are_held_out(tmp_path: Path, model_path: Path) -> None:
    made = Made(tmp_path, model_path)
    blocks = TokenBlocks.open(made.corpus, "holdout")
    with pytest.raises(CorpusError, match=f"evaluate.tokens={HOLDOUT + 1}(.|\n)*{HOLDOUT}"):
        stage._tokens(study(model_path, TRAINED).evaluate.model_copy(update={"tokens": HOLDOUT + 1}), blocks)


def test_borrowed_dictionaries_give_the_same_figures(tmp_path: Path, model_path: Path) -> None:
    made = Made(tmp_path, model_path)
    own = run(made.plan, made.store, made.inputs).json("evaluation.json")
    for source in (f"artifact://{made.fit.key}", str(tmp_path / "dictionaries" / "mlp")):
        plan = make_plan(study(model_path, [{"name": "mlp", "from": source}]), made.store)
        planned = plan.stage("evaluate")
        assert planned is not None
        inputs = {role: made.store.get(*where) for role, where in planned.input_artifacts().items()}
        borrowed = run(plan, made.store, inputs).json("evaluation.json")
        for row, wanted in zip(borrowed, own[:4], strict=True):
            assert (row["dictionary"], row["at"]) == (wanted["dictionary"], wanted["at"])
        for row, wanted in zip(numbers(borrowed), numbers(own[:4]), strict=True):
            assert row == pytest.approx(wanted, rel=1e-6)


def test_a_folder_of_several_sets_is_refused(tmp_path: Path, model_path: Path) -> None:
    made = Made(tmp_path, model_path)
    hooked = HookedModel(made.plan.study.model)
    folder = tmp_path / "both"
    for name in ("one", "two"):
        build_dictionary(
            DictionaryConfig(
                kind="sae",
                hook_in="layers.0.resid_post",
                hook_out="layers.0.resid_post",
                d_in=32,
                d_out=32,
                n_latents=4,
                activation={"type": "relu"},
                model=ModelIdentity(source="tiny", fingerprint=hooked.fingerprint),
            )
        ).save(folder / name / "layers.0.resid_post")
    [found] = dictionary_sets(study(model_path, [{"name": "x", "from": str(folder)}]), {})
    with pytest.raises(DictionaryError, match=r"layers\.0\.resid_post"):
        found.load(hooked)


def test_dictionaries_of_another_model_are_refused(tmp_path: Path, model_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    plan = make_plan(study(model_path, TRAINED), store)
    corpus = make_corpus(store, "c" * 64, tmp_path / "shards")
    fit = make_fit(store, plan, tmp_path / "dictionaries", fingerprint="another")
    with pytest.raises(ModelMismatch, match="another"):
        run(plan, store, {"corpus": corpus, "fit": fit})


def test_loaded_sets_are_for_use(tmp_path: Path, model_path: Path) -> None:
    made = Made(tmp_path, model_path)
    hooked = HookedModel(made.plan.study.model)
    for one in dictionary_sets(made.plan.study, made.inputs):
        for at, dictionary in one.load(hooked).items():
            assert at == dictionary.config.at and not dictionary.training
            assert not any(parameter.requires_grad for parameter in dictionary.parameters())


def test_the_fingerprint_that_dictionaries_carry_is_the_planned_revision(model_path: Path) -> None:
    spec = ModelSpec(source=str(model_path))
    assert HookedModel(spec).fingerprint == resolve_model(spec).revision


@pytest.mark.ray
@pytest.mark.slow
def test_actors_change_nothing(
    ray_engine: Engine, tmp_path: Path, model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Made(tmp_path, model_path, batch=1)
    here = run(made.plan, made.store, made.inputs).json("evaluation.json")
    monkeypatch.setattr(stage, "SHARD_TOKENS", CONTEXT)
    fit = made.plan.study.fit.model_copy(update={"harvesters": 2})
    plan = Plan(made.plan.study.model_copy(update={"fit": fit}), made.plan.stages)
    on_ray = run(plan, Store.open(tmp_path / "other"), made.inputs, ray_engine).json("evaluation.json")
    for row, wanted in zip(numbers(on_ray), numbers(here), strict=True):
        assert row == pytest.approx(wanted, rel=1e-5, abs=1e-6)


ALL_METRICS = (*METRICS, "density", "similarity")


def test_densities_and_similarities_are_written(tmp_path: Path, model_path: Path) -> None:
    made = Made(tmp_path, model_path, metrics=list(ALL_METRICS))
    artifact = run(made.plan, made.store, made.inputs)
    rows = {(row["dictionary"], row["at"]): row for row in artifact.json("evaluation.json")}
    fired, bins = load(artifact.read("firing.safetensors")), load(artifact.read("density.safetensors"))
    cosines = load(artifact.read("similarity.safetensors"))
    edges = bins.pop("edges")
    assert set(fired) == set(bins) == set(cosines) == {f"{name}/{at}" for name, at in rows if at != "all"}
    for name, counts in bins.items():
        row = rows[tuple(name.split("/"))]  # type: ignore[index]
        assert len(counts) == len(edges) - 1 and int(counts.sum()) == int((fired[name] > 0).sum())
        logs = (fired[name][fired[name] > 0].double() / HOLDOUT).log10().sort().values
        assert row["density"] == pytest.approx(float(logs[len(logs) // 2]))
        # A transcoder begins with decoder rows of zeros, which have no direction.
        alike = None if name.startswith("mlp/") else pytest.approx(float(cosines[name].double().mean()), rel=1e-6)
        assert row["similarity"] == alike and bool(cosines[name].isnan().all()) == (alike is None)
    assert "similarity" not in rows["mlp", "all"] and "density" not in rows["mlp", "all"]
    assert artifact.json("similarity.json") == []  # no two write to one hook point
    assert "density.svg" in artifact.names() and "pareto.svg" not in artifact.names()


def test_two_sets_at_the_same_places_are_compared_and_drawn(tmp_path: Path, model_path: Path) -> None:
    made = Made(tmp_path, model_path, metrics=list(ALL_METRICS))
    other = Made(tmp_path / "2", model_path)
    sources = {"own": tmp_path / "dictionaries/mlp", "half": tmp_path / "2/dictionaries/mlp"}
    for factor, folder in zip((1.0, 0.5), sources.values(), strict=True):
        for seed, weights in enumerate(sorted(folder.rglob("weights.safetensors"))):
            tensors = load(weights.read_bytes())
            make = torch.Generator().manual_seed(seed)
            save_file({**tensors, "W_dec": factor * torch.randn(tensors["W_dec"].shape, generator=make)}, weights)
    borrowed = [{"name": name, "from": str(path)} for name, path in sources.items()]
    plan = make_plan(study(model_path, borrowed, metrics=list(ALL_METRICS)), made.store)
    artifact = run(plan, made.store, {"corpus": made.corpus})
    overlaps = artifact.json("similarity.json")
    assert [(row["dictionary"], row["in"], row["at"]) for row in overlaps[:2]] == [
        ("own", "half", "layers.0.mlp"),
        ("half", "own", "layers.0.mlp"),
    ]
    assert len(overlaps) == 6 and [row["mmcs"] for row in overlaps] == pytest.approx([1] * 6, abs=1e-5)
    for name in ("pareto.svg", "pareto-ce.svg", "density.svg"):
        picture = artifact.read(name).decode()
        assert ">own" in picture and ">half" in picture and "layers.2.mlp" in picture
    again = run(plan, other.store, {"corpus": made.corpus})
    names = ("pareto.svg", "density.svg", "evaluation.json", "similarity.safetensors")
    assert [again.read(name) for name in names] == [artifact.read(name) for name in names]


def test_actors_and_shards_change_neither_density_nor_similarity(
    tmp_path: Path, model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Made(tmp_path, model_path, metrics=["density", "similarity"], batch=1)
    whole = run(made.plan, made.store, made.inputs)
    monkeypatch.setattr(stage, "SHARD_TOKENS", CONTEXT)
    parts = run(made.plan, Store.open(tmp_path / "other"), made.inputs)
    names = ("evaluation.json", "density.safetensors", "similarity.safetensors", "density.svg")
    assert [parts.read(name) for name in names] == [whole.read(name) for name in names]
