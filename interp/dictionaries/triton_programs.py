"""The programs of `triton_kernels`. Importing this module imports triton; `triton_kernels` does so at its first call.

Offsets into tables are int64, for n_latents x d passes 2^31 at 524288 latents of 4096. A sum is kept in `ACC` as a
tile [BLOCK_E, BLOCK_D] and folded once at the end, so that the loads of BLOCK_E rows are under way together.

Triton's compiler reads annotations as code: only the constants have them. `_COUNTS` differ from batch to batch and are
not specialised on, which would compile a program again.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-calls=False

from __future__ import annotations

import torch
import triton
import triton.language as tl

ACC = {torch.float32: tl.float32, torch.float64: tl.float64}
"""Triton's names of the dtypes that sums are kept in."""

_COUNTS = ("n_rows", "active")


@triton.jit
def _row_of(offsets, n_rows, entry):
    """The row that holds an entry: the last one with offsets[row] <= entry. Entries may be a block."""
    low = entry * 0
    high = low + n_rows
    width = n_rows
    while width > 0:
        middle = (low + high) // 2
        before = tl.load(offsets + middle) <= entry
        low, high = tl.where(before, middle + 1, low), tl.where(before, high, middle)
        width = width // 2
    return low - 1


@triton.jit
def _sum_entries(
    total,
    values,
    latents,
    table,
    start,
    stop,
    columns,
    d,
    ACC: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """`total` plus the weighted table rows of entries `start` to `stop`."""
    for first in range(start, stop, BLOCK_E):
        entries = first + tl.arange(0, BLOCK_E)
        there = entries < stop
        rows = tl.load(latents + entries, mask=there, other=0).to(tl.int64)
        weights = tl.load(values + entries, mask=there, other=0.0).to(ACC)
        mask = there[:, None] & (columns < d)[None, :]
        total += weights[:, None] * tl.load(table + rows[:, None] * d + columns[None, :], mask=mask, other=0.0).to(ACC)
    return total


@triton.jit(do_not_specialize=_COUNTS)
def sum_chunks(
    values,
    latents,
    offsets,
    table,
    partial,
    n_rows,
    d,
    ACC: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """partial[c] = the sum over entries c CHUNK to (c + 1) CHUNK, if all of them are of one row; else left as it is."""
    chunk = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    start = chunk * CHUNK
    stop = start + CHUNK
    if tl.load(offsets + _row_of(offsets, n_rows, start) + 1) >= stop:
        total = tl.zeros((BLOCK_E, BLOCK_D), dtype=ACC)
        total = _sum_entries(total, values, latents, table, start, stop, columns, d, ACC, BLOCK_E)
        tl.store(partial + chunk.to(tl.int64) * d + columns, tl.sum(total, 0), mask=columns < d)


@triton.jit
def sum_rows(
    values,
    latents,
    offsets,
    table,
    partial,
    out,
    d,
    ACC: tl.constexpr,
    SPLIT: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """out[row] = its entries before its first whole chunk, the sums of its whole chunks, and its entries after them."""
    row = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    start = tl.load(offsets + row)
    stop = tl.load(offsets + row + 1)
    total = tl.zeros((BLOCK_E, BLOCK_D), dtype=ACC)
    if SPLIT:
        first = (start + CHUNK - 1) // CHUNK
        last = tl.maximum(stop // CHUNK, first)
        head = tl.minimum(first * CHUNK, stop)
        tail = tl.maximum(last * CHUNK, head)
        total = _sum_entries(total, values, latents, table, start, head, columns, d, ACC, BLOCK_E)
        for c in range(first, last, BLOCK_E):
            chunks = c + tl.arange(0, BLOCK_E)
            mask = (chunks < last)[:, None] & (columns < d)[None, :]
            total += tl.load(partial + chunks.to(tl.int64)[:, None] * d + columns[None, :], mask=mask, other=0.0)
        total = _sum_entries(total, values, latents, table, tail, stop, columns, d, ACC, BLOCK_E)
    else:
        total = _sum_entries(total, values, latents, table, start, stop, columns, d, ACC, BLOCK_E)
    sums = tl.sum(total, 0).to(out.dtype.element_ty)
    tl.store(out + row.to(tl.int64) * d + columns, sums, mask=columns < d)


@triton.jit(do_not_specialize=_COUNTS)
def multiply_entries(
    left,
    right,
    latents,
    offsets,
    out,
    n_rows,
    active,
    d,
    ACC: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """out[e] = left[row of e] . right[latents[e]] for BLOCK_E entries, whichever rows they are of."""
    entries = tl.program_id(0).to(tl.int64) * BLOCK_E + tl.arange(0, BLOCK_E)
    there = entries < active
    entries = tl.where(there, entries, 0)
    rows = _row_of(offsets, n_rows, entries)
    theirs = tl.load(latents + entries).to(tl.int64)
    total = tl.zeros((BLOCK_E, BLOCK_D), dtype=ACC)
    for first in range(0, d, BLOCK_D):
        columns = first + tl.arange(0, BLOCK_D)
        mask = there[:, None] & (columns < d)[None, :]
        a = tl.load(left + rows[:, None] * d + columns[None, :], mask=mask, other=0.0).to(ACC)
        b = tl.load(right + theirs[:, None] * d + columns[None, :], mask=mask, other=0.0).to(ACC)
        total += a * b
    tl.store(out + entries, tl.sum(total, 1).to(out.dtype.element_ty), mask=there)
