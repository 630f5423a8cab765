"""The activations of one micro-batch in training: dense, or only the entries that are kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.dictionaries import kernels, products
from interp.dictionaries.kernel_choice import preferred
from interp.dictionaries.kernels import Pattern


@dataclass(frozen=True)
class Codes:
    """Activations with gradients.

    `values` is [batch, n_latents] without a pattern, and the pattern's entries with one. `pre` are the dense
    pre-activations, kept by the kinds whose penalty needs them.
    """

    values: Float[Tensor, "..."]
    pattern: Pattern | None = None
    pre: Float[Tensor, "batch n_latents"] | None = None

    @classmethod
    def of_dense(cls, activations: Float[Tensor, "batch n_latents"], d: int) -> Codes:
        """Of activations that are all there, as a pattern if so few are active that sparse products with decoders of
        width `d` are the faster ones."""
        batch, n_latents = activations.shape
        entries = activations.flatten()
        active = entries.nonzero().squeeze(1)
        share = len(active) / max(1, len(entries))
        if preferred(entries.device, share, d, entries.dtype) == "dense":
            return cls(activations)
        return cls(entries[active], Pattern.of_flat(active, batch, n_latents))

    @classmethod
    def of_largest(
        cls, x: Float[Tensor, "batch d_in"], W_enc: Float[Tensor, "n d_in"], bias: Float[Tensor, "n"], k: int
    ) -> Codes:
        """The k largest pre-activations of each token, through a ReLU."""
        values, indices = kernels.largest(x, W_enc, bias, k)
        pattern = Pattern.of_indices(indices, len(W_enc))
        return cls(kernels.encode(x, W_enc, bias, values.reshape(-1), pattern).relu(), pattern)

    def decode(self, W_dec: Float[Tensor, "n_latents d_out"]) -> Float[Tensor, "batch d_out"]:
        """The weighted sum of decoder rows, without the bias."""
        if self.pattern is None:
            return products.combine(self.values, W_dec)
        return kernels.decode(self.values, self.pattern, W_dec)

    def fired(self) -> Int[Tensor, "n_latents"]:
        """In how many tokens of the batch each latent is active."""
        active = self.values.detach() > 0
        if self.pattern is None:
            return active.sum(0)
        counts = torch.zeros(self.pattern.n_latents, dtype=torch.int32, device=active.device)
        return counts.index_add_(0, self.pattern.latents, active.int())
