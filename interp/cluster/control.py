"""Submit, resume and cancel: the few writes that a run on a cluster takes, in an order that leaves nothing half done.

    submit   plan.json, run.json, then the RayJob: whatever fails between, a second submit finds the folder and goes on
    resume   the old RayJob goes, then a new run.json (its token tells the new driver's word from the old one's), then
             the RayJob, from plan.json
    cancel   cancel.json, which asks the driver (of that token) to keep a checkpoint and stop; then the RayJob goes, as
             it does, without more, of a run that has ended

The RayJob's name is the run's, and the API creates a name once: of two who submit, one makes it and the other is told.
The token is an annotation of the RayJob too: of several who write the folder at the same time, what the RayJob's maker
wrote stays. It is removed by its uid, so that nobody removes what another has just made.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from interp.cluster.client_errors import AlreadyThere
from interp.cluster.facts import time_of
from interp.cluster.fits import require_fit
from interp.cluster.look import glance, judge
from interp.cluster.naming import run_name
from interp.cluster.profile import Profile
from interp.cluster.record import TOKEN_ANNOTATION, mark_cancelled, record_of
from interp.cluster.render import render
from interp.cluster.state import SILENT_S, Phase
from interp.errors import ClusterError, SpecError, StoreError
from interp.plan.plan import Plan
from interp.store.runs import RunFolder

if TYPE_CHECKING:
    from interp.cluster.client import Cluster
    from interp.store import Store

Outcome = Literal["submitted", "resumed", "already running", "cached", "ended", "cancelled"]

GONE_WITHIN_S = 180.0
"""A removed RayJob keeps its name until its pods have stopped, which a driver that keeps a checkpoint may delay."""

CHECKPOINT_WITHIN_S = 120.0
"""At most, for the driver to see that it is to stop (3 s), finish a step, keep a checkpoint and write its last words:
what is removed before is killed while it writes."""

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
    state, folder = judge(run, job, store), RunFolder(store, run)
    if not state.ended and state.phase != "stopping":
        note = _note(run, plan, profile, retry_failed, folder, f"once it has ended (or interp cancel {run}): ")
        return Done(run, "already running", state.phase, store.url, note)
    if state.phase in ("stopping", "failed", "cancelled", "gone"):
        note = _note(run, plan, profile, retry_failed, folder, "")
        return Done(run, "ended", state.phase, store.url, note)
    if job is not None and not _remove(cluster, run, job):  # it succeeded, and what it made is gone or is tried again
        return Done(run, "already running", "starting", store.url)
    made = _create(run, plan, profile, cluster, folder, retry_failed)
    return Done(run, "submitted" if made else "already running", "starting", store.url)


def resume(
    run: str,
    cluster: Cluster,
    store: Store,
    *,
    profile: Profile | None = None,
    study_plan: Plan | None = None,
    retry_failed: bool = False,
) -> Done:
    """Start a run again that has ended before its time.

    Args:
        profile: another than the one it was submitted with.
        study_plan: of the study as it is now; it may differ in settings that change no result.
        retry_failed: also where it was submitted without.

    Raises:
        ClusterError: it runs, or could not be made.
        SpecError: the study makes another run, or the run is of another cluster.
        StoreError: the store cannot be read, so nobody knows how the run is.
    """
    folder = RunFolder(store, run)
    plan = plan_of(folder) if study_plan is None else _same_run(run, study_plan, store)
    record = folder.json("run.json") or {}
    chosen = profile or profile_of(record)
    _require_namespace(chosen, cluster)
    job = cluster.job(run)
    state = judge(run, job, store)
    if job is None and state.phase != "cancelled":
        _require_place(run, record, cluster)
    if not state.ended and state.phase != "stopping":
        raise ClusterError(
            f"run {run} has not ended: it is {state.phase}",
            remedy=f"interp status {run}; to start it anew, interp cancel {run} first",
        )
    retry = retry_failed or bool(record.get("retry_failed"))
    if not retry and _all_there(plan, store):
        return Done(run, "cached", "succeeded", store.url)
    require_fit(plan, chosen)
    if job is not None and not _remove(cluster, run, job):
        return Done(run, "already running", "starting", store.url)
    made = _create(run, plan, chosen, cluster, folder, retry)
    return Done(run, "resumed" if made else "already running", "starting", store.url)


def cancel(run: str, cluster: Cluster, store: Store | None, *, wait: float = CHECKPOINT_WITHIN_S) -> Done:
    """Stop a run; what is finished and the last checkpoint stay. Of a run that has ended the RayJob is removed.

    Args:
        store: None where it cannot be reached; then the driver is told by its pod's end alone.
        wait: seconds at most for the driver to stop by itself before its pods are.

    Raises:
        StoreError: there is no RayJob, and the store cannot be read.
    """
    job, note = cluster.job(run), ""
    try:
        state = glance(run, job, None) if store is None else judge(run, job, store)
        url = state.store or ""
        if state.ended:
            return Done(run, "ended", state.phase, url, _clear(run, job, cluster, store))
        if store is not None:
            _ask_to_stop(RunFolder(store, run), wait)
    except StoreError as error:
        if job is None:
            raise
        note, url = f"the store could not be told, and the run will look as if it was removed: {error.what}", ""
    if job is not None:
        cluster.delete_job(run, uid=_uid(job))
    return Done(run, "cancelled", "cancelled", url or (store.url if store else ""), note)


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


def _create(run: str, plan: Plan, profile: Profile, cluster: Cluster, folder: RunFolder, retry_failed: bool) -> bool:
    """Write the folder, then the RayJob. False: somebody else made it in the meantime."""
    record = record_of(run, plan, profile, retry_failed, cluster)
    written = {"run.json": record, "plan.json": json.loads(plan.to_json())}
    manifest = render(run, plan, profile, retry_failed=retry_failed)
    manifest["metadata"].setdefault("annotations", {})[TOKEN_ANNOTATION] = record["token"]
    if cluster.job(run) is not None:  # what its driver reads is not ours to write
        return False
    folder.write_json(_submission(record["token"]), written)
    for name, document in written.items():
        folder.write_json(name, document)
    try:
        cluster.create_job(manifest)
    except AlreadyThere:
        _settle(run, cluster, folder)
        return False
    except ClusterError as error:
        if not _arrived(run, cluster, record["token"]):
            raise ClusterError(
                f"run {run} could not be made: {error.what}",
                value=error.value,
                expected=error.expected,
                remedy=f"{error.remedy or 'see that the API answers'}. Then submit it again: its folder in the store "
                "is there and will be used",
            ) from error
    _settle(run, cluster, folder)
    return True


def _submission(token: str) -> str:
    """What one submission wrote, where no other writes over it."""
    return f"submissions/{token}.json"


def _settle(run: str, cluster: Cluster, folder: RunFolder) -> None:
    """Let the folder say what the RayJob was made of, whoever made it: all who submit at once come to the same."""
    token = _token_of(cluster.job(run))
    for name, document in ((folder.json(_submission(token)) if token else None) or {}).items():
        if folder.json(name) != document:
            folder.write_json(name, document)


def _arrived(run: str, cluster: Cluster, token: str) -> bool:
    """Whether a request whose answer was lost was carried out."""
    try:
        return _token_of(cluster.job(run)) == token
    except ClusterError:
        return False


def _token_of(job: dict[str, Any] | None) -> str | None:
    """Of the run.json that is the RayJob's own."""
    metadata = (job or {}).get("metadata") or {}
    return (metadata.get("annotations") or {}).get(TOKEN_ANNOTATION)


