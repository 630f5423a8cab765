"""What stands for MLPs in the tests' own forward, in float64: transcoders for single layers, or one across layers."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class Substitutes:
    """One transcoder for each layer; None where an MLP has none."""

    def __init__(self, transcoders: Sequence[Any]):
        self.transcoders = [None if t is None else copy.deepcopy(t).double().requires_grad_(False) for t in transcoders]

    def has(self, layer: int) -> bool:
        return self.transcoders[layer] is not None

    def encode(self, layer: int, x: Tensor) -> Tensor:
        return self.transcoders[layer].encode(x)

    def linear_encoder(self, layer: int, latents: Tensor) -> tuple[Tensor, Tensor]:
        return self.transcoders[layer].linear_encoder(latents)

    def rows(self, layer: int, latents: Tensor) -> dict[int, Tensor]:
        """What latents write at activation 1, by the layer that they write to."""
        return {layer: self.transcoders[layer].W_dec[latents]}

    def bias(self, layer: int) -> Tensor | None:
        return self.transcoders[layer].b_dec if self.has(layer) else None

    def skip(self, layer: int) -> Tensor | None:
        return self.transcoders[layer].W_skip if self.has(layer) else None

    def written(self, layer: int, mlp_in: Mapping[int, Tensor]) -> Tensor | None:
        """All that the dictionary writes to a layer."""
        return self.transcoders[layer](mlp_in[layer]) if self.has(layer) else None


class AcrossLayers(Substitutes):
    """One cross-layer transcoder, whose place i is the MLP of `layers[i]`."""

    def __init__(self, transcoder: Any, layers: Sequence[int]):
        self.transcoder, self.layers = copy.deepcopy(transcoder).double().requires_grad_(False), list(layers)

    def has(self, layer: int) -> bool:
        return layer in self.layers

    def encode(self, layer: int, x: Tensor) -> Tensor:
        return self.transcoder.encode(self.layers.index(layer), x)

    def linear_encoder(self, layer: int, latents: Tensor) -> tuple[Tensor, Tensor]:
        return self.transcoder.linear_encoder(self.layers.index(layer), latents)

    def rows(self, layer: int, latents: Tensor) -> dict[int, Tensor]:
        here = self.layers.index(layer)
        return {to: self.transcoder.decoder(here, j)[latents] for j, to in enumerate(self.layers) if j >= here}

    def bias(self, layer: int) -> Tensor | None:
        return self.transcoder.b_dec(self.layers.index(layer)) if self.has(layer) else None

    def skip(self, layer: int) -> None:
        return None

    @torch.no_grad()
    def written(self, layer: int, mlp_in: Mapping[int, Tensor]) -> Tensor | None:
        if not self.has(layer):
            return None
        # Places that come later write nothing here, so what they read does not matter.
        place = self.layers.index(layer)
        reads = [mlp_in.get(at) for at in self.layers]
        blank = [torch.zeros(len(mlp_in[layer]), p.d_in).double() for p in self.transcoder.config.places]
        found = self.transcoder([blank[i] if i > place or x is None else x for i, x in enumerate(reads)])
        return found[place]
