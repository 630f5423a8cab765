"""From pre-activations to activations: one class for each kind, one row of `ACTIVATIONS` for each class.

With z = W_enc x + b (b holds what an SAE's pre-bias adds), the activations are

    topk        relu(z) at the k largest z of each token (arXiv:2406.04093)
    batchtopk   training: relu(z) at the k * n largest of the n tokens of a micro-batch; inference: z where z is above
                a threshold, the running mean of the smallest activation that training kept (arXiv:2412.06410)
    relu        relu(z), with L1 times decoder norms (Anthropic, circuits updates of April 2024)
    jumprelu    z where z > threshold; the threshold learns by straight-through estimates (arXiv:2407.14435)
    gated       z decides (its bias is the gate's), relu(exp(r_mag) (z - b_enc) + b_mag) is the value (arXiv:2404.16014)

Every kind is affine in x where a latent is active, which is what makes attribution exact: `linear` gives the map.
A penalty is summed over tokens and expressed as a share of the target's variance, as the reconstruction loss is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.dictionaries import kernels, products
from interp.dictionaries.codes import Codes
from interp.dictionaries.kernels import Pattern
from interp.spec.base import SpecModel
from interp.spec.dictionary import ActivationSpec, BatchTopK, Gated, JumpReLU, ReLU, TopK


@dataclass(frozen=True)
class PenaltyInputs:
    """What a sparsity penalty may look at besides the activations."""

    target_variance: float
    """Total variance of the target of one token."""
    decoder_norms: Callable[[], Float[Tensor, "n_latents"]]
    """The norm of what each latent writes, wherever it writes."""


class Activation(nn.Module, ABC):
    """One way from pre-activations to activations.

    `unit_decoder` says whether the kind was published with decoder rows held at unit norm: without, a penalty that does
    not contain the norms is evaded by small activations and large rows.
    """

    unit_decoder: ClassVar[bool] = False

    def __init__(self, spec: Any, n_latents: int):
        super().__init__()
        self.spec, self.n_latents = spec, n_latents

    @abstractmethod
    def forward(
        self, pre: Float[Tensor, "*batch n_latents"], b_enc: Float[Tensor, "n_latents"]
    ) -> Float[Tensor, "*batch n_latents"]:
        """Activations at inference, dense."""

    def codes(self, x: Float[Tensor, "batch d_in"], W_enc: Tensor, bias: Tensor, b_enc: Tensor) -> Codes:
        """Activations in training; `bias` is b_enc with the pre-bias folded in."""
        pre = products.linear(x, W_enc, bias)
        return Codes(self(pre, b_enc), pre=pre)

    def linear(self, latents: Int[Tensor, "n"], b_enc: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """(scale, shift) such that an active latent's activation is scale * z + shift."""
        return 1.0, 0.0

    def linear_encoder(
        self, latents: Int[Tensor, "n"], W_enc: Float[Tensor, "n_latents d_in"], bias: Tensor, b_enc: Tensor
    ) -> tuple[Float[Tensor, "n d_in"], Float[Tensor, "n"]]:
        """(W, b) such that an active latent's activation is W x + b; `bias` is b_enc with the pre-bias folded in."""
        scale, shift = self.linear(latents, b_enc)
        rows = scale[:, None] if isinstance(scale, Tensor) else scale
        return rows * W_enc[latents], scale * bias[latents] + shift

    def penalty(self, codes: Codes, inputs: PenaltyInputs) -> Tensor | None:
        """The sparsity penalty, its coefficient included."""
        return None

    def gate(self, codes: Codes) -> Float[Tensor, "batch n_latents"] | None:
        """Activations that should reconstruct the target as well, through decoders that get no gradient from it."""
        return None

    @torch.no_grad()
    def rescale_(self, factor: float) -> None:
        """Adapt to pre-activations that are multiplied by `factor`, so that activations are too."""

    @torch.no_grad()
    def shift_(self, amount: Float[Tensor, "n_latents"]) -> None:
        """Adapt to `amount` having moved from W_enc x into b_enc, where z is their sum."""

    def warm_up_(self, progress: float, start: int) -> None:
        """Training is so far, from 0 to 1, on the way from `start` latents a token to as many as inference keeps."""

    def observe(self, codes: Codes) -> Float[Tensor, "2"] | None:
        """A (sum, count) of this micro-batch that `learn` needs; they are added up over micro-batches and workers."""
        return None

    @torch.no_grad()
    def learn(self, total: Float[Tensor, "2"], step: int) -> None:
        """Take in what was observed in step `step`."""

    @torch.no_grad()
    def constrain_(self) -> None:
        """Project the parameters onto what is allowed, after an optimiser step."""


