"""What an attribution graph explains: rows of its adjacency, as read-outs of the residual stream.

A target reads one vector of the stream at one place; its value is `gradient . stream + bias`:

    feature (l, p, f)   encoder row f, through the frozen norm of MLP l      value: its pre-activation
                        bias: b_enc[f] + W_enc[f] . norm bias
    head                a direction v through the final norm                 value: v . normed stream + b
                        bias: norm bias . v + b
      logit of token t  v = W_U[t] less the mean row, b = b_U[t] - mean      value: logit t less the mean logit
      difference s - t  v = W_U[s] - W_U[t]                                  (before a soft cap)
    stream              a direction, as it is                                value: v . stream

Places along the stream are counted as heights: 2 * l is what block l reads, 2 * l + 1 what its MLP reads in a
sequential block (a parallel block's MLP reads at 2 * l), and 2 * n_layers what the head reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.circuits.state import ReplacementState


class Readout(NamedTuple):
    """How some targets of one height read the stream, and what they read on the prompt."""

    gradient: Float[Tensor, "targets d_model"]
    bias: Float[Tensor, "targets"]
    value: Float[Tensor, "targets"]


class Targets(Protocol):
    """A set of targets. `which` selects some of one height, by their place in the set."""

    @property
    def heights(self) -> Int[Tensor, "targets"]: ...

    @property
    def positions(self) -> Int[Tensor, "targets"]: ...

    def read(self, which: Int[Tensor, "some"]) -> Readout: ...


@dataclass(frozen=True, eq=False)
class FeatureTargets:
    """Features by (layer, pos, latent), active or not."""

    state: ReplacementState
    index: Int[Tensor, "targets 3"]

    @property
    def heights(self) -> Int[Tensor, "targets"]:
        by_layer = torch.tensor([self.state.mlp_height(layer) for layer in range(self.state.n_layers)])
        return by_layer[self.index[:, 0].long()]

    @property
    def positions(self) -> Int[Tensor, "targets"]:
        return self.index[:, 1].long()

    def read(self, which: Int[Tensor, "some"]) -> Readout:
        index = self.index[which].long()
        layer, device = int(index[0, 0]), self.state.device
        frozen = self.state.layers[layer]
        positions, latents = index[:, 1].to(device), index[:, 2].to(device)
        weights, bias = (part.float() for part in self.state.replacement.linear_encoder(layer, latents))
        norm = frozen.block.mlp_norm
        return Readout(
            gradient=norm.transpose(weights, frozen.mlp_denominator[positions]),
            bias=bias if norm.bias is None else bias + weights @ norm.bias.float(),
            value=(weights * frozen.mlp_in[positions]).sum(-1) + bias,
        )


@dataclass(frozen=True, eq=False)
class HeadTargets:
    """Directions of what the head reads at one position.

    Attributes:
        biases: what is added to each direction's product.
        values: of each, on the unchanged model.
    """

    state: ReplacementState
    directions: Float[Tensor, "targets d_model"]
    biases: Float[Tensor, "targets"]
    values: Float[Tensor, "targets"]
    position: int

    @classmethod
    def logits(cls, state: ReplacementState, tokens: Int[Tensor, "targets"], position: int) -> HeadTargets:
        """Tokens' logits, each less the mean over the vocabulary."""
        head, tokens, logits = state.head, tokens.to(state.device), state.head.logits(position)
        directions = head.W_U[tokens].float() - head.W_U_mean
        biases = torch.zeros(len(tokens), device=state.device)
        if head.bias is not None:
            biases = head.bias[tokens].float() - head.bias.mean(dtype=torch.float32)
        return cls(state, directions, biases, logits[tokens] - logits.mean(), position)

    @classmethod
    def difference(cls, state: ReplacementState, first: int, second: int, position: int) -> HeadTargets:
        """One token's logit less another's."""
        head, logits = state.head, state.head.logits(position)
        direction = head.W_U[first].float() - head.W_U[second].float()
        bias = torch.zeros(1, device=state.device)
        if head.bias is not None:
            bias = (head.bias[first].float() - head.bias[second].float())[None]
        return cls(state, direction[None], bias, (logits[first] - logits[second])[None], position)

    @classmethod
    def direction(cls, state: ReplacementState, direction: Float[Tensor, "d_model"], position: int) -> HeadTargets:
        """A direction of what the head reads."""
        direction = direction.to(state.device).float()
        value = state.head.normed[position].float() @ direction
        return cls(state, direction[None], torch.zeros(1, device=state.device), value[None], position)

    @property
    def heights(self) -> Int[Tensor, "targets"]:
        return torch.full((len(self.directions),), 2 * self.state.n_layers)

    @property
    def positions(self) -> Int[Tensor, "targets"]:
        return torch.full((len(self.directions),), self.position)

    def read(self, which: Int[Tensor, "some"]) -> Readout:
        head, which = self.state.head, which.to(self.state.device)
        directions, bias = self.directions[which], self.biases[which]
        if head.norm.bias is not None:
            bias = bias + directions @ head.norm.bias.float()
        gradient = head.norm.transpose(directions, head.denominator[self.position])
        return Readout(gradient, bias, self.values[which])


@dataclass(frozen=True, eq=False)
class StreamTarget:
    """A direction of the residual stream itself.

    Attributes:
        value: its product with the stream, on the unchanged model.
    """

    state: ReplacementState
    vector: Float[Tensor, "d_model"]
    value: float
    height: int
    position: int

    @property
    def heights(self) -> Int[Tensor, "targets"]:
        return torch.tensor([self.height])

    @property
    def positions(self) -> Int[Tensor, "targets"]:
        return torch.tensor([self.position])

    def read(self, which: Int[Tensor, "some"]) -> Readout:
        device = self.state.device
        gradient = self.vector.to(device).float().expand(len(which), -1)
        value = torch.full((len(which),), self.value, device=device)
        return Readout(gradient, torch.zeros(len(which), device=device), value)
