"""Looking at a run: asks the cluster and the store for what `interp.cluster.state` makes a `RunState` of.

What cannot be asked is told, and the rest is shown: a RayJob that is gone leaves the store, and a store that cannot be
reached from here leaves the RayJob.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

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
        store: its URL; None takes what the RayJob says.
        unreachable: why there is no cluster.
    """
    found = Found(run, cluster_error=unreachable)
    if cluster is not None:
        found = _from_cluster(found, cluster)
    url = store or store_of(found.job)
    return state_of(found if url is None else _from_store(replace(found, store=url), url))


def glance(run: str, job: Document | None, store: str | None, unreachable: str | None = None) -> RunState:
    """The same, without pods, events and manifests: for a list of many runs."""
    url = store or store_of(job)
    found = Found(run, job=job, store=url, cluster_error=unreachable)
    return state_of(found if url is None else _from_store(found, url, manifests=False))


def _from_cluster(found: Found, cluster: Cluster) -> Found:
    try:
        job = cluster.job(found.run)
        found = replace(found, job=job)
        if job is None or _is_settled(job):
            return found
        pods = cluster.pods(f"{RUN_LABEL}={found.run}")
        found = replace(found, pods=pods)
        objects = [("RayJob", found.run), ("Job", found.run)]
        if cluster_name := (job.get("status") or {}).get("rayClusterName"):
            objects.append(("RayCluster", cluster_name))
        objects += [("Pod", name_of(pod)) for pod in pending(pods)[:_PODS_ASKED]]
        found = replace(found, events=[event for kind, name in objects for event in cluster.events(kind, name)])
        queued = QUEUE_LABEL in (job["metadata"].get("labels") or {})
        return replace(found, workloads=cluster.workloads(found.run) if queued else [])
    except ClusterError as error:
        return replace(found, cluster_error=str(error))


def _is_settled(job: Document) -> bool:
    """What succeeded needs no reasons."""
    status = job.get("status") or {}
    return status.get("jobDeploymentStatus") == "Complete" and status.get("jobStatus") == "SUCCEEDED"


def _from_store(found: Found, url: str, manifests: bool = True) -> Found:
    try:
        store = Store.open(url, patience=PATIENCE)
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
    except StoreError as error:
        return replace(found, store_error=str(error))


def at_once(function: Callable[..., Any], calls: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    """Several requests to a store at the same time: it may be far away."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        pending_calls = {name: pool.submit(function, *arguments) for name, arguments in calls.items()}
        return {name: call.result() for name, call in pending_calls.items()}
