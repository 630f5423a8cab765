"""A normalisation whose denominator is frozen: then it is a linear map, and this is that map and its transpose.

    rms     y = w * x / d              d = sqrt(mean(x^2) + eps)
    layer   y = w * (x - mean(x)) / d + b   d = sqrt(var(x) + eps)

With `d` held at its value on the prompt, y is linear in x up to the bias b. Denominators are computed in float32 or
better, whatever the dtype of x, as the models do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.models.families import Norm, NormKind


@dataclass(frozen=True)
class NormView:
    """One norm of a model.

    Attributes:
        kind: the formula.
        weight: what the normalised input is multiplied with; the 1 of `rms_offset` is already in it.
        bias: what is added at the end, where there is anything.
        eps: the epsilon under the root.
    """

    kind: NormKind
    weight: Float[Tensor, "d_model"]
    bias: Float[Tensor, "d_model"] | None
    eps: float

    @classmethod
    def of(cls, module: Any, norm: Norm) -> NormView:
        """The view of a norm module, by its family's row."""
        weight = module.weight.detach()
        if norm.kind == "rms_offset":
            weight = weight.float() + 1.0 if weight.dtype in (torch.bfloat16, torch.float16) else weight + 1.0
        bias = getattr(module, "bias", None)
        return cls(norm.kind, weight, None if bias is None else bias.detach(), float(getattr(module, norm.eps)))

    def denominator(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch 1"]:
        """What the norm divides by when it reads x."""
        x = x if x.dtype == torch.float64 else x.float()
        if self.kind == "layer":
            x = x - x.mean(dim=-1, keepdim=True)
        return (x.pow(2).mean(dim=-1, keepdim=True) + self.eps).sqrt()

    def linear(
        self, x: Float[Tensor, "*batch d_model"], denominator: Float[Tensor, "*batch 1"]
    ) -> Float[Tensor, "*batch d_model"]:
        """The frozen linear part: without the bias. Any leading dimensions that broadcast."""
        if self.kind == "layer":
            x = x - x.mean(dim=-1, keepdim=True)
        return (x / denominator * self.weight).to(x.dtype)

    def apply(
        self, x: Float[Tensor, "*batch d_model"], denominator: Float[Tensor, "*batch 1"] | None = None
    ) -> Float[Tensor, "*batch d_model"]:
        """The norm itself, bias included; with a denominator given, the norm frozen there."""
        y = self.linear(x, self.denominator(x) if denominator is None else denominator)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def transpose(
        self, gradient: Float[Tensor, "*batch d_model"], denominator: Float[Tensor, "*batch 1"]
    ) -> Float[Tensor, "*batch d_model"]:
        """Pull a gradient with respect to the output back to the input: the transpose of `linear`."""
        pulled = (gradient * self.weight / denominator).to(gradient.dtype)
        return pulled - pulled.mean(dim=-1, keepdim=True) if self.kind == "layer" else pulled
