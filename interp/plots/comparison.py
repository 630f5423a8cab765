"""Sets of dictionaries side by side: a bar for each set and figure, the mean over its places; a dot for each place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from interp.plots import style
from interp.plots.pareto import ALL, NAMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MEASURES = ("fvu", "l0", "dead", "cosine", "ce_recovered", "kl", "similarity")
_BETTER = {"fvu": "less", "dead": "less", "kl": "less", "cosine": "more", "ce_recovered": "more"}
_DOTS = 64
"""Places of a set that get a dot of their own."""


def comparison_plot(rows: Sequence[Mapping[str, Any]], *, format: style.Format = "svg") -> bytes | None:
    """The picture; None without rows of places.

    Args:
        rows: as `evaluation.json` has them.
    """
    import matplotlib

    places = [row for row in rows if row["at"] != ALL]
    measures = [name for name in MEASURES if any(row.get(name) is not None for row in places)]
    sets = list(dict.fromkeys(row["dictionary"] for row in places))
    if not measures:
        return None
    looks = style.looks(sets)
    with matplotlib.rc_context(style.settings()):
        figure, axes = style.panels(len(measures), width=3.3, height=0.9 + 0.32 * len(sets), columns=3)
        for axis, measure in zip(axes, measures, strict=True):
            _draw(axis, places, sets, measure, looks)
        style.titled(figure, "Dictionaries side by side", "bar: mean over the places of a set; dots: its places")
        return style.image(figure, format)


def _draw(
    axis: Axes, rows: Sequence[Mapping[str, Any]], sets: Sequence[str], measure: str, looks: Mapping[str, style.Look]
) -> None:
    for height, name in enumerate(sets):
        values = [row[measure] for row in rows if row["dictionary"] == name and row.get(measure) is not None]
        if not values:
            continue
        mean, colour = fmean(values), looks[name].colour
        axis.barh(height, mean, height=0.62, color=colour, alpha=0.35)
        if len(values) > 1:
            axis.plot(values[:_DOTS], [height] * len(values[:_DOTS]), "o", color=colour, markersize=3, alpha=0.8)
        end = max(*values, mean) if len(values) > 1 else mean
        axis.annotate(
            f"{mean:.3g}", (max(end, 0), height), (5, 0), textcoords="offset points", va="center", fontsize=7.5
        )
    better = f" ({_BETTER[measure]} is better)" if measure in _BETTER else ""
    axis.set_title(f"{NAMES.get(measure, measure)}{better}")
    axis.set_yticks(range(len(sets)), sets)
    axis.set_ylim(len(sets) - 0.5, -0.5)
    axis.grid(axis="y", visible=False)
    axis.margins(x=0.2)
    axis.set_xlim(left=min(0.0, axis.get_xlim()[0]) if any(_below_zero(rows, measure)) else 0)


def _below_zero(rows: Sequence[Mapping[str, Any]], measure: str) -> list[bool]:
    return [row.get(measure) is not None and row[measure] < 0 for row in rows]
