"""Timing side by side: contenders take turns, so that a machine whose speed drifts treats them alike."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch

ROUNDS = 7


def side_by_side(contenders: Mapping[str, Callable[[], Any]], rounds: int = ROUNDS) -> dict[str, float]:
    """Median seconds of each contender over `rounds` rounds A B C A B C ..., after one that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for counted in [False] + [True] * rounds:
        for name, work in contenders.items():
            started = time.perf_counter()
            work()
            if counted:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def matmul_rate(m: int, k: int, n: int) -> float:
    """FLOP/s of one float32 product of these sizes: what floors are counted with."""
    a, b = torch.randn(m, k), torch.randn(k, n)
    seconds = side_by_side({"product": lambda: a @ b}, rounds=15)["product"]
    return 2 * m * k * n / seconds


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "device": "cuda: " + torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "nnsight", "ray", "interp")},
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123 - a pseudo-file of Linux
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
        return f"{len(names)} x {names[0]}" if names else platform.processor()
    except OSError:
        return platform.processor()
