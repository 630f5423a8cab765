"""Where a run is looked for: the cluster of a profile, and a store, of which one may be out of reach."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from interp.cluster import profiles
from interp.cluster.client import Cluster
from interp.cluster.look import store_of
from interp.cluster.runs import find, jobs_of
from interp.errors import ClusterError, SpecError
from interp.store.location import parse

if TYPE_CHECKING:
    from interp.cluster.facts import Document

Run = Annotated[str, typer.Argument(metavar="RUN", help="a run's name, or the first characters of it")]
ProfileOption = Annotated[
    str | None,
    typer.Option("--profile", metavar="NAME|FILE", help="default: $INTERP_PROFILE, or the only profile"),
]
StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        envvar="INTERP_STORE",
        metavar="URL",
        help="of the run; needed when its RayJob is gone, which otherwise says it",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]


@dataclass(frozen=True)
class Site:
    """Attributes:
    cluster: None where it is out of reach, or there is no profile; `unreachable` says why.
    store: its URL as it was given.
    """

    cluster: Cluster | None
    store: str | None
    unreachable: str | None = None

    @property
    def required_cluster(self) -> Cluster:
        """Of a site that was opened with `needs_cluster`."""
        assert self.cluster is not None
        return self.cluster

    def find(self, ref: str | None) -> tuple[str, Document | None, str | None]:
        """A run's name, its RayJob, and the URL of its store."""
        jobs = jobs_of(self.cluster)
        run = find(ref, jobs, self.store)
        job = jobs.get(run)
        # INTERP_STORE is of no run in particular; the RayJob knows its own.
        return run, job, store_of(job) or self.store


def open_site(profile: str | None, store: str | None, *, needs_cluster: bool = False) -> Site:
    """Both, or the one that there is; a store alone can tell of runs.

    Raises:
        InterpError: neither can be reached, or not the cluster that is needed, or a profile that was asked for is not
            valid.
    """
    url = None if store is None else parse(store).url
    try:
        chosen = profiles.load_profile(profile)
        return Site(Cluster.open(chosen.context, chosen.namespace), url)
    except SpecError as error:
        if needs_cluster or url is None or profile or os.environ.get(profiles.VARIABLE) or profiles.known():
            raise
        return Site(None, url, error.what)
    except ClusterError as error:
        if needs_cluster or url is None:
            raise
        return Site(None, url, error.what)


def known_store(run: str, url: str | None) -> str:
    """Raises SpecError where nothing says which store a run has."""
    if url is None:
        raise SpecError(
            f"the RayJob of {run} is gone, so its store is not known", remedy="give it: --store URL, or INTERP_STORE"
        )
    return url
