"""Which runs there are: RayJobs of ours in a namespace, and folders in a store.

An ended run's RayJob stays (KubeRay takes only its pods away) until `interp cancel` or somebody else removes it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from interp.cluster.facts import Document, name_of
from interp.cluster.look import OURS, PATIENCE, at_once, glance, store_of
from interp.cluster.state import RunState
from interp.errors import ClusterError, StoreError
from interp.store import Store
from interp.store.runs import RunFolder, run_names

if TYPE_CHECKING:
    from interp.cluster.client import Cluster

logger = logging.getLogger(__name__)


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
    if ref is None:
        return _only([] if store is None else _newest(Store.open(store, patience=PATIENCE)), "", store)
    matching = {name for name in jobs if name.startswith(ref)}
    try:
        names = [] if store is None else run_names(Store.open(store, patience=PATIENCE))
    except StoreError as error:
        if not matching:
            raise
        logger.warning("runs whose RayJob is gone are not looked for: %s", error.what)
        names = []
    if ref in names:
        return str(ref)
    return _only(sorted({*matching, *(name for name in names if name.startswith(ref))}), ref, store)


def _newest(store: Store) -> list[str]:
    """The run that was submitted last, if there is one."""
    records = at_once(lambda run: RunFolder(store, run).json("run.json"), {run: (run,) for run in run_names(store)})
    return sorted(records, key=lambda run: ((records[run] or {}).get("submitted", ""), run))[-1:]


def listed(
    jobs: Mapping[str, Document], store: str | None, *, every: bool = True, unreachable: str | None = None
) -> list[RunState]:
    """Runs, the newest first.

    Args:
        every: also those of the store whose RayJob is gone.
        unreachable: why there is no cluster.
    """
    try:
        names = [] if store is None or not every else run_names(Store.open(store, patience=PATIENCE))
    except StoreError as error:
        if not jobs:
            raise
        logger.warning("runs whose RayJob is gone are not shown: %s", error.what)
        names = []
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
