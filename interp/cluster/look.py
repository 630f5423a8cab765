"""Looking at a run: asks the cluster and the store for what `interp.cluster.state` makes a `RunState` of.

What cannot be asked is told, and the rest is shown: a RayJob that is gone leaves the store, and a store that cannot be
reached from here leaves the RayJob.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from interp.cluster.client_errors import Forbidden
from interp.cluster.facts import Document, name_of, pending
from interp.cluster.state import QUEUE_LABEL, Found, RunState, state_of
from interp.errors import ClusterError, StoreError
from interp.store import Store
from interp.store.runs import RunFolder

if TYPE_CHECKING:
    from interp.cluster.client import Cluster

RUN_LABEL = "interp.dev/run"
STORE_ANNOTATION = "interp.dev/store"
OURS = "app.kubernetes.io/managed-by=interp"
"""The selector of all RayJobs that we made."""

PATIENCE = 1.0
"""Seconds for which somebody who looks waits for a store."""

_PODS_ASKED = 4
_AT_ONCE = 8


def store_of(job: Document | None) -> str | None:
    """The URL of the store of a RayJob of ours."""
    metadata = (job or {}).get("metadata") or {}
    return (metadata.get("annotations") or {}).get(STORE_ANNOTATION)


def look(run: str, cluster: Cluster | None, store: str | None = None, unreachable: str | None = None) -> RunState:
    """How a run is now.

    Args:
        store: its URL, for a run whose RayJob, which says it otherwise, is gone.
        unreachable: why there is no cluster.
    """
    found = Found(run, cluster_error=unreachable)
    if cluster is not None:
        found = _from_cluster(found, cluster)
    url = store_of(found.job) or store
    return state_of(found if url is None else _from_store(replace(found, store=url), url))


def glance(run: str, job: Document | None, store: str | None, unreachable: str | None = None) -> RunState:
    """The same, without pods, events and manifests: for a list of many runs."""
    url = store_of(job) or store
    found = Found(run, job=job, store=url, cluster_error=unreachable)
    return state_of(found if url is None else _from_store(found, url, manifests=False))


def judge(run: str, job: Document | None, store: Store) -> RunState:
    """The same, to decide by: with all the patience that the store has.

    Raises:
        StoreError: it cannot be read.
    """
    return state_of(_read(Found(run, job=job, store=store.url), store, manifests=False))


def _from_cluster(found: Found, cluster: Cluster) -> Found:
    try:
        job = cluster.job(found.run)
        found = replace(found, job=job)
        if job is None or _is_settled(job):
            return found
        denied: list[str] = []
        pods = _allowed(lambda: cluster.pods(f"{RUN_LABEL}={found.run}"), denied)
        objects = [("RayJob", found.run), ("Job", found.run)]
        if cluster_name := (job.get("status") or {}).get("rayClusterName"):
            objects.append(("RayCluster", cluster_name))
        objects += [("Pod", name_of(pod)) for pod in pending(pods)[:_PODS_ASKED]]
        found = replace(found, pods=pods, denied=denied)
        events = _allowed(lambda: [one for kind, name in objects for one in cluster.events(kind, name)], denied)
        found = replace(found, events=events)
        queued = QUEUE_LABEL in (job["metadata"].get("labels") or {})
        workloads = _allowed(lambda: cluster.workloads(found.run), denied) if queued else []
        return replace(found, workloads=workloads)
    except ClusterError as error:
        return replace(found, cluster_error=str(error), missed=True)


def _allowed(question: Callable[[], list[Any]], denied: list[str]) -> list[Any]:
    """The answer; none where we may not ask, which is then in `denied`."""
    try:
        return question()
    except Forbidden as error:
        denied.append(error.what)
        return []


def _is_settled(job: Document) -> bool:
    """What succeeded needs no reasons."""
    status = job.get("status") or {}
    return status.get("jobDeploymentStatus") == "Complete" and status.get("jobStatus") == "SUCCEEDED"


def _from_store(found: Found, url: str, manifests: bool = True) -> Found:
    try:
        return _read(found, Store.open(url, patience=PATIENCE), manifests)
    except StoreError as error:
        return replace(found, store_error=str(error))


def _read(found: Found, store: Store, manifests: bool) -> Found:
    folder = RunFolder(store, found.run)
    names = ("run.json", "status.json", "cancel.json")
    record, status, cancel = at_once(folder.json, {name: (name,) for name in names}).values()
    # A cancel that names another token was of an earlier submission.
    token = (record or {}).get("token")
    cancelled = cancel is not None and cancel.get("token", token) == token
    found = replace(found, record=record, status=status, cancelled=cancelled)
    if not manifests or record is None:
        return found
    stages = {stage["key"]: (stage["stage"], stage["key"]) for stage in record.get("stages") or ()}
    return replace(found, there={key for key, there in at_once(store.has, stages).items() if there})


def at_once(function: Callable[..., Any], calls: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    """Several requests to a store at the same time: it may be far away."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        pending_calls = {name: pool.submit(function, *arguments) for name, arguments in calls.items()}
        return {name: call.result() for name, call in pending_calls.items()}
