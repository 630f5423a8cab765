"""What each stage will cost, from the study and the model's configuration alone.

Estimates for choosing machines, not measurements: FLOPs count the large matrix products, memory counts what a process
must hold at once (no framework, no allocator). One multiplication and one addition are two FLOPs.

    tokens   that pass the stage
    flops    corpus: none. activations: forward to the deepest hook point. fit: the same, unless activations are
             kept, and forward and backward of every dictionary.
             evaluate: a full forward, and for each dictionary and each set of them three changed ones (spliced,
             zero-ablated, mean-ablated). trace: a forward, and one sweep through the frozen model for every target.
    bytes    moved or written: tokens as int32, activations between harvester and trainer, weights read once
    memory   of the largest actor
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from interp.plan.placement import training_bytes
from interp.plan.places import Place, deepest
from interp.plan.shapes import GroupShape, ModelShape
from interp.plan.specs import cache_dtype
from interp.sources.prompts import Prompt
from interp.spec.study import Study

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_FP32 = 4
_TOKEN = 4
_SHARD = 64 << 20
"""Bytes of a shard of tokens: what the corpus stage holds of them at once."""

_CHARACTERS_PER_TOKEN = 4
"""Of a prompt: its tokenizer is not loaded to plan."""

_ACTIVE = 64
"""Active latents per token where the activation function does not fix their number."""


@dataclass(frozen=True)
class Cost:
    """Tokens, FLOPs, and bytes."""

    tokens: int
    flops: int
    bytes: int
    memory: int

    def __add__(self, other: Cost) -> Cost:
        """One after the other: memory is the larger one's."""
        sums = (self.tokens + other.tokens, self.flops + other.flops, self.bytes + other.bytes)
        return Cost(*sums, max(self.memory, other.memory))


def costs_of(study: Study, shape: ModelShape, places: Mapping[str, Sequence[Place]]) -> dict[str, Cost]:
    """Costs by stage, as far as the study and the model's sizes tell them: the trace's depend on its prompts, and what
    borrowed dictionaries cost on their files."""
    costs, sets = {"corpus": corpus_cost(study)}, list(places.values())
    if sets and study.fit.cache:
        costs["activations"] = activations_cost(study, shape, sets)
    if sets:
        costs["fit"] = fit_cost(study, shape, sets)
    if sets and study.evaluate:
        costs["evaluate"] = evaluate_cost(study, shape, sets)
    return costs


def corpus_cost(study: Study) -> Cost:
    """Tokens are packed as they stream by: memory is one shard, on disk and in flight."""
    tokens = study.required_corpus.tokens + study.required_corpus.holdout
    return Cost(tokens, 0, _TOKEN * tokens, min(2 * _SHARD, 2 * _TOKEN * tokens))


def fit_cost(study: Study, shape: ModelShape, sets: Sequence[Sequence[Place]]) -> Cost:
    """Harvesters and trainers are different actors; `memory` is the larger of

    harvester   weights up to the deepest hook point, and the activations of one micro-batch
    trainer     of all dictionaries what `placement.training_bytes` says (16 bytes a parameter with Adam), the
                activations of the step's share of one worker, and of one micro-batch the latents of the widest
                dictionary, their gradients, and its output

    From activations that are kept, no model is run. What shards and GPUs make of it says `interp.plan.budget`.
    """
    tokens, element, kept = study.required_corpus.tokens, BYTES[study.model.dtype], bool(study.fit.cache)
    places = [place for one in sets for place in one]
    _, last, width = read_by(shape, sets)
    weights = 0 if kept else shape.parameters_to(last) * element
    parameters = sum(place.parameters for place in places)
    forward = 0 if kept else shape.flops_to(last, study.required_corpus.context)
    flops = tokens * (forward + sum(3 * forward_flops(place) for place in places))
    moved = tokens * (_TOKEN + width * (BYTES[cache_dtype(study)] if kept else element)) + weights + _FP32 * parameters
    harvester = 0 if kept else weights + harvest_bytes(study, shape, width, last)
    held = study.fit.batch_tokens // study.fit.workers * width * element
    trainer = training_bytes(parameters, study.fit.optimizer, study.fit.dtype) + held + latent_bytes(study, sets)
    return Cost(tokens, flops, moved, max(harvester, trainer))


def harvest_bytes(study: Study, shape: ModelShape, width: int, last: str) -> int:
    """What a forward pass over one micro-batch holds beside the weights: a block's work, and the hook points."""
    return study.micro_tokens * BYTES[study.model.dtype] * (width + _working_set(shape, last))


def latent_bytes(study: Study, sets: Sequence[Sequence[Place]]) -> int:
    """What the widest dictionary holds of one micro-batch: latents, their gradients, input and outputs."""
    return _FP32 * study.micro_tokens * max(_widest(one) for one in sets)


def activations_cost(study: Study, shape: ModelShape, sets: Sequence[Sequence[Place]]) -> Cost:
    """One forward pass to the deepest hook point, and the activations on disk; memory is a harvester's."""
    tokens, element = study.required_corpus.tokens, BYTES[study.model.dtype]
    _, last, width = read_by(shape, sets)
    weights = shape.parameters_to(last) * element
    flops = tokens * shape.flops_to(last, study.required_corpus.context)
    memory = weights + harvest_bytes(study, shape, width, last)
    return Cost(tokens, flops, tokens * (_TOKEN + width * BYTES[cache_dtype(study)]) + weights, memory)


