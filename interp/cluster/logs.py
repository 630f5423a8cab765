"""A run's log: from the pod that follows the driver, again after every cut, and from the store when pods are gone.

KubeRay's submitter prints what the driver prints; its pod's label is the name of its Job, which is the RayJob's. Its
log goes with it when a lost head makes KubeRay begin anew. The driver's own lines are in the store as well, a few
seconds later, of every attempt; what the pod could not show any more is shown from there. Reading touches nothing.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from interp.cluster.facts import Document, name_of
from interp.cluster.log_lines import Resumed, Shown, Source, time_of_line
from interp.cluster.look import PATIENCE, RUN_LABEL, glance
from interp.cluster.state import RunState
from interp.errors import ClusterError, StoreError
from interp.store import Store
from interp.store.runs import RunFolder

if TYPE_CHECKING:
    from interp.cluster.client import Cluster

SUBMITTER = "ray-job-submitter"
"""KubeRay's name of the container, in a pod of its own or (SidecarMode) beside the head."""

_JOB_LABELS = ("batch.kubernetes.io/job-name", "job-name")
_EVERY_S = 1.0


class RunLog:
    """The log of one run.

    Args:
        cluster, store: either may be None.
        tell: for what the reader should know that is no line of the log, such as a cut connection.

    Attributes:
        unread: a place where there may be lines could not be read.
    """

    def __init__(
        self, run: str, cluster: Cluster | None, store: str | None, tell: Callable[[str], None] = lambda _: None
    ) -> None:
        self.run, self.cluster, self.store, self._tell = run, cluster, store, tell
        self._shown = Shown()
        self._pods: dict[str, _PodLog] = {}
        self._pieces = _Pieces(self._shown.source("store"))
        self._told: set[str] = set()
        self.unread = False

    def so_far(self, tail: int | None = None) -> Iterator[str]:
        """All lines that there are, or the last of them, in the order of their times."""
        from_pods = [line for pod in self._asked(self._candidates, []) for line in self._asked_lines(pod, follow=False)]
        # Of the last lines of all, those that only the store has are among its own last ones.
        missing = list(self._stored(tail))
        lines = heapq.merge(_timed(missing), _timed(from_pods), key=lambda timed: timed[0])
        wanted = (line for _, line in lines)
        yield from wanted if tail is None else deque(wanted, maxlen=tail)

    def follow(self, tail: int | None = None) -> Iterator[str]:
        """Lines as they come, until the run has ended and all has been shown."""
        yield from self.so_far(tail)
        while True:
            state = self.state()
            pods = self._asked(self._candidates, [])
            if pods:
                yield from self._asked_lines(pods[-1], follow=True)
            # What the pod had no time to tell before it went.
            yield from self._stored()
            if state is not None and state.ended:
                return
            if state is not None and not pods and not self._pieces.any:
                self._once(f"no log yet, the run is {state.phase}: interp status {self.run} says why")
            time.sleep(_EVERY_S)

    def state(self) -> RunState | None:
        """How the run is; None when nobody can say.

        Raises:
            Unauthenticated, Forbidden: and there is no store to read instead.
        """
        cluster = self.cluster
        job: Document | None = None
        if cluster is not None:
            try:
                job = cluster.job(self.run)
            except ClusterError as error:
                return self._without_cluster(error)
        state = glance(self.run, job, self.store, None if cluster is not None else "there is no cluster to ask")
        self.store = self.store or state.store
        unknown = state.reason is not None and state.reason.kind == "store-unreachable" and job is None
        return None if unknown else state

    def _without_cluster(self, error: ClusterError) -> RunState | None:
        """What the store says; a driver's failure is final only where asking the cluster again is of no use."""
        refused = _is_refusal(error)
        if refused and self.store is None:
            raise error
        self._once(f"the cluster does not answer, {'reading the store' if refused else 'trying again'}: {error.what}")
        if self.store is None:
            return None
        state = glance(self.run, None, self.store, str(error))
        if state.reason is not None and state.reason.kind == "store-unreachable":
            return None
        return state if refused or state.phase != "failed" else None

    def _candidates(self) -> list[_PodLog]:
        """Logs of pods that follow the driver, the oldest first."""
        found = [] if self.cluster is None else self.cluster.pods(f"{RUN_LABEL}={self.run}")
        pods = [pod for pod in found if _follows_driver(pod, self.run)]
        for pod in sorted(pods, key=lambda pod: pod["metadata"].get("creationTimestamp", "")):
            uid = str(pod["metadata"].get("uid", name_of(pod)))
            if uid not in self._pods:
                self._pods[uid] = _PodLog(name_of(pod), self._shown.source(_session(pod)))
        by_uid = {str(pod["metadata"].get("uid", name_of(pod))) for pod in pods}
        return [log for uid, log in self._pods.items() if uid in by_uid]

    def _asked_lines(self, pod: _PodLog, *, follow: bool) -> Iterator[str]:
        from interp.cluster.client_errors import Absent, NotStarted

        assert self.cluster is not None
        try:
            yield from pod.lines(self.cluster, follow=follow)
        except (NotStarted, Absent):
            return  # there will be more to say, or the store says the rest
        except ClusterError as error:
            self._once(f"the connection to the log was cut, reading on: {error.what}")

    def _stored(self, tail: int | None = None) -> Iterator[str]:
        if self.store is None and self.cluster is not None:
            self.state()
        if self.store is None:
            return
        try:
            yield from self._pieces.lines(RunFolder(Store.open(self.store, patience=PATIENCE), self.run), tail)
        except StoreError as error:
            self.unread = True
            self._once(f"the store cannot be read: {error.what}")

    def _asked(self, question: Callable[[], Any], otherwise: Any) -> Any:
        try:
            return question()
        except ClusterError as error:
            if _is_refusal(error) and self.store is None:
                raise
            self.unread = True
            self._once(f"the cluster does not answer: {error.what}")
            return otherwise

    def _once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._tell(text)


