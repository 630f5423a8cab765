"""Reconstruction and sparsity: the definitions, and that shards give what the whole gives."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from interp.eval import ReconstructionSums, SparsitySums


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
