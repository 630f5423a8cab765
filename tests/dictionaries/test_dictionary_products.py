"""Dense products and their gradients, in float64 against autograd, through oneDNN, and with bfloat16 copies."""

from __future__ import annotations

import pytest
import torch
from dictionary_cases import EVERY, data, make
from torch import Tensor, nn
from torch.autograd import gradcheck

from interp.dictionaries import SparseDictionary, products
from interp.dictionaries.losses import LossScales, losses
from interp.models import products as places


def test_products_pass_gradcheck() -> None:
    x, W, a = (data(n, d, seed=s).requires_grad_() for n, d, s in ((5, 3, 1), (7, 3, 2), (5, 7, 3)))
    bias, offset = data(1, 7, seed=4)[0].requires_grad_(), data(1, 3, seed=5)[0].requires_grad_()
    assert gradcheck(products.linear, (x, W, bias))
    assert gradcheck(products.combine, (a, W))
    torch.testing.assert_close(products.linear(x, W, bias), x @ W.T + bias)
    torch.testing.assert_close(products.combine(a, W), a @ W)
    d_a, d_W = torch.autograd.grad(products.combine(a, W, frozen=True).sum(), (a, W), allow_unused=True)
    torch.testing.assert_close(d_a, W.sum(1).expand(5, 7))
    assert d_W is None

    def centred(x: Tensor, W: Tensor, bias: Tensor, offset: Tensor) -> Tensor:
        return products.linear(x - offset.detach(), W, products.pre_bias(bias, W, offset))

    direction = data(5, 7, seed=6)
    found = torch.autograd.grad((centred(x, W, bias, offset) * direction).sum(), (x, W, bias, offset))
    plain = ((x - offset) @ W.T + bias) * direction
    for ours, theirs in zip(found, torch.autograd.grad(plain.sum(), (x, W, bias, offset)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_large_float32_products_are_float32s() -> None:
    """Where oneDNN takes them: as near to float64 as a float32 product is, for every layout that a gradient has."""
    x, W = data(160, 96, dtype=torch.float32), data(128, 96, dtype=torch.float32, seed=2)
    bias = data(1, 128, dtype=torch.float32, seed=3)[0]
    assert x.numel() * len(W) >= places._LARGE
    torch.testing.assert_close(products.affine(x, W, bias), (x.double() @ W.double().T + bias).float())
    x, W, bias = x.requires_grad_(), W.requires_grad_(), bias.requires_grad_()
    out = products.combine(products.linear(x, W, bias).relu(), W).square().sum()
    plain = (((x.double() @ W.double().T + bias).relu() @ W.double()).square()).sum()
    wanted = torch.autograd.grad(plain, (x, W, bias))
    for ours, theirs in zip(torch.autograd.grad(out, (x, W, bias)), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * theirs.abs().max().item())


def with_copies(dictionary: SparseDictionary) -> SparseDictionary:
    for parameter in dictionary.parameters():
        if parameter.ndim == 2:
            products.work_in(parameter, parameter.detach().bfloat16())
    return dictionary


@pytest.mark.parametrize(("kind", "activation"), EVERY)
def test_bfloat16_gradients_are_near_float32s_and_are_float32(kind: str, activation: str) -> None:
    plain, low = make(kind, activation, dtype="float32"), with_copies(make(kind, activation, dtype="float32"))
    x = data(400, dtype=torch.float32)
    y = x if kind == "sae" else data(400, 5, dtype=torch.float32, seed=8)
    expected, found = (losses(dictionary, x, y, LossScales(3.7)) for dictionary in (plain, low))
    expected.total.backward()
    found.total.backward()
    assert found.total.item() == pytest.approx(expected.total.item(), rel=0.02)
    assert found.total.item() != expected.total.item(), "nothing was computed in bfloat16"
    wanted = dict(plain.named_parameters())
    for name, parameter in low.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        if activation != "jumprelu" or name != "activation.threshold":  # counts of what is near a threshold
            cosine = nn.functional.cosine_similarity(parameter.grad.flatten(), wanted[name].grad.flatten(), dim=0)
            assert cosine > 0.98, name


def test_a_part_of_a_weight_has_no_copy() -> None:
    W = nn.Parameter(torch.randn(6, 3))
    products.work_in(W, W.detach().bfloat16())
    assert products.working(W) is not None
    assert products.working(W[:2]) is None
    assert products.affine(torch.randn(2, 3), W[:2]).dtype == torch.float32


def test_rows_that_are_split_off_keep_their_part_of_the_copy() -> None:
    W = torch.nn.Parameter(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)))
    assert [products.working(part) for part in products.split(W, (2, 4))] == [None, None]
    products.work_in(W, W.detach().bfloat16() + 1)  # unlike the weight: who reads it is seen
    parts = products.split(W, (2, 4))
    for part, expected in zip(parts, products.working(W).split((2, 4)), strict=True):  # type: ignore[union-attr]
        assert torch.equal(products.working(part), expected)  # type: ignore[arg-type]
    a = torch.ones(3, 4, requires_grad=True)
    found = products.combine(a, parts[1])
    torch.testing.assert_close(found, (W[2:] + 1).sum(0).expand(3, 4), rtol=0.02, atol=0.02)
    found.sum().backward()
    torch.testing.assert_close(a.grad, (W[2:] + 1).sum(1).expand(3, 4).detach(), rtol=0.02, atol=0.05)
    assert torch.equal(W.grad[2:], torch.full((4, 4), 3.0)) and not W.grad[:2].any()  # type: ignore[index]


def test_the_skip_path_reads_its_copy() -> None:
    dictionary = make("skip-transcoder", "relu", dtype="float32")
    assert dictionary.W_skip is not None
    products.work_in(dictionary.W_skip, torch.ones_like(dictionary.W_skip, dtype=torch.bfloat16))
    d_out, d_in = dictionary.W_skip.shape
    found = dictionary.add_affine(torch.zeros(2, d_out), torch.ones(2, d_in)) - dictionary.b_dec.detach()
    torch.testing.assert_close(found, torch.full((2, d_out), float(d_in)))
    found.sum().backward()
    assert torch.equal(dictionary.W_skip.grad, torch.full((d_out, d_in), 2.0))  # type: ignore[arg-type]
