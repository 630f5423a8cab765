"""What one fit is: which dictionaries, on which activations, in which steps.

Steps cut the training tokens in order: step s has the tokens from s * batch_tokens, `batch_tokens` of them, and the
last step what is left. A step is cut into micro-batches of `micro_tokens` (whole contexts), which are dealt to the
workers in turn. Neither the number of workers nor a resume changes any of these cuts, so they do not change what is
computed. The micro-batch is part of the study because batchtopk chooses its k * n activations within one.

With token shuffling (`interp.training.shuffle`) the tokens of a window of steps change places, within what one place
in the deal sees of them: how many tokens a micro-batch has, and whose it is, stays as it is here.

Dictionaries may be dealt to shards, each on workers of its own (`WorkerPlace`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from interp.dictionaries.config import (
    AnyConfig,
    CrossLayerConfig,
    CrossLayerPlace,
    DictionaryConfig,
    ModelIdentity,
)
from interp.plan.placement import deal
from interp.spec.base import PositiveCount, SpecModel
from interp.spec.dictionary import TrainedDictionary
from interp.spec.hookpoints import mlp_pair, mlps, select
from interp.spec.study import FitSpec, Study


@dataclass(frozen=True)
class WorkerPlace:
    """Which of the workers of a fit this is: rank = replica * shards + shard.

    The workers of a shard train the same dictionaries on different micro-batches, and add up their gradients; the
    workers of a replica train different dictionaries on the same micro-batches.
    """

    rank: int = 0
    world: int = 1
    shards: int = 1

    @property
    def shard(self) -> int:
        return self.rank % self.shards

    @property
    def replica(self) -> int:
        return self.rank // self.shards

    @property
    def replicas(self) -> int:
        return self.world // self.shards

    @property
    def leads(self) -> bool:
        """Whether it writes what its shard has made."""
        return self.replica == 0


class FitTarget(SpecModel):
    """One dictionary to train: its place in the output is `<name>/<at>`."""

    name: str
    at: str
    config: AnyConfig

    @property
    def key(self) -> str:
        return f"{self.name}/{self.at}"

    @property
    def written(self) -> list[tuple[DictionaryConfig | CrossLayerPlace, int]]:
        """Its places, and how many entries a latent of each has in all decoders."""
        places: Sequence[DictionaryConfig | CrossLayerPlace] = self.config.places
        return [(place, sum(later.d_out for later in places[index:])) for index, place in enumerate(places)]

    @property
    def cost(self) -> int:
        """Weights that a step moves: latents times all that they read and write."""
        return sum(place.n_latents * (place.d_in + written) for place, written in self.written)


class FitPlan(SpecModel):
    """Everything that training depends on, the activations aside. It can be written as JSON and read back."""

    targets: tuple[FitTarget, ...] = Field(min_length=1)
    batch_tokens: PositiveCount
    micro_tokens: PositiveCount
    total_tokens: PositiveCount
    context: PositiveCount
    seed: int = 0
    fit: FitSpec = FitSpec()

    @property
    def hooks(self) -> tuple[str, ...]:
        """The hook points whose activations training needs, each once."""
        return _hooks(self.targets)

    def shard_targets(self, shard: int, shards: int) -> tuple[FitTarget, ...]:
        """The dictionaries of one shard, in the plan's order; they are dealt out by their cost."""
        return tuple(self.targets[index] for index in deal([target.cost for target in self.targets], shards)[shard])

    def shard_hooks(self, shard: int, shards: int) -> tuple[str, ...]:
        """The hook points that one shard reads."""
        return _hooks(self.shard_targets(shard, shards))

    @property
    def n_steps(self) -> int:
        return math.ceil(self.total_tokens / self.batch_tokens)

    @property
    def dead_after(self) -> int:
        """Tokens of silence after which a latent counts as dead."""
        return self.fit.dead_after or max(self.batch_tokens, min(self.total_tokens // 10, 10_000_000))

    def tokens_of(self, step: int) -> range:
        """The training tokens of a step."""
        start = step * self.batch_tokens
        return range(start, min(start + self.batch_tokens, self.total_tokens))

    def micro_batches(self, step: int) -> list[range]:
        """The step's tokens, cut into micro-batches; only the very last may be short."""
        tokens = self.tokens_of(step)
        return [tokens[i : i + self.micro_tokens] for i in range(0, len(tokens), self.micro_tokens)]

    def share(self, step: int, rank: int, world: int) -> list[range]:
        """The micro-batches of a step that are worker `rank`'s: none, in a short last step, is possible. With shards,
        `rank` and `world` are a place's replica and their number."""
        return self.micro_batches(step)[rank::world]

    @property
    def window_steps(self) -> int:
        """Steps whose tokens are mixed; of fewer than two there is nothing to mix."""
        steps = (self.fit.shuffle_tokens or 0) // self.batch_tokens
        return steps if steps > 1 else 1

    def stream_start(self, step: int) -> int:
        """The step that the unmixed tokens must begin with, for training to go on with `step`: its window's first."""
        return step // self.window_steps * self.window_steps


def _hooks(targets: Sequence[FitTarget]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(hook for target in targets for hook in target.config.widths))


def fit_plan(
    study: Study,
    *,
    hook_names: Sequence[str],
    width: Callable[[str], int],
    model: ModelIdentity,
    corpus: str | None = None,
) -> FitPlan:
    """The plan of a study's dictionaries on a model.

    Args:
        hook_names: the hook points of the model.
        width: how wide the activations of a hook point are.
        model: the model, for the dictionaries to name.
        corpus: the key of the corpus artifact.

    Raises:
        HookError: a dictionary's `at` matches nothing.
    """
    targets = [
        FitTarget(name=spec.name, at=config.at, config=config)
        for spec in study.trained
        for config in _configs(spec, hook_names, width, {"model": model, "corpus": corpus})
    ]
    return FitPlan(
        targets=tuple(targets),
        batch_tokens=study.fit.batch_tokens,
        micro_tokens=study.micro_tokens,
        total_tokens=study.required_corpus.tokens,
        context=study.required_corpus.context,
        seed=study.seed,
        fit=study.fit.model_copy(update={"shuffle_tokens": study.shuffle_tokens}),
    )


def _configs(
    spec: TrainedDictionary, hook_names: Sequence[str], width: Callable[[str], int], source: Mapping[str, Any]
) -> list[DictionaryConfig | CrossLayerConfig]:
    """One for each place that is selected, or one for all of them."""
    if spec.kind == "sae":
        pairs = [(at, at) for at in select(spec.at, hook_names)]
    else:
        pairs = [mlp_pair(at) for at in select(spec.at, mlps(hook_names))]
    places = [
        CrossLayerPlace(hook_in=a, hook_out=b, d_in=width(a), d_out=width(b), n_latents=spec.width(width(a)))
        for a, b in pairs
    ]
    if spec.kind == "cross-layer-transcoder":
        return [CrossLayerConfig(places=tuple(places), activation=spec.activation, **source)]
    return [
        DictionaryConfig(
            kind=spec.kind, activation=spec.activation, matryoshka=spec.matryoshka, **place.model_dump(), **source
        )
        for place in places
    ]
