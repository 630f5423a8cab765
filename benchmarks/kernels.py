"""Kernels: the sparse products of one micro-batch by `embedding_bag`, as dense products, and by Triton on a GPU.

By hand:  python -m benchmarks.run kernels --threads 1

Each product is timed alone: `row_sums` (decode; encode's gradient by x), `column_sums` (the gradients by the weights)
and `entry_products` (decode's gradient by the activations). The dense contender is given its dense activations and
keeps all of a product's entries, so that it is nothing but the matrix product. Sorting the entries for `column_sums` is
shared by both weights and timed as `transpose`.

Two times are counted at the rate of a copy within memory: `floor`, where every row that any entry names is read once
and every result written once; and `uncached`, where a row is read again for each entry that names it. Tables that stay
in a cache from round to round can go below both. `interp.dictionaries.kernel_choice` states the rule that follows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import side_by_side
from interp.dictionaries import kernel_choice, triton_kernels
from interp.dictionaries.kernels import Pattern

ON_CPU = [
    (64, 1024, 16, 1024, torch.float32),
    (256, 4096, 32, 1024, torch.float32),
    (256, 4096, 128, 1024, torch.float32),
    (256, 4096, 512, 1024, torch.float32),
    (1024, 8192, 32, 512, torch.float32),
    (256, 4096, 32, 1024, torch.bfloat16),
]
ON_CUDA = [
    (d, latents, k, batch, dtype)
    for d, latents, batch in ((768, 24576, 8192), (4096, 65536, 8192))
    for k in (32, 128, 1024)
    for dtype in (torch.float32, torch.bfloat16)
]
"""(d, latents, k, batch, dtype) of each case."""

COPIED = 2**28
"""Bytes of the copy that measures memory: larger than any cache."""


def run() -> dict[str, Any]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rate = _bytes_per_second(device)
    cases = ON_CUDA if device.type == "cuda" else ON_CPU
    return {
        f"d {d}, {latents} latents, k {k}, batch {batch}, {str(dtype)[6:]}": {
            "memory_gb_per_s": round(rate / 1e9, 1),
            **measure(device, rate, d, latents, k, batch, dtype),
        }
        for d, latents, k, batch, dtype in cases
    }


def measure(
    device: torch.device, rate: float, d: int, latents: int, k: int, batch: int, dtype: torch.dtype
) -> dict[str, Any]:
    generator = torch.Generator(device).manual_seed(0)
    drawn = {"generator": generator, "device": device}
    # Popularity falls as in trained dictionaries: a few latents are in most tokens and many in none.
    popularity = torch.randn(latents, **drawn) * 2
    scores = popularity + torch.randn(batch, latents, **drawn)
    pattern = Pattern.of_indices(scores.topk(k, dim=1).indices, latents)
    values = torch.rand(batch * k, **drawn).to(dtype)
    W, g = (torch.randn(n, d, **drawn).to(dtype) for n in (latents, batch))
    active = torch.zeros(batch, latents, dtype=dtype, device=device)
    active[pattern.tokens.long(), pattern.latents.long()] = values
    size, entries = dtype.itemsize, batch * k
    figures: dict[str, Any] = {
        "active_share": k / latents,
        "chosen": kernel_choice.preferred(device, k / latents, d, dtype),
        "transpose_us": _microseconds({"transpose": _sort(pattern)}, device)["transpose"],
    }
    alive = len(pattern.latents.unique())
    # Rows of tables that any entry names, and elements written.
    sizes = {
        "row_sums": (alive, batch * d),
        "column_sums": (batch, latents * d),
        "entry_products": (alive + batch, entries),
    }
    for product, (distinct, written) in sizes.items():
        taken = _microseconds(contenders(product, pattern, values, W, g, active), device)
        figures[f"{product}_floor_us"] = round((distinct * d + entries + written) * size / rate * 1e6, 1)
        figures[f"{product}_uncached_us"] = round((entries * (d + 1) + written) * size / rate * 1e6, 1)
        figures |= {f"{product}_{name}_us": microseconds for name, microseconds in taken.items()}
    return figures


def contenders(
    product: str, pattern: Pattern, values: Tensor, W: Tensor, g: Tensor, active: Tensor
) -> dict[str, Callable[[], Tensor]]:
    rows = (pattern.latents, pattern.offsets)
    columns = (pattern.transposed.latents, pattern.transposed.offsets)
    made: dict[str, dict[str, Callable[[], Tensor]]] = {
        "row_sums": {
            "embedding_bag": lambda: _bag(values, *rows, W),
            "dense": lambda: active @ W,
            "triton": lambda: triton_kernels.row_sums(values, *rows, W),
        },
        "column_sums": {
            "embedding_bag": lambda: _bag(values[pattern.order], *columns, g),
            "dense": lambda: active.T @ g,
            "triton": lambda: triton_kernels.row_sums(values[pattern.order], *columns, g),
        },
        "entry_products": {
            "embedding_bag": lambda: torch.ops.aten._embedding_bag_per_sample_weights_backward(
                g, W, pattern.latents, pattern.offsets[:-1], pattern.tokens, 0
            ),
            "dense": lambda: g @ W.T,
            "triton": lambda: triton_kernels.entry_products(g, W, *rows),
        },
    }
    return {name: work for name, work in made[product].items() if name != "triton" or _triton_runs(W)}


def _bag(values: Tensor, latents: Tensor, offsets: Tensor, table: Tensor) -> Tensor:
    return torch.nn.functional.embedding_bag(
        latents, table, offsets, mode="sum", per_sample_weights=values, include_last_offset=True
    )


def _sort(pattern: Pattern) -> Callable[[], Pattern]:
    return lambda: Pattern(pattern.latents, pattern.offsets, pattern.n_latents).transposed


def _triton_runs(table: Tensor) -> bool:
    return triton_kernels.AVAILABLE and table.is_cuda


def _microseconds(works: dict[str, Callable[[], Any]], device: torch.device) -> dict[str, float]:
    def finished(work: Callable[[], Any]) -> Callable[[], None]:
        def timed() -> None:
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        return timed

    seconds = side_by_side({name: finished(work) for name, work in works.items()})
    return {name: round(taken * 1e6, 1) for name, taken in seconds.items()}


def _bytes_per_second(device: torch.device) -> float:
    """Bytes read and written each second by a copy."""
    source = torch.zeros(COPIED, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    taken = _microseconds({"copy": lambda: target.copy_(source)}, device)["copy"]
    return 2 * COPIED / taken * 1e6
