"""Fit: tokens a second of one training step in float32 and bfloat16, by part, against the floor of its products.

The floor counts, per token, the products that no sparse kernel avoids: the encoder forward (2 d F) and the encoder's
weight gradient where every latent may fire (a top-k step needs 2 d k, counted as such), the skip path, and the k rows
of decoder forward and backward; all at the rate that one product of the encoder's sizes reaches, in the dtype of the
step and by the way the step takes (`dictionaries.products`), and for comparison by torch's own float32 product.

CPU seconds are of all threads: on a machine with other work they say more than those of the clock. Bytes that a part
moves at least, per token, with 4-byte numbers: top-k 4 F (the pre-activations once); decode, entry products and each
column sum 4 d k (one row for each entry); what a step does once, over the batch: Adam 7 x 4 x 2 d F, norm and scaling
3 x 4 x 2 d F.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.timing import matmul_rate
from interp.dictionaries import kernels, products
from interp.dictionaries.config import DictionaryConfig, ModelIdentity
from interp.spec.dictionary import TopK
from interp.spec.study import FitSpec
from interp.training import DictionarySet, FitPlan, Trainer
from interp.training.plan import FitTarget

MICRO, STEPS, ROUNDS = 1024, 4, 5
DTYPES = ("float32", "bfloat16")


def plan(kind: str, d: int, latents: int, k: int, batch: int, dtype: str = "float32") -> FitPlan:
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
        fit=FitSpec(batch_tokens=batch, micro_tokens=MICRO, dtype=dtype),  # type: ignore[arg-type]
    )


def floor_flops(kind: str, d: int, latents: int, k: int) -> int:
    """FLOPs of one token: encoder forward, then gradients and decoder over the k active latents, then the skip path."""
    encoder, active, skip = 2 * d * latents, 2 * d * k, 2 * d * d
    return encoder + 4 * active + (2 * skip if kind == "skip-transcoder" else 0)


def best(contenders: dict[str, Callable[[], Any]]) -> dict[str, tuple[float, float]]:
    """(CPU seconds, seconds) of each contender: the least of `ROUNDS` rounds in which they take turns."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for _ in range(ROUNDS + 1):
        for name, work in contenders.items():
            cpu, clock = time.process_time(), time.perf_counter()
            work()
            found[name].append((time.process_time() - cpu, time.perf_counter() - clock))
    return {name: (min(cpu for cpu, _ in times[1:]), min(s for _, s in times[1:])) for name, times in found.items()}


def steps_of(kind: str, d: int, latents: int, k: int, batch: int, dtype: str) -> Callable[[], None]:
    made = plan(kind, d, latents, k, batch, dtype)
    generator = torch.Generator().manual_seed(0)
    acts = {hook: torch.randn(MICRO, d, generator=generator) for hook in made.hooks}
    trainer = Trainer(made, DictionarySet(made))
    trainer.initialise([acts])

    def steps() -> None:
        for _ in range(STEPS):
            for _ in range(batch // MICRO):
                trainer.micro(acts)
            trainer.step()

    return steps


def parts(d: int, latents: int, k: int, batch: int) -> dict[str, float]:
    """CPU microseconds of a token in each part of a top-k step."""
    generator = torch.Generator().manual_seed(0)
    x, weights = (torch.randn(n, d, generator=generator) for n in (MICRO, latents))
    W, low, bias = nn.Parameter(weights), nn.Parameter(weights), torch.zeros(latents)
    products.work_in(low, weights.bfloat16())
    flat = nn.Parameter(torch.zeros(2 * latents * d))
    flat.grad = torch.zeros_like(flat)
    adam = torch.optim.Adam([flat], fused=True)
    with torch.no_grad():
        pre, pre_low = products.affine(x, W, bias), products.affine(x, low, bias)
        values, indices = kernels.top_k(pre, k)
        pattern = kernels.Pattern.of_indices(indices, latents)
        assert len(pattern.transposed.latents) == MICRO * k
        of_micro: dict[str, Callable[[], Any]] = {
            "encoder product, torch": lambda: x @ weights.T + bias,
            "encoder product, float32": lambda: products.affine(x, W, bias),
            "encoder product, bfloat16": lambda: products.affine(x, low, bias),
            "top-k, torch": lambda: pre.topk(k, sorted=False),
            "top-k, float32": lambda: kernels.top_k(pre, k),
            "top-k, bfloat16": lambda: kernels.top_k(pre_low, k),
            "sort of the entries": lambda: kernels.Pattern.of_indices(indices, latents).transposed,
            "decode": lambda: kernels.row_sums(values.view(-1), pattern, weights),
            "entry products": lambda: kernels.entry_products(x, weights, pattern),
            "column sums of one table": lambda: kernels.column_sums(values.view(-1), pattern, x),
        }
        of_step: dict[str, Callable[[], Any]] = {
            "Adam": adam.step,
            "norm, scaling and zeroing": lambda: (flat.grad.norm(), flat.grad.mul_(1.0), flat.grad.zero_()),  # type: ignore[union-attr]
        }
        seconds = best(of_micro | of_step)
    tokens = dict.fromkeys(of_micro, MICRO) | dict.fromkeys(of_step, batch)
    return {name: round(seconds[name][0] / n * 1e6, 3) for name, n in tokens.items()}


def product_rate(d: int, latents: int, dtype: str) -> float:
    """FLOP/s of the encoder's product as a step computes it."""
    x, W = torch.randn(MICRO, d), nn.Parameter(torch.randn(latents, d))
    if dtype == "bfloat16":
        products.work_in(W, W.detach().bfloat16())
    with torch.no_grad():
        seconds = best({"product": lambda: [products.affine(x, W) for _ in range(4)]})["product"][1]
    return 4 * 2 * MICRO * d * latents / seconds


def measure(kind: str, d: int, latents: int, k: int, batch: int) -> dict[str, Any]:
    found = best({dtype: steps_of(kind, d, latents, k, batch, dtype) for dtype in DTYPES})
    flops = floor_flops(kind, d, latents, k)
    figures: dict[str, Any] = {"torch_gflop_per_s": round(matmul_rate(MICRO, d, latents) / 1e9)}
    for dtype, (cpu, seconds) in found.items():
        rate, floor = STEPS * batch / seconds, product_rate(d, latents, dtype) / flops
        figures[dtype] = {
            "tokens_per_s": round(rate),
            "tokens_per_cpu_s": round(STEPS * batch / cpu),
            "floor_tokens_per_s": round(floor),
            "ratio_to_floor": round(rate / floor, 3),
        }
    return figures


def run() -> dict[str, Any]:
    return {
        "sae d 256, 4096 latents, k 32, batch 4096": measure("sae", 256, 4096, 32, 4096),
        "its parts, CPU us a token": parts(256, 4096, 32, 4096),
        "skip-transcoder d 256, 1024 latents, k 16, batch 2048": measure("skip-transcoder", 256, 1024, 16, 2048),
    }
