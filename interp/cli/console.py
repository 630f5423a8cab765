"""What commands print, and how: tables for people, JSON for programs, errors on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from interp.errors import HookError, InterpError, SpecError

FAILED, BAD_INPUT = 1, 2


def exit_code(error: InterpError) -> int:
    """2 where the study or the command line must change, 1 for any other failure."""
    return BAD_INPUT if isinstance(error, (SpecError, HookError)) else FAILED


def report(error: InterpError, *, as_json: bool = False) -> None:
    """An error as text on stderr, or as JSON on stdout."""
    if as_json:
        print_json({"error": error_json(error)})
    else:
        sys.stderr.write(f"error: {error}\n")


def error_json(error: InterpError) -> dict[str, Any]:
    """`problems` has those of a study file, each with its line and path."""
    problems = getattr(error, "problems", None)
    return {
        "kind": type(error).__name__,
        "message": str(error),
        **({} if problems is None else {"problems": [problem.to_json() for problem in problems]}),
    }


def print_json(data: Any) -> None:
    """JSON on stdout."""
    print_line(json.dumps(data, indent=2, ensure_ascii=False))


def print_line(text: str = "") -> None:
    """A line on stdout, as it is."""
    sys.stdout.write(f"{text}\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = ()) -> None:
    """A table on stdout; the columns named in `right` are set flush right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        # On a narrow terminal the last column takes several lines.
        wraps = column == columns[-1]
        table.add_column(column, justify="right" if column in right else "left", no_wrap=not wraps, overflow="fold")
    for row in rows:
        table.add_row(*row)
    terminal = sys.stdout.isatty()
    # A table that goes into a file or a pipe is as wide as it needs to be.
    console = Console(markup=False, highlight=False, width=None if terminal else 1000)
    console.print(table)


def human(count: float) -> str:
    """`200M`, `1.23G`, `4.5P`: three digits and a power of 1000."""
    return _scaled(count, 1000, ("", "K", "M", "G", "T", "P", "E"))


def human_bytes(count: float) -> str:
    """`64 MiB`: three digits and a power of 1024."""
    return _scaled(count, 1024, (" B", " KiB", " MiB", " GiB", " TiB", " PiB", " EiB"))


def human_time(seconds: float) -> str:
    """`40 s`, `12 min`, `3 h 05 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def _scaled(count: float, base: int, units: Sequence[str]) -> str:
    if count == 0:
        return "-"
    power = 0
    while count >= 999.5 and power + 1 < len(units):
        count, power = count / base, power + 1
    return f"{count:.3g}{units[power]}"
