"""Learning rates and warm-ups, as functions of the step.

The peak is the field's 2e-4 / sqrt(latents / 2^14) (arXiv:2406.04093 found the exponent; sparsify and
dictionary_learning use the constant) where a run has 10^4 steps or more. A shorter one takes larger steps, in
proportion to sqrt(10^4 / steps), so that the way its weights can go, steps * lr, does not shrink as fast as the run:
found on the built-in model with runs of 100 to 310 steps, where the best rate was 10 to 5 times the field's, and twice
the best rate left 5 to 20 % of the latents dead.

Warm-up and decay are linear over the first 5 % and the last 20 % of the steps (Anthropic, circuits updates of April
2024); sparsity penalties warm up with the rate.
"""

from __future__ import annotations

import math

LONG_RUN = 10_000


def default_lr(n_latents: float, n_steps: int) -> float:
    """The peak learning rate of a dictionary of this width in a run of this length."""
    return 2e-4 / math.sqrt(n_latents / 2**14) * max(1.0, math.sqrt(LONG_RUN / n_steps))


def warm_up(step: int, n_steps: int, share: float) -> float:
    """Rises linearly over the first `share` of the steps, to 1. The first step is not 0."""
    return min(1.0, (step + 1) / max(1.0, share * n_steps))


def decay(step: int, n_steps: int, share: float) -> float:
    """1, then falls linearly over the last `share` of the steps. The last step is not 0."""
    return min(1.0, (n_steps - step) / max(1.0, share * n_steps))
