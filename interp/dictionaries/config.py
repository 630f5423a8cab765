"""What a dictionary on disk says of itself: shape, activation, and the model whose activations it reads."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from interp import __version__
from interp.spec.base import PositiveCount, SpecModel
from interp.spec.dictionary import ActivationSpec, BatchTopK, TopK

FORMAT: Literal["interp/dictionary/v1"] = "interp/dictionary/v1"

Kind = Literal["sae", "transcoder", "skip-transcoder"]


class ModelIdentity(SpecModel):
    """The model that a dictionary belongs to. The fingerprint decides; the rest is for people."""

    source: str
    fingerprint: str = Field(min_length=1)
    family: str = ""


class Normalization(SpecModel):
    """What training multiplied inputs and targets by. The weights on disk already contain it: they read raw
    activations and give raw activations."""

    scale_in: Annotated[float, Field(gt=0)] = 1.0
    scale_out: Annotated[float, Field(gt=0)] = 1.0


class DictionaryConfig(SpecModel):
    """The shape of one dictionary, where it reads and writes, and where it comes from."""

    format: Literal["interp/dictionary/v1"] = FORMAT
    kind: Kind
    hook_in: str = Field(min_length=1)
    hook_out: str = Field(min_length=1)
    d_in: PositiveCount
    d_out: PositiveCount
    n_latents: PositiveCount
    activation: ActivationSpec
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    model: ModelIdentity | None = Field(None, description="absent only in memory: a file always names its model")
    normalization: Normalization = Normalization()
    corpus: str | None = Field(None, description="key of the corpus artifact that it was trained on")
    interp_version: str = __version__

    @model_validator(mode="after")
    def _shape_is_possible(self) -> DictionaryConfig:
        if self.kind == "sae" and (self.hook_in, self.d_in) != (self.hook_out, self.d_out):
            raise ValueError(
                f"an SAE reconstructs what it reads: {self.hook_in} of width {self.d_in} is not "
                f"{self.hook_out} of width {self.d_out}"
            )
        if isinstance(self.activation, TopK | BatchTopK) and self.activation.k > self.n_latents:
            raise ValueError(f"k={self.activation.k} is more than the {self.n_latents} latents")
        return self

    @property
    def at(self) -> str:
        """Where it stands, as a study writes it: the hook point, or the MLP itself for `mlp_in -> mlp_out`."""
        block = self.hook_in.removesuffix(".mlp_in")
        if self.hook_in.endswith(".mlp_in") and self.hook_out == f"{block}.mlp_out":
            return f"{block}.mlp"
        return self.hook_in if self.hook_in == self.hook_out else f"{self.hook_in}-{self.hook_out}"
