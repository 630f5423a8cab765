"""What the dictionary benchmark must show, as bars over its results, and the table that it prints."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Results = Mapping[str, Mapping[str, Any]]
"""By contender: `rates` (figures of each short run), `long` (of the long one), `quality`, or `error`."""

PEERS = ("sparsify", "saelens", "dictionary-learning")
FVU_TOLERANCE = 1.02
"""bfloat16 is at the same FVU as float32 if it is not further than this from it."""


class NotMeasured(Exception):
    """A figure that a bar needs is missing."""


@dataclass(frozen=True)
class Bar:
    """A bar: its contenders, how its figure is worked out, and what the figure must be.

    Attributes:
        needs: with any of these not chosen, the bar is left out; with one of them failed, it is missed.
        of_rates: the figure is of the short runs. Their medians decide; the same of the long runs is told beside it.
    """

    name: str
    needs: tuple[str, ...]
    figure: Callable[[Results], float]
    at_least: float | None = None
    at_most: float | None = None
    of_rates: bool = False

    def judge(self, results: Results) -> dict[str, Any]:
        bound = {"at_least": self.at_least} if self.at_least is not None else {"at_most": self.at_most}
        try:
            value = self.figure(results)
        except NotMeasured as error:
            return {**bound, "value": None, "passed": False, "why": str(error)}
        low, high = self.at_least, self.at_most
        passed = (low is None or value >= low) and (high is None or value <= high)
        return {**bound, "value": round(value, 4), "passed": passed, **self._of_long_runs(results)}

    def _of_long_runs(self, results: Results) -> dict[str, float]:
        """The same figure of the long runs, which have one turn each; nothing where there are none."""
        if not self.of_rates or not all("long" in results[name] for name in self.needs):
            return {}
        try:
            return {"long": round(self.figure({name: {"rates": [results[name]["long"]]} for name in self.needs}), 4)}
        except NotMeasured:
            return {}


def rate(results: Results, name: str, figure: str = "tokens_per_s") -> float:
    """Median over the short runs."""
    runs = [run[figure] for run in results[name].get("rates", []) if run.get(figure)]
    if not runs:
        raise NotMeasured(f"{name} has no {figure}: {results[name].get('error', 'it was not run')}")
    return statistics.median(runs)


def quality(results: Results, name: str, figure: str) -> float:
    if "quality" not in results[name]:
        raise NotMeasured(f"{name} has no {figure}: {results[name].get('error', 'it was not run')}")
    return float(results[name]["quality"][figure])


def _ratio(one: str, other: str, figure: str = "tokens_per_s") -> Callable[[Results], float]:
    return lambda results: rate(results, one, figure) / rate(results, other, figure)


def _fvu_to_best(results: Results) -> float:
    best = min(quality(results, name, "fvu") for name in PEERS if name in results)
    return quality(results, "interp", "fvu") / best


def _harvest(results: Results) -> float:
    return rate(results, "harvest", "ratio_to_bare")


BARS = (
    Bar(
        "tokens/s, interp to sparsify",
        ("interp", "sparsify"),
        _ratio("interp", "sparsify"),
        at_least=1.35,
        of_rates=True,
    ),
    Bar("tokens/s, interp to SAELens", ("interp", "saelens"), _ratio("interp", "saelens"), at_least=2.4, of_rates=True),
    Bar("FVU, interp to the best peer", ("interp", *PEERS), _fvu_to_best, at_most=1.0),
    Bar("dead share, interp", ("interp",), lambda results: quality(results, "interp", "dead"), at_most=0.05),
    Bar(
        "tokens/s, bfloat16 to float32",
        ("interp-bf16", "interp"),
        _ratio("interp-bf16", "interp"),
        at_least=1.3,
        of_rates=True,
    ),
    Bar(
        "FVU, bfloat16 to float32",
        ("interp-bf16", "interp"),
        lambda results: quality(results, "interp-bf16", "fvu") / quality(results, "interp", "fvu"),
        at_most=FVU_TOLERANCE,
    ),
    Bar(
        "four hook points, to sparsify",
        ("interp-4", "sparsify-4"),
        _ratio("interp-4", "sparsify-4"),
        at_least=1.2,
        of_rates=True,
    ),
    Bar(
        "four hook points, to SAELens",
        ("interp-4", "saelens-4"),
        _ratio("interp-4", "saelens-4"),
        at_least=3.0,
        of_rates=True,
    ),
    Bar(
        "steady tokens/s, streamed to colocated",
        ("interp-streamed", "interp-colocated"),
        _ratio("interp-streamed", "interp-colocated", "steady_tokens_per_s"),
        at_least=0.85,
        of_rates=True,
    ),
    Bar("harvest to the bare early-stopped forward", ("harvest",), _harvest, at_least=0.9),
)


def judge(results: Results) -> dict[str, dict[str, Any]]:
    """Every bar whose contenders were all chosen."""
    return {bar.name: bar.judge(results) for bar in BARS if all(name in results for name in bar.needs)}


_COLUMNS = (
    "tokens/s",
    "to sparsify",
    "to SAELens",
    "per CPU-s",
    "MiB",
    "long tok/s",
    "FVU",
    "L0",
    "dead",
    "CE rec.",
)


def table(results: Results) -> str:
    """A line for each contender; ratios are to the peer with as many hook points."""
    lines = [f"{'':<22}" + "".join(f"{column:>12}" for column in _COLUMNS)]
    for name, found in results.items():
        suffix = "-4" if name.endswith("-4") else ""
        cells = [
            _cell(lambda name=name: f"{rate(results, name):,.0f}"),
            *(
                _cell(lambda name=name, peer=peer: f"{rate(results, name) / rate(results, peer):.2f}")
                for peer in (f"sparsify{suffix}", f"saelens{suffix}")
            ),
            _cell(lambda name=name: f"{rate(results, name, 'tokens_per_cpu_s'):,.0f}"),
            _cell(lambda name=name: f"{rate(results, name, 'peak_mib'):,.0f}"),
            _cell(lambda found=found: f"{found['long']['tokens_per_s']:,.0f}"),
            *(
                _cell(lambda found=found, figure=figure, form=form: format(found["quality"][figure], form))
                for figure, form in (("fvu", ".4f"), ("l0", ".1f"), ("dead", ".3f"), ("ce_recovered", ".4f"))
            ),
        ]
        failed = f"   failed: {found['error'].splitlines()[-1][:80]}" if "error" in found else ""
        lines.append(f"{name:<22}" + "".join(f"{cell:>12}" for cell in cells) + failed)
    return "\n".join(lines)


def _cell(value: Callable[[], str]) -> str:
    try:
        return value()
    except (NotMeasured, KeyError):
        return "-"
