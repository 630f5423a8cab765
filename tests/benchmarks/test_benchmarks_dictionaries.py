"""The benchmark of trainers beside the peers': how results are judged, and that no missing figure passes for one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.peers import bars
from benchmarks.peers.quality import Judged, judge
from benchmarks.peers.training import write_plain
from interp.dictionaries.autoencoder import SparseAutoencoder
from interp.dictionaries.config import DictionaryConfig
from interp.spec.dictionary import TopK

D, CONTEXT = 16, 8


def measured(rate: float, fvu: float = 0.01, dead: float = 0.0) -> dict[str, Any]:
    return {"rates": [{"tokens_per_s": rate}], "quality": {"fvu": fvu, "dead": dead}}


def test_bars_compare_medians_and_the_best_peer() -> None:
    results = {name: measured(100.0, fvu) for name, fvu in zip(bars.PEERS, (0.03, 0.02, 0.04), strict=True)}
    results["interp"] = measured(0.0, 0.021)
    results["interp"]["rates"] = [{"tokens_per_s": each} for each in (1.0, 136.0, 900.0)]
    judged = bars.judge(results)
    assert judged["tokens/s, interp to sparsify"] == {"at_least": 1.35, "value": 1.36, "passed": True}
    assert not judged["tokens/s, interp to SAELens"]["passed"]
    assert judged["FVU, interp to the best peer"]["value"] == pytest.approx(1.05)
    assert not judged["FVU, interp to the best peer"]["passed"]
    assert judged["dead share, interp"]["passed"]


def test_long_runs_are_told_beside_what_short_ones_decide() -> None:
    results = {
        name: {**measured(rate), "long": {"tokens_per_s": 10.0}}
        for name, rate in (("interp", 200.0), ("sparsify", 100.0))
    }
    name = "tokens/s, interp to sparsify"
    assert bars.judge(results)[name] == {"at_least": 1.35, "value": 2.0, "passed": True, "long": 1.0}
    del results["sparsify"]["long"]
    assert "long" not in bars.judge(results)[name]


def test_a_bar_of_a_failed_case_is_missed_and_one_of_a_case_not_chosen_is_left_out() -> None:
    judged = bars.judge({"interp": measured(200.0), "sparsify": {"error": "it fell over"}})
    found = judged["tokens/s, interp to sparsify"]
    assert not found["passed"] and "it fell over" in found["why"]
    assert not any("SAELens" in name or "best peer" in name for name in judged)
    assert "it fell over" in bars.table({"sparsify": {"error": "it fell over"}})


def plain(latents: int, k: int, pre_bias: bool) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    shapes = {"w_enc": (latents, D), "b_enc": (latents,), "w_dec": (latents, D), "b_dec": (D,)}
    tensors: dict[str, Any] = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {**tensors, "k": k, "pre_bias": pre_bias}


def own_module(content: dict[str, Any]) -> SparseAutoencoder:
    config = DictionaryConfig(
        kind="sae",
        hook_in="layers.0.resid_post",
        hook_out="layers.0.resid_post",
        d_in=D,
        d_out=D,
        n_latents=len(content["w_enc"]),
        activation=TopK(type="topk", k=content["k"]),
    )
    sae = SparseAutoencoder(config).eval().requires_grad_(False)
    for ours, theirs in (("W_enc", "w_enc"), ("b_enc", "b_enc"), ("W_dec", "w_dec"), ("b_dec", "b_dec")):
        getattr(sae, ours).copy_(content[theirs])
    return sae


def test_plain_tensors_say_what_the_trained_module_computes(tmp_path: Path) -> None:
    content = plain(latents=48, k=5, pre_bias=True)
    sae = own_module(content)
    write_plain(tmp_path, 0, sae, **content)
    x = torch.randn(32, D, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(Judged.read(tmp_path / "layer_0.safetensors")(x)[2], sae(x))
    with pytest.raises(SystemExit, match="something else"):
        write_plain(tmp_path, 1, sae, **{**content, "pre_bias": False})


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    sizes = {"hidden_size": D, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=50, **sizes)).save_pretrained(folder / "model")
    rng = np.random.default_rng(0)
    for name, rows in (("train", 12), ("holdout", 10)):
        np.save(folder / f"{name}.npy", rng.integers(50, size=(rows, CONTEXT)).astype(np.int32))
    return folder


def judged(work: Path, folder: Path, own: Any, **content: Any) -> dict[str, Any]:
    write_plain(folder, 1, own, k=D, pre_bias=False, **content)
    return judge(work, 1, {"it": folder / "layer_1.safetensors"}, tokens=96, held_out=80)["it"]


def test_a_perfect_dictionary_leaves_nothing_unexplained(work: Path, tmp_path: Path) -> None:
    both = torch.cat([torch.eye(D), -torch.eye(D)])
    zeros: dict[str, Tensor] = {"b_enc": torch.zeros(2 * D), "b_dec": torch.zeros(D)}
    found = judged(work, tmp_path, lambda x: x, w_enc=both, w_dec=both, **zeros)
    assert found["fvu"] < 1e-6 and found["dead"] == 0
    assert found["l0"] == pytest.approx(D)
    assert found["ce_recovered"] == pytest.approx(1, abs=1e-3)


def test_a_dictionary_that_knows_the_mean_alone_explains_nothing(work: Path, tmp_path: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(work / "model").eval()
    kept: list[Tensor] = []
    model.model.layers[1].register_forward_hook(lambda *given: kept.append(given[2]))
    with torch.no_grad():
        model(torch.from_numpy(np.load(work / "holdout.npy")).long())
    mean = kept[0].flatten(0, 1).mean(0)
    nothing = torch.zeros(2 * D, D)
    found = judged(
        work,
        tmp_path,
        lambda x: mean.expand_as(x),
        w_enc=nothing,
        w_dec=nothing,
        b_enc=torch.zeros(2 * D),
        b_dec=mean,
    )
    assert found["fvu"] == pytest.approx(1, abs=1e-4)
    assert (found["dead"], found["l0"]) == (1, 0)
