"""The pictures of an evaluation, by the name of their file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from interp.plots.density import Histograms, density_plot
from interp.plots.pareto import pareto_plot
from interp.plots.style import Format

PARETO = {"fvu": "pareto", "ce_recovered": "pareto-ce"}


def pictures(
    rows: Sequence[Mapping[str, Any]], histograms: Histograms, edges: Sequence[float], *, format: Format = "svg"
) -> dict[str, bytes]:
    """`pareto.svg` and `pareto-ce.svg` where a place has several dictionaries, `density.svg` where firing was counted.

    Args:
        rows: as `evaluation.json` has them.
        histograms: of log10 density, by set and place; `edges` are those of its bins.
    """
    drawn = {f"{name}.{format}": pareto_plot(rows, measure, format=format) for measure, name in PARETO.items()}
    # In the order of the rows: a set has the same colour in every picture.
    dead = {(row["dictionary"], row["at"]): row.get("dead") for row in rows}
    ordered = {key: histograms[key] for key in dead if key in histograms}
    drawn[f"density.{format}"] = density_plot(ordered, edges, dead, format=format)
    return {name: picture for name, picture in drawn.items() if picture is not None}
