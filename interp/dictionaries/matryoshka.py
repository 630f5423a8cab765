"""Nested dictionaries (Bussmann et al. 2025, arXiv:2503.17547): every prefix of the latents reconstructs the target.

With prefixes of n_1 < ... < n_m latents and c_g = what the latents from n_(g-1) to n_g write,

    e_g = y - b_dec [- W_skip x] - (c_1 + ... + c_g)          loss = mean over g of |e_g|^2

The activations are chosen once, among all latents. An entry of them belongs to one group, so all prefixes together
cost the sparse products of one reconstruction, and a sum of m vectors of d_out for each token. The paper adds up the
prefixes' losses; the mean, which its authors' dictionary_learning takes, keeps the loss a fraction of variance, so
that neither the learning rate nor AuxK's weight depends on m. Inference is that of any dictionary.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from jaxtyping import Float
from torch import Tensor

from interp.dictionaries import products
from interp.dictionaries.codes import Codes
from interp.dictionaries.kernels import Pattern


def prefix_errors(
    codes: Codes, W_dec: Float[Tensor, "n_latents d_out"], target: Float[Tensor, "batch d_out"], sizes: Sequence[int]
) -> list[Float[Tensor, "batch d_out"]]:
    """What each prefix leaves of the target, from which biases and skip path are already taken; the last, all latents
    do."""
    errors, left = [], target
    for own, rows in zip(split(codes, sizes), products.split(W_dec, sizes), strict=True):
        left = left - own.decode(rows)
        errors.append(left)
    return errors


def split(codes: Codes, sizes: Sequence[int]) -> list[Codes]:
    """The activations of each group of neighbouring latents, which are counted from 0 within it."""
    pattern = codes.pattern
    if pattern is None:
        return [Codes(part) for part in codes.values.split(list(sizes), dim=1)]
    ends = torch.tensor(list(accumulate(sizes)), dtype=torch.int32, device=pattern.latents.device)
    group = torch.bucketize(pattern.latents, ends, right=True)
    order = group.argsort(stable=True)
    # How many entries each token has in each group: a token's entries stay together, in the order of the tokens.
    counts = torch.bincount(group * pattern.batch + pattern.tokens, minlength=len(sizes) * pattern.batch)
    counts = counts.view(len(sizes), pattern.batch)
    entries = counts.sum(1).tolist()
    values = codes.values.index_select(0, order).split(entries)
    latents = pattern.latents[order].split(entries)
    starts = [0, *accumulate(sizes)]
    return [Codes(values[g], Pattern(latents[g] - starts[g], _offsets(counts[g]), sizes[g])) for g in range(len(sizes))]


def _offsets(counts: Tensor) -> Tensor:
    offsets = torch.zeros(len(counts) + 1, dtype=torch.int32, device=counts.device)
    torch.cumsum(counts, 0, out=offsets[1:])
    return offsets