class _KeepsK(Activation):
    """Keeps k latents a token. `k` is training's, which a warm-up lets fall to the spec's; inference has the spec's."""

    spec: TopK | BatchTopK

    def __init__(self, spec: TopK | BatchTopK, n_latents: int):
        super().__init__(spec, n_latents)
        self.k = spec.k

    def warm_up_(self, progress: float, start: int) -> None:
        start = max(self.spec.k, min(start, self.n_latents))
        self.k = round(start + progress * (self.spec.k - start))


class TopKActivation(_KeepsK):
    """The k largest of each token."""

    spec: TopK

    def select(
        self, pre: Float[Tensor, "*batch n_latents"]
    ) -> tuple[Float[Tensor, "*batch k"], Int[Tensor, "*batch k"]]:
        """(values, indices) of the k largest pre-activations, unsorted."""
        return kernels.top_k(pre, self.spec.k)

    def forward(self, pre: Tensor, b_enc: Tensor) -> Tensor:
        values, indices = self.select(pre)
        return torch.zeros_like(pre).scatter(-1, indices, values.relu())

    def codes(self, x: Tensor, W_enc: Tensor, bias: Tensor, b_enc: Tensor) -> Codes:
        return Codes.of_largest(x, W_enc, bias, self.k)


class BatchTopKActivation(_KeepsK):
    """The k * n largest of n tokens; at inference, what is above the learned threshold.

    The threshold is a mean over steps whose window grows with the run: step t weighs 10 / (t + 10), and at least 1 %.
    Early steps, when activations are still small, are so forgotten in short runs as in long ones.
    """

    spec: BatchTopK
    threshold: Tensor

    def __init__(self, spec: BatchTopK, n_latents: int):
        super().__init__(spec, n_latents)
        self.register_buffer("threshold", torch.zeros(()))

    def forward(self, pre: Tensor, b_enc: Tensor) -> Tensor:
        return pre.relu() * (pre > self.threshold)

    def codes(self, x: Tensor, W_enc: Tensor, bias: Tensor, b_enc: Tensor) -> Codes:
        with torch.no_grad():
            pre = products.affine(x, W_enc, bias).flatten()
            flat = kernels.top_k(pre, self.k * len(x))[1].sort().values
            values = pre.index_select(0, flat).to(x.dtype)
        pattern = Pattern.of_flat(flat, len(x), self.n_latents)
        return Codes(kernels.encode(x, W_enc, bias, values, pattern).relu(), pattern)

    @torch.no_grad()
    def rescale_(self, factor: float) -> None:
        self.threshold.mul_(factor)

    def observe(self, codes: Codes) -> Tensor | None:
        kept = codes.values.detach()
        kept = kept[kept > 0]
        return torch.stack([kept.min(), kept.new_ones(())]) if len(kept) else None

    @torch.no_grad()
    def learn(self, total: Tensor, step: int) -> None:
        if total[1] > 0:
            self.threshold.lerp_((total[0] / total[1]).to(self.threshold.dtype), max(10 / (step + 10), 0.01))


class ReLUActivation(Activation):
    """relu(z); l1 weighs activations times decoder norms against the squared error, in units of the activations."""

    spec: ReLU

    def forward(self, pre: Tensor, b_enc: Tensor) -> Tensor:
        return pre.relu()

    def penalty(self, codes: Codes, inputs: PenaltyInputs) -> Tensor:
        return self.spec.l1 / inputs.target_variance * (codes.values @ inputs.decoder_norms()).sum()


