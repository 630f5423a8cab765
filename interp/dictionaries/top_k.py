"""The k largest of each row, exactly, without looking at most of the row more than once.

    maxima     of every group of n / groups entries, and of a few coarse groups of those groups
    floor      the k-th largest coarse maximum: k groups hold an entry of at least it, so the k largest are too
    survivors  the entries at or above the floor, of the groups whose maximum is: 1.2 to 1.4 k in a row as a rule
    choice     the k largest of the survivors

On a CPU `topk` goes through a row one entry at a time, and maxima go 16 at a time: at 4096 pre-activations and k 32
this takes half of its time. Numbers of 16 bits are compared as integers, 5 times as fast: above 0 their bits are in
their order, and where a floor is below 0, or not all are finite, they are widened first. Equal entries may be chosen
differently than `topk` does, always in the same way. What is not a number counts as larger than all that is.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

_WIDEST = 1 / 8
"""Share of a row that may survive in any row: more, and its entries are so alike that `topk` does it."""


def top_k(pre: Float[Tensor, "*batch n"], k: int) -> tuple[Float[Tensor, "*batch k"], Int[Tensor, "*batch k"]]:
    """(values, indices) of the k largest of each row, in no order; as `topk(sorted=False)`, with its gradient.

    By groups on a CPU where they pay (`_sizes`), which depends on the sizes alone; by `topk` elsewhere.
    """
    n = pre.shape[-1]
    sizes = _sizes(n, k) if pre.device.type == "cpu" and pre.numel() and k > 0 else None
    if sizes is not None:
        with torch.no_grad():
            found = _by_groups(pre.detach().reshape(-1, n).contiguous(), k, *sizes)
        if found is not None:
            indices = found.view(*pre.shape[:-1], k)
            return pre.gather(-1, indices), indices
    values, indices = pre.topk(k, dim=-1, sorted=False)
    return values, indices


def _sizes(n: int, k: int) -> tuple[int, int] | None:
    """(groups, coarse groups) of a row of n, or None where `topk` is the faster.

    Groups of about sqrt(n / 3 k) balance reading maxima against reading the survivors' groups; of 2 k to 4 k coarse
    groups the k-th largest maximum is a floor that few entries pass.
    """
    size = 2 ** round(math.log2(max(1.0, n / (3 * k))) / 2)
    coarse = 2 ** math.ceil(math.log2(2 * k))
    if size < 4 or n % (size * coarse):
        return None
    return n // size, coarse


def _by_groups(rows: Tensor, k: int, groups: int, coarse: int) -> Tensor | None:
    """Where the k largest of each row are; group g of a row has the entries g, g + groups, g + 2 groups, ..."""
    n_rows, n = rows.shape
    dtype, size = rows.dtype, n // groups
    if dtype in (torch.bfloat16, torch.float16):
        # As an integer, what is not a number and has its sign set would lie below 0.
        finite = math.isfinite(float(rows.sum()))
        rows = rows.view(torch.int16) if finite else rows.float()
    maxima, floors = _floors(rows, k, groups, coarse)
    if rows.dtype == torch.int16 and int(floors.min()) < 0:
        rows = rows.view(dtype).float()
        maxima, floors = _floors(rows, k, groups, coarse)
    # `not below` and not `at or above`: an entry that is not a number survives, as it does in `topk`.
    kept = (maxima < floors).logical_not_().view(-1).nonzero().squeeze(1)
    row = kept.div(groups, rounding_mode="floor")
    first = kept + row * (n - groups)
    entries = (first[:, None] + torch.arange(0, n, groups)).view(-1)
    values = rows.view(-1).index_select(0, entries)
    below = values.view(-1, size) < floors.view(-1).index_select(0, row)[:, None]
    survivors = below.logical_not_().view(-1).nonzero().squeeze(1)
    return _choose(values.index_select(0, survivors), entries.index_select(0, survivors), n_rows, n, k)


def _floors(rows: Tensor, k: int, groups: int, coarse: int) -> tuple[Tensor, Tensor]:
    """The groups' maxima, and a number in each row that k of its entries are not below."""
    maxima = rows.view(len(rows), -1, groups).amax(1)
    largest = maxima.view(len(rows), -1, coarse).amax(1).topk(k, sorted=False).values
    return maxima, largest.amin(1, keepdim=True)


def _choose(values: Tensor, entries: Tensor, n_rows: int, n: int, k: int) -> Tensor | None:
    row = entries.div(n, rounding_mode="floor")
    counts = torch.bincount(row, minlength=n_rows)
    width = int(counts.max())
    if width > max(2 * k, _WIDEST * n):
        return None
    starts = counts.cumsum(0) - counts
    place = torch.arange(len(row)) + (torch.arange(n_rows) * width - starts).index_select(0, row)
    least = -math.inf if values.is_floating_point() else torch.iinfo(values.dtype).min
    padded = values.new_full((n_rows * width,), least).index_copy_(0, place, values).view(n_rows, width)
    at = padded.topk(k, sorted=False).indices
    latents = (entries - row * n).index_select(0, (at + starts[:, None]).view(-1))
    return latents.view(n_rows, k)
