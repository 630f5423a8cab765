"""Pictures: points, front and labels are those of the figures, and the bytes are the same every time."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest

from interp.plots import comparison_plot, density_plot, front, pareto_plot, pictures
from interp.plots.pareto import Point
from interp.plots.style import looks, spread

EDGES = [-3.0, -2.0, -1.0, 0.0]


def row(name: str, at: str, l0: float, fvu: float, **more: Any) -> dict[str, Any]:
    return {"dictionary": name, "at": at, "l0": l0, "fvu": fvu, **more}


ROWS = [
    row("a", "layers.0.mlp", 8.0, 0.40, ce_recovered=0.80, dead=0.25),
    row("b", "layers.0.mlp", 16.0, 0.20, ce_recovered=0.95, dead=0.0),
    row("c", "layers.0.mlp", 20.0, 0.30, ce_recovered=0.90, dead=0.5),
    row("a", "layers.1.mlp", 8.0, 0.30, ce_recovered=0.85),
    row("b", "layers.1.mlp", 16.0, 0.10, ce_recovered=0.97),
    row("resid", "layers.1.resid_post", 12.0, 0.5, ce_recovered=0.5),
    {"dictionary": "a", "at": "all", "ce_recovered": 0.7},
]


def text_of(picture: bytes | None) -> list[str]:
    assert picture is not None
    return re.findall(r"<text[^>]*>([^<]+)</text>", picture.decode())


def test_the_front_is_what_no_other_is_better_than() -> None:
    points = [Point("a", 8, 0.4), Point("b", 16, 0.2), Point("c", 20, 0.3), Point("d", 32, 0.1), Point("e", 8, 0.5)]
    assert [p.name for p in front(points)] == ["a", "b", "d"]
    assert [p.name for p in front(points[::-1])] == ["a", "b", "d"]
    # More is better: at 8 it is e, and d is worse than all.
    assert [p.name for p in front(points, higher=True)] == ["e"]
    ties = [Point("x", 1, 1), Point("y", 1, 1)]
    assert front(ties) == front(ties, higher=True) == ties, "neither is better"
    assert front([*ties, Point("z", 1, 2), Point("w", 2, 0)]) == [*ties, Point("w", 2, 0)]
    assert front([]) == []


def test_a_panel_for_each_place_with_several_dictionaries_and_one_of_means() -> None:
    told = text_of(pareto_plot(ROWS))
    assert {"layers.0.mlp", "layers.1.mlp", "mean over 2 places"} <= set(told)
    assert "layers.1.resid_post" not in told and "resid" not in told
    assert told.count("a") == told.count("b") == 3 and told.count("c") == 1
    assert "FVU against L0" in " ".join(told) and any("lower left" in words for words in told)
    assert told.count("L0 (latents a token)") == told.count("FVU") == 3


def test_more_is_better_for_the_loss_recovered() -> None:
    assert any("upper left" in words for words in text_of(pareto_plot(ROWS, "ce_recovered")))


def test_the_points_are_those_of_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read back from the axes just before the file is written."""
    from interp.plots import style

    drawn: dict[str, list[tuple[float, float, bool]]] = {}
    steps: dict[str, list[tuple[float, float]]] = {}
    plain = style.image

    def noted(figure: Any, format: Any) -> bytes:
        for axis in figure.axes:
            title = axis.get_title(loc="left")
            for line in axis.lines:
                xy = [(float(x), float(y)) for x, y in line.get_xydata()]
                if line.get_gid() == "front":
                    steps[title] = xy
                else:
                    drawn.setdefault(title, []).append((*xy[0], line.get_markerfacecolor() != "white"))
        return plain(figure, format)

    monkeypatch.setattr("interp.plots.style.image", noted)
    pareto_plot(ROWS)
    assert drawn["layers.0.mlp"] == [(8.0, 0.4, True), (16.0, 0.2, True), (20.0, 0.3, False)]
    assert steps["layers.0.mlp"] == [(8.0, 0.4), (16.0, 0.2)]
    assert drawn["mean over 2 places"] == [(8.0, pytest.approx(0.35), True), (16.0, pytest.approx(0.15), True)]


