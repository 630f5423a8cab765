"""Learning rates and warm-ups, as functions of the step.

The peak is the field's 2e-4 / sqrt(latents / 2^14) (arXiv:2406.04093 found the exponent; sparsify and
dictionary_learning use the constant) where a run has 10^4 steps or more. A shorter one takes larger steps, in
proportion to sqrt(10^4 / steps), so that the way its weights can go, steps * lr, does not shrink as fast as the run:
found on the built-in model with runs of 100 to 310 steps, where the best rate was 10 to 5 times the field's, and twice
the best rate left 5 to 20 % of the latents dead.

Warm-up and decay are linear over the first 5 % and the last 20 % of the steps (Anthropic, circuits updates of April
2024); sparsity penalties warm up with the rate.

With `fit.k_warmup`, topk and batchtopk keep d_in latents a token at first and linearly fewer until k (Llama Scope,
arXiv:2410.20526, lets k fall so; sparsify from 10 d_in). It is off: over 20 % of 244 steps of 1,024 tokens, on the
residual stream of a small Llama, it raised FVU from 0.0171 to 0.0178 and what was silent on 65 k held-out tokens from
48 to 51 % of the latents.
"""

from __future__ import annotations

import math

LONG_RUN = 10_000


PEAKS = {"adam": 2e-4, "signum": 5e-3}
"""The field's peaks at 2^14 latents; signum's is sparsify's, whose schedule-free averaging ours replaces by a decay."""


def default_lr(n_latents: float, n_steps: int, optimizer: str = "adam") -> float:
    """The peak learning rate of a dictionary of this width in a run of this length."""
    stretch = max(1.0, math.sqrt(LONG_RUN / n_steps)) if optimizer == "adam" else 1.0
    return PEAKS[optimizer] / math.sqrt(n_latents / 2**14) * stretch


def warm_up(step: int, n_steps: int, share: float) -> float:
    """Rises linearly over the first `share` of the steps, to 1. The first step is not 0."""
    return min(1.0, (step + 1) / max(1.0, share * n_steps))


def decay(step: int, n_steps: int, share: float) -> float:
    """1, then falls linearly over the last `share` of the steps. The last step is not 0."""
    return min(1.0, (n_steps - step) / max(1.0, share * n_steps))


def k_progress(step: int, n_steps: int, share: float) -> float:
    """How far k has fallen from many to that of inference: 0 in the first step, 1 after `share` of the steps."""
    return min(1.0, step / (share * n_steps)) if share else 1.0
