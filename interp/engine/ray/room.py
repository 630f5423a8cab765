"""Nodes that are not there yet. On a cluster that grows, they come once somebody asks for what they have.

So before a piece of work starts, the places of all its processes are asked for at once, as a placement group of Ray's:
the autoscaler sees all that is wanted, and nothing half-started holds nodes while it waits for the rest. The group is
given back as soon as it has its places, and the processes take them. Nodes that go while the work runs are waited for
in the same way, by whoever watches it. All of it is told, and it has an end: INTERP_NODE_WAIT_S seconds.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from collections.abc import Callable

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from interp.engine.resources import Capacity, Share
from interp.errors import EngineError

logger = logging.getLogger(__name__)

LIMIT = "INTERP_NODE_WAIT_S"
DEFAULT_LIMIT_S = 1800.0

_LOOK_EVERY_S = 2.0
_SAY_EVERY_S = 60.0

_LAST_BREATH_S, _ANSWER_S = 1.0, 5.0
"""The processes of a node that goes do not end at the same instant; one that is there answers in so many seconds."""

Say = Callable[[str], None]


def await_room(capacity: Capacity, each: Share, processes: int, what: str, say: Say = logger.info) -> None:
    """Return when the nodes of a joined cluster have room for `processes` at once; at once on one machine.

    Raises:
        EngineError: they have not come in time.
    """
    if not capacity.nodes:
        return
    clock = _Clock(f"{what}: room for {processes} x {_shown(each)}", say)
    bundle = {"CPU": each.cpus} | ({"GPU": each.gpus} if each.gpus else {})
    group = placement_group([bundle] * processes)
    try:
        while not group.wait(_LOOK_EVERY_S):
            clock.wait()
        clock.came()
    finally:
        remove_placement_group(group)


class NodeWatch:
    """Looks, while work runs, whether there are nodes with room for `processes` of it, and which have gone.

    Args:
        say: what to do with the sentence that nothing goes on, said now and then.
    """

    def __init__(self, capacity: Capacity, each: Share, processes: int, what: str, say: Say = logger.warning):
        self._joined, self._each, self._processes = bool(capacity.nodes), each, processes
        self._clock = _Clock(f"{what}: room for {processes} x {_shown(each)}", say)
        self._looked = -math.inf

    def look(self) -> None:
        """Call it often: it looks every few seconds.

        Raises:
            EngineError: there has been no such room for INTERP_NODE_WAIT_S.
        """
        if not self._joined or time.monotonic() - self._looked < _LOOK_EVERY_S:
            return
        self._looked = time.monotonic()
        found = sum(_fitting(node["Resources"], self._each) for node in ray.nodes() if node["Alive"])
        if found >= self._processes:
            self._clock.came()
        else:
            self._clock.wait()

    def has_gone(self, node: str) -> bool:
        """Whether a node of a joined cluster is no more, asked when a process on it has died.

        Ray notices a dead process at once, and a dead node only when it has been silent for a while: so the node itself
        is asked.
        """
        if not self._joined:
            return False
        time.sleep(_LAST_BREATH_S)
        found = next((each for each in ray.nodes() if each["NodeID"] == node), None)
        if found is None or not found["Alive"]:
            return True
        try:
            address = found["NodeManagerAddress"], found["NodeManagerPort"]
            socket.create_connection(address, timeout=_ANSWER_S).close()
        except OSError:
            return True
        return False


class _Clock:
    """How long something has been waited for: said at first and every minute, and not endless."""

    def __init__(self, what: str, say: Say):
        self._what, self._say, self._limit = what, say, limit_from_environment()
        self._since: float | None = None
        self._said = -math.inf

    def wait(self) -> None:
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        if now - self._since > self._limit:
            raise EngineError(
                "the cluster has not grown",
                value=f"waited {now - self._since:.0f} s for {self._what}",
                expected=f"nodes within {self._limit:.0f} s ({LIMIT})",
                remedy="look at the pods that are pending: quota, GPUs that are taken, an image that cannot be pulled",
            )
        if now - self._said > _SAY_EVERY_S:
            self._said = now
            self._say(f"waiting for nodes ({self._what})")

    def came(self) -> None:
        if self._since is not None:
            self._say(f"the nodes are there, after {time.monotonic() - self._since:.0f} s ({self._what})")
        self._since, self._said = None, -math.inf


def limit_from_environment() -> float:
    """INTERP_NODE_WAIT_S, or `DEFAULT_LIMIT_S`.

    Raises:
        EngineError: it is no number of seconds.
    """
    said = os.environ.get(LIMIT, "").strip()
    try:
        limit = float(said or DEFAULT_LIMIT_S)
    except ValueError:
        limit = math.nan
    if not limit > 0:
        raise EngineError(f"{LIMIT} is no number of seconds", value=said, expected="a number above 0, such as 1800")
    return limit


def _fitting(has: dict[str, float], each: Share) -> int:
    """Processes that a node holds when it does nothing else."""
    cpus = int(has.get("CPU", 0.0) / each.cpus)
    return min(cpus, int(has.get("GPU", 0.0) / each.gpus)) if each.gpus else cpus


def _shown(each: Share) -> str:
    gpus = f" and {each.gpus:g} GPU" if each.gpus else ""
    return f"{each.cpus:g} CPUs{gpus}"
