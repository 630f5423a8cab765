"""Machines that a fit can be planned for: what one GPU can do at most, as its vendor says.

Products are dense, without sparsity; float32 is the plain one (no TF32), in which training's float32 products are run.
Nobody reaches these: a plan counts on a stated share of them, its utilisation.
"""

from __future__ import annotations

from dataclasses import dataclass

from interp.errors import SpecError

_T, _G = 10**12, 10**9


@dataclass(frozen=True)
class Gpu:
    """One accelerator.

    Attributes:
        bf16, fp32: FLOP/s of dense matrix products.
        memory: bytes.
        bandwidth: of its memory, bytes/s.
        source: where these figures are from.
    """

    name: str
    bf16: float
    fp32: float
    memory: int
    bandwidth: float
    source: str

    def flops(self, dtype: str) -> float:
        return self.fp32 if dtype == "float32" else self.bf16


_NVIDIA = "https://www.nvidia.com/en-us/data-center"

GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        Gpu("h200-141g", 989 * _T, 67 * _T, 141 * _G, 4.8 * _T, f"{_NVIDIA}/h200/ (SXM; half of the sparse figure)"),
        Gpu("h100-80g", 989 * _T, 67 * _T, 80 * _G, 3.35 * _T, f"{_NVIDIA}/h100/ (SXM; half of the sparse figure)"),
        Gpu("a100-80g", 312 * _T, 19.5 * _T, 80 * _G, 2.039 * _T, f"{_NVIDIA}/a100/ (SXM)"),
        Gpu("a100-40g", 312 * _T, 19.5 * _T, 40 * _G, 1.555 * _T, f"{_NVIDIA}/a100/ (SXM)"),
        Gpu("l40s-48g", 362 * _T, 91.6 * _T, 48 * _G, 0.864 * _T, f"{_NVIDIA}/l40s/"),
        Gpu("l4-24g", 121 * _T, 30.3 * _T, 24 * _G, 0.3 * _T, f"{_NVIDIA}/l4/ (half of the sparse figure)"),
        Gpu("cpu", 1.28 * _T, 1.28 * _T, 64 * _G, 0.1 * _T, "16 cores with two 8-wide FMAs at 2.5 GHz, two channels"),
    )
}


def gpu_of(name: str) -> Gpu:
    """The row of this name.

    Raises:
        SpecError: there is none.
    """
    if name not in GPUS:
        raise SpecError("no such GPU is known", value=name, expected=f"one of {', '.join(GPUS)}")
    return GPUS[name]
