"""The evaluation on real models and dictionaries: losses as transformers has them, splices as a replaced module."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from torch import Tensor

from interp.dictionaries import (
    CrossLayerConfig,
    CrossLayerPlace,
    CrossLayerTranscoder,
    Dictionary,
    DictionaryConfig,
    SparseDictionary,
    build_dictionary,
)
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


def evaluate(hooked: HookedModel, *dictionaries: Dictionary, lengths: Any = FULL, batch: int = 2) -> list[Any]:
    sets = {"set": {each.config.at: each for each in dictionaries}}
    means = mean_activations(hooked, hook_points(sets), ROWS, lengths, batch)
    return Evaluator(hooked, sets, METRICS, batch=batch, means=means)(ROWS, lengths).rows(METRICS)


def transformers_loss(hooked: HookedModel) -> float:
    ids = torch.tensor(ROWS, dtype=torch.long)
    with torch.no_grad():
        return float(hooked.model(input_ids=ids, labels=ids).loss)


def cross_layer(hooked: HookedModel, activation: Any) -> CrossLayerTranscoder:
    """A random one of the first and the last two MLPs."""
    topology = hooked.topology
    names = [name.removesuffix("_in") for name in topology.all_mlp_in_hooks]
    width = topology.width
    places = [
        CrossLayerPlace(
            hook_in=f"{at}_in",
            hook_out=f"{at}_out",
            d_in=width(f"{at}_in"),
            d_out=width(f"{at}_out"),
            n_latents=2 * width(f"{at}_in"),
        )
        for at in (names[0], *names[-2:])
    ]
    clt = build_dictionary(CrossLayerConfig(places=places, activation=activation)).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in clt.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return clt


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
    plain = type(saes[0]).decode_from
    saes[0].decode_from = lambda *args: seen.extend(plain(saes[0], *args)) or seen[-1:]  # type: ignore[method-assign]
    evaluate(hooked, *saes)
    assert seen and not any(y.requires_grad for y in seen)


def figures(row: Any) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not isinstance(value, str)}


def changed_loss(hooked: HookedModel, hooks: Any) -> float:
    ids = torch.tensor(ROWS, dtype=torch.long)
    with torch.no_grad():
        logits = hooked.softcapped(hooked.run_with_hooks(ids, hooks).float())
    return float(torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()))


@pytest.mark.parametrize("activation", [TopK(type="topk", k=3), ReLU(type="relu")])
def test_a_cross_layer_transcoder_reads_its_own_spliced_pass(hooked: HookedModel, activation: Any) -> None:
    clt = cross_layer(hooked, activation)
    *each, together = evaluate(hooked, clt)
    places = clt.config.places
    assert [row["at"] for row in (*each, together)] == [*(place.at for place in places), "all"]
    noted: list[Tensor] = []

    def note(x: Tensor, name: str) -> None:
        noted.append(clt.encode(len(noted), x))

    def write(j: int) -> Any:
        return lambda x, name: sum(noted[i] @ clt.decoder(i, j) for i in range(j + 1)) + clt.b_dec(j)

    hooks = {place.hook_in: note for place in places} | {p.hook_out: write(j) for j, p in enumerate(places)}
    assert together["ce_spliced"] == pytest.approx(changed_loss(hooked, hooks), rel=1e-5)
    zero = {place.hook_out: lambda x, name: torch.zeros_like(x) for place in places}
    assert together["ce_zero_ablated"] == pytest.approx(changed_loss(hooked, zero), rel=1e-5)
    ids = torch.tensor(ROWS, dtype=torch.long)
    clean = hooked.run_with_cache(ids, list(clt.config.widths))
    found = clt([clean[place.hook_in] for place in places])
    for j, (row, place) in enumerate(zip(each, places, strict=True)):
        y = clean[place.hook_out].flatten(0, 1)
        alone = changed_loss(hooked, {place.hook_out: lambda x, name, j=j: found[j]})
        assert row["ce_spliced"] == pytest.approx(alone, rel=1e-5), "alone it has the features of the clean pass"
        unexplained = (y - found[j].flatten(0, 1)).square().sum() / (y - y.mean(0)).square().sum()
        assert row["fvu"] == pytest.approx(float(unexplained), rel=1e-4)
        active = clt.encode(j, clean[place.hook_in]) > 0
        assert row["l0"] == pytest.approx(active.sum().item() / ids.numel())
        assert row["dead_latents"] == int((active.flatten(0, 1).sum(0) == 0).sum())


def test_without_cross_layer_decoders_it_is_evaluated_as_transcoders_are(hooked: HookedModel) -> None:
    clt = cross_layer(hooked, TopK(type="topk", k=3))
    ones = []
    for i, place in enumerate(clt.config.places):
        for decoder in clt.decoders(i)[1:]:
            decoder.zero_()
        one = dictionary(hooked, "transcoder", place.hook_in, place.hook_out, clt.config.activation)
        weights = {"W_enc": clt.encoder(i), "b_enc": clt.b_enc[i], "W_dec": clt.decoder(i, i), "b_dec": clt.b_dec(i)}
        one.load_state_dict(weights)
        ones.append(one)
    for ours, theirs in zip(evaluate(hooked, clt), evaluate(hooked, *ones), strict=True):
        assert ours["at"] == theirs["at"]
        assert figures(ours) == pytest.approx(figures(theirs), rel=1e-3, abs=1e-5)


def test_a_cross_layer_transcoder_does_not_depend_on_the_batch_size() -> None:
    hooked = HookedModel(tiny_models.make("llama", seed=0))
    clt = cross_layer(hooked, ReLU(type="relu"))
    for one, five in zip(*(evaluate(hooked, clt, lengths=PARTIAL, batch=n) for n in (1, 5)), strict=True):
        assert figures(one) == pytest.approx(figures(five), rel=1e-3, abs=1e-5)