def _uid(job: dict[str, Any]) -> str:
    return str(job["metadata"]["uid"])


def _remove(cluster: Cluster, run: str, job: dict[str, Any]) -> bool:
    """Whether this very RayJob has gone, and no other has come in its place.

    Raises:
        ClusterError: it was removed and does not go.
    """
    cluster.delete_job(run, uid=_uid(job))
    until = time.monotonic() + GONE_WITHIN_S
    while (there := cluster.job(run)) is not None:
        if _uid(there) != _uid(job):
            return False
        if time.monotonic() > until:
            raise ClusterError(
                f"the old RayJob {run} does not go",
                value=f"removed {GONE_WITHIN_S:.0f} s ago",
                remedy=f"kubectl describe rayjob {run}: a finalizer may wait for an operator that is not there",
            )
        time.sleep(_EVERY_S)
    return True


def _clear(run: str, job: dict[str, Any] | None, cluster: Cluster, store: Store | None) -> str:
    """Remove the RayJob of a run that has ended; what happened, in words."""
    if job is None:
        return ""
    if store is not None and judge(run, None, store).phase not in ("succeeded", "failed", "cancelled"):
        # No driver had a last word: without this the run would look as if it had never been submitted.
        mark_cancelled(RunFolder(store, run))
    if not cluster.delete_job(run, uid=_uid(job)):
        return ""
    return "its RayJob was removed; what it made, its status and its log stay in the store"


