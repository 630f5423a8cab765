"""What training minimises, as sums over the tokens of a micro-batch.

    loss = |y - y^|^2 / V  +  warm-up * penalty  +  coefficient * |e - e^|^2 / E

V is the total variance of the target of one token, measured once on the first data, so a sum over tokens does not
depend on how they were split into micro-batches, and the first term is a fraction of variance unexplained; that of a
nested dictionary is the mean of its prefixes' (`matryoshka`). The penalty belongs to the activation. The last term is
AuxK (arXiv:2406.04093, A.2): dead latents, with the k_aux = d_out / 2 largest of their own pre-activations in each
token, predict the error e = y - y^ that the live ones leave. E is the squared error of one token in the step before,
which keeps that term near 1 while the error falls, and is the same in every micro-batch. e itself gets no gradient from
it. A dead latent whose pre-activation is never positive gets none either: AuxK brings back latents that are too weak to
be chosen.

AuxK is off by default. Many latents at once predict far more than the small error that is left, so AuxK first lowers
their biases, and Adam makes full steps of it whatever the coefficient: in short runs at a high rate its loss stays near
1, what predicting nothing gives, and the biases of silent latents fall twice as far as without it. Of a topk SAE of the
residual stream of a small Llama (4,096 latents, k 32, 256 steps of 4,096 mixed tokens) it left 0.4 % of the latents
silent and an FVU of 0.0193, against 0.2 % and 0.0182 without it, for 40 % more time. What keeps latents alive is that
those without a gradient stay where they are (`training.optimizers`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.dictionaries import products
from interp.dictionaries.activations import PenaltyInputs
from interp.dictionaries.base import SparseDictionary
from interp.dictionaries.codes import Codes
from interp.dictionaries.matryoshka import prefix_errors


@dataclass(frozen=True)
class LossScales:
    """The constants of a step, the same on every worker.

    `dead` are the latents that AuxK revives, or None when it is off or none are dead.
    """

    target_variance: float
    error_variance: float = 1.0
    penalty: float = 1.0
    aux: float = 0.0
    dead: Int[Tensor, "n_dead"] | None = None


@dataclass(frozen=True)
class Losses:
    """Sums over the tokens of a micro-batch; `total` has the gradient, `squared_error` is of all latents together."""

    total: Float[Tensor, ""]
    squared_error: Float[Tensor, ""]
    penalty: Float[Tensor, ""]
    aux: Float[Tensor, ""]
    codes: Codes


def losses(
    dictionary: SparseDictionary,
    x: Float[Tensor, "batch d_in"],
    y: Float[Tensor, "batch d_out"],
    scales: LossScales,
) -> Losses:
    """The loss of a dictionary that reads x and should give y."""
    codes = dictionary.codes(x)
    errors = _errors(dictionary, codes, x, y)
    squared_errors = [error.square().sum() for error in errors]
    error, squared_error = errors[-1], squared_errors[-1]
    total = torch.stack(squared_errors).mean() / scales.target_variance
    penalty = aux = total.new_zeros(())
    if (sparsity := _penalty(dictionary, codes, x, y, scales)) is not None:
        penalty = sparsity.detach()
        total = total + scales.penalty * sparsity
    if scales.dead is not None and scales.aux > 0:
        revival = aux_k(dictionary, x, error.detach(), scales.dead) / scales.error_variance
        aux = revival.detach()
        total = total + scales.aux * revival
    return Losses(total, squared_error.detach(), penalty, aux, codes)


def aux_k(
    dictionary: SparseDictionary,
    x: Float[Tensor, "batch d_in"],
    error: Float[Tensor, "batch d_out"],
    dead: Int[Tensor, "n_dead"],
) -> Float[Tensor, ""]:
    """Squared error of predicting `error` from the dead latents' own top k_aux, summed over tokens."""
    bias, k_aux = dictionary.encoder_bias()[dead], dictionary.config.d_out // 2
    codes = largest(x, dictionary.W_enc[dead], bias, k_aux)
    return (error - codes.decode(dictionary.W_dec[dead])).square().sum()


def largest(x: Float[Tensor, "batch d_in"], W_enc: Float[Tensor, "n d_in"], bias: Float[Tensor, "n"], k: int) -> Codes:
    """The k largest pre-activations of each token, through a ReLU; all of them where there are no more."""
    if k >= len(W_enc):
        return Codes(products.linear(x, W_enc, bias).relu())
    return Codes.of_largest(x, W_enc, bias, k)


def _errors(dictionary: SparseDictionary, codes: Codes, x: Tensor, y: Tensor) -> list[Float[Tensor, "batch d_out"]]:
    """What the reconstruction leaves of the target, after what each prefix of a nested dictionary leaves."""
    if not (sizes := dictionary.config.group_sizes):
        return [y - dictionary.add_affine(codes.decode(dictionary.W_dec), x)]
    affine = dictionary.add_affine(torch.zeros_like(y), x)
    return prefix_errors(codes, dictionary.W_dec, y - affine, sizes)


def _penalty(
    dictionary: SparseDictionary, codes: Codes, x: Tensor, y: Tensor, scales: LossScales
) -> Float[Tensor, ""] | None:
    inputs = PenaltyInputs(scales.target_variance, lambda: dictionary.W_dec.norm(dim=-1))
    penalty = dictionary.activation.penalty(codes, inputs)
    if (gate := dictionary.activation.gate(codes)) is None:
        return penalty
    skip = 0 if dictionary.W_skip is None else x @ dictionary.W_skip.detach().T
    frozen = products.combine(gate, dictionary.W_dec, frozen=True) + dictionary.b_dec.detach() + skip
    auxiliary = (y - frozen).square().sum() / scales.target_variance
    return auxiliary if penalty is None else penalty + auxiliary