class _PodLog:
    """The log of one container, over cut connections."""

    def __init__(self, name: str, source: Source) -> None:
        self._name, self._source, self._resumed = name, source, Resumed()

    def lines(self, cluster: Cluster, *, follow: bool) -> Iterator[str]:
        stamped = cluster.pod_log(
            self._name, container=SUBMITTER, follow=follow, since=self._resumed.since, timestamps=True
        )
        return (line for line in self._resumed.lines(stamped) if self._source.is_new(line))


class _Pieces:
    """The pieces in the store, each read once."""

    def __init__(self, source: Source) -> None:
        self._source, self._last = source, ""

    @property
    def any(self) -> bool:
        """Whether there was one."""
        return bool(self._last)

    def lines(self, folder: RunFolder, tail: int | None = None) -> Iterator[str]:
        """What is new; with `tail` no more than that many lines are looked for, from the end."""
        for name, text in folder.pieces("log", after=self._last, lines=tail):
            yield from (line for line in text.splitlines() if self._source.is_new(line))
            self._last = name


def _is_refusal(error: ClusterError) -> bool:
    """Whether the API refused for good: asking again gets the same answer."""
    from interp.cluster.client_errors import Forbidden, Unauthenticated

    return isinstance(error, Forbidden | Unauthenticated)


def _follows_driver(pod: Document, run: str) -> bool:
    labels = pod["metadata"].get("labels") or {}
    containers = (pod.get("spec") or {}).get("containers") or ()
    return any(labels.get(label) == run for label in _JOB_LABELS) or any(c.get("name") == SUBMITTER for c in containers)


def _session(pod: Document) -> str:
    """Equal for pods that follow the same driver: those of one Job."""
    owners = pod["metadata"].get("ownerReferences") or ()
    return str(next((owner.get("uid") for owner in owners), pod["metadata"].get("uid", "")))


def _timed(lines: list[str]) -> Iterator[tuple[str, str]]:
    """Each with the driver's last time before it, or the first one after it; it never goes back."""
    last = next((stamp for line in lines if (stamp := time_of_line(line))), "")
    for line in lines:
        last = max(last, time_of_line(line) or last)
        yield last, line
