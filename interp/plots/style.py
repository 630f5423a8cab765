"""What all pictures have in common: panels, colours that the colour-blind tell apart, the same bytes every time.

Colours are those of Okabe and Ito (2008), without the yellow that white swallows; a marker stands beside each, and
changes when the colours begin anew. Text of an SVG stays text. Neither dates nor random identifiers are written.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Format = Literal["svg", "png"]

INK, FAINT = "#222222", "#6e6e6e"
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_LINES = ("-", "--", ":", "-.")

_SETTINGS = {
    "font.family": ["DejaVu Sans", "sans-serif"],
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "interp",
    "figure.dpi": 100.0,
    "savefig.dpi": 160.0,
}

PANELS = 12
"""More places than these are not drawn one by one."""

_COLUMNS = 4


@dataclass(frozen=True)
class Look:
    """How a set of dictionaries is drawn, in every panel."""

    colour: str
    marker: str
    line: str


def looks(names: Iterable[str]) -> dict[str, Look]:
    """One for each name, by its place in the order."""
    found: dict[str, Look] = {}
    for i, name in enumerate(dict.fromkeys(names)):
        again = i // len(_COLOURS)
        marker = _MARKERS[(i + again) % len(_MARKERS)]
        found[name] = Look(_COLOURS[i % len(_COLOURS)], marker, _LINES[again % len(_LINES)])
    return found


def settings() -> dict[str, Any]:
    """To draw within: `with matplotlib.rc_context(settings())`."""
    return dict(_SETTINGS)


def panels(
    count: int, *, width: float = 3.5, height: float = 2.9, columns: int = _COLUMNS
) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels, at most four in a row; inches for each."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Six panels are two rows of three, not four and two.
    across = min(columns, count) if count <= columns else math.ceil(count / math.ceil(count / columns))
    down = math.ceil(count / across)
    figure = Figure(figsize=(max(width * across, 4.2), height * down + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(down, across, squeeze=False)
    axes = [axis for row in grid for axis in row]
    for unused in axes[count:]:
        unused.remove()
    return figure, axes[:count]


def titled(figure: Figure, title: str, note: str = "") -> None:
    """What the figure shows, flush left, and in smaller letters how to read it."""
    figure.suptitle(f"{title}\n{note}" if note else title, x=0.01, ha="left", fontsize=10.5)


def image(figure: Figure, format: Format) -> bytes:
    """The bytes of the picture."""
    buffer = io.BytesIO()
    about = {"Date": None, "Creator": None} if format == "svg" else {"Software": None}
    figure.savefig(buffer, format=format, metadata=about)
    return buffer.getvalue()


def spread(groups: Iterable[Sequence[float]]) -> bool:
    """Whether all values are positive, and those of a group so far apart that logarithmic axes show them better."""
    known = [values for values in groups if values]
    return all(min(values) > 0 for values in known) and any(max(values) / min(values) > 8 for values in known)


_TICKS = (
    (2.0, (1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0)),
    (8.0, (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)),
    (500.0, (1.0, 2.0, 5.0)),
)
"""Where ticks stand in a decade, by how far apart the ends of the axis are: a few in any case."""


def logarithmic(axis: Axes, which: Literal["x", "y"]) -> None:
    """A logarithmic axis whose ticks are plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    (axis.set_xscale if which == "x" else axis.set_yscale)("log")
    ticks = axis.xaxis if which == "x" else axis.yaxis
    low, high = ticks.get_view_interval()
    close = (subs for factor, subs in _TICKS if high < factor * low)
    ticks.set_major_locator(LogLocator(subs=next(close, (1.0,))))
    ticks.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ticks.set_minor_formatter(NullFormatter())
