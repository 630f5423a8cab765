"""How many latents fire, and which never do.

L0          mean over tokens of the number of latents that fire
dead share  latents that fired on none of the tokens seen; it falls as tokens are added, so it stands beside their
            number
density     of a latent: the share of tokens that it fires on. Its histogram is of log10 density, over the latents
            that fire, in bins of a quarter from `EDGES[0]` on; what is rarer is in the first. It is made of merged
            counts, so it is that of all tokens, however they were divided.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

EDGES: tuple[float, ...] = tuple(quarter / 4 for quarter in range(-32, 1))
"""Of the bins of log10 density: 10^-8 to 1."""


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

    def log_densities(self) -> Float64[Tensor, "firing"]:
        """log10 of the share of tokens that a latent fires on, of those that fire."""
        return (self.fired[self.fired > 0].double() / max(self.tokens, 1)).log10()

    def histogram(self) -> Int64[Tensor, "bins"]:
        """Number of latents in each bin of `EDGES`; a bin has its lower edge, and the last one its upper edge too."""
        edges = torch.tensor(EDGES, dtype=torch.float64)
        bins = torch.bucketize(self.log_densities(), edges, right=True) - 1
        return torch.bincount(bins.clamp(0, len(EDGES) - 2), minlength=len(EDGES) - 1)

    def density_quantile(self, share: float) -> float | None:
        """log10 density that this share of the firing latents is below; None where none fires."""
        found = self.log_densities()
        # By rank, not `torch.quantile`, which refuses more than 16 million values.
        return float(found.sort().values[min(int(share * len(found)), len(found) - 1)]) if len(found) else None
