"""Sparse autoencoders: reconstruct an activation from a few of many directions."""

from __future__ import annotations

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from interp.dictionaries.base import SparseDictionary
from interp.dictionaries.config import Kind


class SparseAutoencoder(SparseDictionary, registered=True):
    """y = x = W_dec^T a(W_enc (x - b_dec) + b_enc) + b_dec."""

    kinds: ClassVar[tuple[Kind, ...]] = ("sae",)
    has_pre_bias: ClassVar[bool] = True

    def encoder_bias(self) -> Float[Tensor, "n_latents"]:
        """b_enc - W_enc b_dec. As one bias, the pre-bias costs its gradient no product with the batch."""
        return self.b_enc - self.W_enc @ self.b_dec
