"""Numbers as Kubernetes writes them. A profile's 32G are 32·10^9 bytes, and so is Kubernetes' `32G`."""

from __future__ import annotations

import math

_UNITS = {"T": 10**12, "Ti": 2**40, "G": 10**9, "Gi": 2**30, "M": 10**6, "Mi": 2**20, "k": 10**3, "Ki": 2**10, "": 1}


def of_bytes(size: int) -> str:
    """The shortest that is exact: `32G`, `1500M`, `64Mi`."""
    exact = [f"{size // unit}{suffix}" for suffix, unit in _UNITS.items() if size % unit == 0]
    return min(exact, key=len)


def of_cpus(count: float) -> str:
    """`8`, or thousandths (`500m`), rounded up to what can be said."""
    thousandths = math.ceil(round(count * 1000, 6))
    return f"{thousandths}m" if thousandths % 1000 else str(thousandths // 1000)
