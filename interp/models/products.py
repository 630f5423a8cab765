"""Where float32 products run on a CPU.

Torch gives them to MKL, which on processors of other makers than its own uses half of the vector width. oneDNN, which
torch has too, uses all of it: on a Zen 5 core it is 2.3 times as fast for [1024, 256] x [256, 4096], to the same
accuracy, and a forward pass of a Llama of 4 layers and 256 dimensions takes 0.6 of the time.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.nn import Parameter
from torch.overrides import TorchFunctionMode

_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
_LARGE = 2**20
"""Multiply-adds from which a product goes to oneDNN; below, setting one up costs more than it saves."""


_PAYS_FROM = 128
"""Tokens of a forward pass from which `FastLinears` pays. On the shipped model, MLP inputs by `run_with_cache`, one
core: 8 tokens take 1.35 of the time, 64 take 1.02, 128 take 0.87 and 1024 take 0.61."""


def affine(
    x: Float[Tensor, "*batch d"], W: Float[Tensor, "n d"], bias: Float[Tensor, "n"] | None = None
) -> Float[Tensor, "*batch n"]:
    """x W^T + bias without gradients, wherever it is fastest."""
    if _is_for_onednn(x, W, bias):
        found: Tensor = torch.ops.mkldnn._linear_pointwise(x, W, bias, "none", [], "")
        return found
    return F.linear(x, W, bias)


class FastLinears(TorchFunctionMode):
    """Inside, every linear layer that needs no gradient goes through `affine`.

    Layers of other dtypes, devices, shapes and kinds of tensors are torch's own, as are those that do not fit together.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and not kwargs and len(args) in (2, 3) and not torch.is_grad_enabled():
            return affine(*args)
        return func(*args, **(kwargs or {}))


def fast_linears(weight: Tensor, tokens: int) -> AbstractContextManager[Any]:
    """`FastLinears` where it pays, else nothing: for a model of such weights and a forward pass of so many tokens.

    Every call of torch inside goes through Python.
    """
    pays = _ONEDNN and tokens >= _PAYS_FROM and not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
    return FastLinears() if pays and _is_plain(weight) else nullcontext()


def _is_for_onednn(x: Tensor, W: Tensor, bias: Tensor | None) -> bool:
    """Whether oneDNN computes this product, and is the faster one."""
    if not (_ONEDNN and _is_plain(x) and _is_plain(W) and (bias is None or _is_plain(bias))):
        return False
    fit = x.ndim >= 1 and W.ndim == 2 and x.shape[-1] == W.shape[1] and (bias is None or bias.shape == W.shape[:1])
    return fit and x.numel() * len(W) >= _LARGE


def _is_plain(tensor: Tensor) -> bool:
    """In float32 on a CPU, and of no subclass that has products of its own."""
    return type(tensor) in (Tensor, Parameter) and tensor.dtype == torch.float32 and tensor.device.type == "cpu"
