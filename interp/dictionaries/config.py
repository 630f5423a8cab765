"""What a dictionary on disk says of itself: shape, activation, and the model whose activations it reads."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator

from interp.errors import HookError
from interp.spec.base import PositiveCount, SpecModel
from interp.spec.dictionary import ActivationSpec, BatchTopK, TopK
from interp.spec.hookpoints import parse
from interp.version import __version__

FORMAT: Literal["interp/dictionary/v1"] = "interp/dictionary/v1"

Kind = Literal["sae", "transcoder", "skip-transcoder"]
Dtype = Literal["float32", "bfloat16", "float16", "float64"]

CROSS_LAYER = "cross-layer"
"""Where a cross-layer transcoder stands: in no one place."""


class ModelIdentity(SpecModel):
    """The model that a dictionary belongs to. The fingerprint decides; the rest is for people."""

    source: str
    fingerprint: str = Field(min_length=1)
    family: str = ""
    foreign: str | None = Field(
        default=None,
        description="format of another program that it was read from: such files name no fingerprint, so that "
        "they belong to this model is the word of whoever used them with it",
    )


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
    matryoshka: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        default=(), description="shares of the latents that were trained to reconstruct the target by themselves"
    )
    dtype: Dtype = "float32"
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
        _require_enough(self.activation, self.n_latents)
        if self.matryoshka and (self.matryoshka[-1] != 1 or min(self.group_sizes) < 1):
            raise ValueError(
                f"matryoshka={list(self.matryoshka)} is not rising numbers of the {self.n_latents} latents, all at last"
            )
        return self

    @property
    def group_sizes(self) -> tuple[int, ...]:
        """Of a nested dictionary: how many latents each prefix has more than the one before it."""
        ends = [round(share * self.n_latents) for share in self.matryoshka]
        return tuple(after - before for before, after in pairwise([0, *ends])) if ends else ()

    @property
    def at(self) -> str:
        """Where it stands, as a study writes it: the hook point, or the MLP itself for `mlp_in -> mlp_out`."""
        return place_name(self.hook_in, self.hook_out)

    @property
    def places(self) -> tuple[DictionaryConfig, ...]:
        """What it replaces: one place, its own."""
        return (self,)

    @property
    def widths(self) -> dict[str, int]:
        """Width of each hook point that it reads or replaces."""
        return {self.hook_in: self.d_in, self.hook_out: self.d_out}


class CrossLayerPlace(SpecModel):
    """One MLP of a cross-layer transcoder: what its latents read, and what it predicts."""

    hook_in: str = Field(min_length=1)
    hook_out: str = Field(min_length=1)
    d_in: PositiveCount
    d_out: PositiveCount
    n_latents: PositiveCount

    @property
    def at(self) -> str:
        return place_name(self.hook_in, self.hook_out)


class CrossLayerConfig(SpecModel):
    """The shape of a cross-layer transcoder, and where it comes from."""

    format: Literal["interp/dictionary/v1"] = FORMAT
    kind: Literal["cross-layer-transcoder"] = "cross-layer-transcoder"
    places: tuple[CrossLayerPlace, ...] = Field(min_length=1, description="in execution order")
    activation: ActivationSpec = Field(description="of each place: k latents are kept per place and token")
    dtype: Dtype = "float32"
    model: ModelIdentity | None = Field(None, description="absent only in memory: a file always names its model")
    normalization: tuple[Normalization, ...] = Field(default=(), description="of each place, where training normalised")
    corpus: str | None = Field(None, description="key of the corpus artifact that it was trained on")
    interp_version: str = __version__

    @model_validator(mode="after")
    def _shape_is_possible(self) -> CrossLayerConfig:
        _require_order([place.hook_in for place in self.places])
        _require_order([place.hook_out for place in self.places])
        for place in self.places:
            _require_enough(self.activation, place.n_latents)
            if place.hook_in == place.hook_out:
                raise ValueError(f"a transcoder replaces another hook point than it reads: {place.hook_in}")
        if self.normalization and len(self.normalization) != len(self.places):
            raise ValueError(
                f"{len(self.normalization)} normalizations are not one for each of {len(self.places)} places"
            )
        return self

    @property
    def at(self) -> str:
        """Where it stands: not in one place."""
        return CROSS_LAYER

    @property
    def widths(self) -> dict[str, int]:
        """Width of each hook point that it reads or replaces."""
        return {hook: width for p in self.places for hook, width in ((p.hook_in, p.d_in), (p.hook_out, p.d_out))}


AnyConfig = Annotated[DictionaryConfig | CrossLayerConfig, Field(discriminator="kind")]


def place_name(hook_in: str, hook_out: str) -> str:
    """The hook point, `layers.3.mlp` for `layers.3.mlp_in -> layers.3.mlp_out`, or both names."""
    block = hook_in.removesuffix(".mlp_in")
    if hook_in.endswith(".mlp_in") and hook_out == f"{block}.mlp_out":
        return f"{block}.mlp"
    return hook_in if hook_in == hook_out else f"{hook_in}-{hook_out}"


def _require_enough(activation: ActivationSpec, n_latents: int) -> None:
    if isinstance(activation, TopK | BatchTopK) and activation.k > n_latents:
        raise ValueError(f"k={activation.k} is more than the {n_latents} latents")


def _require_order(hooks: Sequence[str]) -> None:
    """A place writes to itself and to later ones, so their order decides what a decoder is."""
    try:
        points = [parse(hook) for hook in hooks]
    except HookError as error:
        raise ValueError(f"{error.what}: {error.value}") from error
    if any(after <= before for before, after in pairwise(points)):
        raise ValueError(f"the places are not in execution order, each once: {', '.join(hooks)}")
