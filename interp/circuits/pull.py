"""Gradients through one frozen block: what is added to the gradient on its output to have that on its input.

With its denominator frozen, a norm's transpose is diag(w) / d, less the mean for a LayerNorm. Weights take up all of it
but the denominators, and those scale the pattern, so that for the gradients G [target, pos, d_model] of many targets

    attention   G += P'^T [G W_O'^T] W_V'     P'[q, k] = P[q, k] / (d_post[q] d_in[k]), head by head
    MLP paths   G += (G / d) W_skip',  and the MLP's own linear map where it is kept

A target that has just joined has its gradient g at one position p alone. Then W_O' and W_V' act on g once for each
head, and positions come in only at the end:

    G[k] = [k = p] g + sum over heads P'_h[p, k] (g W_O,h'^T W_V,h')

which costs d_model^2 + positions * heads * d_model multiplications in place of positions * d_model^2. Until something
else is added the gradient is then a sum of heads + 1 vectors at every position, and if these are fewer than positions,
W_O' of the next attention acts on them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.circuits.state import FrozenLayer
from interp.wrapper.norms import NormView

Where = slice | Tensor
"""Positions: the first ones, or one for each target."""

_KEYS_AT_ONCE = 256
"""Keys see no queries before them: in blocks, about half of a long prompt's pattern is never touched."""


@dataclass(frozen=True, eq=False)
class Shares:
    """Gradients as sums of few vectors: at each position, a share of each of them."""

    shares: Float[Tensor, "target pos vector"]
    vectors: Float[Tensor, "target vector d_model"]


@dataclass(frozen=True, eq=False)
class AttentionPull:
    """The transposed attention of one block over the first positions of a prompt, norms folded in.

    Attributes:
        w_o: [n_heads * d_head, d_model]; w_v: [n_kv_heads * d_head, d_model].
        pattern: as the model gave it, in its dtype.
        denominator: of the norm before attention; post_denominator: of the one after it, if there is one.
    """

    w_o: Float[Tensor, "heads_e d_model"]
    w_v: Float[Tensor, "kv_e d_model"]
    pattern: Float[Tensor, "head query key"]
    denominator: Float[Tensor, "pos 1"]
    post_denominator: Float[Tensor, "pos 1"] | None
    n_kv_heads: int

    @classmethod
    def of(cls, layer: FrozenLayer, n_pos: int) -> AttentionPull:
        """The attention of a block, as far as a position."""
        block, post = layer.block, layer.attn_post_denominator
        w_o = block.w_o.flatten(0, 1).float()
        if block.attn_post_norm is not None:
            w_o = _centred(w_o, block.attn_post_norm) * block.attn_post_norm.weight.float()
        return cls(
            w_o=w_o,
            w_v=_folded(block.w_v.flatten(0, 1).float(), block.attn_norm),
            pattern=layer.pattern[:, :n_pos, :n_pos],
            denominator=layer.attn_denominator[:n_pos],
            post_denominator=None if post is None else post[:n_pos],
            n_kv_heads=block.n_kv_heads,
        )

    @property
    def _heads(self) -> tuple[int, int, int]:
        """Groups of heads that share values, heads in a group, width of a head."""
        n_heads = len(self.pattern)
        return self.n_kv_heads, n_heads // self.n_kv_heads, len(self.w_o) // n_heads

    def _scaled(self, queries: Where, keys: slice) -> Float[Tensor, "head query key"]:
        scaled = self.pattern[:, queries, keys].float() / self.denominator[keys].T
        return scaled if self.post_denominator is None else scaled / self.post_denominator[queries]

    def add_to(self, gradient: Float[Tensor, "target pos d_model"], made_of: Shares | None = None) -> None:
        """Add to the gradients on what attention writes those that they cause where it reads, in place.

        Args:
            made_of: the same gradients as sums of few vectors.
        """
        n_targets, n_pos, d_model = gradient.shape
        n_kv, shared, d_head = self._heads
        heads = by_head(gradient, made_of, self.w_o).view(n_targets, n_pos, n_kv, shared, d_head).permute(2, 3, 1, 0, 4)
        heads = heads.reshape(n_kv, shared, n_pos, -1)
        values = gradient.new_empty(n_targets, n_pos, n_kv, d_head)
        for first in range(0, n_pos, _KEYS_AT_ONCE):
            keys = slice(first, min(first + _KEYS_AT_ONCE, n_pos))
            pattern = self._scaled(slice(first, n_pos), keys).reshape(n_kv, -1, keys.stop - first)
            pulled = torch.bmm(pattern.transpose(1, 2), heads[:, :, first:].reshape(n_kv, pattern.shape[1], -1))
            values[:, keys] = pulled.view(n_kv, -1, n_targets, d_head).permute(2, 1, 0, 3)
        gradient.view(-1, d_model).addmm_(values.view(-1, n_kv * d_head), self.w_v)

    def spread(self, fresh: Float[Tensor, "target d_model"], at: Int[Tensor, "target"], stays: Tensor) -> Shares:
        """Gradients at one position each, after it: what it adds, and what `stays` at their own position."""
        own = F.one_hot(at, len(self.denominator)).float()[None]
        shares = torch.cat([self._scaled(at, slice(0, len(self.denominator))), own])
        return Shares(shares.permute(1, 2, 0), torch.cat([self._head_by_head(fresh), stays[:, None]], dim=1))

    def _head_by_head(self, fresh: Float[Tensor, "target d_model"]) -> Float[Tensor, "target head d_model"]:
        """What each head makes of a gradient on what it writes, before its pattern."""
        n_targets, d_model = fresh.shape
        n_kv, shared, d_head = self._heads
        heads = F.linear(fresh, self.w_o).view(n_targets, n_kv, shared, d_head).transpose(0, 1)
        values = torch.bmm(heads.reshape(n_kv, -1, d_head), self.w_v.view(n_kv, d_head, d_model))
        return values.view(n_kv, n_targets, shared, d_model).transpose(0, 1).reshape(n_targets, -1, d_model)

    def paths_of(self, written: Float[Tensor, "pos d_model"]) -> Float[Tensor, "query d_model key"]:
        """What attention writes at each query because of what is written to the stream at each key."""
        n_pos, d_model = written.shape
        n_kv, shared, d_head = self._heads
        values = (
            (written @ self.w_v.T).view(n_pos, n_kv, 1, d_head).expand(-1, -1, shared, -1).reshape(n_pos, -1, d_head)
        )
        everywhere = slice(0, n_pos)
        paths = written.new_empty(n_pos, d_model, n_pos)
        for query in range(n_pos):
            mixed = self._scaled(slice(query, query + 1), everywhere)[:, 0].T[:, :, None] * values
            paths[query] = (mixed.flatten(1) @ self.w_o).T
        return paths


