"""Submit, resume and cancel: the few writes that a run on a cluster takes, in an order that leaves nothing half done.

    submit   plan.json, run.json, then the RayJob: whatever fails between, a second submit finds the folder and goes on
    resume   the old RayJob goes, then a new run.json (its token tells the new driver's word from the old one's), then
             the RayJob, from plan.json
    cancel   cancel.json, which asks the driver (of that token) to keep a checkpoint and stop; then the RayJob goes

The RayJob's name is the run's, and the API creates a name once: of two who submit, one makes it and the other is told.
"""

from __future__ import annotations

import getpass
import json
import platform
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from interp.cluster.client_errors import AlreadyThere
from interp.cluster.facts import time_of
from interp.cluster.fits import require_fit
from interp.cluster.look import glance
from interp.cluster.naming import run_name
from interp.cluster.profile import Profile
from interp.cluster.render import render
from interp.cluster.state import SILENT_S, Phase
from interp.errors import ClusterError, SpecError, StoreError
from interp.plan.plan import Plan
from interp.store.runs import RunFolder
from interp.version import __version__

if TYPE_CHECKING:
    from interp.cluster.client import Cluster
    from interp.store import Store

Outcome = Literal["submitted", "resumed", "already running", "cached", "ended", "cancelled"]

GONE_WITHIN_S = 180.0
"""A removed RayJob keeps its name until its pods have stopped, which a driver that keeps a checkpoint may delay."""

CHECKPOINT_WITHIN_S = 45.0
"""For the driver to see that it is to stop (3 s), finish a step, keep a checkpoint and write its last words."""

_EVERY_S = 0.25


@dataclass(frozen=True)
class Done:
    """What a command came to.

    Attributes:
        phase: of the run before the command; of what was submitted or cancelled, after it.
        note: what else the reader should know.
    """

    run: str
    outcome: Outcome
    phase: Phase
    store: str
    note: str = ""


def name_of_run(plan: Plan, store: Store) -> str:
    return run_name(plan.study.metadata.name, (stage.key for stage in plan.stages), store.url)


def is_cached(plan: Plan, retry_failed: bool) -> bool:
    """Whether there is nothing to submit."""
    return not plan.to_do and not retry_failed


def submit(plan: Plan, profile: Profile, cluster: Cluster, store: Store, *, retry_failed: bool = False) -> Done:
    """Make the run of a plan, unless it is there.

    Raises:
        ClusterError, StoreError: it could not be made; submitting again goes on.
    """
    run = name_of_run(plan, store)
    job = cluster.job(run)
    state = glance(run, job, store.url)
    if not state.ended and state.phase != "stopping":
        return Done(run, "already running", state.phase, store.url)
    if state.phase in ("stopping", "failed", "cancelled", "gone"):
        return Done(run, "ended", state.phase, store.url, note=_settings_note(plan, RunFolder(store, run)))
    if job is not None:  # it succeeded, and what it made is gone or is to be tried again
        _remove(cluster, run)
    made = _create(run, plan, profile, cluster, RunFolder(store, run), retry_failed, anew=state.phase != "unsubmitted")
    return Done(run, "submitted" if made else "already running", "starting", store.url)


def resume(
    run: str, cluster: Cluster, store: Store, *, profile: Profile | None = None, study_plan: Plan | None = None
) -> Done:
    """Start a run again that has ended before its time.

    Args:
        profile: another than the one it was submitted with.
        study_plan: of the study as it is now; it may differ in settings that change no result.

    Raises:
        ClusterError: it runs, or could not be made.
        SpecError: the study makes another run.
    """
    folder = RunFolder(store, run)
    plan = plan_of(folder) if study_plan is None else _same_run(run, study_plan, store)
    record = folder.json("run.json") or {}
    chosen = profile or profile_of(record)
    _require_namespace(chosen, cluster)
    job = cluster.job(run)
    state = glance(run, job, store.url)
    if not state.ended and state.phase != "stopping":
        raise ClusterError(
            f"run {run} has not ended: it is {state.phase}",
            remedy=f"interp status {run}; to start it anew, interp cancel {run} first",
        )
    retry = bool(record.get("retry_failed"))
    if not retry and _all_there(plan, store):
        return Done(run, "cached", "succeeded", store.url)
    require_fit(plan, chosen)
    if job is not None:
        _remove(cluster, run)
    made = _create(run, plan, chosen, cluster, folder, retry, anew=True)
    return Done(run, "resumed" if made else "already running", "starting", store.url)


def cancel(run: str, cluster: Cluster, store: Store | None, *, wait: float = CHECKPOINT_WITHIN_S) -> Done:
    """Stop a run; what is finished and the last checkpoint stay. A run that has ended is left as it is.

    Args:
        store: None where it cannot be reached; then the driver is told by its pod's end alone.
        wait: seconds for the driver to stop by itself before its pods are.
    """
    job = cluster.job(run)
    state = glance(run, job, None if store is None else store.url)
    url = state.store or ""
    if state.ended:
        return Done(run, "ended", state.phase, url)
    note = ""
    if store is not None:
        try:
            _ask_to_stop(RunFolder(store, run), wait)
        except StoreError as error:
            note = f"the store could not be told, and the run will look as if it was removed: {error.what}"
    cluster.delete_job(run)
    return Done(run, "cancelled", "cancelled", url, note)


