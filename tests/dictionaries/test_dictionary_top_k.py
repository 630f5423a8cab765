"""The k largest by groups are those of `topk`: with ties, negative numbers, widths that do not divide, and NaN."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from interp.dictionaries import kernels, products
from interp.dictionaries import top_k as module
from interp.dictionaries.top_k import top_k

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def rows(n: int, *, seed: int = 0, tokens: int = 33) -> Tensor:
    return torch.randn(tokens, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def check(pre: Tensor, k: int) -> None:
    """The values are the k largest, at k different places that hold them."""
    values, indices = top_k(pre, k)
    assert values.dtype == pre.dtype
    assert torch.equal(pre.gather(-1, indices), values)
    assert (indices.sort(dim=-1).values.diff(dim=-1) > 0).all()
    assert torch.equal(values.sort(dim=-1, descending=True).values, pre.topk(k, dim=-1).values)
    again = top_k(pre, k)
    assert torch.equal(again[0], values)
    assert torch.equal(again[1], indices)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "k"), [(1024, 1), (1024, 5), (1024, 16), (4096, 32), (3072, 32), (1000, 7), (96, 32)])
def test_the_largest_are_those_of_topk(n: int, k: int, dtype: torch.dtype) -> None:
    check(rows(n).to(dtype), k)


@pytest.mark.parametrize("dtype", DTYPES)
def test_negative_rows_and_rows_of_few_positive_numbers(dtype: torch.dtype) -> None:
    negative = -rows(1024).abs() - 0.5
    check(negative.to(dtype), 8)
    mixed = negative.clone()
    mixed[::2, 100:103] = 2.0  # three above 0, fewer than k, in every second row
    check(mixed.to(dtype), 8)
    check(rows(1024).to(dtype) * 0 - 0.0, 8)


@pytest.mark.parametrize("dtype", DTYPES)
def test_ties(dtype: torch.dtype) -> None:
    check((rows(1024) * 2).round().to(dtype), 8)  # every value many times
    check(torch.ones(5, 1024, dtype=dtype), 8)
    one_of_all = torch.zeros(3, 1024, dtype=dtype)
    one_of_all[1] = torch.arange(1024)
    check(one_of_all, 8)


def test_the_largest_may_lie_in_one_group() -> None:
    pre = rows(4096, tokens=4)
    groups, _ = module._sizes(4096, 32) or (0, 0)
    assert groups, "this size must go by groups"
    for group in (0, 1, groups - 1):
        pre[:, group::groups] += 10.0
    check(pre, 32)
    pre[2, 64 : 64 + 40] += 100.0
    check(pre, 32)


def test_what_is_not_a_number_is_chosen_first_and_leading_dimensions_stay() -> None:
    pre = rows(1024)
    pre[4, 17] = torch.nan
    pre[7] = torch.nan
    for dtype in (torch.float32, torch.bfloat16):
        values, indices = top_k(pre.to(dtype), 8)
        assert 17 in indices[4].tolist()
        assert values[4].isnan().sum() == 1
        assert values[7].isnan().all()
    cube = rows(1024, tokens=12).view(3, 4, 1024)
    assert torch.equal(top_k(cube, 8)[1].view(12, 8), top_k(cube.view(12, 1024), 8)[1])
    assert top_k(cube[:, :0], 8)[0].shape == (3, 0, 8)


def test_chunks_of_tokens_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, W, bias = rows(8, seed=1).float(), rows(8, seed=2, tokens=512).float(), rows(512, seed=3, tokens=1)[0].float()
    whole = kernels.largest(x, W, bias, 4)
    monkeypatch.setattr(kernels, "_CHUNK_BYTES", {"cpu": 5 * 512 * 4})
    cut = kernels.largest(x, W, bias, 4)
    for ours, theirs in zip(cut, whole, strict=True):
        torch.testing.assert_close(ours.sort().values, theirs.sort().values)
    expected = (x @ W.T + bias).topk(4)
    torch.testing.assert_close(whole[0].sort(descending=True).values, expected.values)
    assert kernels.largest(x[:0], W, bias, 4)[1].shape == (0, 4)


def test_bfloat16_pre_activations_are_chosen_among_the_rounded_ones() -> None:
    x, bias = rows(8, seed=1).float(), rows(512, seed=3, tokens=1)[0].float()
    W = torch.nn.Parameter(rows(8, seed=2, tokens=512).float())
    products.work_in(W, W.detach().bfloat16())
    values, indices = kernels.largest(x, W, bias, 4)
    assert values.dtype == torch.float32
    exact = x @ W.detach().T + bias
    torch.testing.assert_close(values, exact.gather(1, indices), rtol=0.02, atol=0.05)
    torch.testing.assert_close(values.sort(descending=True).values, exact.topk(4).values, rtol=0.02, atol=0.05)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gradient_goes_to_the_chosen_entries(dtype: torch.dtype) -> None:
    pre = rows(1024).to(dtype).requires_grad_()
    assert module._sizes(1024, 8), "this size must go by groups"
    values, indices = top_k(pre, 8)
    values.sum().backward()
    assert pre.grad is not None
    assert torch.equal(pre.grad, torch.zeros_like(pre).scatter_(-1, indices, 1.0))


@pytest.mark.parametrize("dtype", DTYPES)
def test_columns_of_a_transposed_or_cut_matrix(dtype: torch.dtype) -> None:
    check(rows(1024).to(dtype).T.contiguous().T, 8)
    check(rows(2048).to(dtype)[:, ::2], 8)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_a_number_is_chosen_whatever_its_sign(dtype: torch.dtype) -> None:
    pre = rows(1024).to(dtype)
    pre[3, 5] = torch.tensor(torch.nan, dtype=dtype).copysign(torch.tensor(-1.0, dtype=dtype))
    assert pre[3, 5].signbit()
    values, indices = top_k(pre, 8)
    assert 5 in indices[3].tolist()
    assert values.isnan().sum() == 1


@pytest.mark.parametrize("n", [96, 1024])
def test_none_of_a_row(n: int) -> None:
    values, indices = top_k(rows(n), 0)
    assert values.shape == indices.shape == (33, 0)
