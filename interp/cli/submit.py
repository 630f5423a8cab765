"""`interp submit`, `interp resume`, `interp cancel`: a study, on a cluster.

Exit codes: 0 done (also: it runs already, all is cached, it had ended); 1 failed, or the run has ended and must be
resumed; 2 the study, the profile or the command line must change; with --follow, 1 also when the run fails.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from platform import python_version
from typing import TYPE_CHECKING, Annotated

import typer

from interp.cli.console import FAILED, print_json, print_line
from interp.cli.site import AsJson, ProfileOption, Run, StoreOption, known_store, open_site
from interp.cluster import control, profiles
from interp.cluster.client import Cluster
from interp.cluster.fits import require_fit
from interp.cluster.render import dump_yaml, render
from interp.plan import make_plan
from interp.sources.revision import STDLIB
from interp.spec.loading import load_study
from interp.store import Store

if TYPE_CHECKING:
    from interp.cluster.control import Done
    from interp.plan import Plan

StudyFile = Annotated[Path, typer.Argument(metavar="STUDY", help="a study in YAML")]
Follow = Annotated[bool, typer.Option("--follow", help="then show its log until it ends; ctrl-C leaves it running")]

RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", help="trace prompts again that failed by no fault of their own")
]


def submit(
    study: StudyFile,
    profile: ProfileOption = None,
    store: Annotated[str | None, typer.Option("--store", metavar="URL", help="another store than the study's")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print what would be sent, and write nothing anywhere")
    ] = False,
    follow: Follow = False,
    retry_failed: RetryFailed = False,
    as_json: AsJson = False,
) -> None:
    """Run a study on the cluster of a profile. Submitting it twice is one run.

    Exit codes: 0 submitted, running already, or all is cached; 1 failed, or the run has ended before its time (see
    interp resume); 2 the study, the profile or the command line must change.
    """
    plan, opened = _planned(study, store)
    run = control.name_of_run(plan, opened)
    if not dry_run and control.is_cached(plan, retry_failed):
        return _tell(control.Done(run, "cached", "succeeded", opened.url), as_json)
    chosen = profiles.load_profile(profile)
    require_fit(plan, chosen)
    _tell_of_own_python(plan)
    if dry_run:
        manifest = render(run, plan, chosen, retry_failed=retry_failed)
        return print_json(manifest) if as_json else print_line(dump_yaml(manifest).rstrip())
    cluster = Cluster.open(chosen.context, chosen.namespace)
    done = control.submit(plan, chosen, cluster, opened, retry_failed=retry_failed)
    _tell(done, as_json, following=follow)
    if done.outcome == "ended":
        raise typer.Exit(FAILED)
    if follow:
        _follow(done, cluster, as_json)


def resume(
    run: Run,
    profile: ProfileOption = None,
    study: Annotated[
        Path | None,
        typer.Option("--study", help="with the study's settings as they are now: workers, batches, actors"),
    ] = None,
    store: StoreOption = None,
    follow: Follow = False,
    retry_failed: RetryFailed = False,
    as_json: AsJson = False,
) -> None:
    """Start a run again that failed, was cancelled or was lost. What is finished is not done again.

    It has the plan that it was submitted with, and that profile unless another is named. Exit codes: 0 resumed, or
    nothing was left to do; 1 failed, or it has not ended; 2 the profile or the study must change.
    """
    site = open_site(profile, store, needs_cluster=True)
    name, _, url = site.find(run)
    opened = Store.open(known_store(name, url))
    chosen = None if profile is None else profiles.load_profile(profile)
    plan = None if study is None else _planned(study, opened.url)[0]
    done = control.resume(
        name, site.required_cluster, opened, profile=chosen, study_plan=plan, retry_failed=retry_failed
    )
    _tell(done, as_json, following=follow)
    if follow and done.outcome != "cached":
        _follow(done, site.required_cluster, as_json)


def cancel(
    run: Run,
    profile: ProfileOption = None,
    store: StoreOption = None,
    wait: Annotated[
        float, typer.Option("--wait", min=0, metavar="SECONDS", help="at most, for the driver to keep a checkpoint")
    ] = control.CHECKPOINT_WITHIN_S,
    as_json: AsJson = False,
) -> None:
    """Stop a run. What is finished stays, and so does a checkpoint: interp resume goes on from there.

    Of a run that has ended the RayJob is removed, which otherwise stays; its folder in the store is kept.

    Exit codes: 0 cancelled, or it had ended before; 1 failed; 2 there is no such profile.
    """
    site = open_site(profile, store, needs_cluster=True)
    name, _, url = site.find(run)
    _tell(control.cancel(name, site.required_cluster, None if url is None else Store.open(url), wait=wait), as_json)


def _planned(study: Path, store: str | None) -> tuple[Plan, Store]:
    """The plan says which store it is in: that is where the pods look."""
    loaded = load_study(study)
    opened = Store.open(store or loaded.store)
    return make_plan(loaded.model_copy(update={"store": opened.url}), opened), opened


def _tell_of_own_python(plan: Plan) -> None:
    """The one source that this machine and the pods may have in two versions; the driver refuses another one."""
    corpus = plan.stage("corpus")
    if corpus is not None and not corpus.cached and plan.study.required_corpus.source == STDLIB:
        sys.stderr.write(
            f"interp: {STDLIB} is the library of each machine's own Python: the image must have {python_version()}, "
            "as here, or the driver refuses the run\n"
        )


def _follow(done: Done, cluster: Cluster, as_json: bool) -> None:
    from interp.cli.follow import follow_run

    follow_run(done.run, cluster, done.store, as_json=as_json)


def _tell(done: Done, as_json: bool, *, following: bool = False) -> None:
    if as_json:
        # Before lines of a log, each a JSON object, this is one too.
        return print_line(json.dumps(asdict(done), ensure_ascii=False)) if following else print_json(asdict(done))
    run = done.run
    print_line(
        {
            "submitted": f"{run}: submitted",
            "resumed": f"{run}: resumed; what is finished is not done again",
            "already running": f"{run}: already running ({done.phase})",
            "cached": f"{run}: everything is cached in {done.store}; nothing is submitted",
            "cancelled": f"{run}: cancelled; what is finished and the last checkpoint stay in {done.store}",
            "ended": f"{run}: has ended before ({done.phase})",
        }[done.outcome]
    )
    if done.note:
        print_line(f"  {done.note}")
    if done.outcome in ("submitted", "resumed", "already running"):
        print_line(f"  interp status {run}\n  interp logs {run} -f")
    elif done.outcome in ("cancelled", "ended") and done.phase != "succeeded":
        # Its RayJob may be gone, and with it what says where the store is.
        print_line(f"  interp resume {run} --store {done.store}   goes on with it")
