"""A prompt's frozen model: everything that its attribution graph is made of.

With attention patterns, norm denominators and the mask of an adapter's ReLU held at their values on the prompt, and
each MLP written as its transcoder plus what the transcoder misses,

    m_l[p] = sum_f a_f W_dec[f] + b_dec + W_skip x_l[p] + error_l[p]      x_l = mlp_norm(stream), frozen
    m_l[p] = bos_l[p]                                                     at a position that is held constant
    m_l[p] = error_l[p]                                                   in a layer without a transcoder

every pre-activation is linear in the sources: embeddings, feature activations, errors and constants.

Everything here is float32 on the model's device, whatever dtype the model has; patterns and weights keep theirs and are
converted where they are used. Positions come before widths: [pos, d_model]. A state holds n_layers * (3 * pos * d_model
+ n_heads * pos^2) numbers: on long prompts most of it are patterns.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.dictionaries.transcoder import Transcoder
from interp.wrapper.frozen import AdapterView, BlockView, attention_transpose
from interp.wrapper.norms import NormView


@dataclass(frozen=True, eq=False)
class Features:
    """The active features of a prompt, sorted by (layer, pos, latent).

    Attributes:
        index: (layer, pos, latent) of each.
        starts: features of layer l and position p are starts[l * n_pos + p] .. starts[l * n_pos + p + 1] - 1.
    """

    n_layers: int
    n_pos: int
    index: Int[Tensor, "features 3"]
    activations: Float[Tensor, "features"]

    @cached_property
    def starts(self) -> list[int]:
        cell = self.index[:, 0].long() * self.n_pos + self.index[:, 1]
        counts = torch.bincount(cell, minlength=self.n_layers * self.n_pos)
        return [0, *counts.cumsum(0).tolist()]

    def __len__(self) -> int:
        return len(self.index)

    def at(self, layer: int, pos: int) -> slice:
        """Features of one layer and position."""
        cell = layer * self.n_pos + pos
        return slice(self.starts[cell], self.starts[cell + 1])

    @property
    def latents(self) -> Int[Tensor, "features"]:
        """Index of each feature in its transcoder."""
        return self.index[:, 2].long()


@dataclass(frozen=True, eq=False)
class FrozenLayer:
    """One block on one prompt.

    Attributes:
        attn_bias: what the biases of attention and its norms write; None if there are none.
        mlp_in: what the MLP read.
        mlp_bias: what the transcoder writes whatever it reads: its decoder bias, and its skip path on the norm's bias.
        error: MLP output less the transcoder's reconstruction; the whole output in a layer without a transcoder;
            0 where the position is held constant.
        bos: the whole MLP output where the position is held constant, else 0; None if there is no such position.
    """

    block: BlockView
    pattern: Float[Tensor, "head query key"]
    attn_denominator: Float[Tensor, "pos 1"]
    attn_post_denominator: Float[Tensor, "pos 1"] | None
    mlp_denominator: Float[Tensor, "pos 1"]
    attn_bias: Float[Tensor, "pos d_model"] | None
    mlp_in: Float[Tensor, "pos d_model"]
    transcoder: Transcoder | None
    mlp_bias: Float[Tensor, "d_model"] | None
    error: Float[Tensor, "pos d_model"]
    bos: Float[Tensor, "pos d_model"] | None

    def through_attention(self, gradient: Float[Tensor, "target pos d_model"]) -> Float[Tensor, "target pos d_model"]:
        """Pull gradients on what attention writes back to the stream that it reads."""
        n_pos = gradient.shape[1]
        if self.attn_post_denominator is not None and self.block.attn_post_norm is not None:
            gradient = self.block.attn_post_norm.transpose(gradient, self.attn_post_denominator[:n_pos])
        gradient = attention_transpose(self.block, gradient, self.pattern[:, :n_pos, :n_pos])
        return self.block.attn_norm.transpose(gradient, self.attn_denominator[:n_pos])

    def through_skip(
        self, gradient: Float[Tensor, "target pos d_model"], constant: Bool[Tensor, "pos"]
    ) -> Float[Tensor, "target pos d_model"] | None:
        """Pull gradients on what the MLP writes back to the stream that it reads, by the transcoder's skip path."""
        if self.transcoder is None or self.transcoder.W_skip is None:
            return None
        n_pos = gradient.shape[1]
        gradient = gradient @ self.transcoder.W_skip.to(gradient.dtype)
        gradient = gradient * ~constant[:n_pos, None]
        return self.block.mlp_norm.transpose(gradient, self.mlp_denominator[:n_pos])


@dataclass(frozen=True, eq=False)
class FrozenAdapter:
    """The map between two groups on one prompt: it stands before block `before`."""

    view: AdapterView
    before: int
    mask: Bool[Tensor, "pos d_hidden"] | None

    def through(self, gradient: Float[Tensor, "target pos d_last"]) -> Float[Tensor, "target pos d_first"]:
        """Pull gradients on the second group's stream back to the first one's."""
        mask = None if self.mask is None else self.mask[: gradient.shape[1]]
        weights = AdapterView(tuple(weight.to(gradient.dtype) for weight in self.view.weights))
        return weights.transpose(gradient, mask)


@dataclass(frozen=True, eq=False)
class FrozenHead:
    """The end of the model, at the last position."""

    norm: NormView
    denominator: Float[Tensor, "1"]
    W_U: Float[Tensor, "d_vocab d_model"]
    bias: Float[Tensor, "d_vocab"] | None


@dataclass(frozen=True, eq=False)
class ReplacementState:
    """One prompt, captured and frozen.

    Attributes:
        ids: the prompt.
        embeddings: what block 0 reads: token embeddings, with learned positions where a family has them.
        constant: positions where features, error and skip path are replaced by one constant a layer.
        logits: the head's raw output at the last position.
        probabilities: what the model predicts there (after its soft cap, if it has one).
    """

    ids: Int[Tensor, "pos"]
    embeddings: Float[Tensor, "pos d_model"]
    layers: tuple[FrozenLayer, ...]
    adapter: FrozenAdapter | None
    head: FrozenHead
    features: Features
    constant: Bool[Tensor, "pos"]
    logits: Float[Tensor, "d_vocab"]
    probabilities: Float[Tensor, "d_vocab"]

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @property
    def n_pos(self) -> int:
        return len(self.ids)

    @property
    def device(self) -> torch.device:
        return self.embeddings.device
