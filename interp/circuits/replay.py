"""A forward pass of the frozen model: what edits of features change, with attention patterns and norms as they were.

Between features the frozen model is linear, so only the change is carried, from the lowest edit upwards; without an
edit it is exactly 0, and errors, biases and constants drop out:

    attention   h += post_norm W_O P W_V norm h              norms at the denominators of the prompt, without biases
    MLP         x = norm h;  a' = encode(x on the prompt + x), or the value at which an edit holds it
                h += sum over s of W_dec[s->l]^T (a'_s - a_s) + W_skip x + (a kept MLP's linear map) x
    adapter     h = adapter h, its ReLU at the mask of the prompt

Cost of a row: one forward pass without queries, keys and MLPs, and the encoders at positions that changed.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from jaxtyping import Float
from torch import Tensor

from interp.circuits.edits import Edits, MlpResponse, Response
from interp.circuits.freeze import Active
from interp.circuits.state import FrozenLayer, ReplacementState
from interp.wrapper.frozen import attention_out


class Replay:
    """One pass for the rows of some edits.

    Attributes:
        response: what features did.
        changes: of the stream [row, pos, d_model], at each height that was asked for (`interp.circuits.targets`).
    """

    def __init__(self, state: ReplacementState, edits: Edits, mlps: MlpResponse = "replacement"):
        self.state, self.edits = state, edits
        self.response = Response(state.replacement, edits, state.constant, mlps)
        self.changes: dict[int, Tensor] = {}

    @torch.no_grad()
    def run(self, heights: Collection[int]) -> Replay:
        """Carry the change from the lowest edit up to the greatest of these heights."""
        state, top = self.state, 2 * self.state.n_layers
        first = self.edits.first_layer
        first = state.n_layers if first is None else first
        for height in heights:
            if height <= 2 * first + 1:
                self.changes[height] = self._zeros(min(height // 2, state.n_layers - 1))
        stream = self._zeros(min(first, state.n_layers - 1))
        for layer in range(first, min(max(heights, default=-1) // 2 + 1, state.n_layers)):
            if state.adapter is not None and state.adapter.before == layer > first:
                stream = state.adapter.view.linear(stream, state.adapter.mask)
            stream = self._block(layer, state.layers[layer], stream, heights)
        if top in heights:
            self.changes[top] = stream
        return self

    def _zeros(self, layer: int) -> Tensor:
        shape = (self.edits.n_rows, self.state.n_pos, self.state.layers[layer].block.d_model)
        return torch.zeros(shape, device=self.state.device)

    def _block(self, layer: int, frozen: FrozenLayer, stream: Tensor, heights: Collection[int]) -> Tensor:
        """What leaves a block when this enters it."""
        if 2 * layer in heights:
            self.changes[2 * layer] = stream
        after_attention = stream + through_attention(frozen, stream)
        if 2 * layer + 1 in heights:
            self.changes[2 * layer + 1] = after_attention
        read = stream if frozen.block.parallel else after_attention
        mlp_in = frozen.block.mlp_norm.linear(read, frozen.mlp_denominator)
        if self.response.reads(layer):
            moved = (mlp_in != 0).any(dim=-1)
            self.response.read(layer, frozen.mlp_in + mlp_in, active_in(self.state, layer), moved)
        written = self.response.written(layer, mlp_in)
        beside = linear_paths(frozen, mlp_in)
        if beside is not None:
            written = written + beside * ~self.state.constant[:, None]
        return after_attention + written


def through_attention(
    frozen: FrozenLayer, stream: Float[Tensor, "row pos d_model"]
) -> Float[Tensor, "row pos d_model"]:
    """By what attention's output changes when the stream that it reads does."""
    block = frozen.block
    read = block.attn_norm.linear(stream, frozen.attn_denominator)
    written = attention_out(block, read, frozen.pattern, bias=False)
    if block.attn_post_norm is None or frozen.attn_post_denominator is None:
        return written
    return block.attn_post_norm.linear(written, frozen.attn_post_denominator)


def linear_paths(frozen: FrozenLayer, mlp_in: Float[Tensor, "row pos d_in"]) -> Float[Tensor, "row pos d_out"] | None:
    """What the paths beside the features write; None where there are none."""
    beside = None if frozen.kept is None else frozen.kept.linear(mlp_in)
    if frozen.skip is None:
        return beside
    skipped = mlp_in @ frozen.skip.float().T
    return skipped if beside is None else beside + skipped


def active_in(state: ReplacementState, layer: int) -> Active:
    """The features of a layer on the unchanged prompt."""
    features, last = state.features, state.n_pos - 1
    span = slice(features.at(layer, 0).start, features.at(layer, last).stop)
    pos, latents = features.index[span, 1].long(), features.index[span, 2].long()
    return Active(pos.to(state.device), latents.to(state.device), features.activations[span].to(state.device))
