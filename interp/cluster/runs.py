"""Which runs there are: RayJobs of ours in a namespace, and folders in a store. A RayJob goes an hour after its run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from interp.cluster.facts import Document, name_of
from interp.cluster.look import OURS, PATIENCE, at_once, glance, store_of
from interp.cluster.state import RunState
from interp.errors import ClusterError
from interp.store import Store
from interp.store.runs import run_names

if TYPE_CHECKING:
    from interp.cluster.client import Cluster


def jobs_of(cluster: Cluster | None) -> dict[str, Document]:
    """The RayJobs of ours, by name, the newest first."""
    jobs = [] if cluster is None else cluster.jobs(OURS)
    newest = sorted(jobs, key=lambda job: job["metadata"].get("creationTimestamp", ""), reverse=True)
    return {name_of(job): job for job in newest}


def find(ref: str | None, jobs: Mapping[str, Document], store: str | None) -> str:
    """The run that a person means: its name, the first characters of it, or, saying nothing, the newest.

    Args:
        store: URL of one in which to look too.

    Raises:
        ClusterError: there is none, or there are several.
    """
    if ref is None and jobs:
        return next(iter(jobs))
    if ref in jobs:
        return str(ref)
    names = {*jobs, *([] if store is None else run_names(Store.open(store, patience=PATIENCE)))}
    if ref in names:
        return str(ref)
    if ref is None:
        found = [] if store is None else [state.run for state in listed({}, store)]
        return _only(found[:1], "", store)
    return _only(sorted(name for name in names if name.startswith(ref)), ref, store)


def listed(
    jobs: Mapping[str, Document], store: str | None, *, every: bool = True, unreachable: str | None = None
) -> list[RunState]:
    """Runs, the newest first.

    Args:
        every: also those of the store whose RayJob is gone.
        unreachable: why there is no cluster.
    """
    names = [] if store is None or not every else run_names(Store.open(store, patience=PATIENCE))
    wanted = {name: (name, jobs.get(name), store_of(jobs.get(name)) or store, unreachable) for name in {*jobs, *names}}
    return sorted(at_once(glance, wanted).values(), key=lambda state: (state.submitted, state.run), reverse=True)


def _only(found: list[str], ref: str, store: str | None) -> str:
    if len(found) == 1:
        return found[0]
    if found:
        raise ClusterError(
            f"several runs begin with {ref}", value=", ".join(found), remedy="give more of the name's characters"
        )
    raise ClusterError(
        f"there is no run that begins with {ref}" if ref else "there is no run",
        expected="a run of the namespace" + ("" if store is None else f", or of {store}"),
        remedy="interp list --all shows the runs; one whose RayJob is gone is found with --store URL (or INTERP_STORE)",
    )
