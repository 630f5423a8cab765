"""A run as a terminal shows it: a live bar for the stage that is running, and a line for each that is done.

Where there is no terminal (a log, a pipe), a line every few seconds says the same.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from interp.cli.console import human, human_time

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from interp.errors import LockHeld
    from interp.plan import PlannedStage
    from interp.stages.runner import StageSummary

LOG_EVERY_S = 5.0
_SHOWN = ("fvu", "l0", "dead", "failed", "ce_recovered")


def figures_text(figures: Mapping[str, Any], names: tuple[str, ...] = _SHOWN) -> str:
    """`fvu 0.213  l0 16  dead 0.02`: those of the figures that are there."""
    parts = []
    for name in names:
        value = figures.get(name)
        if isinstance(value, int | float) and not (name == "failed" and not value):
            parts.append(f"{name} {value:.3g}")
    return "  ".join(parts)


def rate_text(figures: Mapping[str, Any]) -> str:
    """`400K/400K tokens  12.3K tokens/s`, `137/2000 prompts  0.52 prompts/s  2 actors`"""
    unit = figures.get("unit", "")
    text = ""
    if figures.get("total"):
        text = f"{_count(figures.get('done', 0))}/{_count(figures['total'])} {unit}"
    if figures.get("rate"):
        text += f"  {human(figures['rate'])} {unit}/s"
    if figures.get("actors"):
        text += f"  {figures['actors']} actor{'s' if figures['actors'] > 1 else ''}"
    return text


def left_text(figures: Mapping[str, Any]) -> str:
    """`59 min left`, at the rate of now."""
    done, total, rate = figures.get("done", 0), figures.get("total"), figures.get("rate")
    return f"{human_time((total - done) / rate)} left" if total and rate and total > done else ""


def _count(n: float) -> str:
    """Of prompts every one counts; of tokens three digits do."""
    return str(n) if n < 10_000 else human(n)


class LogWatcher:
    """One line every few seconds, on stderr."""

    def __init__(self) -> None:
        self._last = 0.0

    def began(self, stage: PlannedStage) -> None:
        self._last = 0.0
        _say(f"{stage.stage}: begins ({stage.key[:12]})")

    def progressed(self, stage: PlannedStage, step: str, figures: Mapping[str, Any]) -> None:
        if time.monotonic() - self._last >= LOG_EVERY_S:
            self._last = time.monotonic()
            told = (rate_text(figures), left_text(figures), figures_text(figures))
            _say("  ".join([f"{stage.stage}: {step}", *(text for text in told if text)]))

    def waits(self, stage: PlannedStage, held: LockHeld) -> None:
        self.progressed(stage, f"waiting: {held.what} ({held.value})", {})

    def ended(self, summary: StageSummary) -> None:
        _say(f"{summary.stage}: " + ("cached" if summary.cached else f"done in {summary.seconds:.1f} s"))

    def close(self) -> None: ...


class BarWatcher:
    """A bar for the stage that runs."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._bars: Progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.fields[name]:<9}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[rate]}"),
            TextColumn("{task.fields[figures]}", style="cyan"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=Console(stderr=True),
        )
        self._task: TaskID | None = None
        self._bars.start()

    def began(self, stage: PlannedStage) -> None:
        self._task = self._bars.add_task("", total=None, name=stage.stage, rate="", figures="", left="")

    def progressed(self, stage: PlannedStage, step: str, figures: Mapping[str, Any]) -> None:
        if self._task is not None:
            self._bars.update(
                self._task,
                completed=figures.get("done", 0),
                total=figures.get("total"),
                rate=rate_text(figures) or step,
                figures=figures_text(figures),
                left=left_text(figures),
            )

    def waits(self, stage: PlannedStage, held: LockHeld) -> None:
        self._bars.console.print(f"{stage.stage:<9} waiting: {held.what} ({held.value})", highlight=False)

    def ended(self, summary: StageSummary) -> None:
        if self._task is not None:
            self._bars.remove_task(self._task)
            self._task = None
        state = "cached" if summary.cached else f"done in {summary.seconds:.1f} s"
        self._bars.console.print(f"{summary.stage:<9} {state}", highlight=False)

    def close(self) -> None:
        self._bars.stop()


def open_watcher(quiet: bool) -> LogWatcher | BarWatcher | None:
    """What suits the place that stderr goes to; None when nothing is wanted."""
    if quiet:
        return None
    return BarWatcher() if sys.stderr.isatty() else LogWatcher()


def _say(line: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {line}\n")
    sys.stderr.flush()
