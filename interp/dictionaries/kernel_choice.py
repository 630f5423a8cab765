"""Which kernel computes a sparse product: a rule of sizes, never a timing of the moment.

A resumed run must add up in the same order as the run that it continues, so the choice depends on nothing but the
arguments and whether triton is installed. `benchmarks/kernels.py` measures what the rule is made from.
"""

from __future__ import annotations

from typing import Literal

import torch

from interp.dictionaries import triton_kernels

Sparse = Literal["triton", "embedding_bag"]
Kernel = Sparse | Literal["dense"]

_WIDE = 256
"""Width from which a row's arithmetic outweighs what a CPU does once for each entry."""


def preferred(device: torch.device, active_share: float, d: int, dtype: torch.dtype = torch.float32) -> Kernel:
    """The kernel for tables of width `d` on `device`, when `active_share` of batch x n_latents entries are active.

    On a CPU it was measured: one core of an AMD EPYC with AVX-512 bfloat16, CPU time of the three products and the sort
    together, 256 to 512 tokens. At the limits below sparse takes 0.45 to 0.8 of dense's time in float32, whose large
    products are oneDNN's (`interp.models.products`), and 0.25 to 0.7 in bfloat16, whose dense product is the faster one
    by more. In float32 they are even at 1/8 of 256 wide rows, and dense takes 0.6 of the time at 512.

    On CUDA it is UNMEASURED. The shares are reckoned from an H200's 4.8 TB/s of memory and 67 (float32) or 990
    (bfloat16) TFLOP/s: an entry's row costs d x itemsize bytes and a dense product 2 n_latents d FLOPs a token, even at
    1/28 and 1/206; rounded to what lies below. That Triton's kernels beat `embedding_bag` there is an assumption.
    """
    return "dense" if active_share > _most_active(device.type, d, dtype) else of_pattern(device)


def of_pattern(device: torch.device) -> Sparse:
    """The kernel where the active entries alone are known."""
    return "triton" if device.type == "cuda" and triton_kernels.AVAILABLE else "embedding_bag"


def _most_active(device_type: str, d: int, dtype: torch.dtype) -> float:
    """The share of active entries up to which a sparse product is taken."""
    half = dtype.itemsize < 4
    if device_type == "cuda":
        return 1 / 256 if half else 1 / 32
    if half:
        return 1 / 32 if d >= _WIDE else 1 / 128
    return 1 / 16
