"""Sparse products between activations and weights; the seam where faster kernels go.

The active latents of a batch are a matrix in compressed rows (`Pattern`). With A [batch, n_latents] that matrix,

    decode            A W_dec                 a weighted sum of decoder rows for each token
    its gradients     A^T g  and  (g W_dec^T) at A's entries
    encode's          dA^T x                  a weighted sum of tokens for each latent

so every product costs (active entries) x d and none costs batch x n_latents x d. For A^T the weighted row sum runs over
the same entries sorted by latent. On a CPU each takes 2 to 10 % of the time of one dense product at 32 active latents
of 4096, and all of them are float32's: what they read is in the cache. Which entries are active is found in chunks of
tokens (`largest`), so that the dense pre-activations of a micro-batch are never in memory at once.

On a GPU with Triton the sums are `triton_kernels`', and rows of a weight are read from its bfloat16 copy if it has one
(`products.work_in`). Elsewhere `embedding_bag` does them (`kernel_choice`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from interp.dictionaries import products, triton_kernels
from interp.dictionaries.kernel_choice import of_pattern
from interp.dictionaries.top_k import top_k

_SUM = 0
"""`embedding_bag`'s code of its mode "sum"."""

_CHUNK_BYTES = {"cpu": 2**23, "cuda": 2**30}
"""Dense pre-activations that are there at once: on a CPU what a share of its last cache holds."""


