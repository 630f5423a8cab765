"""CPU time and memory of this process. The standard library only: it runs in a peer's environment too."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def cpu_seconds() -> float:
    """User and system time of this process so far, all its threads together."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def peak_mib() -> float:
    """The most that was resident so far. Not `ru_maxrss`: that one begins with what the parent had."""
    for line in Path("/proc/self/status").read_text("utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no VmHWM: memory is measured on Linux")


class Measured:
    """The figures of one side.

    Attributes:
        attribute_cpu_s: of each call, from token ids to the adjacency in memory.
        graph_file_cpu_s: from there to the pruned graph as JSON.
        loaded_mib, attribute_peak_mib, peak_mib: the most that was resident before the first call (imports, model and
            transcoders), before the graph's file, and at the end.
    """

    def __init__(self) -> None:
        self.figures: dict[str, Any] = {"attribute_cpu_s": [], "loaded_mib": round(peak_mib())}

    def attribute(self, work: Callable[[], T], calls: int) -> T:
        """What the last of some calls returns."""
        for _ in range(calls):
            started = cpu_seconds()
            result = work()
            self.figures["attribute_cpu_s"].append(round(cpu_seconds() - started, 3))
        self.figures["attribute_peak_mib"] = round(peak_mib())
        return result

    def graph_file(self, work: Callable[[], Any]) -> None:
        """Make the graph's file."""
        started = cpu_seconds()
        work()
        self.figures["graph_file_cpu_s"] = round(cpu_seconds() - started, 3)

    def finish(self, **more: Any) -> dict[str, Any]:
        """All figures; to be called before the adjacency is written down for comparison."""
        whole = {"process_cpu_s": round(cpu_seconds(), 2), "peak_mib": round(peak_mib())}
        return self.figures | whole | more
