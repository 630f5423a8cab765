"""Cross-layer transcoders: latents that read what one MLP reads, and write to that MLP's output and to all later ones'.

    z_i = W_enc[i] x_i + b_enc[i]        x_i what MLP i reads
    a_i = activation_i(z_i)              each place chooses its own latents
    y_j = sum over i <= j of W_dec[i][j]^T a_i + b_dec[j]

(Ameisen et al. 2025, "Circuit Tracing"). A feature that many layers of the model keep writing is so one latent and not
one for each layer. Places are in execution order and may differ in width: W_dec[i][j] is [n_latents_i, d_out_j].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.dictionaries.activations import Activation, build_activation
from interp.dictionaries.codes import Codes
from interp.dictionaries.config import CrossLayerConfig
from interp.dictionaries.dictionary import Dictionary
from interp.dictionaries.initialise import unit_rows


class CrossLayerTranscoder(Dictionary, registered=True):
    """A transcoder of several MLPs at once. New encoders are random by `seed`, new decoders 0, as a transcoder's."""

    kinds: ClassVar[tuple[str, ...]] = ("cross-layer-transcoder",)
    config: CrossLayerConfig

    def __init__(self, config: CrossLayerConfig, *, seed: int = 0):
        super().__init__(config)
        dtype, places = getattr(torch, config.dtype), config.places
        generator = torch.Generator().manual_seed(seed)

        def zeros(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(shape, dtype=dtype))

        self.W_enc = nn.ParameterList(nn.Parameter(unit_rows(p.n_latents, p.d_in, generator).to(dtype)) for p in places)
        self.b_enc = nn.ParameterList(zeros(p.n_latents) for p in places)
        self.W_dec = nn.ModuleList(
            nn.ParameterDict({str(j): zeros(p.n_latents, to.d_out) for j, to in enumerate(places) if j >= i})
            for i, p in enumerate(places)
        )
        self.biases = nn.ParameterList(zeros(p.d_out) for p in places)
        self.activations = nn.ModuleList(build_activation(config.activation, p.n_latents).to(dtype) for p in places)

    # --- its parts

    @property
    def n_places(self) -> int:
        return len(self.config.places)

    def encoder(self, i: int) -> Float[Tensor, "n_latents d_in"]:
        """Encoder rows of the latents of place i."""
        return self.W_enc[i]

    def decoder(self, i: int, j: int) -> Float[Tensor, "n_latents d_out"]:
        """What the latents of place i write to place j, which is i or a later one."""
        rows = self.W_dec[i]
        assert isinstance(rows, nn.ParameterDict)
        weights: Tensor = rows[str(j)]
        return weights

    def decoders(self, i: int) -> list[Float[Tensor, "n_latents d_out"]]:
        """What the latents of place i write to itself and to each later place."""
        return [self.decoder(i, j) for j in range(i, self.n_places)]

    def b_dec(self, j: int) -> Float[Tensor, "d_out"]:
        """The bias of what place j predicts."""
        return self.biases[j]

    def activation(self, i: int) -> Activation:
        """How place i chooses its latents."""
        activation = self.activations[i]
        assert isinstance(activation, Activation)
        return activation

    # --- what it computes

    def pre_activations(self, i: int, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch n_latents"]:
        """z_i."""
        return F.linear(x, self.W_enc[i], self.b_enc[i])

    def encode(self, i: int, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch n_latents"]:
        """Activations of every latent of place i, from what MLP i reads."""
        activations: Tensor = self.activation(i)(self.pre_activations(i, x), self.b_enc[i])
        return activations

    def decode(self, activations: Sequence[Float[Tensor, "*batch n_latents"]]) -> list[Float[Tensor, "*batch d_out"]]:
        """The reconstruction at every place, from the activations of all of them; the sums are at least of float32."""
        found = [self.b_dec(j).expand(*activations[j].shape[:-1], -1).to(self.sum_dtype) for j in range(self.n_places)]
        for i, a in enumerate(activations):
            for j in range(i, self.n_places):
                found[j] = found[j] + a @ self.decoder(i, j)
        return [y.to(self.dtype) for y in found]

    def forward(self, xs: Sequence[Float[Tensor, "*batch d_in"]]) -> list[Float[Tensor, "*batch d_out"]]:
        """The reconstruction at every place, from what each MLP reads."""
        return self.decode([self.encode(i, x) for i, x in enumerate(xs)])

    def linear_encoder(self, i: int, latents: Int[Tensor, "n"]) -> tuple[Float[Tensor, "n d_in"], Float[Tensor, "n"]]:
        """(W, b) such that the activation of a latent of place i is W x + b wherever it is active."""
        return self.activation(i).linear_encoder(latents, self.W_enc[i], self.b_enc[i], self.b_enc[i])

    def codes(self, xs: Sequence[Float[Tensor, "batch d_in"]]) -> list[Codes]:
        """Activations in training, sparse where the kind is."""
        return [self.activation(i).codes(x, self.W_enc[i], self.b_enc[i], self.b_enc[i]) for i, x in enumerate(xs)]

    def decode_codes(self, codes: Sequence[Codes]) -> list[Float[Tensor, "batch d_out"]]:
        """`decode` of what `codes` gave, by sparse products where the kind is sparse."""
        found = [code.decode(self.decoder(i, i)) + self.b_dec(i) for i, code in enumerate(codes)]
        for i, code in enumerate(codes):
            for j in range(i + 1, self.n_places):
                found[j] = found[j] + code.decode(self.decoder(i, j))
        return found

    # --- as any dictionary

    @staticmethod
    def stored_name(name: str) -> str:
        """`biases.1` is stored as `b_dec.1`, and `activations.1.threshold` as `threshold.1`."""
        kind, place, *rest = name.split(".")
        if kind == "activations":
            return f"{rest[0]}.{place}"
        return name.replace("biases.", "b_dec.", 1)

    def encode_at(self, place: int, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch n_latents"]:
        return self.encode(place, x)

    def decode_from(self, place: int, activations: Tensor, x: Tensor) -> list[Tensor]:
        flat = activations.reshape(-1, activations.shape[-1])
        codes = Codes.of_dense(flat, max(decoder.shape[-1] for decoder in self.decoders(place)))
        own, *later = (
            codes.decode(decoder).reshape(*activations.shape[:-1], decoder.shape[-1])
            for decoder in self.decoders(place)
        )
        return [own.to(self.sum_dtype) + self.b_dec(place), *later]
