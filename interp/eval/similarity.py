"""How alike the latents of dictionaries are: cosines of decoder rows, from the weights alone.

    within a dictionary    for each latent the largest cosine with another latent of the same place: near 1, two latents
                           stand for one direction
    between two            MMCS, the mean over the latents of one of the largest cosine with any latent of the other
                           (Sharkey et al. 2022; arXiv:2309.08600): how much of what one found the other found too.
                           It is told both ways: what a small dictionary has may all be in a large one, not conversely

The decoder row of a latent is what it writes at its own place. Two dictionaries are compared where they write to the
same hook point. A row of zeros has no direction: its cosine is NaN and it is in no mean.

All pairs of latents are compared, `BLOCK` by `BLOCK` at a time, in float32: no full latents x latents matrix exists.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from interp.dictionaries import Dictionary
    from interp.eval.evaluation import Sets

BLOCK = 1 << 12
"""Latents whose cosines are in memory at once, on either side: 64 MB of them."""

ALIKE = 0.9
"""A cosine above which two latents count as near duplicates."""


@dataclass(frozen=True)
class Overlap:
    """MMCS of two dictionaries that write to one hook point: `there` of the latents of `one` in `other`, and `back`."""

    hook_out: str
    one: tuple[str, str]
    other: tuple[str, str]
    there: float | None
    back: float | None

    def rows(self) -> list[dict[str, Any]]:
        """Each way as a row: what share of `dictionary` is found again in `in`."""
        ways = ((self.one, self.other, self.there), (self.other, self.one, self.back))
        return [
            {"dictionary": one[0], "at": one[1], "in": other[0], "in_at": other[1], "mmcs": value}
            for one, other, value in ways
        ]


@dataclass(frozen=True)
class Similarity:
    """Of all places of all sets: `largest[set, at]` is each latent's largest cosine with another one."""

    largest: Mapping[tuple[str, str], Float[Tensor, "latents"]] = field(default_factory=dict)
    overlaps: tuple[Overlap, ...] = ()

    def metrics(self, key: tuple[str, str]) -> dict[str, float | None]:
        """`similarity` is the mean over latents; of the near duplicates, their share."""
        if key not in self.largest:
            return {}
        known = self.largest[key][~self.largest[key].isnan()].double()
        if not len(known):
            return {"similarity": None, "near_duplicates": None}
        return {"similarity": float(known.mean()), "near_duplicates": float((known > ALIKE).double().mean())}


@torch.no_grad()
def similarities(sets: Sets, block: int = BLOCK) -> Similarity:
    """Every dictionary with itself, and every two that write to one hook point."""
    placed = [
        (place.hook_out, (name, place.at), dictionary, index)
        for name, dictionaries in sets.items()
        for dictionary in dictionaries.values()
        for index, place in enumerate(dictionary.places)
    ]
    largest = {key: largest_cosines(decoder_rows(one, index), block).cpu() for _, key, one, index in placed}
    overlaps = []
    for (hook, key, one, index), (other_hook, other_key, other, other_index) in combinations(placed, 2):
        if hook == other_hook:
            there, back = mmcs(decoder_rows(one, index), decoder_rows(other, other_index), block)
            overlaps.append(Overlap(hook, key, other_key, there, back))
    return Similarity(largest, tuple(overlaps))


def decoder_rows(dictionary: Dictionary, place: int) -> Float[Tensor, "latents d_out"]:
    """What the latents of a place write there."""
    from interp.dictionaries import CrossLayerTranscoder

    rows: Any = dictionary.decoder(place, place) if isinstance(dictionary, CrossLayerTranscoder) else dictionary.W_dec
    return rows.detach()


def largest_cosines(rows: Float[Tensor, "n d"], block: int = BLOCK) -> Float[Tensor, "n"]:
    """Each row's largest cosine with another row."""
    best = torch.full((len(rows),), -torch.inf, device=rows.device)
    for here, there, cosines in _blocks(rows, rows, block):
        if here == there:
            cosines.fill_diagonal_(-torch.inf)
        best[here] = torch.maximum(best[here], cosines.amax(1))
    return _defined(best, rows)


def mmcs(
    one: Float[Tensor, "n d"], other: Float[Tensor, "m d"], block: int = BLOCK
) -> tuple[float | None, float | None]:
    """The mean largest cosine of the rows of `one` with those of `other`, and conversely; None where there is none."""
    there = torch.full((len(one),), -torch.inf, device=one.device)
    back = torch.full((len(other),), -torch.inf, device=one.device)
    for rows, columns, cosines in _blocks(one, other, block):
        there[rows] = torch.maximum(there[rows], cosines.amax(1))
        back[columns] = torch.maximum(back[columns], cosines.amax(0))
    return _mean(_defined(there, one)), _mean(_defined(back, other))


def _units(rows: Tensor) -> Float[Tensor, "n d"]:
    """Rows of norm 1, in float32; a row of zeros is NaN."""
    rows = rows.float()
    # By the largest entry first: the squares of half precision's smallest numbers are zero.
    rows = rows / rows.abs().amax(1, keepdim=True)
    return rows / rows.norm(dim=1, keepdim=True)


def _blocks(rows: Tensor, columns: Tensor, block: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """Which rows, which columns, and their cosines; -inf where one has no direction."""
    for start in range(0, len(rows), block):
        here = slice(start, start + block)
        units = _units(rows[here])
        for other in range(0, len(columns), block):
            there = slice(other, other + block)
            # Scaled anew for each block of rows: little work beside the product, and no second copy of a decoder.
            yield here, there, (units @ _units(columns[there]).T).nan_to_num_(nan=-torch.inf)


def _defined(best: Tensor, rows: Tensor) -> Tensor:
    """NaN where there is no direction, or nothing to compare with."""
    return best.clamp(max=1).masked_fill(~rows.any(1) | best.isinf(), torch.nan)


def _mean(best: Tensor) -> float | None:
    known = best[~best.isnan()].double()
    return float(known.mean()) if len(known) else None