def by_head(
    gradient: Float[Tensor, "target pos d_model"], made_of: Shares | None, w_o: Float[Tensor, "heads_e d_model"]
) -> Float[Tensor, "target pos heads_e"]:
    """Gradients on what attention writes, head by head; few vectors are projected in place of many gradients."""
    if made_of is None:
        return F.linear(gradient, w_o)
    return torch.bmm(made_of.shares, F.linear(made_of.vectors, w_o))


def mlp_paths(
    layer: FrozenLayer, gradient: Float[Tensor, "*target pos d_model"], where: Where, constant: Bool[Tensor, "pos"]
) -> Float[Tensor, "*target pos d_model"] | None:
    """What the paths of an MLP that are no features add to gradients at these positions; None if there are none."""
    if layer.skip is None and layer.kept is None:
        return None
    gradient = gradient * (~constant[where])[..., None]
    added = None
    if layer.skip is not None:
        added = (gradient / layer.mlp_denominator[where]) @ _folded(layer.skip.float(), layer.block.mlp_norm)
    if layer.kept is not None:
        pulled = layer.kept.at(where).transpose(gradient)
        through = layer.block.mlp_norm.transpose(pulled, layer.mlp_denominator[where])
        added = through if added is None else added + through
    return added


def _folded(weight: Float[Tensor, "rows d_model"], norm: NormView) -> Float[Tensor, "rows d_model"]:
    """Rows that are written before a norm, as they are once pulled back through it."""
    return _centred(weight * norm.weight.float(), norm)


def _centred(weight: Float[Tensor, "rows d_model"], norm: NormView) -> Float[Tensor, "rows d_model"]:
    return weight - weight.mean(dim=-1, keepdim=True) if norm.kind == "layer" else weight
