"""Where float32 products run: the same numbers, and nothing changed for what is not a plain float32 product."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from interp.models import products
from interp.models.products import FastLinears, affine, fast_linears
from interp.wrapper import HookedModel

needs_onednn = pytest.mark.skipif(not products._ONEDNN, reason="torch was built without oneDNN")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each product that was asked for went to oneDNN."""
    found: list[bool] = []
    is_for = products._is_for_onednn
    monkeypatch.setattr(products, "_is_for_onednn", lambda *a: found.append(is_for(*a)) or found[-1])
    return found


@needs_onednn
def test_large_products_are_the_same_to_rounding(taken: list[bool]) -> None:
    x, W, bias = drawn(4, 64, 256), drawn(256, 128).T * 0.06, drawn(128, seed=1)
    for given in (None, bias):
        for weight in (W, W.contiguous(), torch.nn.Parameter(W.contiguous())):
            with torch.no_grad():
                torch.testing.assert_close(affine(x, weight, given), F.linear(x, weight, given), rtol=1e-5, atol=1e-5)
    assert all(taken)
    assert torch.equal(affine(x[0, :2], W, bias), F.linear(x[0, :2], W, bias))
    assert not taken[-1]


def test_with_gradients_nothing_changes(taken: list[bool]) -> None:
    layer, x = torch.nn.Linear(256, 256), drawn(64, 256)
    layer(x).square().sum().backward()
    assert layer.weight.grad is not None
    expected = layer.weight.grad.clone()
    layer.zero_grad()
    with FastLinears():
        layer(x).square().sum().backward()
    assert torch.equal(layer.weight.grad, expected)
    assert not taken


class Twice(Tensor):
    """A weight whose products are its own, as a quantised one's are."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = super().__torch_function__(func, types, args, kwargs or {})
        return 2 * found if func is F.linear else found


def test_a_weight_that_computes_for_itself_is_asked() -> None:
    x, W = drawn(64, 256), drawn(256, 256)
    with torch.no_grad(), FastLinears():
        found = F.linear(x, W.as_subclass(Twice))
    torch.testing.assert_close(found.as_subclass(Tensor), 2 * F.linear(x, W))


@pytest.mark.parametrize(
    ("x", "W", "bias"),
    [
        ((64, 1024), (2048, 512), None),
        ((64, 1024), (1024, 1024), (2048,)),
        ((64, 1024), (2, 1024, 1024), None),
        ((1 << 20,), (7, 3), None),
    ],
)
def test_what_does_not_fit_together_is_told_by_torch(x: Any, W: Any, bias: Any) -> None:
    given = (torch.zeros(x), torch.zeros(W), None if bias is None else torch.zeros(bias))
    with pytest.raises(RuntimeError) as expected:
        F.linear(*given)
    with pytest.raises(RuntimeError) as found, torch.no_grad(), FastLinears():
        F.linear(*given)
    assert str(found.value) == str(expected.value)


def test_a_row_of_bias_and_a_vector_of_weights_are_torchs() -> None:
    x, W = drawn(64, 1024), drawn(1024, 1024)
    with torch.no_grad():
        plain = F.linear(x, W, drawn(1, 1024)), F.linear(drawn(2048, 1024), W[0]), F.linear(x, W, bias=W[0])
        with FastLinears():
            found = F.linear(x, W, drawn(1, 1024)), F.linear(drawn(2048, 1024), W[0]), F.linear(x, W, bias=W[0])
    for ours, theirs in zip(found, plain, strict=True):
        assert torch.equal(ours, theirs)


@needs_onednn
def test_it_is_entered_only_where_it_pays() -> None:
    W = torch.zeros(2, 2)
    with torch.no_grad():
        assert isinstance(fast_linears(W, 128), FastLinears)
        assert not isinstance(fast_linears(W, 127), FastLinears)
        assert not isinstance(fast_linears(W.bfloat16(), 128), FastLinears)
        assert not isinstance(fast_linears(W.as_subclass(Twice), 128), FastLinears)
        with torch.autocast("cpu"):
            assert not isinstance(fast_linears(W, 128), FastLinears)
    assert not isinstance(fast_linears(W, 128), FastLinears)


@needs_onednn
def test_a_long_prompt_goes_through_it_and_a_short_one_does_not(taken: list[bool]) -> None:
    hooked = HookedModel("builtin://tiny-split-llama")
    hook = hooked.topology.hook_names[-1]
    ids = torch.arange(128)[None] % hooked.topology.d_vocab
    assert not taken
    short = hooked.run_with_cache(ids[:, :8], [hook])[hook]
    assert not taken
    long = hooked.run_with_cache(ids, [hook])[hook]
    assert any(taken)
    torch.testing.assert_close(long[:, :8], short, rtol=1e-4, atol=1e-4)
