"""What the first data says: mean, scale and variance of each hook point.

Sums over the first step's tokens are added up in float64 over all micro-batches and workers, so the cuts do not matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import EngineError
from interp.training.session import Activations


@dataclass(frozen=True)
class HookStatistics:
    """Of one hook point. Training sees `scale * (activation - mean)`.

    Attributes:
        mean: of each dimension.
        scale: 1 / root mean square of a dimension about its mean, or 1 without normalisation.
        variance: total over the dimensions of what training sees.
    """

    mean: Float[Tensor, "d"]
    scale: float
    variance: float

    def standardise(self, activations: Float[Tensor, "tokens d"]) -> Float[Tensor, "tokens d"]:
        """What training sees of raw activations, in float32."""
        return (activations.to(self.mean.device, torch.float32) - self.mean) * self.scale


def first_data(
    micros: Sequence[Activations],
    widths: Mapping[str, int],
    *,
    normalize: bool,
    device: torch.device,
    all_reduce: Callable[[Tensor], None],
) -> dict[str, HookStatistics]:
    """Statistics of every hook point over the tokens of all workers; on every worker.

    Raises:
        EngineError: there are no tokens, or a hook point's activations are constant or not finite.
    """
    flat = torch.zeros(1 + sum(width + 1 for width in widths.values()), dtype=torch.float64, device=device)
    tokens, *parts = flat.split([1, *(size for width in widths.values() for size in (width, 1))])
    for acts in micros:
        tokens += len(next(iter(acts.values())))
        for hook, total, square in zip(widths, parts[::2], parts[1::2], strict=True):
            values = acts[hook].to(device, torch.float64)
            total += values.sum(0)
            square += values.square().sum()
    all_reduce(flat)
    if not tokens.item():
        raise EngineError("training was given no tokens in its first step")
    sums = zip(widths, parts[::2], parts[1::2], strict=True)
    return {
        hook: _statistics(hook, total / tokens, (square / tokens).item(), normalize) for hook, total, square in sums
    }


def _statistics(hook: str, mean: Tensor, square: float, normalize: bool) -> HookStatistics:
    variance = square - mean.square().sum().item()
    if not (math.isfinite(variance) and variance > 1e-12 * square):
        raise EngineError(
            f"a dictionary cannot be trained on the activations of {hook}",
            value=f"variance {variance}, mean square {square}",
            expected="finite values that vary",
            remedy="look at the model's activations there; float16 models overflow, bfloat16 ones do not",
        )
    scale = math.sqrt(len(mean) / variance) if normalize else 1.0
    return HookStatistics(mean.float(), scale, variance * scale**2)
