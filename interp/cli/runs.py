"""`interp status`, `interp list`, `interp diff`: how runs are, which there are, and what one was made of."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from interp.cli.console import FAILED, human_time, print_json, print_line, print_table
from interp.cli.site import AsJson, ProfileOption, Run, Site, StoreOption, known_store, open_site
from interp.cli.watch import figures_text, left_text, rate_text
from interp.cluster.control import plan_of
from interp.cluster.diff import Difference, Field, difference
from interp.cluster.facts import time_of
from interp.cluster.look import look
from interp.cluster.runs import jobs_of, listed
from interp.cluster.state import RunState, StageState

StudyFile = Annotated[Path, typer.Argument(metavar="STUDY", help="a study in YAML")]

WATCH_EVERY_S = 2.0
_KEY_SHOWN = 12
_LONGEST = 60


def status(
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="its name, or the first characters of it; default: the newest")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="until the run has ended; ctrl-C leaves it running")] = False,
    profile: ProfileOption = None,
    store: StoreOption = None,
    as_json: AsJson = False,
) -> None:
    """Show how a run is: a line a stage, and where it waits or failed, why, and what to do.

    Exit codes: 0 told; with --watch 0 when the run succeeds and 1 when it does not; 1 there is no such run; 130
    interrupted (the run goes on).
    """
    site = open_site(profile, store)
    name, _, url = site.find(run)
    if watch:
        return _watch(name, site, url, as_json)
    state = look(name, site.cluster, url, site.unreachable)
    print_json(state.to_json()) if as_json else print_line("\n".join(status_lines(state)))


def list_runs(
    every: Annotated[
        bool, typer.Option("--all", help="also runs whose RayJob is gone; needs --store, unless a RayJob is there")
    ] = False,
    profile: ProfileOption = None,
    store: StoreOption = None,
    as_json: AsJson = False,
) -> None:
    """List runs, the newest first: those whose RayJob is in the namespace, with --all those of the store too.

    Exit codes: 0 listed; 1 neither the cluster nor a store can be reached.
    """
    site = open_site(profile, store)
    states = _listed(site, every)
    if as_json:
        return print_json([_summary(state) for state in states])
    if site.unreachable:
        print_line(f"from the store alone: {site.unreachable}")
    if not states:
        where = "the store" if site.cluster is None else f"namespace {site.cluster.namespace}"
        more = f", nor in {site.store}" if every and site.store else ""
        remedy = "" if more else "; --all --store URL also shows those whose RayJob is gone"
        return print_line(f"no runs in {where}{more}{remedy}")
    columns = ("run", "phase", "stage", "submitted", "study")
    print_table(columns, [_row(state) for state in states])


def diff(
    study: StudyFile,
    run: Run,
    profile: ProfileOption = None,
    store: StoreOption = None,
    as_json: AsJson = False,
) -> None:
    """Show what differs between a study as it is now and a run: stages by key, and the fields that make them differ.

    Settings that change no result are shown where all keys are equal. Exit codes: 0 the study makes what the run makes;
    1 it does not, or the run was not found; 2 the study must change.
    """
    from interp.plan import make_plan
    from interp.spec.loading import load_study
    from interp.store import Store
    from interp.store.runs import RunFolder

    loaded = load_study(study)
    # In its own store a run of this name is found without a cluster.
    name, url = run, next((url for url in (store, loaded.store) if url and _is_there(url, run)), None)
    if url is None:
        site = open_site(profile, store or loaded.store)
        name, _, found = site.find(run)
        url = known_store(name, found)
    opened = Store.open(url)
    then = plan_of(RunFolder(opened, name))
    now = make_plan(loaded.model_copy(update={"store": opened.url}), opened)
    found_out = difference(now, then)
    print_json({"run": name, **found_out.to_json()}) if as_json else _print_difference(found_out, name)
    if found_out.stages:
        raise typer.Exit(FAILED)


def status_lines(state: RunState) -> list[str]:
    """What `status` prints."""
    told = [f"KubeRay: {state.told}"] if state.told else []
    told += [f"attempt {state.attempt}"] if state.attempt > 1 else []
    told += [f"heard of {_ago(state.updated)}"] if state.updated and not state.ended else []
    lines = [f"{state.run}  {state.phase}" + (f"  ({', '.join(told)})" if told else "")]
    if state.reason is not None:
        lines += [f"  {state.reason.what}", f"    {state.reason.why}", f"  next: {state.reason.next_step}"]
    elif state.phase in ("cancelled", "gone", "failed"):
        lines.append(f"  next: interp resume {state.run}" + (f" --store {state.store}" if state.store else ""))
    elif state.phase == "unsubmitted":
        lines.append("  next: submit the study again; its folder in the store will be used")
    return [*lines, *_aligned([_stage_columns(stage) for stage in state.stages])]


def _stage_columns(stage: StageState) -> tuple[str, ...]:
    running = stage.state == "running"
    how_far = (rate_text(stage.figures) or stage.step) if running or stage.state == "failed" else ""
    figures = "  ".join(
        text for text in (figures_text(stage.figures), left_text(stage.figures) if running else "") if text
    )
    return stage.stage, stage.state, how_far, figures, human_time(stage.seconds) if stage.seconds else ""


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = ("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True) if width) for row in rows)
    return [f"  {line}".rstrip() for line in padded]


def _watch(name: str, site: Site, url: str | None, as_json: bool) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    shown = ""
    live = Live(console=Console(), auto_refresh=False) if Console().is_terminal and not as_json else None
    try:
        if live is not None:
            live.start()
        while True:
            state = look(name, site.cluster, url, site.unreachable)
            text = json.dumps(state.to_json(), ensure_ascii=False) if as_json else "\n".join(status_lines(state))
            if live is not None:
                live.update(Text(text), refresh=True)
            elif text != shown:
                print_line(text)
            shown = text
            if state.ended:
                break
            time.sleep(WATCH_EVERY_S)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    finally:
        if live is not None:
            live.stop()
    if state.phase != "succeeded":
        raise typer.Exit(FAILED)


def _listed(site: Site, every: bool) -> list[RunState]:
    jobs = jobs_of(site.cluster)
    return listed(jobs, site.store, every=every or site.cluster is None, unreachable=site.unreachable)


def _row(state: RunState) -> tuple[str, ...]:
    at = next((stage for stage in state.stages if stage.state in ("running", "failed")), None)
    where = "" if at is None else f"{at.stage} {rate_text(at.figures) or at.step}".strip()
    return state.run, state.phase, where, state.submitted[:19], state.study


def _summary(state: RunState) -> dict[str, Any]:
    names = ("run", "study", "phase", "ended", "submitted", "updated", "namespace", "store", "stages")
    whole = state.to_json()
    return {name: whole[name] for name in names}


def _ago(text: str) -> str:
    then = time_of(text)
    return text if then is None else f"{human_time(max(0.0, (datetime.now(UTC) - then).total_seconds()))} ago"


def _is_there(url: str, run: str) -> bool:
    from interp.store import Store
    from interp.store.runs import RunFolder

    return RunFolder(Store.open(url), run).text("plan.json") is not None


def _print_difference(found: Difference, run: str) -> None:
    for stage in found.stages:
        now, then = ((key or "(no such stage)")[:_KEY_SHOWN] for key in (stage.now, stage.then))
        print_line(f"{stage.stage}: the run has {then}, the study {now}")
        for field in stage.fields if stage.now and stage.then else ():
            print_line(f"  {_field(field)}")
    if not found.stages:
        print_line(f"the study makes what {run} makes")
    if found.settings:
        print_line("settings that change no result:")
        for field in found.settings:
            print_line(f"  {_field(field)}")


def _field(field: Field) -> str:
    then, now = (_short(value) for value in (field.then, field.now))
    return f"{field.path}: {then} -> {now}"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
