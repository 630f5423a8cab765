"""Fit: tokens a second of one training step, against the floor of its matrix products.

The floor counts, per token and latent, the products that no sparse kernel avoids: the encoder forward (2 d F) and the
encoder's weight gradient where every latent may fire (a top-k step needs 2 d k, counted as such), the skip path, and
the k rows of decoder forward and backward; all at the rate that one float32 product of the encoder's sizes reaches.
"""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.timing import matmul_rate, side_by_side
from interp.dictionaries.config import DictionaryConfig, ModelIdentity
from interp.spec.dictionary import TopK
from interp.spec.study import FitSpec
from interp.training import DictionarySet, FitPlan, Trainer
from interp.training.plan import FitTarget

MICRO, STEPS = 1024, 4


def plan(kind: str, d: int, latents: int, k: int, batch: int) -> FitPlan:
    hooks = ("layers.0.resid_post",) * 2 if kind == "sae" else ("layers.0.mlp_in", "layers.0.mlp_out")
    config = DictionaryConfig(
        kind=kind,  # type: ignore[arg-type]
        hook_in=hooks[0],
        hook_out=hooks[1],
        d_in=d,
        d_out=d,
        n_latents=latents,
        activation=TopK(type="topk", k=k),
        model=ModelIdentity(source="benchmark", fingerprint="none"),
    )
    return FitPlan(
        targets=(FitTarget(name="bench", at="layers.0", config=config),),
        batch_tokens=batch,
        micro_tokens=MICRO,
        total_tokens=batch * 1000,
        context=128,
        fit=FitSpec(batch_tokens=batch, micro_tokens=MICRO),
    )


def floor_flops(kind: str, d: int, latents: int, k: int) -> int:
    """FLOPs of one token: encoder forward, then gradients and decoder over the k active latents, then the skip path."""
    encoder, active, skip = 2 * d * latents, 2 * d * k, 2 * d * d
    return encoder + 4 * active + (2 * skip if kind == "skip-transcoder" else 0)


def measure(kind: str, d: int, latents: int, k: int, batch: int) -> dict[str, Any]:
    made = plan(kind, d, latents, k, batch)
    generator = torch.Generator().manual_seed(0)
    acts = {hook: torch.randn(MICRO, d, generator=generator) for hook in made.hooks}
    trainer = Trainer(made, DictionarySet(made))
    trainer.initialise([acts])

    def steps() -> None:
        for _ in range(STEPS):
            for _ in range(batch // MICRO):
                trainer.micro(acts)
            trainer.step()

    seconds = side_by_side({"steps": steps}, rounds=5)["steps"]
    rate = STEPS * batch / seconds
    flops = matmul_rate(MICRO, d, latents)
    floor = flops / floor_flops(kind, d, latents, k)
    return {
        "tokens_per_s": round(rate),
        "floor_tokens_per_s": round(floor),
        "gflop_per_s": round(flops / 1e9),
        "ratio_to_floor": round(rate / floor, 3),
    }


def run() -> dict[str, Any]:
    return {
        "sae d 256, 4096 latents, k 32, batch 4096": measure("sae", 256, 4096, 32, 4096),
        "skip-transcoder d 256, 1024 latents, k 16, batch 2048": measure("skip-transcoder", 256, 1024, 16, 2048),
    }
