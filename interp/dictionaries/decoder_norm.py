"""Decoder rows of unit norm.

Without the constraint a penalty on activations is evaded by small activations and large rows, and AuxK's and Adam's
scales drift. A gradient's share along a row would only change the norm, so it is removed before Adam sees it
(Bricken et al. 2023, "Towards Monosemanticity").
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


@torch.no_grad()
def project_out_(gradient: Float[Tensor, "n_latents d"], rows: Float[Tensor, "n_latents d"]) -> None:
    """Remove from each row of the gradient its part along the (unit) row of the decoder."""
    gradient.addcmul_(rows, (gradient * rows).sum(-1, keepdim=True), value=-1)


@torch.no_grad()
def normalise_(rows: Float[Tensor, "n_latents d"]) -> None:
    """Scale each row to unit norm."""
    rows.div_(rows.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny))
