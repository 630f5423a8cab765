"""Token shuffling: CPU microseconds a token, of one thread, for activations that are in memory.

Against it the floor: every row copied once out of the window and once into it, in order.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from interp.dictionaries.config import DictionaryConfig
from interp.spec.study import FitSpec
from interp.training import FitPlan, FitTarget, WorkerPlace
from interp.training.session import Activations
from interp.training.shuffle import steps_of

TOKENS, BATCH, MICRO = 400_000, 4096, 1024
ROUNDS = 3


def plan_of(d: int, window: int, hooks: int) -> FitPlan:
    """SAEs, whose training is not run, at so many hook points."""
    targets = tuple(
        FitTarget(name="d", at=hook, config=DictionaryConfig(kind="sae", hook_in=hook, hook_out=hook, **sizes))
        for hook in (f"layers.{i}.resid_post" for i in range(hooks))
        for sizes in [{"d_in": d, "d_out": d, "n_latents": 16, "activation": {"type": "relu"}}]
    )
    sizes = {"batch_tokens": BATCH, "micro_tokens": MICRO, "total_tokens": TOKENS, "context": 128}
    return FitPlan(targets=targets, fit=FitSpec(shuffle_tokens=window), **sizes)


def cpu_seconds(work: Callable[[], Any]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def measure(d: int, window: int, hooks: int = 1, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Microseconds a token and hook point; the best of a few rounds, in turn with the floor's."""
    plan = plan_of(d, window, hooks)
    acts = {hook: torch.randn(MICRO, d).to(dtype) for hook in plan.hooks}
    held = torch.zeros(plan.window_steps * BATCH, d, dtype=dtype)
    (values, *_) = acts.values()

    def mixed() -> None:
        for _, micros in steps_of(plan, raw(plan, acts), 0, WorkerPlace()):
            for _ in micros:
                pass

    def copied() -> None:
        for step in range(plan.n_steps * hooks):
            for start in range(0, BATCH, MICRO):
                begin = (step * BATCH + start) % len(held)
                held[begin : begin + MICRO].clone()
                held[begin : begin + MICRO] = values

    seconds = [(cpu_seconds(mixed), cpu_seconds(copied)) for _ in range(ROUNDS)]
    ours, floor = (min(times) / TOKENS / hooks * 1e6 for times in zip(*seconds, strict=True))
    return {
        "us_per_token": round(ours, 3),
        "floor_us_per_token": round(floor, 3),
        "window_mb": round(held.nbytes * hooks / 1e6),
    }


def raw(plan: FitPlan, acts: Activations) -> Iterator[Activations]:
    """The same micro-batch again and again: what makes it is not measured."""
    for step in range(plan.n_steps):
        for tokens in plan.micro_batches(step):
            yield {hook: values[: len(tokens)] for hook, values in acts.items()}


def run() -> dict[str, Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {
            "d 256, float32, window of 131k tokens": measure(256, 131_072),
            "d 256, float32, window of 16k tokens": measure(256, 16_384),
            "d 256, float32, 4 hook points": measure(256, 65_536, hooks=4),
            "d 4096, bfloat16, window of 16k tokens": measure(4096, 16_384, dtype=torch.bfloat16),
        }
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    from benchmarks.run import show

    show("shuffle", run())
