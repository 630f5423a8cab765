"""What a study says of its attribution graphs: prompts, what is explained, how much is kept."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from interp.spec.base import EXECUTION, NUMBER, Count, PositiveCount, Source, SpecModel


class ActorsSpec(SpecModel):
    min: PositiveCount = 1
    max: PositiveCount = 1

    @model_validator(mode="after")
    def _ordered(self) -> ActorsSpec:
        if self.max < self.min:
            raise ValueError(f"max={self.max} is less than min={self.min}")
        return self


class PruneSpec(SpecModel):
    nodes: Annotated[float, Field(gt=0, le=1), NUMBER] = 0.8
    edges: Annotated[float, Field(gt=0, le=1), NUMBER] = 0.98


class LogitsSpec(SpecModel):
    """Which logits are targets: the most likely ones, until their probabilities add up to `mass`, at most `max`."""

    max: PositiveCount = 10
    mass: Annotated[float, Field(gt=0, le=1), NUMBER] = 0.95


class Column(SpecModel):
    """What a row of the prompts' file says in this column."""

    column: str


def _token_kind(value: Any) -> str | None:
    if isinstance(value, bool):
        return None
    kinds: tuple[tuple[Any, str], ...] = ((int, "<id>"), (str, "<text>"), ((dict, Column), "<column>"))
    return next((tag for kind, tag in kinds if isinstance(value, kind)), None)


TargetToken = Annotated[
    Annotated[int, Field(ge=0), Tag("<id>")]
    | Annotated[str, Field(min_length=1), Tag("<text>")]
    | Annotated[Column, Tag("<column>")],
    Discriminator(
        _token_kind,
        custom_error_type="no_token",
        custom_error_message="a token's text in quotes, its id, or {column: NAME}",
    ),
]
"""A token: its id, its text (one token of the vocabulary), or where a prompt's row has either."""

Position = Annotated[int, Field(description="of the prompt's tokens, BOS included; negative ones count from the end")]


class TokensTarget(SpecModel):
    """The logits of these tokens, each less the mean logit."""

    tokens: tuple[TargetToken, ...] = Field(min_length=1)
    position: Position = -1


class DifferenceTarget(SpecModel):
    """The first token's logit less the second's."""

    difference: tuple[TargetToken, TargetToken]
    position: Position = -1


class DirectionTarget(SpecModel):
    """What the residual stream has along a direction."""

    direction: Source = Field(description="a .npy or .safetensors file with one vector of the width at `at`")
    at: str = Field(
        default="final_norm",
        description="where it is read: final_norm (as the head reads), or the resid_pre, resid_mid or resid_post of a "
        "layer",
    )
    name: str = "direction"
    position: Position = -1


class FeaturePlace(SpecModel):
    """One latent of a set of transcoders."""

    at: str = Field(description="the MLP, such as layers.3.mlp")
    latent: Count


class FeaturesTarget(SpecModel):
    """The pre-activations of these features."""

    features: tuple[FeaturePlace, ...] = Field(min_length=1)
    position: Position = -1


_NAMED, _KINDS = ("salient", "last-token"), ("tokens", "difference", "direction", "features")


def _target_kind(value: Any) -> str | None:
    if isinstance(value, str):
        return "<name>" if value in _NAMED else None
    given = value if isinstance(value, dict) else getattr(value, "__dict__", {})
    return next((f"<{kind}>" for kind in _KINDS if kind in given), None)


TargetSpec = Annotated[
    Annotated[Literal["salient", "last-token"], Tag("<name>")]
    | Annotated[TokensTarget, Tag("<tokens>")]
    | Annotated[DifferenceTarget, Tag("<difference>")]
    | Annotated[DirectionTarget, Tag("<direction>")]
    | Annotated[FeaturesTarget, Tag("<features>")],
    Discriminator(
        _target_kind,
        custom_error_type="no_target",
        custom_error_message=f"{', '.join(_NAMED)}, or a mapping with one of {', '.join(_KINDS)}",
        custom_error_context={"choices": (*_NAMED, *_KINDS)},
    ),
]


def target_columns(target: TargetSpec) -> tuple[str, ...]:
    """The columns of the prompts' file that a target is named by."""
    tokens: tuple[TargetToken, ...] = ()
    if isinstance(target, TokensTarget):
        tokens = target.tokens
    elif isinstance(target, DifferenceTarget):
        tokens = target.difference
    return tuple(dict.fromkeys(token.column for token in tokens if isinstance(token, Column)))


class FaithfulnessSpec(SpecModel):
    """Whether the graphs say what the model does: predicted against measured effects of ablations."""

    features: PositiveCount = Field(default=20, description="of each graph, those with the greatest influence")
    curve: tuple[Annotated[float, Field(gt=0, le=1), NUMBER], ...] = Field(
        default=(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0),
        min_length=1,
        description="shares of the features to keep, for the curve of the logit that they recover",
    )


def _listed(value: Any) -> str:
    return "file" if isinstance(value, str) else "list"


class TraceSpec(SpecModel):
    """Attribution graphs of prompts."""

    prompts: Annotated[
        Annotated[tuple[str, ...], Field(min_length=1), Tag("list")] | Annotated[Source, Tag("file")],
        Discriminator(_listed),
    ] = Field(
        description="the prompts themselves; a .txt (one a line), .jsonl or .parquet file or URL; or a folder or glob "
        "of .txt files, one prompt each"
    )
    column: str = Field(default="prompt", description="where a jsonl or parquet row keeps its prompt")
    dictionaries: str | None = Field(
        default=None, description="name of the transcoders to use; may be left out if only one"
    )
    target: TargetSpec = Field(
        default="salient",
        description="what a graph explains: salient (the most probable next tokens, see logits), last-token (they and "
        "the prompt's last token, which is cut off and predicted), tokens, a difference, a direction, or features",
    )
    logits: LogitsSpec = LogitsSpec()
    max_features: PositiveCount | None = Field(
        default=8192, description="feature targets kept, by influence; null: all"
    )
    max_tokens: PositiveCount = Field(default=2048, description="a longer prompt is refused")
    bos: Literal["auto", "keep", "never"] = Field(
        default="auto",
        description="auto: prepend the tokenizer's BOS and let its MLP outputs be one source a layer; keep: prepend "
        "it and treat it as any position; never: do not prepend",
    )
    prune: PruneSpec = PruneSpec()
    adjacency: Literal["none", "pruned", "full"] = Field(
        default="pruned", description="which edges are kept as safetensors beside the JSON: see AttributionGraph.load"
    )
    faithfulness: FaithfulnessSpec | None = Field(default=None, description="measure how faithful the graphs are")
    actors: ActorsSpec = Field(default=ActorsSpec(), json_schema_extra=EXECUTION)
    batch: PositiveCount = Field(default=256, description="targets a sweep, at most", json_schema_extra=EXECUTION)
    memory: PositiveCount = Field(
        default=8_000_000_000,
        description="bytes that an actor may use for one prompt beside the model; what does not fit goes to disk",
        json_schema_extra=EXECUTION,
    )
