"""How the processes of a job share a machine or a cluster; whether they fit is decided before anything starts.

Pure arithmetic. On one machine an actor gets one logical CPU where there are enough, else an equal share of what there
is; on the nodes of a cluster it is by the rule of `interp.plan.nodes`. All actors of a job run at the same time, so a
job that cannot hold them all at once would wait for ever.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from interp.engine.base import Device
from interp.errors import EngineError
from interp.plan.nodes import RESERVE, SMALLEST, Nodes, cpus_each, places


@dataclass(frozen=True)
class Capacity:
    """What there is: processor cores, and the CPUs and GPUs that may be reserved.

    Attributes:
        nodes: of a cluster that was joined; none on one machine.
        grows: these nodes come when they are needed, and go.
    """

    cores: int
    cpus: float
    gpus: float = 0
    nodes: tuple[Nodes, ...] = ()
    grows: bool = False

    @staticmethod
    def of(nodes: tuple[Nodes, ...], grows: bool) -> Capacity:
        """All of a cluster's nodes together."""
        cpus = sum(kind.count * kind.cpus for kind in nodes)
        gpus = sum(kind.count * kind.gpus for kind in nodes)
        return Capacity(max(1, int(cpus)), cpus, gpus, nodes, grows)

    def on_gpu(self, device: Device) -> bool:
        """Whether work for a device is done on GPUs."""
        return device == "cuda" or (device == "auto" and self.gpus > 0)


@dataclass(frozen=True)
class Share:
    """What each process of a job gets: reserved CPUs and GPUs, and how many threads torch may use."""

    cpus: float
    gpus: float
    threads: int

    @property
    def device(self) -> str:
        return "cuda" if self.gpus else "cpu"


def pool_size(capacity: Capacity, smallest: int, largest: int, device: Device) -> int:
    """How far a pool grows: to an actor for each core (or GPU) of the machine, or of all nodes that a cluster can have,
    for more of them would only wait for one another, unless it is to begin with more."""
    cuda = capacity.on_gpu(device)
    here = int(capacity.gpus) if cuda else capacity.cores
    useful = places(capacity.nodes, cuda) if capacity.nodes else here
    return max(smallest, min(largest, useful))


def share(capacity: Capacity, processes: int, device: Device, what: str) -> Share:
    """An equal share for each of `processes` that must run at the same time.

    Raises:
        EngineError: they do not fit, with the numbers; `what` names them.
    """
    cuda = capacity.on_gpu(device)
    if cuda and not capacity.gpus:
        raise EngineError(
            "this work asks for GPUs and there are none",
            value=f"device={device}, {capacity.gpus:g} GPUs",
            expected="at least one GPU",
            remedy="set fit.device to cpu or auto, or run it where there is a GPU",
        )
    if capacity.nodes:
        return _share_of_nodes(capacity, processes, cuda, what)
    cpus = min(1.0, _floor((capacity.cpus - RESERVE) / processes))
    if cpus < SMALLEST:
        raise EngineError(
            "the work does not fit on this machine",
            value=f"{what}: {processes} processes on {capacity.cpus:g} logical CPUs ({capacity.cores} cores)",
            expected=f"at most {int((capacity.cpus - RESERVE) / SMALLEST)} processes at once",
            remedy="lower fit.workers, fit.harvesters or trace.actors.min, or use a larger machine",
        )
    gpus = 0.0
    if cuda:
        gpus = 1.0 if processes <= capacity.gpus else 1 / math.ceil(processes / capacity.gpus)
    return Share(cpus, _floor(gpus), max(1, capacity.cores // processes))


def with_threads(each: Share, capacity: Capacity, processes: int, part: float) -> Share:
    """The share of `processes` that do `part` of the work, beside others: threads in proportion, rounded up, for a core
    that waits for the slower side is worth more than one that is now and then shared. On a cluster each keeps to the
    CPUs of its node that it has reserved."""
    if capacity.nodes:
        return each
    return replace(each, threads=max(1, math.ceil(capacity.cores * part / processes)))


def _share_of_nodes(capacity: Capacity, processes: int, cuda: bool, what: str) -> Share:
    cpus = cpus_each(capacity.nodes, processes, cuda)
    if not cpus:
        grown = "at its largest " if capacity.grows else ""
        raise EngineError(
            "the work does not fit on this cluster",
            value=f"{what}: {processes} processes at once" + (", each with a GPU" if cuda else ""),
            expected=f"no more than {grown}it has places: {', '.join(map(str, capacity.nodes))}",
            remedy="lower fit.workers, fit.harvesters or trace.actors.min, or let a worker group have more nodes",
        )
    return Share(max(0.01, _floor(cpus)), 1.0 if cuda else 0.0, max(1, math.ceil(cpus)))


def _floor(value: float) -> float:
    """Down to what Ray can count: hundredths."""
    return math.floor(value * 100) / 100
