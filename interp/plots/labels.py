"""Labels beside points, none over another: each in turn takes the first of a few positions that is free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_APART = 6.0
"""Points between a label and its point."""

_POSITIONS = (
    (1.0, 0.6, "left", "bottom"),
    (1.0, -0.6, "left", "top"),
    (-1.0, 0.6, "right", "bottom"),
    (-1.0, -0.6, "right", "top"),
    (0.0, 1.3, "center", "bottom"),
    (0.0, -1.3, "center", "top"),
    (1.0, 2.4, "left", "bottom"),
    (1.0, -2.4, "left", "top"),
    (-1.0, 2.4, "right", "bottom"),
    (-1.0, -2.4, "right", "top"),
)


@dataclass(frozen=True)
class Label:
    """A text beside a point of the data."""

    x: float
    y: float
    text: str
    colour: str
    weight: str = "normal"


def place(axis: Axes, labels: Sequence[Label]) -> None:
    """Write the labels; those that find no free position are left out. The figure must have been laid out."""
    from matplotlib.transforms import Bbox

    figure: Any = axis.get_figure(root=True)
    renderer = figure.canvas.get_renderer()
    around = axis.get_window_extent(renderer).padded(2)
    dots = [axis.transData.transform((label.x, label.y)) for label in labels]
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in dots]
    for label in labels:
        for dx, dy, horizontal, vertical in _POSITIONS:
            text = axis.annotate(
                label.text,
                (label.x, label.y),
                (dx * _APART, dy * _APART),
                textcoords="offset points",
                ha=horizontal,
                va=vertical,
                fontsize=7.5,
                color=label.colour,
                fontweight=label.weight,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.3},
            )
            box = text.get_window_extent(renderer)
            inside = around.x0 <= box.x0 and box.x1 <= around.x1 and around.y0 <= box.y0 and box.y1 <= around.y1
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            text.remove()
