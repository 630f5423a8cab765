"""Do two adjacencies of one prompt agree, entry by entry?

Nodes are matched by what they are: features by (layer, pos, latent), errors by (layer, pos), tokens by position, logits
by token. Where both programs choose which features to keep, the choices differ, and what both have is compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

TOLERANCE = 1e-4
"""Largest difference of two edges, as a share of the largest edge from a source of their kind."""


class Disagreement(Exception):
    """The two programs do not compute the same graph."""


def compare(
    ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], *, capped: bool, drop_first: bool
) -> dict[str, Any]:
    """How far the two graphs are apart; see `*_side.rows` for what they are made of.

    Args:
        capped: each side has chosen its features.
        drop_first: features and errors at position 0 are in ours only, and are left out.

    Raises:
        Disagreement: other nodes, or edges that differ by more than `TOLERANCE`.
    """
    mine, yours = _numbered(ours, drop_first), _numbered(theirs, drop_first)
    common = sorted(mine.keys() & yours.keys())
    if not capped and not len(mine) == len(yours) == len(common):
        raise Disagreement(f"{len(mine)} features here, {len(yours)} there, {len(common)} in both")
    if not torch.equal(ours["logits"], theirs["logits"]):
        raise Disagreement(f"target logits {ours['logits'].tolist()} here, {theirs['logits'].tolist()} there")
    here, there = (torch.tensor([index[key] for key in common]) for index in (mine, yours))
    edges, others = _by_source(ours, here, drop_first), _by_source(theirs, there, drop_first)
    apart = {kind: (edges[kind] - others[kind]).abs().max() for kind in others}
    largest = {kind: block.abs().max() for kind, block in others.items()}
    by_source = {kind: _short(apart[kind] / largest[kind]) for kind in others}
    difference, edge = max(apart.values()), max(largest.values())
    result = {
        "features": len(mine),
        "common_features": len(common),
        "edges": sum(int((block != 0).sum()) for block in others.values()),
        "largest_edge": _short(edge),
        "largest_difference": _short(difference),
        "relative_difference": _short(difference / edge),
        "relative_difference_by_source": by_source,
        "probability_difference": _short((ours["probabilities"] - theirs["probabilities"]).abs().max()),
        "activation_difference": _short((ours["activations"][here] - theirs["activations"][there]).abs().max()),
    }
    if not all(each <= TOLERANCE for each in [*by_source.values(), result["probability_difference"]]):
        raise Disagreement(f"edges or probabilities differ: {result}")
    return result


def _short(number: Tensor) -> float:
    return float(f"{float(number):.3g}")


def _numbered(side: Mapping[str, Tensor], drop_first: bool) -> dict[tuple[int, ...], int]:
    """Row of each feature."""
    rows = (tuple(feature) for feature in side["features"].tolist())
    return {feature: row for row, feature in enumerate(rows) if not (drop_first and feature[1] == 0)}


def _by_source(side: Mapping[str, Tensor], features: Tensor, drop_first: bool) -> dict[str, Tensor]:
    """Rows of these features and the logits, in blocks of columns: these features, errors, tokens."""
    n_features, width, n_pos = len(side["features"]), side["rows"].shape[1], int(side["n_pos"])
    errors = torch.arange(n_features, width - n_pos)
    if drop_first:
        errors = errors[(errors - n_features) % n_pos != 0]
    columns = {"feature": features, "error": errors, "token": torch.arange(width - n_pos, width)}
    rows = side["rows"][torch.cat([features, torch.arange(n_features, len(side["rows"]))])]
    return {kind: rows[:, chosen].double() for kind, chosen in columns.items()}
