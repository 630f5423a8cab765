"""Freezing one block on a prompt: denominators, constants, active features, and what the transcoder misses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.circuits.memory import ENCODED_AT_ONCE
from interp.circuits.replacements import Replacement
from interp.circuits.spill import Spill, SpilledTensor, loaded
from interp.circuits.state import Features, FrozenLayer
from interp.wrapper.activations import ActivationCache
from interp.wrapper.frozen import BlockView, attention_out
from interp.wrapper.mlp import FrozenMlp

_WRITTEN_AT_ONCE = 2**22
"""Numbers of what features write."""


class PatternKeeper:
    """Takes each layer's pattern as it passes, in memory or on disk."""

    def __init__(self, spill: Spill | None):
        self._spill = spill
        self._kept: dict[str, Tensor | SpilledTensor] = {}

    def keep(self, pattern: Float[Tensor, "prompt head query key"], name: str) -> None:
        """A hook that only looks; where patterns go to disk, one prompt is run at a time."""
        self._kept[name] = pattern if self._spill is None else self._spill.put(pattern[0])

    def of(self, place: int, n_pos: int) -> PatternKeeper:
        """The patterns of one prompt of several, without its padding."""
        own = PatternKeeper(None)
        for name, pattern in self._kept.items():
            own._kept[name] = loaded(pattern)[place : place + 1, :, :n_pos, :n_pos].clone()
        return own

    def __getitem__(self, block: str) -> Tensor | SpilledTensor:
        kept = self._kept[f"{block}.attn_pattern"]
        return kept[0] if isinstance(kept, Tensor) else kept


class BlockReader:
    """The activations of one block, in float32, and its pattern as it was kept."""

    def __init__(self, cache: ActivationCache, block: str, pattern: Tensor | SpilledTensor):
        self._cache, self._block, self.pattern = cache, block, pattern

    def raw(self, site: str) -> Tensor:
        return self._cache[f"{self._block}.{site}"][0]

    def __call__(self, site: str) -> Tensor:
        return self.raw(site).float()


