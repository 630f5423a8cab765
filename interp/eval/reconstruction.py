"""How much of an activation its reconstruction keeps.

    FVU       sum ||x - x_hat||^2 / sum ||x - mean||^2, over all tokens, with the mean of ALL tokens: predicting that
              mean gives exactly 1
    cosine    mean over tokens of cos(x, x_hat)
    L2 ratio  mean over tokens of ||x_hat|| / ||x||

The sums are kept in float64 and about their own mean, and merged by the pairwise formula of Chan, Golub and LeVeque
(1979), so that shards give what one pass over all data gives, also when the mean is large against the variance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from interp.dictionaries import Dictionary


AT_ONCE = 1 << 12
"""Tokens whose activations are in float64 at once."""


@dataclass(frozen=True)
class ReconstructionSums:
    """Sums over tokens; `scatter` is the sum of ||x - mean||^2 about these tokens' own mean."""

    tokens: int
    mean: Float[Tensor, "d"]
    scatter: float
    squared_error: float
    nonzero: int
    cosine: float
    ratio: float

    @classmethod
    def of(cls, x: Float[Tensor, "n d"], x_hat: Float[Tensor, "n d"]) -> ReconstructionSums:
        """The sums of one batch: `x` as the model has it, `x_hat` as the dictionary gives it back."""
        first, *others = (cls._of(*some) for some in zip(x.split(AT_ONCE), x_hat.split(AT_ONCE), strict=True))
        for sums in others:
            first = first.merge(sums)
        return first

    @classmethod
    def _of(cls, x: Float[Tensor, "n d"], x_hat: Float[Tensor, "n d"]) -> ReconstructionSums:
        x, x_hat = x.double(), x_hat.double()
        mean = x.mean(0) if len(x) else x.new_zeros(x.shape[1])
        norm, norm_hat = x.norm(dim=1), x_hat.norm(dim=1)
        seen = norm > 0  # cosine and ratio of a zero activation are not defined
        products = (x * x_hat).sum(1)[seen]
        # A reconstruction of zero has no direction: its cosine counts as 0.
        cosine = products / (norm * norm_hat)[seen].clamp_min(torch.finfo(torch.float64).tiny)
        return cls(
            tokens=len(x),
            mean=mean.cpu(),
            scatter=float((x - mean).square().sum()),
            squared_error=float((x - x_hat).square().sum()),
            nonzero=int(seen.sum()),
            cosine=float(cosine.sum()),
            ratio=float((norm_hat[seen] / norm[seen]).sum()),
        )

    def merge(self, other: ReconstructionSums) -> ReconstructionSums:
        """The sums over both sets of tokens."""
        tokens = self.tokens + other.tokens
        share = other.tokens / tokens if tokens else 0.0
        apart = other.mean - self.mean
        return ReconstructionSums(
            tokens=tokens,
            mean=self.mean + share * apart,
            scatter=self.scatter + other.scatter + float(apart.square().sum()) * self.tokens * share,
            squared_error=self.squared_error + other.squared_error,
            nonzero=self.nonzero + other.nonzero,
            cosine=self.cosine + other.cosine,
            ratio=self.ratio + other.ratio,
        )

    @property
    def fvu(self) -> float | None:
        """None when the activations do not vary."""
        return self.squared_error / self.scatter if self.scatter > 0 else None

    @property
    def mean_cosine(self) -> float | None:
        return self.cosine / self.nonzero if self.nonzero else None

    @property
    def mean_ratio(self) -> float | None:
        return self.ratio / self.nonzero if self.nonzero else None


def tokens_at_once(n_latents: int) -> int:
    """How many tokens to encode at once: their dense activations take 128 MB in float32."""
    return max(1, (1 << 25) // n_latents)


class RunningReconstruction:
    """Reconstructions at the places of a dictionary in execution order, a bounded number of tokens at a time.

    What a place adds to later ones is kept until they are asked for; the first place begins anew.
    """

    def __init__(self, dictionary: Dictionary):
        self.dictionary = dictionary
        self._added: dict[int, Tensor] = {}

    def __call__(
        self, place: int, x: Float[Tensor, "*batch d_in"], look: Callable[[slice, Tensor], None] | None = None
    ) -> Float[Tensor, "*batch d_out"]:
        """The reconstruction at a place from its input, and from those that the earlier places were called with.

        Args:
            look: is shown which tokens are encoded, and their activations.
        """
        if place == 0:
            self._added.clear()
        tokens, parts = x.reshape(-1, x.shape[-1]).to(self.dictionary.dtype), []
        step = tokens_at_once(self.dictionary.places[place].n_latents)
        for start in range(0, len(tokens), step):
            some = slice(start, start + step)
            activations = self.dictionary.encode_at(place, tokens[some])
            if look is not None:
                look(some, activations)
            parts.append(self.dictionary.decode_from(place, activations, tokens[some]))
        for at, pieces in enumerate(zip(*parts, strict=True), start=place):
            whole = torch.cat(pieces)
            self._added[at] = self._added[at].to(self.dictionary.sum_dtype) + whole if at in self._added else whole
        return self._added.pop(place).to(self.dictionary.dtype).reshape(*x.shape[:-1], -1)
