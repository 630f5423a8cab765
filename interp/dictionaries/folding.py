"""Fold the standardisation of training into the weights, exactly.

Training sees s_in (x - m_in) and s_out (y - m_out). With c = 1 / s_out every pre-activation is multiplied by c, so
activations come out in the units of y and decoder rows keep their norm:

    W_enc  <- c s_in W_enc                             b_enc <- c b_enc  [- W_enc m_in, when there is no pre-bias]
    W_dec  <- W_dec                                    thresholds and b_mag <- c (...)
    W_skip <- c s_in W_skip                            b_dec <- c b_dec + m_out  [- W_skip m_in]

Every kind of activation commutes with a positive scale: which latents are active does not change. The activations of
place i of a cross-layer transcoder come out in the units of its own y_i, c_i = 1 / s_out_i, so what they write
elsewhere is rescaled: W_dec[i][j] <- s_out_i / s_out_j W_dec[i][j].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from interp.dictionaries.base import SparseDictionary
from interp.dictionaries.config import Normalization
from interp.dictionaries.cross_layer import CrossLayerTranscoder


@dataclass(frozen=True)
class Standardisation:
    """x -> scale * (x - mean)."""

    mean: Float[Tensor, "d"]
    scale: float


D = TypeVar("D", SparseDictionary, CrossLayerTranscoder)


@torch.no_grad()
def fold(dictionary: SparseDictionary, source: Standardisation, target: Standardisation) -> SparseDictionary:
    """The dictionary on raw activations that does what `dictionary` does on standardised ones, on the CPU.

    Args:
        source: how the inputs were standardised.
        target: how the targets were; of an SAE it is the same.
    """
    normalization = Normalization(scale_in=source.scale, scale_out=target.scale)
    folded = _copy(dictionary, dictionary.config.model_copy(update={"normalization": normalization}))
    c = 1 / target.scale
    folded.W_enc.mul_(c * source.scale)
    folded.b_enc.mul_(c)
    folded.activation.rescale_(c)
    folded.b_dec.mul_(c).add_(target.mean.to(folded.b_dec))
    if not folded.has_pre_bias:
        shift = folded.W_enc @ source.mean.to(folded.W_enc)
        folded.b_enc.sub_(shift)
        folded.activation.shift_(-shift)
    if folded.W_skip is not None:
        folded.W_skip.mul_(c * source.scale)
        folded.b_dec.sub_(folded.W_skip @ source.mean.to(folded.W_skip))
    return folded


@torch.no_grad()
def fold_cross_layer(
    clt: CrossLayerTranscoder, sources: Sequence[Standardisation], targets: Sequence[Standardisation]
) -> CrossLayerTranscoder:
    """The same for a cross-layer transcoder; how the inputs and targets of each place were standardised."""
    pairs = list(zip(sources, targets, strict=True))
    scales = tuple(Normalization(scale_in=source.scale, scale_out=target.scale) for source, target in pairs)
    folded = _copy(clt, clt.config.model_copy(update={"normalization": scales}))
    for i, (source, target) in enumerate(pairs):
        c, W_enc, b_enc = 1 / target.scale, folded.encoder(i), folded.b_enc[i]
        W_enc.mul_(c * source.scale)
        shift = W_enc @ source.mean.to(W_enc)
        b_enc.mul_(c).sub_(shift)
        folded.activation(i).rescale_(c)
        folded.activation(i).shift_(-shift)
        for j in range(i + 1, clt.n_places):
            folded.decoder(i, j).mul_(target.scale / targets[j].scale)
        folded.b_dec(i).mul_(c).add_(target.mean.to(W_enc))
    return folded


def _copy(dictionary: D, config: Any) -> D:
    """The same weights on the CPU: where training is, the optimiser's state leaves no room for a second dictionary."""
    with torch.device("meta"):
        copy = type(dictionary)(config)
    weights = {name: tensor.detach().to("cpu", copy=True) for name, tensor in dictionary.state_dict().items()}
    copy.load_state_dict(weights, assign=True)
    return copy
