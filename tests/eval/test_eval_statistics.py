"""Reconstruction and sparsity: the definitions, and that shards give what the whole gives."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from interp.dictionaries import CrossLayerConfig, Dictionary
from interp.eval import ReconstructionSums, SparsitySums
from interp.eval.reconstruction import RunningReconstruction


def data(n: int = 200, d: int = 5, offset: float = 3.0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(1)) * torch.tensor([1.0, 2, 3, 4, 5]) + offset


def merged(x: Tensor, x_hat: Tensor, sizes: list[int]) -> ReconstructionSums:
    sums = None
    for part, part_hat in zip(x.split(sizes), x_hat.split(sizes), strict=True):
        own = ReconstructionSums.of(part, part_hat)
        sums = own if sums is None else sums.merge(own)
    assert sums is not None
    return sums


def test_predicting_the_mean_has_fvu_one() -> None:
    x = data()
    mean = x.double().mean(0).expand_as(x)
    assert ReconstructionSums.of(x, mean).fvu == pytest.approx(1, abs=1e-12)
    assert merged(x, mean, [1, 3, 96, 100]).fvu == pytest.approx(1, abs=1e-12)


def test_fvu_by_hand_and_its_ends() -> None:
    x = torch.tensor([[0.0, 0], [2, 0]])
    assert ReconstructionSums.of(x, x).fvu == 0
    # Variance about the mean (1, 0) is 2; zero as the reconstruction errs by 4: worse than the mean.
    assert ReconstructionSums.of(x, torch.zeros_like(x)).fvu == pytest.approx(2)


def test_fvu_uses_the_mean_of_all_tokens_not_of_each_shard() -> None:
    x = torch.cat([torch.zeros(50, 3), torch.ones(50, 3)])
    parts = merged(x, torch.full_like(x, 0.5), [50, 50])  # each shard by itself has no variance at all
    assert parts.fvu == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("sizes", [[200], [1] * 200, [7, 93, 0, 100], [199, 1]])
def test_shards_equal_the_whole(sizes: list[int]) -> None:
    x = data(offset=1000.0)  # a mean that is large against the variance: naive sums of squares lose it in float32
    x_hat = x + torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    whole, parts = ReconstructionSums.of(x, x_hat), merged(x, x_hat, sizes)
    assert parts.tokens == whole.tokens == 200
    for figure in ("fvu", "mean_cosine", "mean_ratio", "scatter"):
        assert getattr(parts, figure) == pytest.approx(getattr(whole, figure), rel=1e-10)
    assert torch.allclose(parts.mean, whole.mean, rtol=1e-12)
    direct = ((x - x_hat).double() ** 2).sum() / ((x.double() - x.double().mean(0)) ** 2).sum()
    assert whole.fvu == pytest.approx(float(direct), rel=1e-12)


def test_few_tokens_at_a_time_are_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    x = data(offset=1000.0)
    whole = ReconstructionSums.of(x, 0.9 * x)
    monkeypatch.setattr("interp.eval.reconstruction.AT_ONCE", 64)
    seen: list[int] = []

    def double(self: Tensor) -> Tensor:
        seen.append(len(self))
        return self.to(torch.float64)

    monkeypatch.setattr(Tensor, "double", double)
    parts = ReconstructionSums.of(x, 0.9 * x)
    assert max(seen) == 64 and sum(seen) == 2 * 200
    assert parts.fvu == pytest.approx(whole.fvu, rel=1e-10) and parts.tokens == 200


def test_merge_is_associative_and_commutative() -> None:
    x = data(90)
    a, b, c = (ReconstructionSums.of(part, part * 0.9) for part in x.split(30))
    results = [p.merge(q).merge(r) for p, q, r in itertools.permutations([a, b, c])] + [a.merge(b.merge(c))]
    for result in results:
        assert result.fvu == pytest.approx(results[0].fvu, rel=1e-12)


def test_cosine_and_ratio() -> None:
    x = torch.tensor([[3.0, 4], [1, 0], [0, 0]])
    x_hat = torch.tensor([[6.0, 8], [0, 0.5], [9, 9]])
    sums = ReconstructionSums.of(x, x_hat)
    assert sums.nonzero == 2  # the zero activation has no direction
    assert sums.mean_cosine == pytest.approx((1 + 0) / 2)
    assert sums.mean_ratio == pytest.approx((2 + 0.5) / 2)


def test_a_zero_reconstruction_has_cosine_zero() -> None:
    assert ReconstructionSums.of(torch.ones(2, 3), torch.zeros(2, 3)).mean_cosine == 0


def test_undefined_figures_are_none() -> None:
    same = ReconstructionSums.of(torch.ones(3, 2), torch.zeros(3, 2))
    assert same.fvu is None
    nothing = ReconstructionSums.of(torch.zeros(0, 2), torch.zeros(0, 2))
    assert nothing.fvu is nothing.mean_cosine is nothing.mean_ratio is None
    assert nothing.merge(same).merge(nothing).tokens == 3


def test_sparsity_by_hand() -> None:
    activations = torch.tensor([[1.0, 0, 0, 2], [1, 0, 0, 0], [1, 0, 0, 0], [3, 0.1, 0, 0]])
    sums = SparsitySums.of(activations)
    assert sums.fired.tolist() == [4, 1, 0, 1]
    assert sums.l0 == 6 / 4
    assert (sums.dead, sums.dead_share) == (1, 0.25)
    assert sums.share_denser_than(0.1) == 0.75
    assert sums.share_denser_than(0.25) == 0.25  # more than, not at least


def test_dead_means_dead_in_every_shard() -> None:
    one, other = SparsitySums.of(torch.tensor([[1.0, 0, 0]])), SparsitySums.of(torch.tensor([[0, 1.0, 0]]))
    assert one.dead == other.dead == 2
    assert one.merge(other).dead == 1
    assert one.merge(other).l0 == 1


class Small(Dictionary):
    """The first place adds 1 everywhere, each later one 2^-8: a number that bfloat16 cannot add to 1."""

    kinds = ("cross-layer-transcoder",)

    def __init__(self, n: int) -> None:
        hooks = [{"hook_in": f"layers.{i}.mlp_in", "hook_out": f"layers.{i}.mlp_out"} for i in range(n)]
        places = [{**names, "d_in": 3, "d_out": 3, "n_latents": 2} for names in hooks]
        super().__init__(CrossLayerConfig.model_validate({"places": places, "activation": {"type": "relu"}}))
        self.weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))

    def encode_at(self, place: int, x: Tensor) -> Tensor:
        return x.new_zeros(len(x), 2)

    def decode_from(self, place: int, activations: Tensor, x: Tensor) -> list[Tensor]:
        return [x.new_full((len(x), 3), 2.0**-8 if place else 1.0)] * (len(self.places) - place)

    @staticmethod
    def stored_name(name: str) -> str:
        return name


def test_what_places_add_is_summed_in_float32() -> None:
    running = RunningReconstruction(Small(5))
    found = [running(place, torch.zeros(4, 3)) for place in range(5)]
    assert [y.dtype for y in found] == [torch.bfloat16] * 5
    assert [y[0, 0].item() for y in found] == [1, 1, 1 + 2**-7, 1 + 2**-6, 1 + 2**-6]
