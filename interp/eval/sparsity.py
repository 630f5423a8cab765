"""How many latents fire, and which never do.

L0          mean over tokens of the number of latents that fire
dead share  latents that fired on none of the tokens seen; it falls as tokens are added, so it stands beside their
            number
density     of a latent: the share of tokens that it fires on
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor


@dataclass(frozen=True)
class SparsitySums:
    """`fired[f]`: on how many of `tokens` tokens latent f fired."""

    tokens: int
    fired: Int64[Tensor, "latents"]

    @classmethod
    def of(cls, activations: Float[Tensor, "n latents"]) -> SparsitySums:
        """The counts of one batch; a latent fires where its activation is not zero."""
        return cls(len(activations), torch.count_nonzero(activations, dim=0).cpu())

    def merge(self, other: SparsitySums) -> SparsitySums:
        return SparsitySums(self.tokens + other.tokens, self.fired + other.fired)

    @property
    def l0(self) -> float | None:
        return int(self.fired.sum()) / self.tokens if self.tokens else None

    @property
    def dead(self) -> int:
        """Number of latents that never fired."""
        return int((self.fired == 0).sum())

    @property
    def dead_share(self) -> float:
        return self.dead / len(self.fired)

    def share_denser_than(self, density: float) -> float:
        """Share of the latents that fire on more than `density` of the tokens."""
        return int((self.fired > density * self.tokens).sum()) / len(self.fired)
