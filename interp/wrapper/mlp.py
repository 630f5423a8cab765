"""An MLP made linear at what it read, by the RelP rules (relevance propagation written as gradients).

    plain    c = act(W_in x + b_in)                                       act(h) -> h * [act(h) / h]
    gated    c = act(g) * u,   g = W_gate x + b_gate,  u = W_up x + b_up   act(g) * u -> (act(g) [u] + [act(g)] u) / 2
    out      W_down c + b_down, through the post-norm at its denominator

What is in brackets is held at its value on the prompt. For SiLU, act(h) / h is its sigmoid; the half rule shares a
product evenly between its factors, so that the linear map gives exactly what the MLP gave:

    linear(x) + bias = MLP(x)

(RelP: Jafari et al. 2025, arXiv:2508.21258, after layer-wise relevance propagation: Bach et al. 2015,
doi:10.1371/journal.pone.0130140. The half rule for products: Arras et al. 2019, arXiv:1909.12114, and for gates Jafari
et al. 2024, arXiv:2406.07592.)

The factors in brackets are [pos, d_ff] for every layer, most of what a frozen prompt would hold: they are computed from
x, which is held anyway, whenever they are needed. Everything has the dtype of x: float32, as a state has it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from interp.models.families import MlpLayout
from interp.wrapper.norms import NormView


@dataclass(frozen=True)
class Projection:
    """An affine map: weight [d_out, d_in], and its bias if it has one."""

    weight: Float[Tensor, "d_out d_in"]
    bias: Float[Tensor, "d_out"] | None

    @classmethod
    def of(cls, module: Any, transposed: bool) -> Projection:
        """The map of a module; a Conv1D stores it [d_in, d_out]."""
        weight = module.weight.detach()
        bias = getattr(module, "bias", None)
        return cls(weight.T if transposed else weight, None if bias is None else bias.detach())

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


@dataclass(frozen=True)
class MlpView:
    """The parts of an MLP; `gate` is None in a plain one."""

    gate: Projection | None
    up: Projection
    down: Projection
    act: Callable[[Tensor], Tensor]

    @classmethod
    def of(cls, module: Any, layout: MlpLayout) -> MlpView:
        """The view of an MLP module, by its family's row."""

        def projection(path: str) -> Projection:
            return Projection.of(module.get_submodule(path), layout.transposed)

        return cls(
            gate=None if layout.gate is None else projection(layout.gate),
            up=projection(layout.up),
            down=projection(layout.down),
            act=module.get_submodule(layout.act),
        )

    def __call__(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """What the MLP computes, before a post-norm."""
        up = self.up(x)
        return self.down(self.act(up) if self.gate is None else self.act(self.gate(x)) * up)

    def freeze(self, x: Float[Tensor, "pos d_in"], post_norm: NormView | None) -> FrozenMlp:
        """The MLP as it was when it read x."""
        return FrozenMlp(self, x, post_norm, None if post_norm is None else post_norm.denominator(self(x)))

    def factors(self, x: Float[Tensor, "pos d_in"]) -> list[tuple[Projection, Float[Tensor, "pos d_ff"]]]:
        """What reads the MLP's input, and what each hidden unit of it is multiplied with."""
        up = self.up(x)
        if self.gate is None:
            return [(self.up, _slope(self.act, up))]
        gate = self.gate(x)
        slope = _slope(self.act, gate) / 2
        return [(self.gate, up * slope), (self.up, gate * slope)]


@dataclass(frozen=True)
class FrozenMlp:
    """A linear map for each position, and what is added to it.

    Attributes:
        x: what the MLP read where it is frozen.
        post_denominator: of the post-norm, if there is one.
    """

    view: MlpView
    x: Float[Tensor, "pos d_in"]
    post_norm: NormView | None
    post_denominator: Float[Tensor, "pos 1"] | None

    @property
    def d_hidden(self) -> int:
        """Number of hidden units."""
        return self.view.down.weight.shape[1]

    def at(self, where: slice | Int[Tensor, "some"]) -> FrozenMlp:
        """The same at some positions only."""
        denominator = None if self.post_denominator is None else self.post_denominator[where]
        return replace(self, x=self.x[where], post_denominator=denominator)

    def linear(self, x: Float[Tensor, "*batch pos d_in"]) -> Float[Tensor, "*batch pos d_out"]:
        """The linear part."""
        parts = [factor.to(x.dtype) * (x @ read.weight.T.to(x.dtype)) for read, factor in self.view.factors(self.x)]
        return self._written(sum(parts[1:], parts[0]))

    def transpose(self, gradient: Float[Tensor, "*batch pos d_out"]) -> Float[Tensor, "*batch pos d_in"]:
        """Pull a gradient on the output back to the input. It may be of the first positions alone."""
        n_pos = gradient.shape[-2]
        if self.post_norm is not None and self.post_denominator is not None:
            gradient = self.post_norm.transpose(gradient, self.post_denominator[:n_pos])
        hidden = gradient @ self.view.down.weight.to(gradient.dtype)
        pulled = [
            (hidden * factor.to(gradient.dtype)) @ read.weight.to(gradient.dtype)
            for read, factor in self.view.factors(self.x[:n_pos])
        ]
        return sum(pulled[1:], pulled[0])

    @property
    def bias(self) -> Float[Tensor, "pos d_out"] | None:
        """What the biases write; None if there are none."""
        down, post = self.view.down, self.post_norm
        reads = (self.view.up,) if self.view.gate is None else (self.view.gate, self.view.up)
        if all(part.bias is None for part in (*reads, down)) and (post is None or post.bias is None):
            return None
        factors = self.view.factors(self.x)
        hidden = sum((f * read.bias for read, f in factors if read.bias is not None), torch.zeros_like(factors[0][1]))
        written = self._written(hidden, bias=True)
        return written if post is None or post.bias is None else written + post.bias.to(written.dtype)

    def _written(self, hidden: Float[Tensor, "*batch pos d_ff"], bias: bool = False) -> Tensor:
        """What hidden units write, through the post-norm."""
        down = self.view.down
        out = down(hidden) if bias else F.linear(hidden, down.weight.to(hidden.dtype))
        if self.post_norm is None or self.post_denominator is None:
            return out
        return self.post_norm.linear(out, self.post_denominator)


def _slope(act: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
    """act(h) / h. At 0 every activation function here is 0, whatever the factor."""
    safe = torch.where(h == 0, torch.ones_like(h), h)
    return torch.where(h == 0, torch.zeros_like(h), act(h) / safe)
