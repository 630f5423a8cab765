"""Dense products between activations and weights, in float32 or in bfloat16.

A trainer may give a weight a `working` copy in bfloat16 (`work_in`), which it refreshes after every step. Products with
that weight then read the copy: operands are rounded to bfloat16, sums are float32's inside the product, and the result
is given in float32. What is rounded is only what a product reads and writes: the weight itself, the sums of gradients
over micro-batches and workers, losses, and the optimiser's moments stay in float32. Rows that are picked out of a
weight (`W[dead]`) have no copy, and their products are float32's; rows that are split off (`split`) have theirs.

Where float32 products run on a CPU is decided in `interp.models.products`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from interp.models import products


def work_in(weight: nn.Parameter, copy: Tensor) -> None:
    """Let products with this weight read `copy`, which the caller keeps up to date."""
    _give(weight, copy)


def _give(weight: Tensor, copy: Tensor) -> None:
    weight.working = copy  # type: ignore[attr-defined]


def working(weight: Tensor) -> Tensor | None:
    """The copy that products with this weight read, if a trainer gave it one."""
    return getattr(weight, "working", None)


def split(weight: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """The rows of a weight in parts, each with its part of the working copy if there is one."""
    parts = weight.split(list(sizes))
    if (copy := working(weight)) is not None:
        for part, own in zip(parts, copy.split(list(sizes)), strict=True):
            _give(part, own)
    return parts


def affine(
    x: Float[Tensor, "batch d"], W: Float[Tensor, "n d"], bias: Float[Tensor, "n"] | None = None
) -> Float[Tensor, "batch n"]:
    """x W^T + bias without gradients, in the dtype of the product: bfloat16 where the weight has a working copy."""
    copy = working(W)
    if copy is not None:
        return F.linear(x.to(copy.dtype), copy, None if bias is None else bias.to(copy.dtype))
    return products.affine(x, W, bias)


def linear(x: Float[Tensor, "batch d"], W: Float[Tensor, "n d"], bias: Float[Tensor, "n"]) -> Float[Tensor, "batch n"]:
    """x W^T + bias, differentiable."""
    return _Linear.apply(x, W, bias)


def combine(a: Float[Tensor, "batch n"], W: Float[Tensor, "n d"], frozen: bool = False) -> Float[Tensor, "batch d"]:
    """a W, differentiable in a, and in W unless it is `frozen`."""
    return _Combine.apply(a, W, frozen)


def pre_bias(b_enc: Float[Tensor, "n"], W_enc: Float[Tensor, "n d"], b_dec: Float[Tensor, "d"]) -> Float[Tensor, "n"]:
    """b_enc, which is the bias of W_enc (x - b_dec) + b_enc, with the gradient to b_dec of what is multiplied by W_enc.

    It goes through the bias's own gradient: it costs no product with the batch, and W_enc gets its own from x - b_dec.
    """
    return _PreBias.apply(b_enc, W_enc, b_dec)


class _PreBias(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, b_enc: Tensor, W_enc: Tensor, b_dec: Tensor) -> Tensor:
        ctx.save_for_backward(W_enc)
        return b_enc.view_as(b_enc)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor]:
        (W_enc,) = ctx.saved_tensors
        return grad, None, -(grad @ W_enc)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, W)
        ctx.working = working(W)
        return affine(x, W, bias).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, W = ctx.saved_tensors
        copy = ctx.working
        d_x = _product(grad, W if copy is None else copy) if ctx.needs_input_grad[0] else None
        d_weights = _product(grad.T, x, copy) if ctx.needs_input_grad[1] else None
        return d_x, d_weights, grad.sum(0) if ctx.needs_input_grad[2] else None


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, W: Tensor, frozen: bool) -> Tensor:
        ctx.save_for_backward(a, W)
        ctx.working, ctx.frozen = working(W), frozen
        return _product(a, W if ctx.working is None else ctx.working)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        a, W = ctx.saved_tensors
        copy = ctx.working
        d_a = _product(grad, (W if copy is None else copy).T) if ctx.needs_input_grad[0] else None
        d_weights = _product(a.T, grad, copy) if ctx.needs_input_grad[1] and not ctx.frozen else None
        return d_a, d_weights, None


def _product(a: Tensor, b: Tensor, like: Tensor | None = None) -> Tensor:
    """a b in a's dtype, computed in that of `like` or of b."""
    dtype = b.dtype if like is None else like.dtype
    if dtype != a.dtype:
        return (a.to(dtype) @ b.to(dtype)).to(a.dtype)
    return affine(a, b.T)
