"""First weights. What standardises the data (`interp.training.statistics`) makes biases of 0 the right ones.

    encoder      random directions of unit norm
    decoder      SAE: the encoder transposed, times 0.1 (Anthropic, circuits updates of April 2024), or at unit norm
                 where training holds it there; transcoder: 0 (arXiv:2501.18823), as nothing is known of its directions
    biases, skip 0

A large first decoder is noise that training must undo, and latents die of it. On activations of a SplitLlama of the
built-in model's shape, in runs of 0.4 to 0.6 M tokens: a topk SAE that begins at 0.1 ends with an FVU of 0.174 and no
dead latents, one at unit norm with 0.182 and 2 %; a transcoder that begins at 0 ends with 0.13, one at unit norm with
0.21 and five times as many dead latents.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

FREE_DECODER_NORM = 0.1
"""Of the decoder rows of a new SAE, where training does not hold them at unit norm."""


def unit_rows(n: int, d: int, generator: torch.Generator) -> Float[Tensor, "n d"]:
    """Random directions."""
    rows = torch.randn(n, d, generator=generator, dtype=torch.float32)
    return rows / rows.norm(dim=-1, keepdim=True)
