"""Fidelity: losses by direct computation, the ends of the scale, and independence of batch size and padding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_hooked import VOCAB, D, Fake, TinyHooked, sae, transcoder
from torch import Tensor

from interp.eval import BatchLosses, Evaluator, replacement, splice
from interp.eval.evaluation import ALL, hook_points, mean_activations

METRICS = ("fvu", "l0", "dead", "cosine", "ce_recovered", "kl")

ROWS = np.random.default_rng(0).integers(0, VOCAB, (7, 9)).astype(np.int32)
LENGTHS = np.array([9, 9, 9, 9, 9, 9, 4])
"""The last row is partial."""


def evaluate(
    sets: Mapping[str, Mapping[str, Fake]], *, batch: int = 3, metrics: Any = METRICS, hooked: Any = None
) -> dict[tuple[str, str], dict[str, Any]]:
    hooked = hooked or TinyHooked()
    means = mean_activations(hooked, hook_points(sets), ROWS, LENGTHS, batch)
    evaluator = Evaluator(hooked, sets, metrics, batch=batch, means=means)  # type: ignore[arg-type]
    rows = evaluator(ROWS, LENGTHS).rows(metrics)
    return {(row["dictionary"], row["at"]): row for row in rows}


def figures(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not isinstance(value, str)}


def direct_losses(hooked: TinyHooked, hooks: Any = None) -> tuple[float, float]:
    """Mean CE and KL, one row at a time and without its padding."""
    ce, kl, targets, positions = 0.0, 0.0, 0, 0
    for row, length in zip(ROWS, LENGTHS, strict=True):
        ids = torch.tensor(row[:length], dtype=torch.long)[None]
        clean = hooked.softcapped(hooked.run_with_hooks(ids, {}))[0]
        logits = hooked.softcapped(hooked.run_with_hooks(ids, hooks or {}))[0]
        ce += float(F.cross_entropy(logits[:-1], ids[0, 1:], reduction="sum"))
        kl += float(F.kl_div(logits.log_softmax(-1), clean.log_softmax(-1), log_target=True, reduction="sum"))
        targets, positions = targets + len(ids[0]) - 1, positions + len(ids[0])
    return ce / targets, kl / positions


def mlp_of(hooked: TinyHooked, layer: int) -> Any:
    w_in, w_out = hooked.mlp[layer]
    return lambda x: (x @ w_in).relu() @ w_out


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_losses_equal_a_direct_computation(softcap: float | None) -> None:
    hooked = TinyHooked(softcap=softcap)
    dictionary = sae(0, lambda x: 0.7 * x)
    [row] = evaluate({"s": {"here": dictionary}}, hooked=hooked).values()
    halved = {"layers.0.resid_post": lambda x, name: 0.7 * x}
    zeroed = {"layers.0.resid_post": lambda x, name: 0 * x}
    assert row["ce_clean"] == pytest.approx(direct_losses(hooked)[0], rel=1e-6)
    for ce_name, kl_name, hooks in (
        ("ce_spliced", "kl", halved),
        ("ce_zero_ablated", "kl_zero_ablated", zeroed),
    ):
        ce, kl = direct_losses(hooked, hooks)
        assert row[ce_name] == pytest.approx(ce, rel=1e-6)
        assert row[kl_name] == pytest.approx(kl, rel=1e-5)
    lost = row["ce_zero_ablated"] - row["ce_clean"]
    assert row["ce_recovered"] == pytest.approx((row["ce_zero_ablated"] - row["ce_spliced"]) / lost)
    assert row["kl_recovered"] == pytest.approx(1 - row["kl"] / row["kl_zero_ablated"])


@pytest.mark.parametrize("kind", ["sae", "transcoder"])
def test_a_perfect_dictionary_recovers_all(kind: str) -> None:
    hooked = TinyHooked()
    perfect = sae(1, lambda x: x) if kind == "sae" else transcoder(1, mlp_of(hooked, 1))
    [row] = evaluate({"s": {"here": perfect}}, hooked=hooked).values()
    assert row["ce_recovered"] == pytest.approx(1, abs=1e-6)
    assert row["kl_recovered"] == pytest.approx(1, abs=1e-6)
    assert row["kl"] == pytest.approx(0, abs=1e-6)
    assert row["fvu"] == pytest.approx(0, abs=1e-10)
    assert row["cosine"] == pytest.approx(1) and row["l2_ratio"] == pytest.approx(1)


@pytest.mark.parametrize("make", [sae, transcoder])
def test_a_dictionary_of_zeros_recovers_nothing(make: Any) -> None:
    [row] = evaluate({"s": {"here": make(0, torch.zeros_like)}}).values()
    assert row["ce_recovered"] == pytest.approx(0, abs=1e-9)
    assert row["kl_recovered"] == pytest.approx(0, abs=1e-9)


def test_a_transcoder_replaces_the_output_and_leaves_the_input() -> None:
    hooked = TinyHooked()
    [row] = evaluate({"s": {"here": transcoder(0, lambda x: x + 1)}}, hooked=hooked).values()
    # An MLP that gives what it reads.
    hooked.mlp[0] = (torch.cat([torch.eye(D), -torch.eye(D)], 1), torch.cat([torch.eye(D), -torch.eye(D)]))
    expected = direct_losses(hooked, {"layers.0.mlp_out": lambda x, name: x + 1})[0]
    assert row["ce_spliced"] == pytest.approx(expected, rel=1e-6)


def test_mean_ablation_puts_the_mean_of_all_tokens() -> None:
    hooked = TinyHooked()
    kept = [
        hooked.run_with_cache(torch.tensor(row[:n], dtype=torch.long)[None], ["layers.0.mlp_out"])["layers.0.mlp_out"]
        for row, n in zip(ROWS, LENGTHS, strict=True)
    ]
    mean = torch.cat(kept, 1)[0].double().mean(0)
    found = mean_activations(hooked, ["layers.0.mlp_out"], ROWS, LENGTHS, batch=2)["layers.0.mlp_out"]  # type: ignore[arg-type]
    assert torch.allclose(found, mean, atol=1e-7)
    [row] = evaluate({"s": {"here": transcoder(0, lambda x: x)}}, hooked=hooked).values()
    expected = direct_losses(hooked, {"layers.0.mlp_out": lambda x, name: mean.float().expand_as(x)})
    assert row["ce_mean_ablated"] == pytest.approx(expected[0], rel=1e-6)
    assert row["kl_mean_ablated"] == pytest.approx(expected[1], rel=1e-5)


def test_all_of_a_set_are_spliced_together() -> None:
    hooked = TinyHooked()
    sets = {
        "mlp": {"0": transcoder(0, lambda x: x), "1": transcoder(1, lambda x: 2 * x)},
        "resid": {"0": sae(0, lambda x: x)},
    }
    rows = evaluate(sets, hooked=hooked)
    places = [("mlp", "layers.0.mlp"), ("mlp", "layers.1.mlp"), ("mlp", ALL), ("resid", "layers.0.resid_post")]
    assert list(rows) == places
    noted: dict[int, Tensor] = {}

    def note(layer: int) -> Any:
        return lambda x, name: noted.update({layer: x})

    hooks = {
        "layers.0.mlp_in": note(0),
        "layers.0.mlp_out": lambda x, name: noted[0],
        "layers.1.mlp_in": note(1),
        "layers.1.mlp_out": lambda x, name: 2 * noted[1],
    }
    assert rows["mlp", ALL]["ce_spliced"] == pytest.approx(direct_losses(hooked, hooks)[0], rel=1e-6)
    assert "fvu" not in rows["mlp", ALL]
    both_zero = {f"layers.{layer}.mlp_out": lambda x, name: 0 * x for layer in (0, 1)}
    assert rows["mlp", ALL]["ce_zero_ablated"] == pytest.approx(direct_losses(hooked, both_zero)[0], rel=1e-6)


def test_one_that_reads_what_another_replaces_reads_the_replacement() -> None:
    hooked = TinyHooked()
    reader = transcoder(0, lambda x: x)
    writer = Fake("layers.0.mlp_in", "layers.0.mlp_in", lambda x: 3 * x)
    noted: list[Tensor] = []
    hooks = {
        "layers.0.mlp_in": lambda x, name: noted.append(3 * x) or 3 * x,
        "layers.0.mlp_out": lambda x, name: noted.pop(),
    }
    ids = torch.tensor(ROWS, dtype=torch.long)
    expected = hooked.run_with_hooks(ids, hooks)
    for order in ([reader, writer], [writer, reader]):
        assert torch.allclose(hooked.run_with_hooks(ids, splice(order)), expected)  # type: ignore[arg-type]


def test_figures_do_not_depend_on_the_batch_size() -> None:
    hooked = TinyHooked()
    mlps = [mlp_of(hooked, layer) for layer in (0, 1)]
    sets = {"mlp": {str(i): transcoder(i, lambda x, mlp=mlp: 0.8 * mlp(x)) for i, mlp in enumerate(mlps)}}
    one, three, eight = (evaluate(sets, batch=batch, hooked=hooked) for batch in (1, 3, 8))
    for key, row in one.items():
        assert figures(three[key]) == pytest.approx(figures(row), rel=1e-6, abs=1e-7), key
        assert figures(eight[key]) == pytest.approx(figures(row), rel=1e-6, abs=1e-7), key


def test_merged_shards_equal_the_whole() -> None:
    sets = {"mlp": {"0": transcoder(0, lambda x: x), "1": sae(1, lambda x: x.tanh())}}
    hooked = TinyHooked()
    means = mean_activations(hooked, hook_points(sets), ROWS, LENGTHS, 8)  # type: ignore[arg-type]
    evaluator = Evaluator(hooked, sets, METRICS, batch=8, means=means)  # type: ignore[arg-type]
    whole = evaluator(ROWS, LENGTHS)
    merged = (
        evaluator(ROWS[5:], LENGTHS[5:])
        .merge(evaluator(ROWS[:2], LENGTHS[:2]))
        .merge(evaluator(ROWS[2:5], LENGTHS[2:5]))
    )
    assert merged.tokens == whole.tokens == int(LENGTHS.sum())
    for one, other in zip(merged.rows(METRICS), whole.rows(METRICS), strict=True):
        assert figures(one) == pytest.approx(figures(other), rel=1e-6)


def test_padding_is_not_counted() -> None:
    sets = {"s": {"0": sae(0, lambda x: 0.5 * x)}}
    [row] = evaluate(sets).values()
    assert row["tokens"] == 58
    changed = ROWS.copy()
    changed[-1, 4:] = 3
    hooked = TinyHooked()
    means = mean_activations(hooked, hook_points(sets), changed, LENGTHS, 3)  # type: ignore[arg-type]
    [other] = Evaluator(hooked, sets, METRICS, batch=3, means=means)(changed, LENGTHS).rows(METRICS)  # type: ignore[arg-type]
    assert figures(other) == pytest.approx(figures(row), rel=1e-12)


@pytest.mark.parametrize(
    ("metrics", "names"),
    [
        (("fvu",), {"fvu"}),
        (("cosine", "l0"), {"cosine", "l2_ratio", "l0"}),
        (("density",), {"density", "density_low", "density_high"}),
        (("similarity",), set()),  # of weights, not of tokens
        (("dead",), {"dead", "dead_latents", "denser_than_1_percent", "denser_than_10_percent"}),
        (("kl",), {"kl", "kl_zero_ablated", "kl_mean_ablated", "kl_recovered"}),
        (
            ("ce_recovered",),
            {"ce_clean", "ce_spliced", "ce_zero_ablated", "ce_mean_ablated", "ce_recovered"},
        ),
    ],
)
def test_only_what_is_asked_for_is_measured(metrics: Any, names: set[str]) -> None:
    [row] = evaluate({"s": {"0": sae(0, lambda x: x)}}, metrics=metrics).values()
    assert set(row) == {"dictionary", "at", "tokens"} | names


def test_the_model_runs_changed_only_when_a_metric_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    hooked = TinyHooked()
    sets = {"s": {"0": sae(0, lambda x: x)}}
    runs = []
    plain = TinyHooked.run_with_hooks
    monkeypatch.setattr(TinyHooked, "run_with_hooks", lambda *args: runs.append(1) or plain(*args))
    Evaluator(hooked, sets, ("fvu", "l0"), batch=8, means={})(ROWS, LENGTHS)  # type: ignore[arg-type]
    assert len(runs) == 1


def test_sets_at_the_same_places_share_their_ablations_and_figures_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    hooked = TinyHooked()

    def pair(factor: float) -> dict[str, Fake]:
        return {str(i): transcoder(i, lambda x: factor * x) for i in range(2)}

    sets = {
        "one": pair(1.0),
        "two": pair(0.5),
        "resid": {"0": sae(0, lambda x: 0.9 * x)},
        "first": {"0": pair(2.0)["0"]},
    }
    alone = {}
    for name, dictionaries in sets.items():
        alone |= evaluate({name: dictionaries}, hooked=hooked)
    runs: list[frozenset[str]] = []
    plain = TinyHooked.run_with_hooks

    def counted(self: TinyHooked, ids: Tensor, hooks: Any) -> Tensor:
        runs.append(frozenset(hooks))
        return plain(self, ids, hooks)

    monkeypatch.setattr(TinyHooked, "run_with_hooks", counted)
    means = mean_activations(hooked, hook_points(sets), ROWS, LENGTHS, 8)  # type: ignore[arg-type]
    runs.clear()
    together = Evaluator(hooked, sets, METRICS, batch=8, means=means)(ROWS, LENGTHS).rows(METRICS)  # type: ignore[arg-type]
    # The clean run; 4 places spliced alone and 2 sets of two, one place of `first` and one SAE; two ablations of each
    # of 2 MLPs, of both together, and of the SAE's place.
    assert len(runs) == 1 + (4 + 2 + 1 + 1) + 2 * 4
    monkeypatch.undo()
    expected = [alone[row["dictionary"], row["at"]] for row in together]
    again = list(evaluate(sets, hooked=hooked).values())
    assert again == expected and len(again) == 8


def test_ablation_that_changes_nothing_leaves_recovered_undefined() -> None:
    hooked = TinyHooked()
    hooked.mlp[1] = (hooked.mlp[1][0], torch.zeros(4 * D, D))
    [row] = evaluate({"s": {"0": transcoder(1, lambda x: x)}}, hooked=hooked).values()
    assert row["ce_recovered"] is None and row["kl_recovered"] is None


def test_long_vocabularies_are_done_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    from interp.eval import fidelity

    hooked = TinyHooked()
    ids, mask = torch.tensor(ROWS, dtype=torch.long), torch.arange(9) < torch.tensor(LENGTHS)[:, None]
    clean = hooked.run_with_hooks(ids, {})
    changed = hooked.run_with_hooks(ids, replacement({"layers.0.mlp_out": torch.zeros(())}))
    whole = BatchLosses(clean, ids, mask).of(changed)
    monkeypatch.setattr(fidelity, "_CHUNK_ELEMENTS", 3 * VOCAB)
    parts = BatchLosses(clean, ids, mask).of(changed)
    assert (parts.targets, parts.positions) == (whole.targets, whole.positions) == (51, 58)
    assert (parts.ce, parts.kl) == pytest.approx((whole.ce, whole.kl), rel=1e-6)


def test_kl_is_exact_where_it_is_small_and_where_logits_are_large() -> None:
    """In float64 from the definition; a shift of all logits by one number changes no probability."""
    make = torch.Generator().manual_seed(0)
    clean = 20 * torch.randn(2, 4, VOCAB, generator=make)
    changed = clean + 1e-2 * torch.randn(2, 4, VOCAB, generator=make) + 100
    ids, mask = torch.zeros(2, 4, dtype=torch.long), torch.ones(2, 4, dtype=torch.bool)
    log_p, log_q = (logits.double().log_softmax(-1) for logits in (clean, changed))
    expected = float((log_p.exp() * (log_p - log_q)).sum())
    losses = BatchLosses(clean, ids, mask)
    assert losses.of(changed).kl == pytest.approx(expected, rel=0.2)
    assert losses.of(clean).kl == 0
    assert losses.of(clean).ce == losses.clean().ce
