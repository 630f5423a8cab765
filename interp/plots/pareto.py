"""What sparsity costs: FVU, or the loss recovered, against L0, one panel for each place that has several dictionaries.

A dictionary is on the front when no other one at its place is at least as good in both figures and better in one. The
front is drawn as steps: between two of its points nothing is known to be better than the one on its left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from interp.plots import style
from interp.plots.labels import Label, place

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Mapping[str, Any]

NAMES = {"fvu": "FVU", "ce_recovered": "CE recovered", "l0": "L0", "kl": "KL (nats)", "dead": "dead share"}
HIGHER_IS_BETTER = frozenset({"ce_recovered", "cosine"})

ALL = "all"
"""`at` of a row for a whole set."""


@dataclass(frozen=True)
class Point:
    """A dictionary in a panel."""

    name: str
    x: float
    y: float


def front(points: Sequence[Point], *, higher: bool = False) -> list[Point]:
    """The points that no other one is better than, from the sparsest on: less L0, and less (or more) of the other.
    Of equal points all are on it."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.x, -p.y if higher else p.y)):
        tied = best and (point.x, point.y) == (best[-1].x, best[-1].y)
        if not best or tied or (point.y > best[-1].y if higher else point.y < best[-1].y):
            best.append(point)
    return best


def pareto_plot(rows: Sequence[Row], measure: str = "fvu", *, format: style.Format = "svg") -> bytes | None:
    """The picture; None where no place has two dictionaries with both figures.

    Args:
        rows: with `dictionary`, `at`, `l0` and the measure, as `evaluation.json` has them.
        measure: `fvu`, `ce_recovered` or another figure of the rows.
    """
    import matplotlib

    found = _panels(rows, measure)
    if not found:
        return None
    higher = measure in HIGHER_IS_BETTER
    looks = style.looks(row["dictionary"] for row in rows)
    with matplotlib.rc_context(style.settings()):
        figure, axes = style.panels(len(found))
        apart = style.spread([p.x for p in points] for points in found.values())
        apart_too = not higher and style.spread([p.y for p in points] for points in found.values())
        for axis, (title, points) in zip(axes, found.items(), strict=True):
            _draw(axis, points, looks, measure, higher)
            axis.set_title(title)
            if apart:
                style.logarithmic(axis, "x")
            if apart_too:
                style.logarithmic(axis, "y")
        best = "upper left" if higher else "lower left"
        what = f"{NAMES.get(measure, measure)} against L0"
        style.titled(figure, what, f"{best} is better; filled: on the Pareto front of its panel")
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        for axis, points in zip(axes, found.values(), strict=True):
            on_front = front(points, higher=higher)
            others = [point for point in points if point not in on_front]
            labels = [Label(p.x, p.y, p.name, style.INK, "bold") for p in on_front]
            place(axis, labels + [Label(p.x, p.y, p.name, style.FAINT) for p in others])
        return style.image(figure, format)


def _panels(rows: Sequence[Row], measure: str) -> dict[str, list[Point]]:
    """Points by panel: means over places of the sets that have the same ones, then place by place if they are few."""
    known = [row for row in rows if row["at"] != ALL and row.get("l0") is not None and row.get(measure) is not None]
    by_set: dict[str, dict[str, Row]] = {}
    by_place: dict[str, list[Point]] = {}
    for row in known:
        by_set.setdefault(row["dictionary"], {})[row["at"]] = row
        by_place.setdefault(row["at"], []).append(Point(row["dictionary"], row["l0"], row[measure]))
    means: dict[tuple[str, ...], list[Point]] = {}
    for name, places in by_set.items():
        mean = Point(name, *(fmean(row[figure] for row in places.values()) for figure in ("l0", measure)))
        means.setdefault(tuple(places), []).append(mean)
    several = {places: points for places, points in means.items() if len(places) > 1 and len(points) > 1}
    panels = {_mean_title(places, several): points for places, points in several.items()}
    single = {at: points for at, points in by_place.items() if len(points) > 1}
    return {**panels, **single} if len(panels) + len(single) <= style.PANELS or not panels else panels


def _mean_title(places: tuple[str, ...], several: Mapping[tuple[str, ...], object]) -> str:
    told = f"mean over {len(places)} places"
    return told if len(several) == 1 else f"{told} from {places[0]}"


def _draw(axis: Axes, points: Sequence[Point], looks: Mapping[str, style.Look], measure: str, higher: bool) -> None:
    on_front = front(points, higher=higher)
    line = axis.step([p.x for p in on_front], [p.y for p in on_front], where="post", color=style.FAINT, linewidth=1)
    line[0].set_gid("front")
    for point in points:
        look, filled = looks[point.name], point in on_front
        inside: dict[str, Any] = {"markerfacecolor": look.colour if filled else "white", "markeredgecolor": look.colour}
        axis.plot(point.x, point.y, look.marker, markersize=6, zorder=3, **inside)
    axis.margins(0.18)
    axis.set_xlabel("L0 (latents a token)")
    axis.set_ylabel(NAMES.get(measure, measure))
