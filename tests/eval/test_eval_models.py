"""The evaluation on real models and dictionaries: losses as transformers has them, splices as a replaced module."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from torch import Tensor

from interp.dictionaries import DictionaryConfig, SparseDictionary, build_dictionary
from interp.eval import Evaluator
from interp.eval.evaluation import hook_points, mean_activations
from interp.spec.dictionary import ReLU, TopK
from interp.wrapper import HookedModel

METRICS = ("fvu", "l0", "dead", "cosine", "ce_recovered", "kl")
FAMILIES = ("llama", "gemma2", "gpt2", "gpt_neox", "split_llama")

ROWS = np.random.default_rng(0).integers(2, tiny_models.VOCAB, (5, 8)).astype(np.int32)
FULL = np.full(5, 8)
PARTIAL = np.array([8, 8, 8, 8, 3])


@pytest.fixture(params=FAMILIES)
def hooked(request: pytest.FixtureRequest) -> HookedModel:
    return HookedModel(tiny_models.make(request.param, seed=0))


def dictionary(hooked: HookedModel, kind: Any, hook_in: str, hook_out: str, activation: Any) -> SparseDictionary:
    width = hooked.topology.width
    config = DictionaryConfig(
        kind=kind,
        hook_in=hook_in,
        hook_out=hook_out,
        d_in=width(hook_in),
        d_out=width(hook_out),
        n_latents=2 * width(hook_in),
        activation=activation,
    )
    return build_dictionary(config, seed=1).eval().requires_grad_(False)


def identity_sae(hooked: HookedModel, hook: str) -> SparseDictionary:
    """relu(x) - relu(-x) = x."""
    sae = dictionary(hooked, "sae", hook, hook, ReLU(type="relu"))
    eye = torch.eye(sae.config.d_in)
    sae.W_enc.copy_(torch.cat([eye, -eye]))
    sae.W_dec.copy_(torch.cat([eye, -eye]))
    sae.b_dec.zero_()
    return sae


def evaluate(hooked: HookedModel, *dictionaries: SparseDictionary, lengths: Any = FULL, batch: int = 2) -> list[Any]:
    sets = {"set": {each.config.at: each for each in dictionaries}}
    means = mean_activations(hooked, hook_points(sets), ROWS, lengths, batch)
    return Evaluator(hooked, sets, METRICS, batch=batch, means=means)(ROWS, lengths).rows(METRICS)


def transformers_loss(hooked: HookedModel) -> float:
    ids = torch.tensor(ROWS, dtype=torch.long)
    with torch.no_grad():
        return float(hooked.model(input_ids=ids, labels=ids).loss)


def last_block(hooked: HookedModel) -> str:
    group = hooked.topology.groups[-1]
    return f"{group.name}.{group.n_layers - 1}"


def test_clean_loss_is_the_models_own(hooked: HookedModel) -> None:
    [row] = evaluate(hooked, identity_sae(hooked, f"{last_block(hooked)}.resid_post"))
    assert row["ce_clean"] == pytest.approx(transformers_loss(hooked), rel=1e-5)


def test_the_identity_recovers_all(hooked: HookedModel) -> None:
    rows = evaluate(hooked, *(identity_sae(hooked, hook) for hook in hooked.topology.all_resid_hooks), lengths=PARTIAL)
    assert rows[-1]["at"] == "all" and len(rows) == hooked.topology.n_layers + 1
    for row in rows:
        assert row["ce_recovered"] == pytest.approx(1, abs=1e-4)
        assert row["kl"] == pytest.approx(0, abs=1e-5)
        assert row["tokens"] == 35
    assert all(row["fvu"] < 1e-10 and row["cosine"] == pytest.approx(1) for row in rows[:-1])


def test_a_dictionary_of_zeros_recovers_nothing(hooked: HookedModel) -> None:
    block = last_block(hooked)
    zero = dictionary(hooked, "transcoder", f"{block}.mlp_in", f"{block}.mlp_out", TopK(type="topk", k=4))
    zero.W_dec.zero_()
    zero.b_dec.zero_()
    [row] = evaluate(hooked, zero, lengths=PARTIAL)
    assert row["ce_recovered"] == pytest.approx(0, abs=1e-9)
    assert row["kl_recovered"] == pytest.approx(0, abs=1e-9)
    assert row["l0"] <= 4 and row["kl_zero_ablated"] > 0


def test_batch_size_changes_nothing(hooked: HookedModel) -> None:
    block = last_block(hooked)
    skip = dictionary(hooked, "skip-transcoder", f"{block}.mlp_in", f"{block}.mlp_out", TopK(type="topk", k=4))
    rows = [evaluate(hooked, skip, lengths=PARTIAL, batch=batch)[0] for batch in (1, 3, 8)]
    for figure, value in rows[0].items():
        if not isinstance(value, str):
            # What is recovered is a ratio of small differences of losses, for which rounding counts for more.
            tolerance = 1e-4 if "recovered" in figure else 1e-6
            assert [row[figure] for row in rows] == pytest.approx([value] * 3, rel=tolerance, abs=1e-6), figure


def test_a_spliced_transcoder_is_a_replaced_mlp() -> None:
    hooked = HookedModel(tiny_models.make("llama", seed=0))
    transcoders = [
        dictionary(hooked, "skip-transcoder", f"layers.{i}.mlp_in", f"layers.{i}.mlp_out", TopK(type="topk", k=4))
        for i in range(2)
    ]
    for each in transcoders:
        torch.nn.init.normal_(each.W_skip, std=0.1)
    rows = evaluate(hooked, *transcoders)
    for i, each in enumerate(transcoders):
        hooked.model.model.layers[i].mlp.forward = each.forward
    assert rows[-1]["ce_spliced"] == pytest.approx(transformers_loss(hooked), rel=1e-5)


def test_low_precision_models_and_full_precision_dictionaries_go_together() -> None:
    hooked = HookedModel(tiny_models.make("llama", seed=0).to(torch.bfloat16))
    [row] = evaluate(hooked, identity_sae(hooked, "layers.1.resid_post"))
    assert row["ce_recovered"] == pytest.approx(1, abs=1e-6)


def test_nothing_keeps_a_graph_of_gradients() -> None:
    hooked = HookedModel(tiny_models.make("llama", seed=0))
    saes = [identity_sae(hooked, f"layers.{i}.resid_post").requires_grad_(True) for i in (0, 1)]
    seen: list[Tensor] = []
    plain = type(saes[0]).forward
    saes[0].forward = lambda x: seen.append(plain(saes[0], x)) or seen[-1]  # type: ignore[method-assign]
    evaluate(hooked, *saes)
    assert seen and not any(y.requires_grad for y in seen)