@dataclass(frozen=True)
class Active:
    """The active features of one layer, sorted by position and latent, on the model's device."""

    pos: Int[Tensor, "n"]
    latents: Int[Tensor, "n"]
    activations: Float[Tensor, "n"]

    @classmethod
    def of(
        cls,
        replacement: Replacement,
        layer: int,
        mlp_in: Float[Tensor, "pos d_in"],
        constant: Bool[Tensor, "pos"],
    ) -> Active:
        """The entries above 0 at positions that are not held constant."""
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        step = max(1, ENCODED_AT_ONCE // replacement.n_latents(layer))
        for first in range(0, len(mlp_in), step):
            some = slice(first, first + step)
            activations = replacement.encode(layer, mlp_in[some])
            pos, latents = (activations * ~constant[some, None]).nonzero(as_tuple=True)
            found.append((pos + first, latents, activations[pos, latents].float()))
        return cls(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def freeze_block(
    block: BlockView,
    read: BlockReader,
    replacement: Replacement,
    constant: Bool[Tensor, "pos"],
    active: dict[int, Active],
) -> FrozenLayer:
    """A block frozen at what it did on the prompt.

    Args:
        constant: positions where everything that the MLP wrote is one constant.
        active: of the layers below; this layer's features are added.
    """
    stream, mlp_in, mlp_out = read("resid_pre"), read("mlp_in"), read("mlp_out")
    pattern = loaded(read.pattern).to(stream.device)
    attn_denominator = block.attn_norm.denominator(stream)
    post_denominator = None
    if block.attn_post_norm is not None:
        written = attention_out(block, block.attn_norm.apply(stream, attn_denominator), pattern)
        post_denominator = block.attn_post_norm.denominator(written)
    if replacement.has_features(block.layer):
        active[block.layer] = Active.of(replacement, block.layer, read.raw("mlp_in"), constant)
    kept = block.freeze_mlp(mlp_in) if replacement.keeps_mlp else None
    skip = replacement.skip(block.layer)
    return FrozenLayer(
        block=block,
        held_pattern=read.pattern,
        attn_denominator=attn_denominator,
        attn_post_denominator=post_denominator,
        mlp_denominator=block.mlp_norm.denominator(stream if block.parallel else read("resid_mid")),
        attn_bias=_attention_constant(block, pattern, post_denominator),
        mlp_in=mlp_in,
        mlp_bias=_mlp_constant(block, replacement, kept, len(mlp_in)),
        skip=skip,
        kept=kept,
        error=(mlp_out - _explained(block.layer, replacement, kept, active, mlp_in)) * ~constant[:, None],
        bos=mlp_out * constant[:, None] if bool(constant.any()) else None,
    )


def collect(active: Mapping[int, Active], n_layers: int, n_pos: int) -> Features:
    """The features of all layers, in order of the layers."""
    layers = sorted(active)
    index = [
        torch.stack([torch.full_like(active[layer].pos, layer), active[layer].pos, active[layer].latents], dim=1)
        for layer in layers
    ]
    return Features(
        n_layers,
        n_pos,
        torch.cat(index).int().cpu(),
        torch.cat([active[layer].activations for layer in layers]).cpu(),
    )


def _explained(
    layer: int, replacement: Replacement, kept: FrozenMlp | None, active: Mapping[int, Active], mlp_in: Tensor
) -> Float[Tensor, "pos d_out"]:
    """What features, biases and linear paths write."""
    rebuilt = torch.zeros_like(mlp_in)
    if kept is not None:
        own_bias = kept.bias
        rebuilt = kept.linear(mlp_in) if own_bias is None else kept.linear(mlp_in) + own_bias
    if (bias := replacement.bias(layer)) is not None:
        rebuilt = rebuilt + bias.float()
    for source in replacement.writers(layer):
        features, decoder = active[source], replacement.decoder(source, layer)
        for some in torch.arange(len(features.pos), device=mlp_in.device).split(_WRITTEN_AT_ONCE // mlp_in.shape[1]):
            written = decoder[features.latents[some]].float() * features.activations[some, None]
            rebuilt.index_add_(0, features.pos[some], written)
    skip = replacement.skip(layer)
    return rebuilt if skip is None else rebuilt + mlp_in @ skip.float().T


def _attention_constant(
    block: BlockView, pattern: Tensor, post_denominator: Tensor | None
) -> Float[Tensor, "pos d_model"] | None:
    """What attention writes when its input is 0 but for its norm's bias, through its post-norm."""
    norm_bias, post = block.attn_norm.bias, block.attn_post_norm
    if norm_bias is None and block.b_v is None and block.b_o is None and (post is None or post.bias is None):
        return None
    read = torch.zeros(pattern.shape[-1], block.d_model, device=pattern.device)
    if norm_bias is not None:
        read = read + norm_bias.float()
    written = attention_out(block, read, pattern)
    return written if post is None or post_denominator is None else post.apply(written, post_denominator)


def _mlp_constant(
    block: BlockView, replacement: Replacement, kept: FrozenMlp | None, n_pos: int
) -> Float[Tensor, "pos d_model"] | None:
    """What is written when the stream is 0: decoder bias, an MLP's own biases, linear paths on the norm's bias."""
    bias, skip, norm_bias = replacement.bias(block.layer), replacement.skip(block.layer), block.mlp_norm.bias
    constant = None if bias is None else bias.float().expand(n_pos, -1)
    own_bias = None if kept is None else kept.bias
    if own_bias is not None:
        constant = own_bias if constant is None else constant + own_bias
    if norm_bias is not None and skip is not None and constant is not None:
        constant = constant + skip.float() @ norm_bias.float()
    if norm_bias is not None and kept is not None:
        through = kept.linear(norm_bias.float().expand(n_pos, -1))
        constant = through if constant is None else constant + through
    return constant