class JumpReLUActivation(Activation):
    """z where z exceeds a learned threshold; l0 is the share of the target's variance that one active latent costs."""

    spec: JumpReLU
    unit_decoder = True

    def __init__(self, spec: JumpReLU, n_latents: int):
        super().__init__(spec, n_latents)
        self.threshold = nn.Parameter(torch.full((n_latents,), spec.threshold))
        self.bandwidth = spec.bandwidth

    def forward(self, pre: Tensor, b_enc: Tensor) -> Tensor:
        return _JumpReLU.apply(pre, self.threshold, self.bandwidth)

    def penalty(self, codes: Codes, inputs: PenaltyInputs) -> Tensor:
        return self.spec.l0 * _Step.apply(codes.pre, self.threshold, self.bandwidth).sum()

    @torch.no_grad()
    def rescale_(self, factor: float) -> None:
        self.threshold.mul_(factor)
        self.bandwidth *= factor

    @torch.no_grad()
    def constrain_(self) -> None:
        self.threshold.clamp_(min=0)


class GatedActivation(Activation):
    """A gate and a magnitude with tied directions. `b_enc` is the gate's bias."""

    spec: Gated
    unit_decoder = True

    def __init__(self, spec: Gated, n_latents: int):
        super().__init__(spec, n_latents)
        self.r_mag = nn.Parameter(torch.zeros(n_latents))
        self.b_mag = nn.Parameter(torch.zeros(n_latents))

    def forward(self, pre: Tensor, b_enc: Tensor) -> Tensor:
        magnitude = (self.r_mag.exp() * (pre - b_enc) + self.b_mag).relu()
        return magnitude * (pre > 0)

    def linear(self, latents: Tensor, b_enc: Tensor) -> tuple[Tensor, Tensor]:
        scale = self.r_mag[latents].exp()
        return scale, self.b_mag[latents] - scale * b_enc[latents]

    def penalty(self, codes: Codes, inputs: PenaltyInputs) -> Tensor:
        return self.spec.l1 / inputs.target_variance * (self.gate(codes) @ inputs.decoder_norms()).sum()

    def gate(self, codes: Codes) -> Tensor:
        assert codes.pre is not None
        return codes.pre.relu()

    @torch.no_grad()
    def rescale_(self, factor: float) -> None:
        self.b_mag.mul_(factor)

    @torch.no_grad()
    def shift_(self, amount: Tensor) -> None:
        self.b_mag.add_(self.r_mag.exp() * amount)


class _JumpReLU(torch.autograd.Function):
    """z H(z - t); d/dt = -(t / e) K((z - t) / e) with K the unit rectangle: equation 11 of arXiv:2407.14435."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return pre * (pre > threshold)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        pre, threshold = ctx.saved_tensors
        near = ((pre - threshold).abs() < ctx.bandwidth / 2) * grad
        d_threshold = -threshold / ctx.bandwidth * near.reshape(-1, len(threshold)).sum(0)
        return grad * (pre > threshold), d_threshold, None


class _Step(torch.autograd.Function):
    """H(z - t); d/dt = -(1 / e) K((z - t) / e), nothing to z: equation 12 of arXiv:2407.14435."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return (pre > threshold).to(pre.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        pre, threshold = ctx.saved_tensors
        near = ((pre - threshold).abs() < ctx.bandwidth / 2) * grad
        return None, -1 / ctx.bandwidth * near.reshape(-1, len(threshold)).sum(0), None


ACTIVATIONS: Mapping[type[SpecModel], type[Activation]] = {
    TopK: TopKActivation,
    BatchTopK: BatchTopKActivation,
    ReLU: ReLUActivation,
    JumpReLU: JumpReLUActivation,
    Gated: GatedActivation,
}


def build_activation(spec: ActivationSpec, n_latents: int) -> Activation:
    """The module of a study's `activation`."""
    return ACTIVATIONS[type(spec)](spec, n_latents)
