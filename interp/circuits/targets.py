"""What an attribution graph explains: rows of its adjacency, as read-outs of the residual stream.

A target reads one vector of the stream at one place; its value is `gradient . stream + bias`:

    feature (l, p, f)   encoder row f, through the frozen norm of MLP l      value: its pre-activation
                        bias: b_enc[f] + W_enc[f] . norm bias
    logit v             W_U[v] less the mean row, through the final norm      value: logit v less the mean logit
                        bias: norm bias . (W_U[v] - mean) + b_U[v] - mean     (before a soft cap)

`layer` of a target is the block whose MLP reads; n_layers for what the head reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.circuits.state import ReplacementState
from interp.spec.study import LogitsSpec


class Readout(NamedTuple):
    """How some targets of one layer read the stream, and what they read on the prompt."""

    gradient: Float[Tensor, "targets d_model"]
    bias: Float[Tensor, "targets"]
    value: Float[Tensor, "targets"]


class Targets(Protocol):
    """A set of targets. `which` selects some of one layer, by their place in the set."""

    @property
    def layers(self) -> Int[Tensor, "targets"]: ...

    @property
    def positions(self) -> Int[Tensor, "targets"]: ...

    def read(self, which: Int[Tensor, "some"]) -> Readout: ...


@dataclass(frozen=True, eq=False)
class FeatureTargets:
    """Active features, by their index in `state.features`."""

    state: ReplacementState
    features: Int[Tensor, "targets"]

    @property
    def layers(self) -> Int[Tensor, "targets"]:
        return self.state.features.index[self.features, 0].long()

    @property
    def positions(self) -> Int[Tensor, "targets"]:
        return self.state.features.index[self.features, 1].long()

    def read(self, which: Int[Tensor, "some"]) -> Readout:
        index = self.state.features.index[self.features[which]].long()
        layer = self.state.layers[int(index[0, 0])]
        if layer.transcoder is None:
            raise ValueError("features belong to layers with a transcoder")
        positions, latents = index[:, 1].to(self.state.device), index[:, 2].to(self.state.device)
        weights, bias = (part.float() for part in layer.transcoder.linear_encoder(latents))
        norm = layer.block.mlp_norm
        return Readout(
            gradient=norm.transpose(weights, layer.mlp_denominator[positions]),
            bias=bias if norm.bias is None else bias + weights @ norm.bias.float(),
            value=(weights * layer.mlp_in[positions]).sum(-1) + bias,
        )


@dataclass(frozen=True, eq=False)
class LogitTargets:
    """Tokens' logits at the last position, each less the mean over the vocabulary."""

    state: ReplacementState
    tokens: Int[Tensor, "targets"]

    @property
    def layers(self) -> Int[Tensor, "targets"]:
        return torch.full((len(self.tokens),), self.state.n_layers)

    @property
    def positions(self) -> Int[Tensor, "targets"]:
        return torch.full((len(self.tokens),), self.state.n_pos - 1)

    def read(self, which: Int[Tensor, "some"]) -> Readout:
        head, logits = self.state.head, self.state.logits
        tokens = self.tokens[which].to(self.state.device)
        directions = head.W_U[tokens].float() - head.W_U.mean(dim=0, dtype=torch.float32)
        bias = torch.zeros(len(tokens), device=self.state.device)
        if head.norm.bias is not None:
            bias = bias + directions @ head.norm.bias.float()
        if head.bias is not None:
            bias = bias + head.bias[tokens].float() - head.bias.mean(dtype=torch.float32)
        return Readout(
            gradient=head.norm.transpose(directions, head.denominator),
            bias=bias,
            value=logits[tokens] - logits.mean(),
        )


def salient_logits(probabilities: Float[Tensor, "d_vocab"], spec: LogitsSpec) -> Int[Tensor, "logits"]:
    """The most probable tokens, until they add up to `spec.mass` or are `spec.max`; ties by token id."""
    order = probabilities.cpu().argsort(descending=True, stable=True)[: spec.max]
    cumulative = probabilities.cpu()[order].double().cumsum(0)
    enough = int(torch.searchsorted(cumulative, spec.mass))
    return order[: enough + 1]
