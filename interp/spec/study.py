"""The study: one YAML file, as frozen models.

A study says what is computed and never where it runs: clusters, images and secrets are a profile's business.
Fields that cannot change a result (`workers`, `actors`, `checkpoint_every`, `batch`, paths) are marked with
`EXECUTION` and never enter an artifact's key.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from interp.errors import SpecError
from interp.spec.base import EXECUTION, NUMBER, Count, Disagreement, PositiveCount, Source, SpecModel, count_schema
from interp.spec.dictionary import DictionarySpec, FromArtifact, TrainedDictionary
from interp.spec.trace import TraceSpec

Problem = tuple[tuple[str | int, ...], str]
"""Where in the study something does not fit, and why."""

_NAME = re.compile(r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")


class Metadata(SpecModel):
    name: str
    description: str = ""

    @field_validator("name")
    @classmethod
    def _name_is_a_label(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError("lower-case letters, digits and '-' only, at most 63 characters, no '-' at the ends")
        return name


class ModelSpec(SpecModel):
    """The transformer that is studied: a directory, `builtin://`, `hf://org/name`, or a `.gguf` file."""

    source: Source = Field(description="a directory, builtin://, hf://org/name, or a .gguf file")
    family: str | None = Field(
        default=None, description="a row of the families table; read from the checkpoint when absent"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    revision: str | None = Field(default=None, description="hub revision: a branch, a tag or a commit")
    tokenizer: Source | None = Field(default=None, description="where the tokenizer is, when not beside the weights")


class CorpusSpec(SpecModel):
    """The text that activations are collected on.

    The held-out part is cut off first, by whole documents, and no training token ever comes from it.
    """

    source: Source = Field(description="builtin://python-stdlib, hf://org/name, or a path, glob or s3 URL")
    name: str | None = Field(default=None, description="configuration of a hub data set")
    split: str = "train"
    revision: str | None = None
    format: Literal["text", "jsonl", "parquet"] | None = Field(
        default=None, description="read from the file name when absent"
    )
    column: str = "text"
    context: Annotated[PositiveCount, Field(ge=2), count_schema(2)] = 1024
    tokens: PositiveCount = Field(description="exact number of training tokens")
    holdout: Count = Field(default=0, description="exact number of held-out tokens")
    shuffle: bool = Field(default=True, description="shuffle the packed contexts by the study's seed")


class FitSpec(SpecModel):
    """How dictionaries are trained: the field's optimiser defaults, see `interp.training.schedule`."""

    batch_tokens: PositiveCount = Field(default=8192, description="tokens in one optimiser step, over all workers")
    micro_tokens: PositiveCount | None = Field(
        default=None,
        description="tokens that pass a dictionary at once, whole contexts; gradients are summed to batch_tokens. "
        "Workers are dealt whole micro-batches, so their number does not change what is computed. Default: as many "
        "contexts as fit in 1024 tokens, at least one",
    )
    lr: Annotated[float, Field(gt=0), NUMBER] | None = Field(
        default=None,
        description="peak; default 2e-4 / sqrt(latents / 2^14), times sqrt(10^4 / steps) in runs of fewer than "
        "10^4 steps",
    )
    warmup: Annotated[float, Field(ge=0, lt=1), NUMBER] = Field(default=0.05, description="share of the steps")
    decay: Annotated[float, Field(ge=0, le=1), NUMBER] = Field(
        default=0.2, description="share of the steps with linear decay to 0"
    )
    clip_norm: Annotated[float, Field(gt=0), NUMBER] | None = 1.0
    aux_k_coefficient: Annotated[float, Field(ge=0), NUMBER] = Field(
        default=1 / 32, description="AuxK for dead latents; 0 is off"
    )
    dead_after: PositiveCount | None = Field(
        default=None,
        description="a latent silent for so many tokens counts as dead; default a tenth of corpus.tokens, at most 10M",
    )
    normalize: Literal["rms", "none"] = Field(default="rms", description="scale inputs and targets to unit variance")
    workers: PositiveCount = Field(default=1, json_schema_extra=EXECUTION)
    harvesters: PositiveCount = Field(default=1, json_schema_extra=EXECUTION)
    checkpoint_every: PositiveCount = Field(default=5_000_000, description="tokens", json_schema_extra=EXECUTION)
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", json_schema_extra=EXECUTION)


Metric = Literal["fvu", "l0", "dead", "cosine", "ce_recovered", "kl"]


class EvaluateSpec(SpecModel):
    """Fidelity of the dictionaries on held-out tokens."""

    metrics: tuple[Metric, ...] = Field(default=("fvu", "l0", "dead", "cosine", "ce_recovered", "kl"), min_length=1)
    tokens: PositiveCount | None = Field(default=None, description="held-out tokens to use; all of them when absent")
    batch: PositiveCount = Field(default=8, description="contexts at once", json_schema_extra=EXECUTION)


