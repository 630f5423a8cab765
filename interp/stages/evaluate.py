"""evaluate: what the dictionaries keep of the activations and of the model, on held-out tokens.

Shards of held-out contexts go to actors that each hold the model and all dictionaries; the sums that come back merge,
so the number of actors changes nothing. The ablation that the loss recovered is measured against is zero-ablation;
mean-ablation, reported beside it, uses the means over the first `MEAN_TOKENS` held-out tokens.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Int32, Int64
from numpy import ndarray
from safetensors.torch import save

from interp.corpus.tokens import TokenBlocks
from interp.errors import CorpusError, SpecError
from interp.eval.evaluation import MODEL_METRICS, EvaluationSums, Evaluator, hook_points, mean_activations
from interp.plan.versions import VERSIONS
from interp.stages.context import StageContext
from interp.stages.dictionary_sets import DictionarySet, dictionary_sets

if TYPE_CHECKING:
    from interp.engine.base import Device
    from interp.spec.study import EvaluateSpec, ModelSpec, Study
    from interp.store import Artifact, Writer

VERSION = VERSIONS["evaluate"]

MEAN_TOKENS = 1 << 14
SHARD_TOKENS = 1 << 13


@dataclass(frozen=True)
class Shard:
    """Some held-out contexts; `lengths` tells how many tokens of each are evaluated."""

    rows: Int32[ndarray, "n context"]
    lengths: Int64[ndarray, "n"]


@dataclass(frozen=True)
class EvaluateWorker:
    """What an actor needs to evaluate shards."""

    model: ModelSpec
    sets: tuple[DictionarySet, ...]
    spec: EvaluateSpec
    device: Device
    sample: Shard

    def start(self) -> Callable[[Shard], EvaluationSums]:
        from interp.models.loading import load_model
        from interp.wrapper import HookedModel

        device = "cuda" if self.device != "cpu" and torch.cuda.is_available() else "cpu"
        hooked = HookedModel(load_model(self.model, device=device, attention="sdpa"))
        loaded = {one.name: one.load(hooked) for one in self.sets}
        means = {}
        if MODEL_METRICS & set(self.spec.metrics):
            sample, batch = self.sample, self.spec.batch
            means = mean_activations(hooked, hook_points(loaded), sample.rows, sample.lengths, batch)
        evaluator = Evaluator(hooked, loaded, self.spec.metrics, batch=self.spec.batch, means=means)
        return lambda shard: evaluator(shard.rows, shard.lengths)


def run(context: StageContext, inputs: Mapping[str, Artifact], out: Writer) -> None:
    """Write `evaluation.json` and `evaluation.parquet`, one row a place and one a set, and `firing.safetensors`.

    Raises:
        CorpusError: there are fewer held-out tokens than the study wants to evaluate on.
        ModelMismatch: a dictionary was trained on another model.
    """
    study, spec = context.study, _spec(context.study)
    blocks = TokenBlocks.open(inputs["corpus"], "holdout")
    tokens = _tokens(spec, blocks)
    sample = next(shards(blocks, min(tokens, MEAN_TOKENS), rows=len(blocks)))
    worker = EvaluateWorker(study.model, dictionary_sets(study, inputs), spec, study.fit.device, sample)
    at_once = shards(blocks, tokens, rows=max(spec.batch, SHARD_TOKENS // blocks.context))
    results = context.engine.map_ordered(worker, at_once, actors=study.fit.harvesters, device=study.fit.device)
    total = EvaluationSums(0, {})
    with closing(results):
        for sums in results:
            total = total.merge(sums)
            context.progress("evaluate", done=total.tokens, total=tokens, unit="tokens")
    write(total, spec, out)


def shards(blocks: TokenBlocks, tokens: int, rows: int) -> Iterator[Shard]:
    """The first `tokens` tokens, `rows` contexts at a time; the last context counts only as far as they go."""
    for start in range(0, -(-tokens // blocks.context), rows):
        lengths = blocks.lengths(start, start + rows)
        left = tokens - np.arange(start, start + len(lengths), dtype=np.int64) * blocks.context
        kept = np.minimum(lengths, left)
        kept = kept[kept > 0]
        yield Shard(blocks.rows(start, start + len(kept)), kept)


def _spec(study: Study) -> EvaluateSpec:
    if study.evaluate is None:
        raise SpecError("the study evaluates nothing", value=study.metadata.name, expected="a part `evaluate`")
    return study.evaluate


def _tokens(spec: EvaluateSpec, blocks: TokenBlocks) -> int:
    wanted = spec.tokens or blocks.tokens
    if wanted > blocks.tokens:
        raise CorpusError(
            "the study evaluates on more tokens than are held out",
            value=f"evaluate.tokens={wanted}",
            expected=f"at most corpus.holdout={blocks.tokens}",
            remedy="lower evaluate.tokens, or raise corpus.holdout, which makes the corpus anew",
        )
    return wanted


def write(total: EvaluationSums, spec: EvaluateSpec, out: Writer) -> None:
    """The rows as JSON and as parquet; how often each latent fired as safetensors, int64 by `<set>/<at>`."""
    rows = total.rows(spec.metrics)
    out.write_json("evaluation.json", rows)
    columns = dict.fromkeys(name for row in rows for name in row)
    table = pa.table({name: [row.get(name) for row in rows] for name in columns})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    out.write("evaluation.parquet", buffer.getvalue())
    fired = {f"{name}/{at}": sums.sparsity.fired for (name, at), sums in total.of.items() if sums.sparsity is not None}
    if fired:
        out.write("firing.safetensors", save(fired))