def _ask_to_stop(folder: RunFolder, wait: float) -> None:
    """Wait until the driver has kept its checkpoint, if there is one that lives."""
    mark_cancelled(folder)
    until = time.monotonic() + wait
    while time.monotonic() < until:
        status = folder.json("status.json")
        if status is None or status.get("state") != "running" or _is_silent(status):
            return
        time.sleep(_EVERY_S)


def _is_silent(status: dict[str, Any]) -> bool:
    said = time_of(status.get("updated"))
    return said is None or (datetime.now(UTC) - said).total_seconds() > SILENT_S


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


def _require_place(run: str, record: dict[str, Any], cluster: Cluster) -> None:
    """That a RayJob is not here says nothing about the cluster that the run was submitted to."""
    recorded = (record.get("context"), record.get("namespace"))
    here = (cluster.connection.context, cluster.namespace)
    if all(then is None or then == now for then, now in zip(recorded, here, strict=True)):
        return
    then, now = (f"context {context}, namespace {namespace}" for context, namespace in (recorded, here))
    raise SpecError(
        f"run {run} was submitted to another cluster than the one that is looked into, and may run there",
        value=now,
        expected=then,
        remedy=f"name its profile: --profile; or `interp cancel {run}` first, then it can be resumed anywhere",
    )


def _note(run: str, plan: Plan, profile: Profile, retry_failed: bool, folder: RunFolder, when: str) -> str:
    """What of a submission is not in effect: the run is the same, and has what it was submitted with."""
    text, record = folder.text("plan.json"), folder.json("run.json") or {}
    unlike, options = [], []
    # A study that was changed in what changes no result is still the same run.
    if text is not None and Plan.from_json(text).study != plan.study:
        unlike, options = ["the study's settings"], ["--study STUDY"]
    # As JSON: another version's profile, which this one may not understand, is another one too.
    if record and record.get("profile") != json.loads(json.dumps(profile.model_dump_file())):
        unlike, options = [*unlike, "the profile"], [*options, "--profile PROFILE"]
    if retry_failed and not record.get("retry_failed"):
        unlike, options = [*unlike, "--retry-failed"], [*options, "--retry-failed"]
    if not unlike:
        return ""
    return f"not in effect: {', '.join(unlike)}; {when}interp resume {run} {' '.join(options)}"


def _all_there(plan: Plan, store: Store) -> bool:
    there = {stage.key for stage in plan.stages if store.has(stage.stage, stage.key)}
    return all(stage.key in there or not plan.is_needed(stage, lambda r: r.key in there) for stage in plan.stages)
