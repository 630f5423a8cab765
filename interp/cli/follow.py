"""`interp logs`: a run's log, now or as it comes. Reading it never touches the run."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from interp.cli.console import FAILED, print_line
from interp.cli.site import ProfileOption, Run, StoreOption, open_site
from interp.cluster.logs import RunLog

if TYPE_CHECKING:
    from interp.cluster.client import Cluster

INTERRUPTED = 130


def logs(
    run: Run,
    follow: Annotated[
        bool, typer.Option("-f", "--follow", help="until the run has ended; ctrl-C leaves it running")
    ] = False,
    tail: Annotated[
        int | None, typer.Option("--tail", min=0, metavar="N", help="only the last lines of so far")
    ] = None,
    profile: ProfileOption = None,
    store: StoreOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON, an object a line")] = False,
) -> None:
    """Show the log of a run: from its pod, and from the store once that is gone. A cut connection loses no line.

    Exit codes: 0; 1 no line was found, and a place to look could not be read; with -f 0 when the run succeeds and 1
    when it does not; 130 interrupted (the run goes on).
    """
    site = open_site(profile, store)
    name, _, url = site.find(run)
    if follow:
        return follow_run(name, site.cluster, url, tail=tail, as_json=as_json)
    log, shown = RunLog(name, site.cluster, url, _tell), False
    for line in log.so_far(tail):
        _show(line, as_json)
        shown = True
    if not shown and tail != 0:
        _tell(f"no log was found: interp status {name} says how the run is")
        if log.unread:
            raise typer.Exit(FAILED)


def follow_run(
    run: str, cluster: Cluster | None, store: str | None, *, tail: int | None = None, as_json: bool = False
) -> None:
    """Show a log until its run has ended, and leave with the run's exit code."""
    log = RunLog(run, cluster, store, _tell)
    try:
        for line in log.follow(tail):
            _show(line, as_json)
    except KeyboardInterrupt:
        _tell(f"the run goes on: interp logs {run} -f")
        raise typer.Exit(INTERRUPTED) from None
    state = log.state()
    phase = "unknown" if state is None else state.phase
    if as_json:
        print_line(json.dumps({"run": run, "phase": phase}))
    else:
        _tell(f"{run}: {phase}")
    if phase != "succeeded":
        if not as_json:
            _tell(f"interp status {run} says why")
        raise typer.Exit(FAILED)


def _show(line: str, as_json: bool) -> None:
    print_line(json.dumps({"line": line}, ensure_ascii=False) if as_json else line)
    sys.stdout.flush()


def _tell(text: str) -> None:
    sys.stderr.write(f"interp: {text}\n")
