"""How the processes of a job share a machine or a cluster; whether they fit is decided before anything starts.

Pure arithmetic. An actor gets one logical CPU where there are enough, else an equal share of what there is; all
actors of a job run at the same time, so a job that cannot hold them all at once would wait for ever.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from interp.engine.base import Device
from interp.errors import EngineError

RESERVE = 0.5
"""Logical CPUs that are left to what Ray runs beside the actors: without them a stream could not read its source."""

SMALLEST_SHARE = 0.2
"""Of a logical CPU. With less than that to each, processes spend their time waiting for one another."""


@dataclass(frozen=True)
class Capacity:
    """What there is: processor cores, the CPUs and GPUs that may be reserved, and whether more nodes can be added."""

    cores: int
    cpus: float
    gpus: float = 0
    elastic: bool = False


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
    """How far a pool grows: on one machine to an actor for each core (or GPU), for more of them would only wait for
    one another, unless it is to begin with more. A cluster may grow with it."""
    if capacity.elastic:
        return largest
    useful = int(capacity.gpus) if _on_gpu(capacity, device) else capacity.cores
    return max(smallest, min(largest, useful))


def share(capacity: Capacity, processes: int, device: Device, what: str) -> Share:
    """An equal share for each of `processes` that must run at the same time.

    Raises:
        EngineError: they do not fit, with the numbers; `what` names them.
    """
    cuda = _on_gpu(capacity, device)
    if cuda and not capacity.gpus and not capacity.elastic:
        raise EngineError(
            "this work asks for GPUs and there are none",
            value=f"device={device}, {capacity.gpus:g} GPUs",
            expected="at least one GPU",
            remedy="set fit.device to cpu or auto, or run it where there is a GPU",
        )
    cpus = 1.0 if capacity.elastic else min(1.0, _floor((capacity.cpus - RESERVE) / processes))
    if cpus < SMALLEST_SHARE:
        raise EngineError(
            "the work does not fit on this machine",
            value=f"{what}: {processes} processes on {capacity.cpus:g} logical CPUs ({capacity.cores} cores)",
            expected=f"at most {int((capacity.cpus - RESERVE) / SMALLEST_SHARE)} processes at once",
            remedy="lower fit.workers, fit.harvesters or trace.actors.min, or use a larger machine",
        )
    gpus = 0.0
    if cuda:
        gpus = 1.0 if capacity.elastic or processes <= capacity.gpus else 1 / math.ceil(processes / capacity.gpus)
    return Share(cpus, _floor(gpus), max(1, capacity.cores // processes))


def with_threads(each: Share, capacity: Capacity, processes: int, part: float) -> Share:
    """The share of `processes` that do `part` of the work, beside others: threads in proportion, rounded up, for a core
    that waits for the slower side is worth more than one that is now and then shared."""
    return replace(each, threads=max(1, math.ceil(capacity.cores * part / processes)))


def _on_gpu(capacity: Capacity, device: Device) -> bool:
    return device == "cuda" or (device == "auto" and capacity.gpus > 0)


def _floor(value: float) -> float:
    """Down to what Ray can count: hundredths."""
    return math.floor(value * 100) / 100
