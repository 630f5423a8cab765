"""What the fit of a study takes on GPUs of one kind: how many, how they share the work, bytes, hours, and the limit.

From the study and the model's configuration alone. FLOPs are `interp.plan.cost`'s; where things go is decided by
`interp.plan.placement`, by which the engine decides. One GPU for each worker and each harvester.

    workers      as few as hold the dictionaries, if they are not given: 16 bytes a parameter with Adam
    harvesters   as few as keep up with the workers, if they are not given; none when colocated
    hours        the longest of    harvest    forward passes to the last hook point, over all harvesters
                                   training   of the costliest shard, over its replicas: products at `utilisation` of
                                              the peak of fit.dtype, and then the optimiser, which reads and writes
                                              OPTIMISER_BYTES a parameter and step at the memory's bandwidth
                 together, one after the other, where they share a GPU (colocated) or are two stages (cache)

Left out, for they are not the limit where the plan is sane: start-up, the network, checkpoints, all-reduce.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from interp.errors import EngineError
from interp.plan.cost import BYTES, forward_flops, harvest_bytes, latent_bytes, read_by
from interp.plan.machines import Gpu
from interp.plan.placement import RESERVE, Needs, Placement, alone_bytes, deal, even_shards, place, training_bytes
from interp.plan.places import Place
from interp.plan.shapes import ModelShape
from interp.plan.specs import cache_dtype
from interp.spec.study import Study

UTILISATION = 0.35
"""Share of the peak that products reach: large models in bfloat16 do 0.3 to 0.5 of it."""

OPTIMISER_BYTES = 28
"""Adam reads weights, gradients and two moments and writes all but the gradients, 4 bytes each."""

_MOST_WORKERS = 1024


@dataclass(frozen=True)
class Sizes:
    """What is to be computed and kept, whatever it runs on; bytes and FLOPs, of all tokens unless said otherwise.

    Attributes:
        members: parameters of each dictionary.
        member_flops: of each dictionary, forwards and backwards, for one token.
    """

    tokens: int
    steps: int
    members: tuple[int, ...]
    member_flops: tuple[int, ...]
    forward_flops: int
    needs: Needs
    harvester: int
    cache: int
    checkpoint: int
    checkpoints: int
    artifact: int


@dataclass(frozen=True)
class Budget:
    """What a fit takes. `why_not` is set, and the rest of the second half is 0, where it does not fit.

    Attributes:
        workers, harvesters, gpus: how many; with a cache, harvesters run first, and GPUs are the larger number.
        worker_bytes, harvester_bytes: memory of the largest one.
        harvest_hours, product_hours, optimiser_hours: of each part by itself.
        stream_bytes: activations from harvesters to workers, each shard its hook points.
        bound: what to change first to be faster.
    """

    gpu: Gpu
    utilisation: float
    sizes: Sizes
    mode: str = ""
    shards: int = 0
    workers: int = 0
    harvesters: int = 0
    gpus: int = 0
    worker_bytes: int = 0
    harvester_bytes: int = 0
    stream_bytes: int = 0
    harvest_hours: float = 0.0
    product_hours: float = 0.0
    optimiser_hours: float = 0.0
    hours: float = 0.0
    reason: str = ""
    bound: str = ""
    why_not: str | None = None


def sizes_of(study: Study, shape: ModelShape, sets: Sequence[Sequence[Place]]) -> Sizes:
    """Everything that can be counted without choosing a machine."""
    fit, tokens, element = study.fit, study.required_corpus.tokens, BYTES[study.model.dtype]
    _, last, width = read_by(shape, sets)
    members = [one for places in sets for one in _members(places)]
    parameters = tuple(sum(place.parameters for place in one) for one in members)
    per_token = tuple(3 * sum(map(forward_flops, one)) for one in members)
    steps = math.ceil(tokens / fit.batch_tokens)
    window = study.shuffle_tokens // fit.batch_tokens * fit.batch_tokens
    kept = 0 if fit.cache is None else BYTES[cache_dtype(study)]
    needs = Needs(
        model=0 if fit.cache else shape.parameters * element,
        members=tuple(training_bytes(n, fit.optimizer, fit.dtype) for n in parameters),
        hooks=tuple(
            {h: shape.width(h) * (kept or element) for p in one for h in (p.hook_in, p.hook_out)} for one in members
        ),
        working=latent_bytes(study, sets),
        step_tokens=fit.batch_tokens,
        micro_tokens=study.micro_tokens,
        window_tokens=window if window > fit.batch_tokens else 0,
        forward_flops=0 if fit.cache else shape.flops_to(last, study.required_corpus.context),
        member_flops=sum(per_token),
    )
    return Sizes(
        tokens=tokens,
        steps=steps,
        members=parameters,
        member_flops=per_token,
        forward_flops=shape.flops_to(last, study.required_corpus.context),
        needs=needs,
        harvester=shape.parameters * element + harvest_bytes(study, shape, width, last),
        cache=tokens * width * kept,
        checkpoint=sum(parameters) * (8 if fit.optimizer == "signum" else 12),
        checkpoints=tokens // fit.checkpoint_every,
        artifact=sum(parameters) * 4,
    )


def budget_of(
    study: Study,
    shape: ModelShape,
    sets: Sequence[Sequence[Place]],
    gpu: Gpu,
    *,
    utilisation: float = UTILISATION,
    workers: int | None = None,
    harvesters: int | None = None,
) -> Budget:
    """What the fit takes on GPUs of this kind; `workers` and `harvesters` are chosen where they are not given.

    Raises:
        EngineError: `fit.shards` does not divide the workers.
    """
    sizes = sizes_of(study, shape, sets)
    bare = Budget(gpu, utilisation, sizes)
    try:
        number, placed = _placed(study, sizes, gpu, workers)
    except EngineError as error:
        return replace(bare, why_not=f"{error.what}: {error.value}. Remedy: {error.remedy}")
    separate = placed.mode == "streamed" or bool(study.fit.cache)
    if separate and sizes.harvester > gpu.memory * (1 - RESERVE):
        why = f"the model does not fit into one GPU: {sizes.harvester / 1e9:.1f} GB of {gpu.memory / 1e9:.0f} GB"
        return replace(bare, why_not=f"{why}, {RESERVE:.0%} stay free. Remedy: a larger GPU, or fewer of its layers")
    return _timed(study, bare, number, placed, harvesters if separate else 0)


def _placed(study: Study, sizes: Sizes, gpu: Gpu, workers: int | None) -> tuple[int, Placement]:
    """The fewest workers that hold the dictionaries, or those that are given, and how they share them."""
    fit = study.fit
    mode = "colocated" if fit.cache else fit.mode
    failed: EngineError | None = None
    for number in [workers] if workers else range(1, max(_MOST_WORKERS, fit.shards or 1) + 1):
        if workers is None and not even_shards(sizes.needs, number, fit.shards):
            continue
        try:
            return number, place(sizes.needs, gpu.memory, number, mode=mode, shards=fit.shards)
        except EngineError as error:
            failed = error
            if alone_bytes(sizes.needs) > gpu.memory * (1 - RESERVE):
                break  # however many there are
    assert failed is not None
    raise failed


@dataclass(frozen=True)
class _Seconds:
    """Of each part by itself; `forward` of all forward passes on one GPU."""

    forward: float
    products: float
    optimiser: float


def _timed(study: Study, bare: Budget, workers: int, placed: Placement, harvesters: int | None) -> Budget:
    """Hours; `harvesters` None: as many as keep up."""
    sizes, replicas = bare.sizes, workers // placed.shards
    shards = deal(sizes.needs.members, placed.shards)
    took = _seconds(study, bare, shards, replicas)
    training = took.products + took.optimiser
    if placed.mode == "streamed":
        harvesters = harvesters or max(1, math.ceil(took.forward / training))
        harvest = took.forward / harvesters
        seconds, gpus = max(harvest, training), workers + harvesters
    elif study.fit.cache:
        harvesters = harvesters or workers
        harvest = took.forward / harvesters
        seconds, gpus = harvest + training, max(workers, harvesters)
    else:
        harvesters, harvest, gpus = 0, took.forward / replicas, workers
        seconds = harvest + training
    parts = {"harvest": harvest, "products of the dictionaries": took.products}
    parts["optimiser's memory traffic"] = took.optimiser
    streamed = sizes.tokens * sum(map(sizes.needs.activations_of, shards))
    return replace(
        bare,
        mode=placed.mode,
        shards=placed.shards,
        workers=workers,
        harvesters=harvesters,
        gpus=gpus,
        worker_bytes=placed.worker_bytes,
        harvester_bytes=sizes.harvester if harvesters else 0,
        stream_bytes=streamed if placed.mode == "streamed" else 0,
        harvest_hours=harvest / 3600,
        product_hours=took.products / 3600,
        optimiser_hours=took.optimiser / 3600,
        hours=seconds / 3600,
        reason=placed.reason,
        bound=max(parts, key=lambda name: parts[name]),
    )


def _seconds(study: Study, bare: Budget, shards: Sequence[Sequence[int]], replicas: int) -> _Seconds:
    """Training is as long as its costliest shard's."""
    sizes, gpu, use = bare.sizes, bare.gpu, bare.utilisation
    costliest = max(sum(sizes.member_flops[i] for i in shard) for shard in shards)
    largest = max(sum(sizes.members[i] for i in shard) for shard in shards)
    return _Seconds(
        forward=sizes.tokens * sizes.forward_flops / (gpu.flops(study.model.dtype) * use),
        products=sizes.tokens * costliest / replicas / (gpu.flops(study.fit.dtype) * use),
        optimiser=sizes.steps * largest * OPTIMISER_BYTES / gpu.bandwidth,
    )