def plan_of(folder: RunFolder) -> Plan:
    """The plan of a run.

    Raises:
        ArtifactMissing: there is no such run in the store.
    """
    return Plan.from_json(folder.required_text("plan.json"))


def profile_of(record: dict[str, Any]) -> Profile:
    """The profile that a run was submitted with.

    Raises:
        SpecError: run.json does not say, or this version does not understand it.
    """
    try:
        return Profile.model_validate(record["profile"])
    except (KeyError, ValidationError) as error:
        raise SpecError(
            f"run.json of this run has no profile that can be used: {error}", remedy="name one with --profile"
        ) from error


def _create(
    run: str, plan: Plan, profile: Profile, cluster: Cluster, folder: RunFolder, retry_failed: bool, *, anew: bool
) -> bool:
    """Write the folder, then the RayJob. False: somebody else made it in the meantime.

    Args:
        anew: drivers of this run have spoken before; a new token tells theirs from what comes.
    """
    manifest = render(run, plan, profile, retry_failed=retry_failed)
    record = _record(run, plan, profile, retry_failed)
    document = json.loads(plan.to_json())
    if folder.text("plan.json") is None or anew:
        folder.write_json("plan.json", document)
    if anew:
        folder.write_json("run.json", record)
    else:
        folder.create_json("run.json", record)
    try:
        cluster.create_job(manifest)
    except AlreadyThere:
        return False
    except ClusterError as error:
        if not _arrived(run, cluster):
            raise ClusterError(
                f"run {run} could not be made: {error.what}",
                value=error.value,
                expected=error.expected,
                remedy=f"{error.remedy or 'see that the API answers'}. Then submit it again: its folder in the store "
                "is there and will be used",
            ) from error
    # Who made the RayJob has the say; the token stays, for its driver may have read it.
    kept = folder.json("run.json") or record
    if kept != record:
        folder.write_json("run.json", {**record, "token": kept.get("token", record["token"])})
    if folder.json("plan.json") != document:
        folder.write_json("plan.json", document)
    return True


def _arrived(run: str, cluster: Cluster) -> bool:
    """Whether a request whose answer was lost was carried out."""
    try:
        return cluster.job(run) is not None
    except ClusterError:
        return False


def _remove(cluster: Cluster, run: str) -> None:
    """Raises ClusterError when a RayJob that was removed does not go."""
    cluster.delete_job(run)
    until = time.monotonic() + GONE_WITHIN_S
    while cluster.job(run) is not None:
        if time.monotonic() > until:
            raise ClusterError(
                f"the old RayJob {run} does not go",
                value=f"removed {GONE_WITHIN_S:.0f} s ago",
                remedy=f"kubectl describe rayjob {run}: a finalizer may wait for an operator that is not there",
            )
        time.sleep(_EVERY_S)


def _ask_to_stop(folder: RunFolder, wait: float) -> None:
    """Wait until the driver has kept its checkpoint, if there is one that lives."""
    token = (folder.json("run.json") or {}).get("token")
    folder.write_json("cancel.json", {"at": _now(), "by": _who(), **({"token": token} if token else {})})
    until = time.monotonic() + wait
    while time.monotonic() < until:
        status = folder.json("status.json")
        if status is None or status.get("state") != "running" or _is_silent(status):
            return
        time.sleep(_EVERY_S)


def _is_silent(status: dict[str, Any]) -> bool:
    said = time_of(status.get("updated"))
    return said is None or (datetime.now(UTC) - said).total_seconds() > SILENT_S


def _record(run: str, plan: Plan, profile: Profile, retry_failed: bool) -> dict[str, Any]:
    return {
        "run": run,
        "study": plan.study.metadata.name,
        "submitted": _now(),
        "by": _who(),
        "interp": __version__,
        "token": uuid.uuid4().hex,
        "profile": profile.model_dump_file(),
        "namespace": profile.namespace,
        "context": profile.context,
        "stages": [{"stage": stage.stage, "key": stage.key, "cached": stage.cached} for stage in plan.stages],
        "retry_failed": retry_failed,
    }


def _same_run(run: str, plan: Plan, store: Store) -> Plan:
    if (other := name_of_run(plan, store)) != run:
        raise SpecError(
            "the study does not make this run any more: what it computes, or its name, has changed",
            value=other,
            expected=run,
            remedy=f"interp diff STUDY {run} shows what differs; submit the study as a run of its own",
        )
    return plan


def _require_namespace(profile: Profile, cluster: Cluster) -> None:
    if profile.namespace != cluster.namespace:
        raise SpecError(
            "the run was submitted to another namespace than the one that is looked into",
            value=cluster.namespace,
            expected=profile.namespace,
            remedy="name its profile, or the one that it is to run by now: --profile",
        )


def _settings_note(plan: Plan, folder: RunFolder) -> str:
    """A study that was changed in what changes no result is still the same run, and resume takes the run's plan."""
    text = folder.text("plan.json")
    if text is None or Plan.from_json(text).study == plan.study:
        return ""
    return "the study's settings have changed since; add `--study STUDY` to resume with them"


def _all_there(plan: Plan, store: Store) -> bool:
    there = {stage.key for stage in plan.stages if store.has(stage.stage, stage.key)}
    return all(stage.key in there or not plan.is_needed(stage, lambda r: r.key in there) for stage in plan.stages)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in some containers
        user = "unknown"
    return f"{user}@{platform.node()}"