@dataclass(frozen=True)
class Pattern:
    """Which latents are active in each token: entries `offsets[t]` to `offsets[t + 1]` of `latents` are token t's."""

    latents: Int[Tensor, "active"]
    offsets: Int[Tensor, "batch_plus_1"]
    n_latents: int

    @classmethod
    def of_indices(cls, indices: Int[Tensor, "batch k"], n_latents: int) -> Pattern:
        """The same number of latents in every token."""
        batch, k = indices.shape
        offsets = torch.arange(0, batch * k + 1, k, dtype=torch.int32, device=indices.device)
        return cls(indices.reshape(-1).int(), offsets, n_latents)

    @classmethod
    def of_flat(cls, flat: Int[Tensor, "active"], batch: int, n_latents: int) -> Pattern:
        """Entries of a [batch, n_latents] matrix by their sorted flat indices."""
        counts = torch.bincount(flat // n_latents, minlength=batch)
        offsets = torch.zeros(batch + 1, dtype=torch.int32, device=flat.device)
        torch.cumsum(counts, 0, out=offsets[1:])
        return cls((flat % n_latents).int(), offsets, n_latents)

    @property
    def batch(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def tokens(self) -> Int[Tensor, "active"]:
        """The token of each entry."""
        tokens = torch.arange(self.batch, dtype=torch.int32, device=self.offsets.device)
        return tokens.repeat_interleave(self.offsets.diff(), output_size=len(self.latents))

    @cached_property
    def order(self) -> Int[Tensor, "active"]:
        """The entries sorted by latent, and by token within a latent."""
        return self.latents.argsort(stable=True)

    @cached_property
    def transposed(self) -> Pattern:
        """The same entries in compressed columns; its values are the original's at `order`."""
        counts = torch.zeros(self.n_latents, dtype=torch.int32, device=self.latents.device)
        counts.index_add_(0, self.latents, torch.ones_like(self.latents))  # `bincount` would wait for a GPU
        offsets = torch.zeros(self.n_latents + 1, dtype=torch.int32, device=self.latents.device)
        torch.cumsum(counts, 0, out=offsets[1:])
        return Pattern(self.tokens.index_select(0, self.order), offsets, self.batch)


def row_sums(
    values: Float[Tensor, "active"], pattern: Pattern, table: Float[Tensor, "n_latents d"]
) -> Float[Tensor, "batch d"]:
    """A @ table, without gradients."""
    if of_pattern(table.device) == "triton":
        rows = _rows(table)
        return triton_kernels.row_sums(values, pattern.latents, pattern.offsets, rows, dtype=table.dtype)
    return F.embedding_bag(
        pattern.latents, table, pattern.offsets, mode="sum", per_sample_weights=values, include_last_offset=True
    )


def column_sums(
    values: Float[Tensor, "active"], pattern: Pattern, table: Float[Tensor, "batch d"]
) -> Float[Tensor, "n_latents d"]:
    """A^T @ table, without gradients."""
    return row_sums(values.index_select(0, pattern.order), pattern.transposed, table)


def entry_products(
    left: Float[Tensor, "batch d"], right: Float[Tensor, "n_latents d"], pattern: Pattern
) -> Float[Tensor, "active"]:
    """left @ right^T at the pattern's entries only, without gradients."""
    if of_pattern(right.device) == "triton":
        rows = _rows(right)
        found = triton_kernels.entry_products(left.to(rows.dtype), rows, pattern.latents, pattern.offsets)
        return found.to(left.dtype)
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(
        left.contiguous(), right, pattern.latents, pattern.offsets[:-1], pattern.tokens, _SUM
    )


def largest(
    x: Float[Tensor, "batch d"], W_enc: Float[Tensor, "n_latents d"], bias: Float[Tensor, "n_latents"], k: int
) -> tuple[Float[Tensor, "batch k"], Int[Tensor, "batch k"]]:
    """(values, latents) of the k largest pre-activations x W_enc^T + bias of each token, without gradients.

    With a bfloat16 copy of the encoder they are chosen among, and have the values of, bfloat16 pre-activations; of
    equal ones any may be chosen.
    """
    with torch.no_grad():
        tokens = max(1, _CHUNK_BYTES.get(x.device.type, _CHUNK_BYTES["cpu"]) // (len(W_enc) * x.element_size()))
        found = [top_k(products.affine(part, W_enc, bias), k) for part in x.split(tokens)]
        values, latents = (torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*found, strict=True))
        return values.to(x.dtype), latents


def _rows(table: Tensor) -> Tensor:
    copy = products.working(table)
    return table if copy is None else copy


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, W_dec: Tensor, pattern: Pattern) -> Tensor:
        ctx.save_for_backward(values, W_dec)
        ctx.pattern = pattern
        return row_sums(values, pattern, W_dec)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        values, W_dec = ctx.saved_tensors
        d_values = entry_products(grad, W_dec, ctx.pattern) if ctx.needs_input_grad[0] else None
        d_weights = column_sums(values, ctx.pattern, grad.contiguous()) if ctx.needs_input_grad[1] else None
        return d_values, d_weights, None


class _Encode(torch.autograd.Function):
    """The pre-activations at a pattern's entries. They are read from the dense ones, which were needed to choose."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W_enc: Tensor, bias: Tensor, values: Tensor, pattern: Pattern) -> Tensor:
        ctx.save_for_backward(x, W_enc)
        ctx.pattern = pattern
        return values.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, W_enc = ctx.saved_tensors
        pattern = ctx.pattern
        d_x = row_sums(grad, pattern, W_enc) if ctx.needs_input_grad[0] else None
        d_weights = column_sums(grad, pattern, x) if ctx.needs_input_grad[1] else None
        d_bias = None
        if ctx.needs_input_grad[2]:
            d_bias = _latent_sums(grad, pattern)
        return d_x, d_weights, d_bias, None, None


def _latent_sums(values: Float[Tensor, "active"], pattern: Pattern) -> Float[Tensor, "n_latents"]:
    """The sum of each latent's entries, on a GPU too in an order that is always the same."""
    if values.is_cuda:
        return column_sums(values, pattern, values.new_ones(pattern.batch, 1))[:, 0]
    return values.new_zeros(pattern.n_latents).index_add_(0, pattern.latents, values)


def decode(
    values: Float[Tensor, "active"], pattern: Pattern, W_dec: Float[Tensor, "n_latents d"]
) -> Float[Tensor, "batch d"]:
    """Sum of decoder rows weighted by the activations of each token; differentiable in both."""
    return _Decode.apply(values, W_dec, pattern)


def encode(
    x: Float[Tensor, "batch d"],
    W_enc: Float[Tensor, "n_latents d"],
    bias: Float[Tensor, "n_latents"],
    values: Float[Tensor, "active"],
    pattern: Pattern,
) -> Float[Tensor, "active"]:
    """`values`, which must be the pre-activations x W_enc^T + bias at the pattern's entries, with their gradient."""
    return _Encode.apply(x, W_enc, bias, values, pattern)
