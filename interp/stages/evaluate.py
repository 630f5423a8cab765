"""evaluate: what the dictionaries keep of the activations and of the model, on held-out tokens.

Shards of held-out contexts go to actors that each hold the model and all dictionaries; the sums that come back merge,
so the number of actors changes nothing. The ablation that the loss recovered is measured against is zero-ablation;
mean-ablation, reported beside it, uses the means over the first `MEAN_TOKENS` held-out tokens.

How alike latents are needs no tokens: it goes to one actor as an item of its own, before the shards.

    evaluation.json, .parquet   one row a place and one a set
    firing.safetensors          on how many tokens each latent fired, int64, by `<set>/<at>`
    density.safetensors         the histogram of log10 density, int64, by `<set>/<at>`; `edges`
    similarity.safetensors      each latent's largest cosine with another one, float32, by `<set>/<at>`
    similarity.json             MMCS of every two dictionaries that write to one hook point, both ways
    pareto*.svg, density.svg    the figures as pictures; pareto only where a place has several dictionaries
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Int32, Int64
from numpy import ndarray
from safetensors.torch import save
from torch import Tensor

from interp.corpus.tokens import TokenBlocks
from interp.errors import CorpusError, SpecError
from interp.eval.evaluation import MODEL_METRICS, EvaluationSums, Evaluator, hook_points, mean_activations
from interp.eval.similarity import Similarity, similarities
from interp.eval.sparsity import EDGES
from interp.plan.versions import VERSIONS
from interp.plots.files import pictures
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
class Weights:
    """The dictionaries themselves: what they are like, apart from any token."""


@dataclass(frozen=True)
class EvaluateWorker:
    """What an actor needs to evaluate shards."""

    model: ModelSpec
    sets: tuple[DictionarySet, ...]
    spec: EvaluateSpec
    device: Device
    sample: Shard

    def start(self) -> Callable[[Shard | Weights], EvaluationSums | Similarity]:
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

        def run(item: Shard | Weights) -> EvaluationSums | Similarity:
            return evaluator(item.rows, item.lengths) if isinstance(item, Shard) else similarities(loaded)

        return run


def run(context: StageContext, inputs: Mapping[str, Artifact], out: Writer) -> None:
    """Evaluate the dictionaries of a study, and write what came out.

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
    items: Iterable[Shard | Weights] = chain([Weights()] if "similarity" in spec.metrics else [], at_once)
    results = context.engine.map_ordered(worker, items, actors=study.fit.harvesters, device=study.fit.device)
    total, alike = EvaluationSums(0, {}), Similarity()
    with closing(results):
        for found in results:
            if isinstance(found, Similarity):
                alike = found
                continue
            total = total.merge(found)
            context.progress("evaluate", done=total.tokens, total=tokens, unit="tokens")
    write(total, alike, spec, out)


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


def write(total: EvaluationSums, alike: Similarity, spec: EvaluateSpec, out: Writer) -> None:
    """All files of the artifact."""
    rows = [row | alike.metrics((row["dictionary"], row["at"])) for row in total.rows(spec.metrics)]
    out.write_json("evaluation.json", rows)
    out.write("evaluation.parquet", _parquet(rows))
    counted = {f"{name}/{at}": sums.sparsity for (name, at), sums in total.of.items() if sums.sparsity is not None}
    _write_tensors(out, "firing.safetensors", {name: sparsity.fired for name, sparsity in counted.items()})
    densities: dict[str, Tensor] = {}
    if "density" in spec.metrics:
        densities = {name: sparsity.histogram() for name, sparsity in counted.items()}
        _write_tensors(out, "density.safetensors", {**densities, "edges": torch.tensor(EDGES, dtype=torch.float64)})
    if "similarity" in spec.metrics:
        largest = {f"{name}/{at}": cosines for (name, at), cosines in alike.largest.items()}
        _write_tensors(out, "similarity.safetensors", largest)
        out.write_json("similarity.json", [row for overlap in alike.overlaps for row in overlap.rows()])
    histograms = {
        (name, at): densities[f"{name}/{at}"].tolist() for name, at in total.of if f"{name}/{at}" in densities
    }
    for path, picture in pictures(rows, histograms, EDGES).items():
        out.write(path, picture)


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    columns = dict.fromkeys(name for row in rows for name in row)
    buffer = io.BytesIO()
    pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in columns}), buffer)
    return buffer.getvalue()


def _write_tensors(out: Writer, path: str, tensors: Mapping[str, Tensor]) -> None:
    if tensors:
        out.write(path, save(dict(tensors)))
