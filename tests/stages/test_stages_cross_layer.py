"""A study with a cross-layer transcoder, from corpus to evaluation: in this process, and on Ray."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load
from tiny_study import artifact, make_study, run

from interp.dictionaries import UNCHECKED, CrossLayerTranscoder, load_dictionaries
from interp.engine import Engine
from interp.plan import make_plan
from interp.spec.study import Study
from interp.stages.runner import run_plan
from interp.store import Store

CLT = {
    "name": "clt",
    "kind": "cross-layer-transcoder",
    "at": "layers.*.mlp",
    "latents": 48,
    "activation": {"type": "topk", "k": 6},
}
BESIDE = {"name": "mlp", "kind": "transcoder", "at": "layers.1.mlp", "latents": 48, "activation": CLT["activation"]}
PLACES = ["layers.0.mlp", "layers.1.mlp"]


def study_in(folder: Path, **changes: Any) -> Study:
    parts = {"dictionaries": [CLT, BESIDE], "evaluate": {"tokens": 200}, "trace": None, **changes}
    return make_study(folder, **parts)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Run in this process."""
    study = study_in(tmp_path_factory.mktemp("clt"))
    run(study)
    return study


def rows(study: Study) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["dictionary"], row["at"]): row for row in artifact(study, "evaluate").json("evaluation.json")}


def test_the_fit_has_one_dictionary_of_all_mlps(study: Study) -> None:
    fit = artifact(study, "fit")
    names = {"clt/cross-layer/config.json", "clt/cross-layer/weights.safetensors", "mlp/layers.1.mlp/config.json"}
    assert names <= set(fit.names())
    summary = fit.json("summary.json")["dictionaries"]
    assert list(summary) == ["clt/cross-layer", "mlp/layers.1.mlp"]
    assert 0 < summary["clt/cross-layer"]["fvu"] < 1
    assert 0 < summary["clt/cross-layer"]["l0"] <= 6
    (clt,) = load_dictionaries(fit.local_dir() / "clt", model=UNCHECKED).values()
    assert isinstance(clt, CrossLayerTranscoder)
    assert [place.at for place in clt.config.places] == PLACES
    assert clt.config.model is not None and clt.config.corpus is not None
    assert clt.decoder(0, 1).abs().max() > 0


def test_it_is_evaluated_at_each_place_and_together(study: Study) -> None:
    found = rows(study)
    assert list(found) == [*(("clt", at) for at in PLACES), ("clt", "all"), ("mlp", "layers.1.mlp")]
    for at in PLACES:
        assert 0 < found["clt", at]["fvu"] < 1.5
        assert 0 < found["clt", at]["l0"] <= 6
        assert found["clt", at]["ce_recovered"] is not None
    assert found["clt", "all"]["kl"] > 0 and "fvu" not in found["clt", "all"]
    fired = load(artifact(study, "evaluate").read("firing.safetensors"))
    assert {name: len(counts) for name, counts in fired.items()} == dict.fromkeys(
        [*(f"clt/{at}" for at in PLACES), "mlp/layers.1.mlp"], 48
    )


def test_a_second_run_finds_everything_and_another_study_can_borrow_it(study: Study) -> None:
    assert all(stage.cached for stage in run(study).stages)
    borrowed = {"name": "clt", "from": f"artifact://{artifact(study, 'fit').key}"}
    other = study_in(Path(study.store).parent, dictionaries=[borrowed])
    assert not run(other).stage("evaluate").cached
    assert rows(other)["clt", "all"] == rows(study)["clt", "all"]
    planned = make_plan(other, Store.open(other.store)).stage("evaluate")
    assert planned is not None and planned.cost.memory > 2 * 48 * 32 * 4


@pytest.mark.ray
def test_ray_gives_what_this_process_gives(study: Study, ray_engine: Engine, tmp_path: Path) -> None:
    fit = {"workers": 2, "harvesters": 2}
    on_ray = study_in(Path(study.store).parent, store=str(tmp_path / "store"), fit=fit)
    store = Store.open(on_ray.store)
    shared = SimpleNamespace(
        map_ordered=ray_engine.map_ordered,
        fit=ray_engine.fit,
        pool=ray_engine.pool,
        separate_processes=True,
        close=lambda: None,
    )
    run_plan(make_plan(on_ray, store), store, lambda: shared)  # type: ignore[arg-type,return-value]
    assert artifact(on_ray, "fit").key == artifact(study, "fit").key
    for key, row in rows(study).items():
        wanted = {name: value for name, value in row.items() if not isinstance(value, str)}
        found = {name: value for name, value in rows(on_ray)[key].items() if not isinstance(value, str)}
        assert found == pytest.approx(wanted, rel=1e-2, abs=1e-3), key
