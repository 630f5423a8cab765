"""Similarity of latents, by definition on small dictionaries, whatever the block; and densities of firing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from interp.dictionaries import CrossLayerConfig, CrossLayerTranscoder, DictionaryConfig, build_dictionary
from interp.eval import SparsitySums, similarities
from interp.eval.similarity import decoder_rows, largest_cosines, mmcs
from interp.eval.sparsity import EDGES
from interp.spec.dictionary import TopK


def rows(n: int, seed: int = 0, d: int = 5) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def cosines(one: Tensor, other: Tensor) -> Tensor:
    return torch.cosine_similarity(one.double()[:, None], other.double()[None], dim=-1)


@pytest.mark.parametrize("block", [1, 3, 7, 8, 23, 100])
def test_blocks_change_nothing(block: int) -> None:
    one, other = rows(23), rows(9, seed=1)
    own = cosines(one, one).fill_diagonal_(-2).amax(1)
    assert largest_cosines(one, block).tolist() == pytest.approx(own.tolist(), abs=1e-6)
    between = cosines(one, other)
    expected = (float(between.amax(1).mean()), float(between.amax(0).mean()))
    assert mmcs(one, other, block) == pytest.approx(expected, abs=1e-6)


def test_no_more_than_a_block_of_cosines_is_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    plain = Tensor.nan_to_num_

    def noted(self: Tensor, **options: float) -> Tensor:
        seen.append(tuple(self.shape))
        return plain(self, **options)

    monkeypatch.setattr(Tensor, "nan_to_num_", noted)
    largest_cosines(rows(50), 8)
    assert len(seen) == 49 and max(a * b for a, b in seen) == 64


def test_ends_of_the_scale() -> None:
    one = rows(6)
    assert mmcs(one, torch.cat([rows(3, seed=2), 7 * one])) == pytest.approx(
        (1.0, float(cosines(torch.cat([rows(3, seed=2), one]), one).amax(1).mean())), abs=1e-6
    )
    twice = torch.cat([one, 2 * one])
    assert largest_cosines(twice).tolist() == pytest.approx([1] * 12, abs=1e-6)
    assert largest_cosines(torch.eye(4)).tolist() == [0, 0, 0, 0]
    opposite = torch.tensor([[1.0, 0], [-1, 0]])
    assert largest_cosines(opposite).tolist() == [-1, -1]  # another direction, not the same one


def test_rows_without_a_direction_count_nowhere() -> None:
    one = torch.tensor([[1.0, 0], [0, 0], [2, 0]])
    assert largest_cosines(one).isnan().tolist() == [False, True, False]
    assert mmcs(one, torch.eye(2)) == (pytest.approx(1), pytest.approx(0.5))
    assert mmcs(torch.zeros(2, 2), torch.eye(2)) == (None, None)
    assert largest_cosines(torch.ones(1, 2)).isnan().all()  # there is no other


def test_tiny_numbers_in_half_precision_have_a_direction() -> None:
    small = (rows(8) * 1e-5).half()
    assert largest_cosines(small).tolist() == pytest.approx(largest_cosines(small.double()).tolist(), abs=1e-5)
    assert not largest_cosines(rows(8) * 1e-30).isnan().any()


def sae(hook_in: str, hook_out: str, n: int, seed: int) -> object:
    config = DictionaryConfig(
        kind="sae" if hook_in == hook_out else "transcoder",
        hook_in=hook_in, hook_out=hook_out, d_in=8, d_out=8, n_latents=n, activation=TopK(type="topk", k=2),
    )  # fmt: skip
    made = build_dictionary(config, seed=seed).requires_grad_(False)
    torch.nn.init.normal_(made.W_dec, generator=torch.Generator().manual_seed(seed))
    return made


def test_sets_are_compared_where_they_write_to_one_hook_point() -> None:
    mlp, out = ("layers.0.mlp_in", "layers.0.mlp_out"), "layers.0.mlp_out"
    sets = {
        "a": {"x": sae(*mlp, 16, 0), "y": sae("layers.1.mlp_in", "layers.1.mlp_out", 16, 1)},
        "b": {"x": sae(*mlp, 32, 2)},
        "c": {"x": sae(out, out, 24, 3)},
    }
    found = similarities(sets)  # type: ignore[arg-type]
    assert list(found.largest) == [("a", "layers.0.mlp"), ("a", "layers.1.mlp"), ("b", "layers.0.mlp"), ("c", out)]
    pairs = [(overlap.one[0], overlap.other[0], overlap.hook_out) for overlap in found.overlaps]
    assert pairs == [("a", "b", out), ("a", "c", out), ("b", "c", out)]
    there, back = found.overlaps[0].rows()
    assert (there["dictionary"], there["in"], there["at"]) == ("a", "b", "layers.0.mlp")
    between = cosines(sets["a"]["x"].W_dec, sets["b"]["x"].W_dec)  # type: ignore[attr-defined]
    assert (there["mmcs"], back["mmcs"]) == pytest.approx(
        (float(between.amax(1).mean()), float(between.amax(0).mean()))
    )
    figures = found.metrics(("a", "layers.0.mlp"))
    assert figures["similarity"] == pytest.approx(float(found.largest["a", "layers.0.mlp"].double().mean()))
    assert figures["near_duplicates"] == 0 and found.metrics(("a", "all")) == {}


def test_a_cross_layer_transcoder_is_what_it_writes_at_its_own_place() -> None:
    hooks = [{"hook_in": f"layers.{i}.mlp_in", "hook_out": f"layers.{i}.mlp_out"} for i in range(2)]
    places = [{**names, "d_in": 4, "d_out": 4, "n_latents": 6} for names in hooks]
    config = CrossLayerConfig.model_validate({"places": places, "activation": {"type": "topk", "k": 2}})
    made = CrossLayerTranscoder(config)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    assert torch.equal(decoder_rows(made, 1), made.decoder(1, 1))
    found = similarities({"clt": {"cross-layer": made}})
    assert list(found.largest) == [("clt", "layers.0.mlp"), ("clt", "layers.1.mlp")] and not found.overlaps


# --- density


def activations(tokens: int = 400, latents: int = 40, seed: int = 0) -> Tensor:
    """Latents of very different densities, some of which never fire."""
    rng = np.random.default_rng(seed)
    rates = 10 ** rng.uniform(-4, 0, latents)
    return torch.tensor(rng.random((tokens, latents)) < rates).float()


@pytest.mark.parametrize("seed", range(20))
def test_merged_histograms_equal_the_whole_for_any_split(seed: int) -> None:
    rng = np.random.default_rng(seed)
    whole = SparsitySums.of(fired := activations(seed=seed))
    cuts = np.sort(rng.integers(0, len(fired) + 1, rng.integers(1, 9)))
    parts = [SparsitySums.of(fired[a:b]) for a, b in zip([0, *cuts], [*cuts, len(fired)], strict=True)]
    merged = parts.pop(int(rng.integers(len(parts))))
    while parts:
        other = parts.pop(int(rng.integers(len(parts))))
        merged = merged.merge(other) if rng.random() < 0.5 else other.merge(merged)
    assert torch.equal(merged.histogram(), whole.histogram())
    assert (merged.l0, merged.dead, merged.tokens) == (whole.l0, whole.dead, whole.tokens)
    for share in (0.1, 0.5, 0.9):
        assert merged.density_quantile(share) == whole.density_quantile(share)


def test_the_histogram_by_hand() -> None:
    fired = torch.zeros(1000, 6)
    for latent, count in enumerate((1000, 999, 100, 99, 1, 0)):
        fired[:count, latent] = 1
    sums = SparsitySums.of(fired)
    bins = {EDGES[i]: int(n) for i, n in enumerate(sums.histogram()) if n}
    # 1 and 0.999 are in the last bin, which has both its edges; 0.1 begins a bin, 0.099 is below it; 0.001 begins one.
    assert bins == {-0.25: 2, -1.0: 1, -1.25: 1, -3.0: 1}
    assert int(sums.histogram().sum()) == 6 - sums.dead == 5
    assert sums.density_quantile(0.5) == pytest.approx(-1) and sums.density_quantile(0.99) == 0
    assert SparsitySums.of(torch.zeros(3, 2)).density_quantile(0.5) is None


def test_rarer_than_the_first_edge_is_in_the_first_bin() -> None:
    sums = SparsitySums(10**10, torch.tensor([1, 10**10]))
    histogram = sums.histogram()
    assert (int(histogram[0]), int(histogram[-1]), int(histogram.sum())) == (1, 1, 2)
