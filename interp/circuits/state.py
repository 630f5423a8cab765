"""A prompt's frozen model: everything that its attribution graph is made of.

With attention patterns, norm denominators and the mask of an adapter's ReLU held at their values on the prompt, and
each MLP written as its transcoder plus what the transcoder misses,

    m_l[p] = sum_f a_f W_dec[f] + b_dec + W_skip x_l[p] + error_l[p]      x_l = mlp_norm(stream), frozen
    m_l[p] = sum_f a_f W_dec[f] + b_dec + (MLP's linear map) x_l[p]       where the MLP is kept (RelP)
    m_l[p] = bos_l[p]                                                     at a position that is held constant
    m_l[p] = error_l[p]                                                   in a layer without a transcoder

every pre-activation is linear in the sources: embeddings, feature activations, errors and constants.

Everything here is float32 on the model's device, whatever dtype the model has; patterns and weights keep theirs and are
converted where they are used. Positions come before widths: [pos, d_model]. A state holds n_layers * (3 * pos * d_model
+ n_heads * pos^2) numbers: on long prompts most of it are patterns, and those lie on disk where memory is short
(`interp.circuits.memory`).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.circuits.replacements import Replacement
from interp.circuits.spill import SpilledTensor, loaded
from interp.wrapper.frozen import AdapterView, BlockView
from interp.wrapper.mlp import FrozenMlp
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

    @cached_property
    def latents(self) -> Int[Tensor, "features"]:
        """Index of each feature in its transcoder."""
        return self.index[:, 2].long()


@dataclass(frozen=True, eq=False)
class FrozenLayer:
    """One block on one prompt.

    Attributes:
        held_pattern: in memory or on disk; `pattern` is either.
        attn_bias: what the biases of attention and its norms write; None if there are none.
        mlp_in: what the MLP read.
        mlp_bias: what is written whatever the MLP reads: decoder bias, and the linear paths on the norm's bias.
        skip: the linear path beside the features, if there is one.
        kept: the model's own MLP, made linear at what it read, where it stays.
        error: MLP output less what features, biases and linear paths write; the whole output in a layer without
            features; 0 where the position is held constant.
        bos: the whole MLP output where the position is held constant, else 0; None if there is no such position.
    """

    block: BlockView
    held_pattern: Float[Tensor, "head query key"] | SpilledTensor
    attn_denominator: Float[Tensor, "pos 1"]
    attn_post_denominator: Float[Tensor, "pos 1"] | None
    mlp_denominator: Float[Tensor, "pos 1"]
    attn_bias: Float[Tensor, "pos d_model"] | None
    mlp_in: Float[Tensor, "pos d_model"]
    mlp_bias: Float[Tensor, "pos d_model"] | None
    skip: Float[Tensor, "d_model d_model"] | None
    kept: FrozenMlp | None
    error: Float[Tensor, "pos d_model"]
    bos: Float[Tensor, "pos d_model"] | None

    @property
    def pattern(self) -> Float[Tensor, "head query key"]:
        """The attention pattern, as the model computed it."""
        return loaded(self.held_pattern).to(self.mlp_in.device)


@dataclass(frozen=True, eq=False)
class FrozenAdapter:
    """The map between two groups on one prompt: it stands before block `before`."""

    view: AdapterView
    before: int
    mask: Bool[Tensor, "pos d_hidden"] | None

    def through(
        self, gradient: Float[Tensor, "*target pos d_last"], where: slice | Tensor
    ) -> Float[Tensor, "*target pos d_first"]:
        """Pull gradients on the second group's stream, at these positions, back to the first one's."""
        weights = AdapterView(tuple(weight.to(gradient.dtype) for weight in self.view.weights))
        return weights.transpose(gradient, None if self.mask is None else self.mask[where])


@dataclass(frozen=True, eq=False)
class FrozenHead:
    """The end of the model.

    Attributes:
        denominator: of the final norm; normed: what the head reads, in the model's dtype.
        W_U_mean: the mean row of W_U.
        softcap: c of c * tanh(logits / c), if the model has one.
    """

    norm: NormView
    denominator: Float[Tensor, "pos 1"]
    normed: Float[Tensor, "pos d_model"]
    W_U: Float[Tensor, "d_vocab d_model"]
    W_U_mean: Float[Tensor, "d_model"]
    bias: Float[Tensor, "d_vocab"] | None
    softcap: float | None

    def logits(self, pos: int) -> Float[Tensor, "d_vocab"]:
        """The head's raw output at one position."""
        return F.linear(self.normed[pos], self.W_U, self.bias).float()

    def probabilities(self, pos: int) -> Float[Tensor, "d_vocab"]:
        """What the model predicts there."""
        logits = self.logits(pos)
        return (logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap).softmax(-1)


@dataclass(frozen=True, eq=False)
class ReplacementState:
    """One prompt, captured and frozen.

    Attributes:
        ids: the prompt.
        embeddings: what block 0 reads: token embeddings, with learned positions where a family has them.
        constant: positions where features, error and linear paths are replaced by one constant a layer.
    """

    ids: Int[Tensor, "pos"]
    embeddings: Float[Tensor, "pos d_model"]
    layers: tuple[FrozenLayer, ...]
    adapter: FrozenAdapter | None
    head: FrozenHead
    replacement: Replacement
    features: Features
    constant: Bool[Tensor, "pos"]

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @property
    def n_pos(self) -> int:
        return len(self.ids)

    @property
    def device(self) -> torch.device:
        return self.embeddings.device

    def mlp_height(self, layer: int) -> int:
        """Where an MLP reads the stream, as `interp.circuits.targets` counts: 2 * layer is the block's input."""
        return 2 * layer + (not self.layers[layer].block.parallel)

    @property
    def nbytes(self) -> int:
        """Bytes that the state holds beside weights."""
        tensors: list[object] = [self.embeddings, self.features.index, self.features.activations, self.head.normed]
        for layer in self.layers:
            # A kept MLP holds what it read, which is `mlp_in`.
            tensors += [getattr(layer, each.name) for each in fields(layer) if each.name not in ("block", "skip")]
        storages = [each.untyped_storage() for each in tensors if isinstance(each, Tensor)]
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
