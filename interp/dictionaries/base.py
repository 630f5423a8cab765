"""What a dictionary of one place is: an affine encoder, an activation, an affine decoder.

    z = W_enc x + b        b = b_enc, less W_enc b_dec for an SAE (its pre-bias)
    a = activation(z)
    y = W_dec^T a + b_dec  [+ W_skip x]

Rows of W_enc [n_latents, d_in] and W_dec [n_latents, d_out] belong to latents. A dictionary in memory reads and gives
activations in whatever units its weights have; one on disk reads and gives raw activations.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from interp.dictionaries import products
from interp.dictionaries.activations import Activation, TopKActivation, build_activation
from interp.dictionaries.codes import Codes
from interp.dictionaries.config import DictionaryConfig
from interp.dictionaries.dictionary import Dictionary
from interp.dictionaries.initialise import FREE_DECODER_NORM, unit_rows
from interp.errors import DictionaryError


class SparseDictionary(Dictionary):
    """Common to sparse autoencoders and transcoders: what reads one hook point and replaces one."""

    kinds: ClassVar[tuple[str, ...]] = ("sae", "transcoder", "skip-transcoder")
    has_pre_bias: ClassVar[bool] = False
    config: DictionaryConfig
    W_enc: nn.Parameter
    b_enc: nn.Parameter
    W_dec: nn.Parameter
    b_dec: nn.Parameter
    W_skip: nn.Parameter | None

    def __init__(self, config: DictionaryConfig, *, seed: int = 0):
        super().__init__(config)
        dtype = getattr(torch, config.dtype)
        n, d_in, d_out = config.n_latents, config.d_in, config.d_out
        self.W_enc = nn.Parameter(torch.empty(n, d_in, dtype=dtype))
        self.b_enc = nn.Parameter(torch.zeros(n, dtype=dtype))
        self.W_dec = nn.Parameter(torch.empty(n, d_out, dtype=dtype))
        self.b_dec = nn.Parameter(torch.zeros(d_out, dtype=dtype))
        skip = nn.Parameter(torch.zeros(d_out, d_in, dtype=dtype)) if config.kind == "skip-transcoder" else None
        self.register_parameter("W_skip", skip)
        self.activation: Activation = build_activation(config.activation, n).to(dtype)
        self._initialise(seed)

    @torch.no_grad()
    def _initialise(self, seed: int) -> None:
        """Random directions, the same for the same seed on every device and whatever else draws random numbers."""
        generator = torch.Generator().manual_seed(seed)
        self.W_enc.copy_(unit_rows(self.config.n_latents, self.config.d_in, generator))
        if self.config.kind == "sae":
            self.W_dec.copy_((1.0 if self.unit_decoder else FREE_DECODER_NORM) * self.W_enc)
        else:
            self.W_dec.zero_()

    @property
    def unit_decoder(self) -> bool:
        """Whether training holds decoder rows at unit norm. A transcoder's begin at 0, so its never are."""
        return self.activation.unit_decoder and self.config.kind == "sae"

    # --- what it computes

    def encoder_bias(self) -> Float[Tensor, "n_latents"]:
        """b such that the pre-activations are W_enc x + b."""
        return self.b_enc

    def pre_activations(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch n_latents"]:
        """z = W_enc x + b."""
        return F.linear(x, self.W_enc, self.encoder_bias())

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch n_latents"]:
        """Activations of every latent."""
        activations: Tensor = self.activation(self.pre_activations(x), self.b_enc)
        return activations

    def encode_sparse(
        self, x: Float[Tensor, "*batch d_in"]
    ) -> tuple[Float[Tensor, "*batch k"], Int[Tensor, "*batch k"]]:
        """(activations, latents) of the k that topk keeps in each token; an activation may be 0."""
        if not isinstance(self.activation, TopKActivation):
            raise DictionaryError(
                "only topk keeps the same number of latents in every token",
                value=self.config.activation.type,
                expected="topk",
                remedy="use encode(x) and take what is above 0",
            )
        values, indices = self.activation.select(self.pre_activations(x))
        return values.relu(), indices

    def active(self, x: Float[Tensor, "*batch d_in"]) -> Bool[Tensor, "*batch n_latents"]:
        """Which latents are active."""
        return self.encode(x) > 0

    def decode(
        self, activations: Float[Tensor, "*batch n_latents"], x: Float[Tensor, "*batch d_in"] | None = None
    ) -> Float[Tensor, "*batch d_out"]:
        """The reconstruction; a dictionary with a skip path needs its input `x` too."""
        return self.add_affine(activations @ self.W_dec, x)

    def add_affine(self, decoded: Float[Tensor, "*batch d_out"], x: Tensor | None) -> Float[Tensor, "*batch d_out"]:
        """`decoded` with the bias, and the skip path's share if there is one."""
        if self.W_skip is None:
            return decoded + self.b_dec
        if x is None:
            raise DictionaryError(
                "this dictionary has a skip path, and its input was not given", remedy="call decode(activations, x)"
            )
        if products.working(self.W_skip) is not None:
            return decoded + products.linear(x, self.W_skip, torch.zeros_like(self.b_dec)) + self.b_dec
        return decoded + F.linear(x, self.W_skip, self.b_dec)

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """The reconstruction of the target from the input."""
        return self.decode(self.encode(x), x)

    def linear_encoder(self, latents: Int[Tensor, "n"]) -> tuple[Float[Tensor, "n d_in"], Float[Tensor, "n"]]:
        """(W, b) such that the activation of a latent is W x + b wherever it is active."""
        return self.activation.linear_encoder(latents, self.W_enc, self.encoder_bias(), self.b_enc)

    def codes(self, x: Float[Tensor, "batch d_in"]) -> Codes:
        """Activations in training, sparse where the kind is."""
        if not self.has_pre_bias:
            return self.activation.codes(x, self.W_enc, self.b_enc, self.b_enc)
        bias = products.pre_bias(self.b_enc, self.W_enc, self.b_dec)
        return self.activation.codes(x - self.b_dec.detach(), self.W_enc, bias, self.b_enc)

    # --- as any dictionary

    @staticmethod
    def stored_name(name: str) -> str:
        return name.removeprefix("activation.")

    def encode_at(self, place: int, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch n_latents"]:
        return self.encode(x)

    def decode_from(self, place: int, activations: Tensor, x: Tensor) -> list[Tensor]:
        return [self.decode(activations, x)]