def read_by(shape: ModelShape, sets: Sequence[Sequence[Place]]) -> tuple[set[str], str, int]:
    """The hook points that dictionaries read, the deepest of them, and how wide they are together."""
    hooks = {hook for one in sets for place in one for hook in (place.hook_in, place.hook_out)}
    return hooks, deepest(hooks), sum(shape.width(hook) for hook in hooks)


def evaluate_cost(study: Study, shape: ModelShape, sets: Sequence[Sequence[Place]]) -> Cost:
    """Without the metrics that run the changed model (ce_recovered, kl) one forward to the deepest hook point.

    Memory holds the activations of a batch at all hook points, and what a place adds to itself and to later ones.
    """
    assert study.evaluate is not None
    tokens, element, context = (
        study.evaluate.tokens or study.required_corpus.holdout,
        BYTES[study.model.dtype],
        study.required_corpus.context,
    )
    places = [place for one in sets for place in one]
    changed = bool({"ce_recovered", "kl"} & set(study.evaluate.metrics))
    last = "logits" if changed else deepest(hook for p in places for hook in (p.hook_in, p.hook_out))
    passes = _evaluation_passes(sets) if changed else 1
    flops = tokens * (passes * shape.flops_to(last, context) + (3 if changed else 1) * sum(map(forward_flops, places)))
    weights = shape.parameters_to(last) * element
    dictionaries = _FP32 * sum(place.parameters for place in places)
    batch = study.evaluate.batch * context
    # Clean logits are kept while those of a changed model are made.
    live = batch * (_working_set(shape, last) * element + (2 * _FP32 * shape.vocab if changed else 0))
    live += batch * element * sum(shape.width(hook) for hook in {h for p in places for h in (p.hook_in, p.hook_out)})
    live += batch * _FP32 * max((place.d_written for place in places), default=0)
    return Cost(tokens, flops, _TOKEN * tokens + weights + dictionaries, weights + dictionaries + live)


def trace_cost(study: Study, shape: ModelShape, places: Sequence[Place], prompts: Iterable[Prompt]) -> Cost:
    """Of a prompt of n tokens with a active latents per token and layer:

    targets   min(max_features, a n L) features, and the logits
    sweep     per target, on average through half of the layers, at every position: attention's value and output
              projections and pattern, the skip paths, and a dot product with each active decoder row
    edges     one float32 from every source (features, errors, tokens) to every target
    """
    assert study.trace is not None
    trace, element = study.trace, BYTES[study.model.dtype]
    lengths = [min(1 + len(p.text) // _CHARACTERS_PER_TOKEN, trace.max_tokens) for p in prompts if p.error is None]
    weights = shape.parameters * element
    dictionaries = _FP32 * sum(place.parameters for place in places)
    flops, largest = 0, 0
    for n in lengths:
        features = sum(place.active or _ACTIVE for place in places) * n
        targets = min(trace.max_features or features, features) + trace.logits.max
        forward = n * (shape.flops_to("logits", n) + sum(map(forward_flops, places)))
        flops += forward + targets * n * (sum(_sweep(group, n) for group in shape.groups) + sum(map(_row, places))) // 2
        edges = _FP32 * targets * (features + n * (len(places) + 1))
        widest = max(group.d_model for group in shape.groups)
        largest = max(largest, edges + 2 * _FP32 * trace.batch * n * widest + _FP32 * n * shape.vocab)
    return Cost(sum(lengths), flops, weights + dictionaries, weights + dictionaries + largest)


def _evaluation_passes(sets: Sequence[Sequence[Place]]) -> int:
    """The clean forward; one with every place spliced, and every set of several together; two ablated ones for each
    hook point, and for each such set: dictionaries that write to the same hook points share these."""
    joint = [tuple(place.hook_out for place in one) for one in sets if len(one) > 1]
    alone = {place.hook_out for one in sets for place in one}
    return 1 + sum(map(len, sets)) + len(joint) + 2 * (len(alone) + len(set(joint)))


def _widest(places: Sequence[Place]) -> int:
    """Elements per token that a dictionary of a set holds at once; all places of a cross-layer transcoder are one."""
    sizes = [2 * place.latents + place.d_in + 2 * place.d_out for place in places]
    return sum(sizes) if any(place.d_later for place in places) else max(sizes)


def forward_flops(place: Place) -> int:
    """FLOPs of one place on one token: encoder over all latents, decoders over the active ones, skip path."""
    skip = place.d_in * place.d_out if place.skip else 0
    return 2 * (place.d_in * place.latents + (place.active or place.latents) * place.d_written + skip)


def _sweep(group: GroupShape, n: int) -> int:
    """Attention of one group, backwards, per target and position: output and value projection, and the pattern."""
    projections = 2 * group.d_model * group.d_head * group.heads
    return group.layers * 2 * (projections + n * group.heads * group.d_head)


def _row(place: Place) -> int:
    skip = place.d_in * place.d_out if place.skip else 0
    return 2 * ((place.active or _ACTIVE) * place.d_written + skip)


def _working_set(shape: ModelShape, last: str) -> int:
    """Elements per token that one block holds at once: residual stream, normed input, queries, keys, values, MLP."""
    blocks = zip(shape.groups, shape.blocks_to(last), strict=True)
    sizes = [4 * g.d_model + g.d_head * (g.heads + 2 * g.kv_heads) + 2 * g.d_mlp for g, n in blocks if n]
    return max(sizes, default=shape.groups[0].d_model)
