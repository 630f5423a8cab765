"""What the training of a cross-layer transcoder minimises: the mean over its places of what a transcoder's would.

    loss = mean over places j of   |y_j - y^_j|^2 / V_j  +  warm-up * penalty_j  +  coefficient * |e_j - e^_j|^2 / E_j

so that it is a mean fraction of variance unexplained, and that of a single place is a transcoder's. The symbols are
those of `losses`, of each place. A penalty that contains decoder norms takes that of all that a latent writes, its rows
to every place as one vector (Ameisen et al. 2025): to write to two places costs less than two latents do.
AuxK: the dead latents of all places together predict the errors of the places that they write to, those of place i with
the d_out_i / 2 largest of their pre-activations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.dictionaries import products
from interp.dictionaries.activations import PenaltyInputs
from interp.dictionaries.codes import Codes
from interp.dictionaries.cross_layer import CrossLayerTranscoder
from interp.dictionaries.losses import largest


@dataclass(frozen=True)
class CrossLayerScales:
    """The constants of a step, the same on every worker: `LossScales` with one value for each place.

    `dead` are the latents of each place that AuxK revives, or None when it is off or none are dead.
    """

    target_variances: Sequence[float]
    error_variances: Sequence[float]
    penalty: float = 1.0
    aux: float = 0.0
    dead: Sequence[Int[Tensor, "n_dead"]] | None = None


@dataclass(frozen=True)
class CrossLayerLosses:
    """Sums over the tokens of a micro-batch; `total` has the gradient, `squared_errors` are of each place."""

    total: Float[Tensor, ""]
    squared_errors: Float[Tensor, "places"]
    penalty: Float[Tensor, ""]
    aux: Float[Tensor, ""]
    codes: Sequence[Codes]


def cross_layer_losses(
    clt: CrossLayerTranscoder,
    xs: Sequence[Float[Tensor, "batch d_in"]],
    ys: Sequence[Float[Tensor, "batch d_out"]],
    scales: CrossLayerScales,
) -> CrossLayerLosses:
    """The loss of a transcoder that reads `xs` and should give `ys`."""
    codes = clt.codes(xs)
    errors = [y - y_hat for y, y_hat in zip(ys, clt.decode_codes(codes), strict=True)]
    total = _mean_share(errors, scales.target_variances)
    penalty = aux = total.new_zeros(())
    if (sparsity := _penalty(clt, codes, ys, scales.target_variances)) is not None:
        penalty = sparsity.detach()
        total = total + scales.penalty * sparsity
    if scales.dead is not None and scales.aux > 0:
        left = [error.detach() for error in errors]
        revival = cross_layer_aux_k(clt, xs, left, scales.dead, scales.error_variances)
        aux = revival.detach()
        total = total + scales.aux * revival
    squared_errors = torch.stack([error.detach().square().sum() for error in errors])
    return CrossLayerLosses(total, squared_errors, penalty, aux, codes)


def cross_layer_aux_k(
    clt: CrossLayerTranscoder,
    xs: Sequence[Float[Tensor, "batch d_in"]],
    errors: Sequence[Float[Tensor, "batch d_out"]],
    dead: Sequence[Int[Tensor, "n_dead"]],
    error_variances: Sequence[float],
) -> Float[Tensor, ""]:
    """Squared error of predicting the errors of all places from dead latents, as a mean share of the errors'."""
    left = list(errors)
    for i, (x, latents) in enumerate(zip(xs, dead, strict=True)):
        if not len(latents):
            continue
        codes = largest(x, clt.encoder(i)[latents], clt.b_enc[i][latents], clt.config.places[i].d_out // 2)
        for j, decoder in enumerate(clt.decoders(i), start=i):
            left[j] = left[j] - codes.decode(decoder[latents])
    return _mean_share(left, error_variances)


def _penalty(
    clt: CrossLayerTranscoder, codes: Sequence[Codes], ys: Sequence[Tensor], variances: Sequence[float]
) -> Float[Tensor, ""] | None:
    found, gates = [], []
    for i, (code, variance) in enumerate(zip(codes, variances, strict=True)):
        inputs = PenaltyInputs(variance, partial(_decoder_norms, clt, i))
        found.append(clt.activation(i).penalty(code, inputs))
        gates.append(clt.activation(i).gate(code))
    penalties = [penalty / clt.n_places for penalty in found if penalty is not None]
    opened = [gate for gate in gates if gate is not None]
    if opened:  # every place has the same kind of activation
        frozen = [clt.b_dec(j).detach() for j in range(clt.n_places)]
        for i, gate in enumerate(opened):
            for j, decoder in enumerate(clt.decoders(i), start=i):
                frozen[j] = frozen[j] + products.combine(gate, decoder, frozen=True)
        penalties.append(_mean_share([y - y_hat for y, y_hat in zip(ys, frozen, strict=True)], variances))
    return torch.stack(penalties).sum() if penalties else None


def _decoder_norms(clt: CrossLayerTranscoder, i: int) -> Float[Tensor, "n_latents"]:
    """Norms of the concatenated rows, without the concatenation."""
    return torch.stack([decoder.norm(dim=-1) for decoder in clt.decoders(i)]).norm(dim=0)


def _mean_share(errors: Sequence[Tensor], variances: Sequence[float]) -> Float[Tensor, ""]:
    """Squared errors as shares of a variance, summed over tokens and averaged over places."""
    shares = [error.square().sum() / variance for error, variance in zip(errors, variances, strict=True)]
    return torch.stack(shares).mean()
