"""Freezing one block on a prompt: denominators, constants, active features, and what the transcoder misses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.circuits.state import Features, FrozenLayer
from interp.dictionaries.transcoder import Transcoder
from interp.wrapper.activations import ActivationCache
from interp.wrapper.frozen import BlockView, attention_out


class BlockReader:
    """The activations of one block, in float32."""

    def __init__(self, cache: ActivationCache, block: str):
        self._cache, self._block = cache, block

    def raw(self, site: str) -> Tensor:
        return self._cache[f"{self._block}.{site}"][0]

    def __call__(self, site: str) -> Tensor:
        return self.raw(site).float()


Found = tuple[Int[Tensor, "n 3"], Float[Tensor, "n"]]
"""(layer, pos, latent) and activation of each active feature of one layer."""


def freeze_block(
    block: BlockView, read: BlockReader, transcoder: Transcoder | None, constant: Bool[Tensor, "pos"]
) -> tuple[FrozenLayer, Found]:
    """A block frozen at what it did on the prompt, and its active features.

    Args:
        constant: positions where everything that the MLP wrote is one constant.
    """
    stream, mlp_in, mlp_out = read("resid_pre"), read("mlp_in"), read("mlp_out")
    pattern = read.raw("attn_pattern")
    attn_denominator = block.attn_norm.denominator(stream)
    post_denominator = None
    if block.attn_post_norm is not None:
        written = attention_out(block, block.attn_norm.apply(stream, attn_denominator), pattern)
        post_denominator = block.attn_post_norm.denominator(written)
    error, found = mlp_out, (torch.zeros(0, 3, dtype=torch.int32), torch.zeros(0))
    if transcoder is not None:
        activations = transcoder.encode(read.raw("mlp_in").to(transcoder.W_dec.dtype)).float()
        pos, latent = (activations * ~constant[:, None]).nonzero(as_tuple=True)
        active = activations[pos, latent]
        error = mlp_out - _reconstruct(transcoder, pos, latent, active, mlp_in)
        found = (torch.stack([torch.full_like(pos, block.layer), pos, latent], dim=1).int().cpu(), active.cpu())
    layer = FrozenLayer(
        block=block,
        pattern=pattern,
        attn_denominator=attn_denominator,
        attn_post_denominator=post_denominator,
        mlp_denominator=block.mlp_norm.denominator(stream if block.parallel else read("resid_mid")),
        attn_bias=_attention_constant(block, pattern, post_denominator),
        mlp_in=mlp_in,
        transcoder=transcoder,
        mlp_bias=None if transcoder is None else _mlp_constant(block, transcoder),
        error=error * ~constant[:, None],
        bos=mlp_out * constant[:, None] if bool(constant.any()) else None,
    )
    return layer, found


def collect(found: Sequence[Found], n_pos: int) -> Features:
    """The features of all layers, in order of the layers."""
    return Features(len(found), n_pos, torch.cat([f[0] for f in found]), torch.cat([f[1] for f in found]))


def _reconstruct(
    transcoder: Transcoder, pos: Tensor, latent: Tensor, active: Tensor, mlp_in: Float[Tensor, "pos d_in"]
) -> Float[Tensor, "pos d_out"]:
    rebuilt = transcoder.b_dec.float().repeat(len(mlp_in), 1)
    rebuilt.index_add_(0, pos, transcoder.W_dec[latent].float() * active[:, None])
    return rebuilt if transcoder.W_skip is None else rebuilt + mlp_in @ transcoder.W_skip.float().T


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


def _mlp_constant(block: BlockView, transcoder: Transcoder) -> Float[Tensor, "d_model"]:
    bias, norm_bias = transcoder.b_dec.float(), block.mlp_norm.bias
    if transcoder.W_skip is None or norm_bias is None:
        return bias
    return bias + transcoder.W_skip.float() @ norm_bias.float()
