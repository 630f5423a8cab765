"""The study: one YAML file, as frozen models.

A study says what is computed and never where it runs: clusters, images and secrets are a profile's business.
Fields that cannot change a result (`workers`, `actors`, `checkpoint_every`, `batch`, paths) are marked with
`EXECUTION` and never enter an artifact's key.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from interp.errors import SpecError
from interp.spec.base import EXECUTION, NUMBER, Count, Disagreement, PositiveCount, Source, SpecModel, count_schema
from interp.spec.dictionary import DictionarySpec, FromArtifact, TrainedDictionary
from interp.spec.sweep import expand
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


SHUFFLED_STEPS = 16
"""Steps whose tokens are mixed where a study does not say. A TopK SAE of 4,096 latents, fitted on 1M tokens of contexts
of 128 in steps of 4,096, ends with 10 % less held-out FVU (0.0186) than without (0.0207); with 64 steps with 0.0183."""


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
    optimizer: Literal["adam", "signum"] = Field(
        default="adam", description="signum: the sign of the momentum; one moment in the place of Adam's two"
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="of the products of training; weights, gradients' sums and moments stay in float32",
    )
    clip_norm: Annotated[float, Field(gt=0), NUMBER] | None = 1.0
    k_warmup: Annotated[float, Field(ge=0, lt=1), NUMBER] = Field(
        default=0.0,
        description="share of the steps over which topk and batchtopk fall from many latents a token to k; 0 is off",
    )
    shuffle_tokens: Count | None = Field(
        default=None,
        description="tokens whose activations are held and mixed before they are trained on, over all workers, in "
        "whole steps; 0: the contexts of a step stay together (corpus.shuffle mixes contexts). Default: of 16 steps",
    )
    aux_k_coefficient: Annotated[float, Field(ge=0), NUMBER] = Field(
        default=0.0, description="AuxK for dead latents, 1/32 where it was published; 0 is off"
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
    mode: Literal["auto", "colocated", "streamed"] = Field(
        default="auto",
        description="colocated: each training worker runs the model itself; streamed: harvesters run it and stream "
        "activations to the workers; auto: see interp.plan.placement",
        json_schema_extra=EXECUTION,
    )
    shards: PositiveCount | None = Field(
        default=None,
        description="groups that the dictionaries are dealt to, each on workers of its own, which get the activations "
        "of their own hook points only; must divide fit.workers. Default: as few as fit, see interp.plan.placement",
        json_schema_extra=EXECUTION,
    )
    cache: Literal["model", "float32", "bfloat16", "float16"] | None = Field(
        default=None,
        description="keep the activations in the store, in this dtype (model: its own), for every study that reads "
        "the same model, corpus and hook points; absent: they are never written",
    )
    log: tuple[Literal["tensorboard", "wandb"], ...] = Field(
        default=("tensorboard",), description="who else is told of the reported steps", json_schema_extra=EXECUTION
    )


Metric = Literal["fvu", "l0", "dead", "cosine", "ce_recovered", "kl", "density", "similarity"]
"""What each measures is told in `interp.eval`: `density` is how often latents fire, `similarity` compares decoders."""


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

    @model_validator(mode="before")
    @classmethod
    def _sweeps_expand(cls, data: Any) -> Any:
        """Lists of values become dictionaries of one value each, before anything is validated."""
        sweep = expand(data)
        if sweep.problems:
            raise Disagreement(list(sweep.problems))
        return sweep.data

    @model_validator(mode="after")
    def _parts_agree(self) -> Study:
        problems = [*self._names_differ(), *self._trace_has_transcoders()]
        problems += self._micro_batches_divide() if self.corpus else self._corpus_is_not_missed()
        problems += [*self._held_out_suffices(), *self._adapters_are_traced(), *self._settings_do_something()]
        if problems:
            raise Disagreement(problems)
        return self

    def _names_differ(self) -> Iterator[Problem]:
        names = [dictionary.name for dictionary in self.dictionaries]
        for index, name in enumerate(names):
            if name in names[:index]:
                yield ("dictionaries", index, "name"), f"two dictionaries are named {name!r}; names must differ"

    def _settings_do_something(self) -> Iterator[Problem]:
        mixed, batch = self.fit.shuffle_tokens or 0, self.fit.batch_tokens
        if 0 < mixed < 2 * batch:
            yield (
                ("fit", "shuffle_tokens"),
                f"fit.shuffle_tokens={mixed} is less than two steps of fit.batch_tokens={batch} tokens, and mixes "
                f"nothing; the nearest that says so or does something: {0 if mixed < batch else 2 * batch}",
            )
        for index, name in enumerate(self.fit.log):
            if name in self.fit.log[:index]:
                yield ("fit", "log", index), f"fit.log names {name} twice"

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
        names, wanted = [dictionary.name for dictionary in self.dictionaries], self.trace.dictionaries
        if wanted is None and len(names) != 1:
            yield ("trace",), f"trace.dictionaries must name one of {names}"
        elif wanted is not None and wanted not in names:
            swept = any(name.startswith(f"{wanted}-") for name in names)
            why = " (a list of values makes one set of each; a trace uses one)" if swept else ""
            yield ("trace", "dictionaries"), f"trace.dictionaries={wanted!r} is none of {names}{why}"
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
        elif fit.workers % (fit.shards or 1):
            yield ("fit", "shards"), f"fit.shards={fit.shards} does not divide fit.workers={fit.workers}"
        elif (fit.batch_tokens // micro) % (fit.workers // (fit.shards or 1)):
            of_shard = "" if fit.shards is None else f" in {fit.shards} shards"
            yield (
                ("fit", "workers"),
                f"{fit.batch_tokens // micro} micro-batches a step cannot be dealt evenly to "
                f"fit.workers={fit.workers}{of_shard}; workers of different shards (fit.shards) do not share them",
            )

    @property
    def micro_tokens(self) -> int:
        """Tokens of one micro-batch: whole contexts."""
        context = self.required_corpus.context
        return self.fit.micro_tokens or context * max(1, 1024 // context)

    @property
    def shuffle_tokens(self) -> int:
        """Tokens that are mixed before training."""
        given = self.fit.shuffle_tokens
        return SHUFFLED_STEPS * self.fit.batch_tokens if given is None else given

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
