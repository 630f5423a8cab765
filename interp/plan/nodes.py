"""The machines of a cluster that is joined: what it has, or what INTERP_CLUSTER says that it can grow to.

    INTERP_CLUSTER={"nodes": [{"name": "gpu", "count": 8, "cpus": 16, "gpus": 1, "memory": 128000000000}]}

On a cluster that begins with no worker, what is there says nothing about what there can be. `count` is the most nodes
of a kind, `cpus`, `gpus` and `memory` (bytes) are of one of them. `shared_memory` (bytes of the memory that Ray takes)
and `gpu_memory` (bytes of one GPU) may be given as well: then no fit has to wait for a node to ask it.

The rule by which processes share nodes. All processes of a piece of work are alike, and must run at the same time.

    on GPUs   one GPU a process, and with it the GPU's part of the node's CPUs
    on CPUs   as many CPUs as there can be: of all ways to cut every node into equal parts, the coarsest that gives all
              processes a place; nodes without GPUs alone, where there are such

RESERVE of every node's CPUs is left to what Ray runs beside the processes, such as the reader of a stream.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from interp.errors import EngineError

VARIABLE = "INTERP_CLUSTER"

RESERVE = 0.5
"""CPUs of a node, or of the one machine, that no process reserves: without them a stream could not read its source."""

SMALLEST = 0.2
"""CPUs of a process: with less to each, processes spend their time waiting for one another."""

OBJECT_STORE = 0.3
"""Of a node's memory, the part that Ray takes for what flows between processes, where it is not told otherwise."""


class Nodes(BaseModel):
    """Machines of one kind: how many there can be, and what each of them has."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str
    count: Annotated[int, Field(ge=1)]
    cpus: Annotated[float, Field(gt=0)]
    gpus: Annotated[int, Field(ge=0)] = 0
    memory: Annotated[int, Field(ge=0)] = 0
    shared_memory: Annotated[int, Field(ge=0)] = 0
    gpu_memory: Annotated[int, Field(ge=0)] = 0

    @property
    def free(self) -> float:
        """CPUs that processes may reserve on one node."""
        return self.cpus - min(RESERVE, self.cpus / 2)

    @property
    def for_processes(self) -> int:
        """Bytes of one node's memory beside what Ray takes for what flows between processes."""
        return max(0, self.memory - (self.shared_memory or math.ceil(OBJECT_STORE * self.memory)))

    def __str__(self) -> str:
        gpus = f" and {self.gpus} GPU{'s' if self.gpus > 1 else ''}" if self.gpus else ""
        return f"{self.count} x {self.name} ({self.cpus:g} CPUs{gpus})"


class _Cluster(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    nodes: Annotated[tuple[Nodes, ...], Field(min_length=1)]


def nodes_from_environment(environment: Mapping[str, str]) -> tuple[Nodes, ...] | None:
    """What INTERP_CLUSTER says, or None when it is not set.

    Raises:
        EngineError: it is set to something else.
    """
    said = environment.get(VARIABLE, "").strip()
    if not said:
        return None
    try:
        return _Cluster.model_validate(json.loads(said)).nodes
    except (json.JSONDecodeError, ValidationError) as error:
        raise EngineError(
            f"{VARIABLE} does not say what the cluster can grow to",
            value=f"{said[:500]}: {_complaint(error)}",
            expected='{"nodes": [{"name": "cpu", "count": 4, "cpus": 8, "gpus": 0, "memory": 32000000000}]}',
            remedy=f"`interp submit` sets it; unset {VARIABLE} to use the nodes that the cluster has now",
        ) from None


def _complaint(error: json.JSONDecodeError | ValidationError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return str(error)
    return "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())


def nodes_of(found: Sequence[Mapping[str, Any]]) -> tuple[Nodes, ...]:
    """The nodes of a cluster as `ray.nodes()` tells of them; those that take no work are left out."""
    kinds: dict[tuple[float, int, int], int] = {}
    for node in found:
        has: Mapping[str, float] = node["Resources"]
        if node["Alive"] and has.get("CPU", 0) > 0:
            memory = int(has.get("memory", 0) + has.get("object_store_memory", 0))
            kind = (has["CPU"], int(has.get("GPU", 0)), memory >> 28 << 28)  # like nodes differ by some bytes
            kinds[kind] = kinds.get(kind, 0) + 1
    return tuple(
        Nodes(name=f"node{i}", count=count, cpus=cpus, gpus=gpus, memory=memory)
        for i, ((cpus, gpus, memory), count) in enumerate(sorted(kinds.items()))
    )


def working(nodes: Sequence[Nodes], gpu: bool) -> tuple[Nodes, ...]:
    """The kinds that do work on GPUs, or on CPUs."""
    plain = tuple(kind for kind in nodes if not kind.gpus)
    return tuple(kind for kind in nodes if kind.gpus) if gpu else plain or tuple(nodes)


def places(nodes: Sequence[Nodes], gpu: bool) -> int:
    """Processes that make sense at once: one for each GPU, or for each CPU."""
    return sum(kind.count * (kind.gpus if gpu else max(1, int(kind.cpus))) for kind in working(nodes, gpu))


def most_places(nodes: Sequence[Nodes], gpu: bool) -> int:
    """Processes that find a place at most: one for each GPU, or with the SMALLEST part of a CPU."""
    return sum(kind.count * (kind.gpus if gpu else _fitting(kind, SMALLEST)) for kind in working(nodes, gpu))


def cpus_each(nodes: Sequence[Nodes], processes: int, gpu: bool) -> float:
    """The CPUs of each of `processes`; 0 when they do not all find a place."""
    kinds = working(nodes, gpu)
    if gpu:
        enough = processes <= places(nodes, gpu)
        return min(kind.free / kind.gpus for kind in kinds) if enough and kinds else 0.0
    for each in sorted({kind.free / parts for kind in kinds for parts in range(1, processes + 1)}, reverse=True):
        if each < SMALLEST:
            break
        if sum(kind.count * _fitting(kind, each) for kind in kinds) >= processes:
            return each
    return 0.0


def node_memory(nodes: Sequence[Nodes], cpus: float, gpu: bool) -> int:
    """Bytes that are known of the device of a process with so many CPUs: of its GPU, or its part of the node's memory
    beside what Ray takes. Where kinds differ, of the least; 0 when they are not known."""
    kinds = working(nodes, gpu)
    if gpu:
        return min((kind.gpu_memory for kind in kinds), default=0)
    parts = ((kind, _fitting(kind, cpus)) for kind in kinds)
    return min((kind.for_processes // count for kind, count in parts if count), default=0)


def _fitting(kind: Nodes, cpus: float) -> int:
    """Processes with so many CPUs on one node."""
    return math.floor(kind.free / cpus + 1e-9)