class Study(SpecModel):
    """One study file."""

    apiVersion: Literal["interp/v1"]  # noqa: N815 - Kubernetes spells it so, and so do users' files
    kind: Literal["Study"]
    metadata: Metadata
    model: ModelSpec
    corpus: CorpusSpec | None = Field(default=None, description="needed by whatever fits or evaluates dictionaries")
    dictionaries: tuple[DictionarySpec, ...] = ()
    fit: FitSpec = FitSpec()
    evaluate: EvaluateSpec | None = None
    trace: TraceSpec | None = None
    seed: Count = 0
    store: Source = Field(description="a folder, or an s3:// URL", json_schema_extra=EXECUTION)

    @model_validator(mode="after")
    def _parts_agree(self) -> Study:
        problems = [*self._names_differ(), *self._trace_has_transcoders()]
        problems += self._micro_batches_divide() if self.corpus else self._corpus_is_not_missed()
        problems += [*self._held_out_suffices(), *self._adapters_are_traced()]
        if problems:
            raise Disagreement(problems)
        return self

    def _names_differ(self) -> Iterator[Problem]:
        names = [dictionary.name for dictionary in self.dictionaries]
        for index, name in enumerate(names):
            if name in names[:index]:
                yield ("dictionaries", index, "name"), f"two dictionaries are named {name!r}; names must differ"

    def _held_out_suffices(self) -> Iterator[Problem]:
        if self.evaluate is None:
            return
        if not self.dictionaries:
            yield ("evaluate",), "evaluate needs dictionaries, and the study has none"
        if self.corpus is None:
            return
        if not self.corpus.holdout:
            yield ("corpus", "holdout"), "evaluate needs held-out tokens: set corpus.holdout"
        elif (self.evaluate.tokens or 0) > self.corpus.holdout:
            yield ("evaluate", "tokens"), f"more than the corpus.holdout={self.corpus.holdout} tokens that are held out"

    def _adapters_are_traced(self) -> Iterator[Problem]:
        for index, dictionary in enumerate(self.borrowed):
            if self.evaluate is not None and dictionary.mlp == "kept":
                what = f"{dictionary.name!r} are adapters (mlp: kept); evaluate measures what stands for an MLP"
                yield ("dictionaries", index, "mlp"), what

    def _corpus_is_not_missed(self) -> Iterator[Problem]:
        """Dictionaries from elsewhere are traced without any text but the prompts."""
        if self.trained or self.evaluate or not self.trace:
            yield ("corpus",), "the part is missing; only a study that traces borrowed dictionaries can do without"

    def _trace_has_transcoders(self) -> Iterator[Problem]:
        if self.trace is None:
            return
        names = [dictionary.name for dictionary in self.dictionaries]
        if self.trace.dictionaries is None and len(names) != 1:
            yield ("trace",), f"trace.dictionaries must name one of {names}"
        elif self.trace.dictionaries is not None and self.trace.dictionaries not in names:
            yield ("trace", "dictionaries"), f"trace.dictionaries={self.trace.dictionaries!r} is none of {names}"
        elif isinstance(self.traced, TrainedDictionary) and self.traced.kind == "sae":
            what = f"a replacement model is made of transcoders, and {self.traced.name!r} are SAEs"
            yield ("trace", "dictionaries"), what

    def _micro_batches_divide(self) -> Iterator[Problem]:
        context, fit, micro = self.required_corpus.context, self.fit, self.micro_tokens
        if micro % context:
            what = f"fit.micro_tokens={micro} is not a multiple of corpus.context={context}"
            yield ("fit", "micro_tokens"), what
        elif fit.batch_tokens % micro:
            nearest = max(1, round(fit.batch_tokens / micro)) * micro
            yield (
                ("fit", "batch_tokens"),
                f"fit.batch_tokens={fit.batch_tokens} is not a multiple of the micro-batch of {micro} tokens "
                f"(fit.micro_tokens, or as many contexts as fit in 1024); the nearest that is: {nearest}",
            )
        elif (fit.batch_tokens // micro) % fit.workers:
            what = (
                f"{fit.batch_tokens // micro} micro-batches a step cannot be dealt evenly to fit.workers={fit.workers}"
            )
            yield ("fit", "workers"), what

    @property
    def micro_tokens(self) -> int:
        """Tokens of one micro-batch: whole contexts."""
        context = self.required_corpus.context
        return self.fit.micro_tokens or context * max(1, 1024 // context)

    @property
    def required_corpus(self) -> CorpusSpec:
        """The corpus of a study that reads one.

        Raises:
            SpecError: the study has none. Validation sees to it that whatever fits or evaluates has one.
        """
        if self.corpus is None:
            raise SpecError("the study has no corpus", value=self.metadata.name, remedy="add a part `corpus`")
        return self.corpus

    @property
    def trained(self) -> tuple[TrainedDictionary, ...]:
        """The dictionaries that this study fits itself."""
        return tuple(d for d in self.dictionaries if isinstance(d, TrainedDictionary))

    @property
    def borrowed(self) -> tuple[FromArtifact, ...]:
        """The dictionaries that come from elsewhere."""
        return tuple(d for d in self.dictionaries if isinstance(d, FromArtifact))

    @property
    def traced(self) -> TrainedDictionary | FromArtifact | None:
        """The dictionaries that the trace uses; None when it names none of the study's."""
        if self.trace is None:
            return None
        named = [d for d in self.dictionaries if self.trace.dictionaries in (None, d.name)]
        return named[0] if named else None
