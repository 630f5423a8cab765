"""How often latents fire: histograms of log10 of the share of tokens, one panel for each place.

Heights are shares of all latents, so that dictionaries of different widths compare, and what is missing from the area
are the latents that never fired; the legend says how many.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from interp.plots import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Histograms = Mapping[tuple[str, str], Sequence[int]]
"""Latents in each bin, by set and place."""

_LEGEND = 8
"""Dictionaries that a panel's legend has at most."""


def density_plot(
    histograms: Histograms,
    edges: Sequence[float],
    dead: Mapping[tuple[str, str], float | None],
    *,
    format: style.Format = "svg",
) -> bytes | None:
    """The picture; None without any histogram.

    Args:
        edges: of the bins, in log10; one more than there are bins.
        dead: shares of latents that never fired, which are in no bin.
    """
    import matplotlib

    places = list(dict.fromkeys(at for _, at in histograms))
    if not places:
        return None
    shown = _evenly(places, style.PANELS)
    looks = style.looks(name for name, _ in histograms)
    with matplotlib.rc_context(style.settings()):
        figure, axes = style.panels(len(shown))
        used = _used(histograms, edges)
        for axis, at in zip(axes, shown, strict=True):
            here = {name: counts for (name, where), counts in histograms.items() if where == at}
            _draw(axis, here, edges, {name: dead.get((name, at)) for name in here}, looks)
            axis.set_title(at)
            axis.set_xlim(*used)
        some = "" if shown == places else f"; {len(shown)} of {len(places)} places, evenly spaced"
        style.titled(
            figure, "How often latents fire", f"share of the latents by the share of tokens they fire on{some}"
        )
        return style.image(figure, format)


def _draw(
    axis: Axes,
    counts: Mapping[str, Sequence[int]],
    edges: Sequence[float],
    dead: Mapping[str, float | None],
    looks: Mapping[str, style.Look],
) -> None:
    for name, own in counts.items():
        fired, never = int(sum(own)), dead[name]
        # A dictionary of n latents of which a share never fired has n (1 - share) in its bins.
        latents = fired / (1 - never) if never is not None and never < 1 else fired
        heights = [count / latents if latents else 0.0 for count in own]
        told = name if never is None else f"{name}: {never:.1%} never"
        look = looks[name]
        axis.stairs(heights, edges, color=look.colour, linestyle=look.line, linewidth=1.4, label=told)
        if len(counts) == 1:
            axis.stairs(heights, edges, color=look.colour, fill=True, alpha=0.2)
    legend = counts if len(counts) <= _LEGEND else {}
    axis.set_ylim(0, axis.get_ylim()[1] * (1.05 + 0.085 * len(legend)))  # room for it above the bins
    axis.set_xlabel("log10 of the share of tokens")
    axis.set_ylabel("share of latents")
    if legend:
        axis.legend(fontsize=7, loc="upper left", handlelength=1.4, labelspacing=0.25)


def _used(histograms: Histograms, edges: Sequence[float]) -> tuple[float, float]:
    """From the first bin that any latent is in, to the last edge."""
    first = min((next((i for i, n in enumerate(own) if n), len(own)) for own in histograms.values()), default=0)
    return edges[max(first - 1, 0)], edges[-1]


def _evenly(places: Sequence[str], most: int) -> list[str]:
    if len(places) <= most:
        return list(places)
    return [places[round(i * (len(places) - 1) / (most - 1))] for i in range(most)]
