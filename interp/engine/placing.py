"""What a fit needs and what a worker has, in bytes, for `interp.plan.placement` to choose mode and shards.

Sizes are read from the model's configuration and from the plan: nothing is loaded. A process loads all of a model's
weights, though it runs only the part up to the last hook point.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from interp.engine.job import FitJob
from interp.plan.placement import Needs, Placement, place, training_bytes
from interp.plan.places import deepest
from interp.plan.shapes import ModelShape, shape_of

if TYPE_CHECKING:
    from interp.training.plan import FitTarget

logger = logging.getLogger(__name__)

_ELEMENT = {"float32": 4, "bfloat16": 2, "float16": 2}
_FP32 = 4


def settled(job: FitJob, needs: Needs, memory: int, beside: int | None = None) -> tuple[FitJob, Placement]:
    """The job with mode and shards chosen, and why; said once in the log.

    Args:
        needs: the job's, see `needs_of`.
        memory: bytes of one worker's device.
        beside: of each process's device when harvesters share them; None: they have devices of their own.

    Raises:
        EngineError: it does not fit, or shards do not divide the workers.
    """
    mode = job.mode if job.cache is None else "colocated"
    chosen = place(needs, memory, job.workers, mode=mode, shards=job.shards, beside=beside)
    logger.info("fit: %s, %d shard%s: %s", chosen.mode, chosen.shards, "s" if chosen.shards > 1 else "", chosen.reason)
    return replace(job, mode=chosen.mode, shards=chosen.shards), chosen


def needs_of(job: FitJob) -> Needs:
    """Bytes and FLOPs of a job's parts."""
    from interp.sources.resolve import resolve_model

    plan, fit = job.plan, job.plan.fit
    element = _ELEMENT[job.model.dtype]
    kept = element if job.cache is None or fit.cache in (None, "model") else _ELEMENT[fit.cache]
    needs = Needs(
        model=0,
        members=tuple(training_bytes(_parameters(t), fit.optimizer, fit.dtype) for t in plan.targets),
        hooks=tuple({hook: kept * width for hook, width in t.config.widths.items()} for t in plan.targets),
        working=plan.micro_tokens * _FP32 * max(map(_held, plan.targets)),
        step_tokens=plan.batch_tokens,
        micro_tokens=plan.micro_tokens,
        window_tokens=plan.window_steps * plan.batch_tokens if plan.window_steps > 1 else 0,
        member_flops=sum(map(_flops, plan.targets)),
    )
    if job.cache is not None:
        return needs
    shape: ModelShape = shape_of(resolve_model(job.model).config, job.model.family)
    forward = shape.flops_to(deepest(plan.hooks), plan.context)
    return replace(needs, model=shape.parameters * element, forward_flops=forward)


def _parameters(target: FitTarget) -> int:
    """Weights of a dictionary, without its biases."""
    skip = target.config.kind == "skip-transcoder"
    return target.cost + (sum(place.d_in * place.d_out for place, _ in target.written) if skip else 0)


def _held(target: FitTarget) -> int:
    """Elements of a token that a dictionary holds at once: latents and their gradients, input, output, error."""
    return sum(2 * place.n_latents + place.d_in + 2 * place.d_out for place, _ in target.written)


def _flops(target: FitTarget) -> int:
    """Of a token, forwards and backwards: the encoder over all latents, the decoders over the active ones."""
    k = getattr(target.config.activation, "k", None)
    return 6 * sum(place.n_latents * place.d_in + (k or place.n_latents) * written for place, written in target.written)


def available_memory() -> int:
    """Bytes that processes may still take on this machine: what the system has, and no more than the control group."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = (line.split() for line in meminfo.read_text().splitlines())
        found += [1024 * int(words[1]) for words in lines if words[0] == "MemAvailable:"]
    limit, used = (_number(Path("/sys/fs/cgroup") / name) for name in ("memory.max", "memory.current"))
    if limit is not None:
        found.append(max(0, limit - (used or 0)))
    return min(found)


def device_memory(device: str, share: float) -> int:
    """Bytes of one worker's device, asked where the worker runs.

    Args:
        share: of the device that one worker has: of the GPU, or of the machine's memory.
    """
    if device == "cpu":
        return int(available_memory() * share)
    import torch

    return int(torch.cuda.get_device_properties(0).total_memory * share)


def _number(file: Path) -> int | None:
    text = file.read_text().strip() if file.exists() else ""
    return int(text) if text.isdigit() else None


def largest_share(processes: int, nodes: Sequence[object]) -> float:
    """Of a machine's memory, for one of `processes` that are spread over nodes."""
    return 1 / -(-processes // max(1, len(nodes)))
