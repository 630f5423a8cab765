"""Triton kernels for the sparse products of `kernels`, without gradients.

Tables and results are float32, bfloat16 or float64; sums are kept in float32 (float64 of float64). There are no atomic
additions: the order of a sum follows from the pattern alone, so that the same call gives the same bits.

    row_sums         one program for each row and block of columns. Rows of the transposed pattern differ by orders of
                     magnitude: a dead latent has none, a popular one an entry for every token. So the entries are cut
                     at every multiple of `CHUNK`; a first pass adds up the chunks that lie within one row, all at the
                     same time, and a row's program takes those sums as they are. No program reads more than 2 CHUNK
                     entries besides, and nothing about the pattern has to be known on the host.
    entry_products   one program for `BLOCK_E` entries, whichever rows they are of; the row of an entry is found in
                     `offsets` by bisection. Every program has the same work.

Without a GPU the same programs run on CPU tensors in Triton's interpreter (TRITON_INTERPRET=1), which is for proof.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

AVAILABLE = find_spec("triton") is not None
"""Whether triton can be imported here."""

CHUNK = 128
"""Entries that one program adds up: near the square root of a large micro-batch's tokens, its longest row."""

_TILE, _WIDEST = 4096, 512
"""Elements of a program's tile, 32 registers in each of its 128 threads, and the most columns of one."""

_LAUNCH = {"num_warps": 4, "enable_fp_fusion": True}
"""Stated, for triton's defaults change from version to version, and the last bits of a sum with them."""


def row_sums(
    values: Float[Tensor, "active"],
    latents: Int[Tensor, "active"],
    offsets: Int[Tensor, "batch_plus_1"],
    table: Float[Tensor, "n d"],
    *,
    longest: int | None = None,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "batch d"]:
    """The sum of `table` rows weighted by `values` over the entries `offsets[t]` to `offsets[t + 1]` of each row t.

    Args:
        longest: the most entries of any row, if known; up to `CHUNK` saves the pass over chunks.
        dtype: of the result, the table's unless given: a float32 gradient can be summed from bfloat16 rows.
    """
    active, rows, d = len(latents), len(offsets) - 1, table.shape[1]
    out = torch.empty(rows, d, dtype=dtype or table.dtype, device=table.device)
    if not active or not out.numel():
        return out.zero_()
    values, latents, offsets, table = (each.contiguous() for each in (values, latents, offsets, table))
    chunks = active // CHUNK if longest is None or longest > CHUNK else 0
    partial = torch.empty(max(chunks, 1), d, dtype=_sum_dtype(table), device=table.device)
    programs = _programs()
    block_e, block_d = _blocks(d)
    settings = {"ACC": programs.ACC[partial.dtype], "CHUNK": CHUNK, "BLOCK_E": block_e, "BLOCK_D": block_d, **_LAUNCH}
    with torch.cuda.device_of(table):
        if chunks:
            programs.sum_chunks[(chunks, _pieces(d, block_d))](
                values, latents, offsets, table, partial, rows, d, **settings
            )
        programs.sum_rows[(rows, _pieces(d, block_d))](
            values, latents, offsets, table, partial, out, d, SPLIT=chunks > 0, **settings
        )
    return out


def entry_products(
    left: Float[Tensor, "batch d"],
    right: Float[Tensor, "n d"],
    latents: Int[Tensor, "active"],
    offsets: Int[Tensor, "batch_plus_1"],
) -> Float[Tensor, "active"]:
    """left[t] . right[latents[e]] for every entry e of each row t, in `left`'s dtype; `right`'s may differ."""
    active, rows, d = len(latents), len(offsets) - 1, left.shape[1]
    out = torch.empty(active, dtype=left.dtype, device=left.device)
    if not active:
        return out
    left, right, latents, offsets = (each.contiguous() for each in (left, right, latents, offsets))
    programs = _programs()
    block_e, block_d = _blocks(d)
    settings = {"ACC": programs.ACC[_sum_dtype(left)], "BLOCK_E": block_e, "BLOCK_D": block_d, **_LAUNCH}
    with torch.cuda.device_of(left):
        programs.multiply_entries[(_pieces(active, block_e),)](
            left, right, latents, offsets, out, rows, active, d, **settings
        )
    return out


def _programs() -> Any:
    from interp.dictionaries import triton_programs  # not at the top: triton is no dependency on a CPU

    return triton_programs


def _blocks(d: int) -> tuple[int, int]:
    """Entries and columns of a program's tile: all columns up to `_WIDEST`, then as many entries as fill the tile."""
    columns = min(1 << (d - 1).bit_length(), _WIDEST)
    return min(_TILE // columns, 32), columns


def _pieces(size: int, block: int) -> int:
    return -(-size // block)


def _sum_dtype(table: Tensor) -> torch.dtype:
    return torch.float64 if table.dtype == torch.float64 else torch.float32