def _members(places: Sequence[Place]) -> list[Sequence[Place]]:
    """Each place is a dictionary by itself, or all are one cross-layer transcoder."""
    return [places] if any(place.d_later for place in places) else [(place,) for place in places]


def to_json(budget: Budget) -> dict[str, Any]:
    """Plain data, with what the sizes add up to."""
    sizes, gpu = budget.sizes, budget.gpu
    told = {name: value for name, value in vars(budget).items() if name not in ("gpu", "sizes")}
    return {
        "gpu": vars(gpu),
        **told,
        "gpu_hours": budget.gpus * budget.hours,
        "tokens": sizes.tokens,
        "steps": sizes.steps,
        "dictionaries": len(sizes.members),
        "parameters": sum(sizes.members),
        "harvest_flops": sizes.tokens * sizes.forward_flops,
        "dictionary_flops": sizes.tokens * sum(sizes.member_flops),
        "model_bytes": sizes.needs.model,
        "training_bytes": sum(sizes.needs.members),
        "activation_bytes_per_token": sizes.needs.activations,
        "window_bytes": max(sizes.needs.step_tokens, sizes.needs.window_tokens) * sizes.needs.activations,
        "cache_bytes": sizes.cache,
        "checkpoint_bytes": sizes.checkpoint,
        "checkpoints": sizes.checkpoints,
        "artifact_bytes": sizes.artifact,
    }
