"""How far a run is, as a log and as a bar say it."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from interp.cli.console import human_time
from interp.cli.watch import BarWatcher, LogWatcher, figures_text, left_text, rate_text

STAGE: Any = SimpleNamespace(stage="trace", key="0123456789abcdef")
FIGURES = {"done": 137, "total": 2000, "unit": "prompts", "rate": 0.525, "actors": 2, "failed": 3}


def test_prompts_are_counted_one_by_one_and_tokens_roughly() -> None:
    assert rate_text(FIGURES) == "137/2000 prompts  0.525 prompts/s  2 actors"
    assert left_text(FIGURES) == "59 min left" and figures_text(FIGURES) == "failed 3"
    tokens = {"done": 400_000, "total": 1_500_000, "unit": "tokens", "rate": 12_300.0, "fvu": 0.2134}
    assert rate_text(tokens) == "400K/1.5M tokens  12.3K tokens/s"
    assert (left_text(tokens), figures_text(tokens)) == ("89 s left", "fvu 0.213")
    first = {"done": 1, "total": 2000, "unit": "prompts", "rate": None, "actors": 1, "failed": 0}
    assert (rate_text(first), left_text(first), figures_text(first)) == ("1/2000 prompts  1 actor", "", "")
    assert left_text({**FIGURES, "done": 2000}) == ""


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (99, "99 s"), (100, "2 min"), (5950, "99 min")])
def test_times(seconds: float, text: str) -> None:
    assert human_time(seconds) == text
    assert human_time(11_100) == "3 h 05 min"


def test_a_log_has_a_line_every_few_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    watcher = LogWatcher()
    watcher.began(STAGE)
    for done in (137, 138):
        watcher.progressed(STAGE, "trace", {**FIGURES, "done": done})
    begun, told, *more = capsys.readouterr().err.splitlines()
    assert begun.endswith("trace: begins (0123456789ab)") and not more
    assert told[9:] == "trace: trace  137/2000 prompts  0.525 prompts/s  2 actors  59 min left  failed 3"


def test_a_bar_says_the_same() -> None:
    watcher, screen = BarWatcher(), io.StringIO()
    try:
        watcher.began(STAGE)
        watcher.progressed(STAGE, "trace", FIGURES)
        Console(file=screen, width=160).print(watcher._bars.get_renderable())
    finally:
        watcher.close()
    for part in ("137/2000 prompts", "0.525 prompts/s", "2 actors", "59 min left", "failed 3"):
        assert part in screen.getvalue()
