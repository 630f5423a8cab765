"""An evaluation as one table: a row for each dictionary at its place, the best of a place marked.

Sets at the same place stand together; then, for sets of several places, the means over them; then the sets whole, all
places replaced at once. A mark compares only rows of one group: the same place, or the same places.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

Row = Mapping[str, Any]

ALL = "all"
MARK = "*"

_COLUMNS: Mapping[str, tuple[str, str, int]] = {
    "fvu": ("FVU", ".4f", -1),
    "l0": ("L0", ".1f", 0),
    "dead": ("dead", ".1%", -1),
    "cosine": ("cosine", ".4f", 1),
    "ce_recovered": ("CE recovered", ".4f", 1),
    "kl": ("KL", ".4f", -1),
    "density": ("log10 density", ".2f", 0),
    "similarity": ("similarity", ".3f", 0),
}
"""By figure: what its column is called, how it is written, and whether less (-1), more (1) or neither is better."""

_NOTES = {"kl": "KL in nats", "density": "log10 density: of the median latent that fires, as a share of tokens"}


@dataclass(frozen=True)
class Line:
    """A row of the table, and the group whose best it may be."""

    at: str
    dictionary: str
    figures: Mapping[str, float | None]
    group: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """Lines, and the figures that at least one of them has."""

    lines: tuple[Line, ...]
    figures: tuple[str, ...]

    @property
    def header(self) -> list[str]:
        return ["place", "dictionary", *(_COLUMNS[name][0] for name in self.figures)]

    def cells(self) -> list[list[str]]:
        """As people read them; a place for the mark stands after every figure, so that columns are flush."""
        best = self._best()
        return [
            [line.at, line.dictionary, *(self._cell(line, name, best) for name in self.figures)] for line in self.lines
        ]

    def notes(self) -> str:
        """What its marks and columns mean; nothing where all speak for themselves."""
        marked = [f"{MARK} the best of those at the same place"] if self._best() else []
        return "; ".join([*marked, *(note for name, note in _NOTES.items() if name in self.figures)])

    def markdown(self) -> str:
        """The table in Markdown; the best ones are bold."""
        best = self._best()
        rows = [self.header, ["---", "---", *("---:" for _ in self.figures)]]
        for line in self.lines:
            values = [self._plain(line, name) for name in self.figures]
            bold = [
                f"**{text}**" if self._is_best(line, name, best) else text
                for name, text in zip(self.figures, values, strict=True)
            ]
            rows.append([line.at, line.dictionary, *bold])
        return "".join(f"| {' | '.join(row)} |\n" for row in rows)

    def csv(self) -> str:
        """The table for programs: names of figures as in evaluation.json, all digits, nothing where there is none."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["at", "dictionary", *self.figures])
        for line in self.lines:
            writer.writerow([line.at, line.dictionary, *(_all_digits(line.figures.get(name)) for name in self.figures)])
        return text.getvalue()

    def _cell(self, line: Line, name: str, best: Mapping[tuple[tuple[str, ...], str], float]) -> str:
        return f"{self._plain(line, name)}{MARK if self._is_best(line, name, best) else ' '}"

    def _plain(self, line: Line, name: str) -> str:
        value = line.figures.get(name)
        return "" if value is None else format(value, _COLUMNS[name][1])

    def _is_best(self, line: Line, name: str, best: Mapping[tuple[tuple[str, ...], str], float]) -> bool:
        value = line.figures.get(name)
        return value is not None and best.get((line.group, name)) == value

    def _best(self) -> dict[tuple[tuple[str, ...], str], float]:
        """The best figure of each group of several lines, where one is better than another."""
        values: dict[tuple[tuple[str, ...], str], list[float]] = {}
        for line in self.lines:
            for name in self.figures:
                if _COLUMNS[name][2] and (value := line.figures.get(name)) is not None:
                    values.setdefault((line.group, name), []).append(value)
        several = {key: found for key, found in values.items() if len(set(found)) > 1}
        return {key: max(found) if _COLUMNS[key[1]][2] > 0 else min(found) for key, found in several.items()}


def table_of(rows: Sequence[Row]) -> Table:
    """The table of the rows of an `evaluation.json`."""
    places = [row for row in rows if row["at"] != ALL]
    of_set: dict[str, list[Row]] = {}
    for row in places:
        of_set.setdefault(row["dictionary"], []).append(row)
    sites = {name: tuple(row["at"] for row in found) for name, found in of_set.items()}
    order = list(dict.fromkeys(row["at"] for row in places))
    lines = [Line(row["at"], row["dictionary"], row, (row["at"],)) for at in order for row in places if row["at"] == at]
    for name, found in of_set.items():
        if len(found) > 1:
            lines.append(Line(f"mean of {len(found)}", name, _means(found), ("mean", *sites[name])))
    for row in rows:
        if row["at"] == ALL:
            name = row["dictionary"]
            lines.append(Line("all at once", name, row, (ALL, *sites.get(name, ()))))
    figures = tuple(name for name in _COLUMNS if any(line.figures.get(name) is not None for line in lines))
    return Table(tuple(lines), figures)


def overlaps(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Of the rows of a `similarity.json`, the mean over places for every two sets."""
    found: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if row["mmcs"] is not None:
            found.setdefault((row["dictionary"], row["in"]), []).append(row["mmcs"])
    return [
        {"dictionary": one, "in": other, "places": len(values), "mmcs": fmean(values)}
        for (one, other), values in found.items()
    ]


def _means(rows: Sequence[Row]) -> dict[str, float | None]:
    """Means of the figures that every place has."""
    found = {name: [row[name] for row in rows if row.get(name) is not None] for name in _COLUMNS}
    return {name: fmean(values) for name, values in found.items() if len(values) == len(rows)}


def _all_digits(value: float | None) -> str:
    return "" if value is None else repr(value)