def test_many_places_are_drawn_as_means() -> None:
    rows = [row(name, f"layers.{i}.mlp", 8, 0.1 * i) for i in range(20) for name in ("a", "b")]
    told = text_of(pareto_plot(rows))
    assert "mean over 20 places" in told and "layers.3.mlp" not in told
    shown = {(name, f"layers.{i}.mlp"): [1, 2, 3] for i in range(20) for name in ("a", "b")}
    told = text_of(density_plot(shown, EDGES, {}))
    assert sum(words.startswith("layers.") for words in told) == 12
    assert {"layers.0.mlp", "layers.19.mlp"} <= set(told) and any("12 of 20 places" in words for words in told)


def test_there_is_no_picture_of_nothing() -> None:
    assert pareto_plot([row("a", "x", 1, 0.1), row("b", "y", 1, 0.1)]) is None
    assert pareto_plot([row("a", "x", 1, 0.1), {"dictionary": "b", "at": "x", "l0": 2.0, "fvu": None}]) is None
    assert density_plot({}, EDGES, {}) is None and comparison_plot([ROWS[-1]]) is None
    assert pictures([], {}, ()) == {}


def test_heights_of_the_histogram_are_shares_of_all_latents(monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    drawn: dict[str, list[float]] = {}
    plain = Axes.stairs

    def noted(self: Axes, values: Any, edges: Any, **options: Any) -> Any:
        if "label" in options:
            drawn[options["label"]] = list(values)
        return plain(self, values, edges, **options)

    monkeypatch.setattr(Axes, "stairs", noted)
    counts = {("a", "layers.0.mlp"): [1, 0, 2], ("b", "layers.0.mlp"): [2, 2, 4]}
    told = text_of(density_plot(counts, EDGES, {("a", "layers.0.mlp"): 0.25, ("b", "layers.0.mlp"): None}))
    assert drawn == {"a: 25.0% never": [0.25, 0, 0.5], "b": [0.25, 0.25, 0.5]}
    assert {"a: 25.0% never", "b", "layers.0.mlp"} <= set(told)


def test_bars_tell_their_means() -> None:
    told = text_of(comparison_plot(ROWS))
    assert {"FVU (less is better)", "CE recovered (more is better)", "L0", "a", "b", "resid"} <= set(told)
    assert {"0.35", "0.15", "0.825"} <= set(told)  # means of FVU of a and of b, and of what a recovers
    assert "KL (nats) (less is better)" not in told


def test_negative_figures_have_bars_too() -> None:
    assert "-2" in text_of(comparison_plot([row("a", "x", 4, 0.1, ce_recovered=-2.0)]))


def test_the_files_of_an_evaluation_have_one_order_of_colours() -> None:
    counts = {("b", "layers.0.mlp"): [1, 1, 1], ("a", "layers.0.mlp"): [1, 2, 1]}
    made = pictures(ROWS, counts, EDGES)
    assert list(made) == ["pareto.svg", "pareto-ce.svg", "density.svg"]
    assert made == pictures(ROWS, dict(reversed(counts.items())), EDGES)
    assert [words[0] for words in text_of(made["density.svg"]) if "never" in words] == ["a", "b"]


@pytest.mark.parametrize("format", ["svg", "png"])
def test_the_bytes_are_the_same_every_time(format: Any) -> None:
    one, two = (comparison_plot(ROWS[:2], format=format) for _ in range(2))
    assert one == two and one is not None
    assert one.startswith(b"\x89PNG" if format == "png" else b"<?xml")
    assert b"<dc:date>" not in one and b"matplotlib.org" not in one


def test_sets_are_told_apart_by_more_than_colour() -> None:
    found = looks(f"set{i}" for i in range(20))
    assert len({(look.colour, look.marker) for look in found.values()}) == 20
    assert len({look.colour for look in list(found.values())[:7]}) == 7


def test_axes_are_logarithmic_for_all_panels_or_none() -> None:
    assert spread([[1.0, 20.0], [3.0, 4.0]]) and not spread([[1.0, 4.0]]) and not spread([[0.0, 20.0]])
    assert not spread([[1.0, 20.0], [-1.0, 1.0]])


def test_matplotlib_is_loaded_when_a_picture_is_drawn() -> None:
    code = "import sys, interp.plots; assert not {'matplotlib', 'torch', 'ray'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
