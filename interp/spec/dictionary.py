"""What a study says of one set of dictionaries: kind, hook points, activation function, width."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from interp.spec.base import NUMBER, Disagreement, PositiveCount, Source, SpecModel


class TopK(SpecModel):
    """The k largest pre-activations of each token, then ReLU (Gao et al. 2024, arXiv:2406.04093)."""

    type: Literal["topk"]
    k: PositiveCount


class BatchTopK(SpecModel):
    """The k * n largest of n tokens; a learned threshold at inference (Bussmann et al. 2024, arXiv:2412.06410)."""

    type: Literal["batchtopk"]
    k: PositiveCount


class ReLU(SpecModel):
    """ReLU with an L1 penalty on activations times decoder norms (Anthropic, April 2024 update)."""

    type: Literal["relu"]
    l1: Annotated[float, Field(gt=0), NUMBER] = Field(
        default=1.0,
        description="weight of the penalty. The published 5 is for models of several thousand dimensions: squared "
        "error grows with the width, the penalty with its root",
    )


class JumpReLU(SpecModel):
    """z * (z > threshold) with an L0 penalty by straight-through estimates (arXiv:2407.14435)."""

    type: Literal["jumprelu"]
    l0: Annotated[float, Field(gt=0), NUMBER] = Field(
        default=1e-3, description="share of the variance that a latent may cost"
    )
    threshold: Annotated[float, Field(gt=0), NUMBER] = Field(default=0.01, description="its initial value")
    bandwidth: Annotated[float, Field(gt=0), NUMBER] = 0.05


class Gated(SpecModel):
    """Which latents fire and how much are separate, with tied encoder directions (arXiv:2404.16014)."""

    type: Literal["gated"]
    l1: Annotated[float, Field(gt=0), NUMBER] = Field(
        default=1.0,
        description="weight of the penalty. The published 5 is for models of several thousand dimensions: squared "
        "error grows with the width, the penalty with its root",
    )


ActivationSpec = Annotated[TopK | BatchTopK | ReLU | JumpReLU | Gated, Field(discriminator="type")]


def _width_schema(schema: dict[str, Any]) -> None:
    """What an editor should know beyond the fields: one of the two widths, and that `at` may be one text."""
    given = {"not": {"type": "null"}}
    schema["oneOf"] = [{"required": [name], "properties": {name: given}} for name in ("expansion", "latents")]
    at = schema["properties"]["at"]
    many = {name: at.pop(name) for name in ("type", "items", "minItems")}
    at["anyOf"] = [many, {"type": "string"}]


class TrainedDictionary(SpecModel):
    """Dictionaries of one shape, one for each hook point that `at` selects."""

    name: str = Field(pattern=r"^[a-z0-9]([a-z0-9_-]*[a-z0-9])?$")
    kind: Literal["sae", "transcoder", "skip-transcoder", "cross-layer-transcoder"]
    at: tuple[str, ...] = Field(
        min_length=1,
        description="hook points or globs. A transcoder's is the MLP itself (`layers.3.mlp`): it reads mlp_in and "
        "predicts mlp_out. All that `at` selects share one cross-layer transcoder",
    )
    activation: ActivationSpec
    expansion: PositiveCount | None = Field(default=None, description="latents per input dimension")
    latents: PositiveCount | None = Field(default=None, description="number of latents")
    matryoshka: tuple[Annotated[float, Field(gt=0, le=1), NUMBER], ...] = Field(
        default=(),
        description="rising shares of the latents, the last 1: each prefix reconstructs the target by itself "
        "(arXiv:2503.17547), so that general latents come first; for topk and batchtopk",
    )

    model_config = ConfigDict(json_schema_extra=_width_schema)

    @field_validator("at", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_width(self) -> TrainedDictionary:
        if (self.expansion is None) == (self.latents is None):
            raise ValueError("give exactly one of expansion and latents")
        if self.matryoshka and (
            self.kind == "cross-layer-transcoder" or not isinstance(self.activation, TopK | BatchTopK)
        ):
            raise ValueError("matryoshka is for saes and transcoders of one place with topk or batchtopk")
        if self.matryoshka and (self.matryoshka[-1] != 1 or list(self.matryoshka) != sorted(set(self.matryoshka))):
            raise ValueError(f"matryoshka={list(self.matryoshka)} must be rising shares that end with 1")
        k = getattr(self.activation, "k", 0)
        if self.latents is not None and k > self.latents:
            raise Disagreement([(("activation", "k"), f"activation.k={k} is more than latents={self.latents}")])
        return self

    def width(self, d_in: int) -> int:
        """Number of latents for an input of `d_in` dimensions."""
        return self.latents if self.latents is not None else (self.expansion or 0) * d_in


ForeignFormat = Literal["interp", "circuit-tracer", "gemma-scope", "saelens", "sparsify", "dictionary-learning"]
"""Whose files dictionaries are read from."""


class FromArtifact(SpecModel):
    """Dictionaries from elsewhere: `artifact://<key>` of this store, or files of ours or another program."""

    name: str = Field(pattern=r"^[a-z0-9]([a-z0-9_-]*[a-z0-9])?$")
    source: Source = Field(alias="from", description="artifact://<key>, a folder, or hf://org/name[/folder]")
    format: ForeignFormat | None = Field(
        default=None, description="who wrote the files; told from the files when absent"
    )
    content: str | None = Field(
        default=None,
        description="what identifies the content of a folder or file; a plan says it, and other content is refused",
    )
    mlp: Literal["replaced", "kept"] = Field(
        default="replaced",
        description="replaced: a transcoder stands for its MLP; kept: it is an adapter, whose output is added to the "
        "MLP's, and a trace goes through the MLP by the RelP rules",
    )


def _which(value: Any) -> str:
    if isinstance(value, FromArtifact) or (isinstance(value, dict) and ("from" in value or "source" in value)):
        return "borrowed"
    return "trained"


DictionarySpec = Annotated[
    Annotated[TrainedDictionary, Tag("trained")] | Annotated[FromArtifact, Tag("borrowed")], Discriminator(_which)
]
