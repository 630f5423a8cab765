"""Planted activations, small plans, and workers that are threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from interp.dictionaries import CrossLayerConfig, DictionaryConfig, ModelIdentity
from interp.spec.study import FitSpec
from interp.training import DictionarySet, FitPlan, FitTarget, StepMetrics, Trainer

MODEL = ModelIdentity(source="toy", fingerprint="abc123", family="toy")
RESID, MLP_IN, MLP_OUT = "layers.0.resid_post", "layers.0.mlp_in", "layers.0.mlp_out"
LATER_IN, LATER_OUT = "layers.1.mlp_in", "layers.1.mlp_out"


def target(kind: str, activation: Mapping[str, Any], *, n_latents: int = 32, d: int = 8, name: str = "d") -> FitTarget:
    if kind == "cross-layer-transcoder":
        pairs = ((MLP_IN, MLP_OUT), (LATER_IN, LATER_OUT))
        places = [{"hook_in": a, "hook_out": b, "d_in": d, "d_out": d, "n_latents": n_latents} for a, b in pairs]
        return FitTarget(
            name=name, at="cross-layer", config=CrossLayerConfig(places=places, activation=activation, model=MODEL)
        )
    at, hooks = (RESID, (RESID, RESID)) if kind == "sae" else ("layers.0.mlp", (MLP_IN, MLP_OUT))
    config = DictionaryConfig(
        kind=kind,
        hook_in=hooks[0],
        hook_out=hooks[1],
        d_in=d,
        d_out=d,
        n_latents=n_latents,
        activation=activation,
        model=MODEL,
    )
    return FitTarget(name=name, at=at, config=config)


def plan_of(*targets: FitTarget, total: int = 500, batch: int = 64, micro: int = 16, **fit: Any) -> FitPlan:
    return FitPlan(
        targets=targets,
        batch_tokens=batch,
        micro_tokens=micro,
        total_tokens=total,
        context=min(8, micro),
        fit=FitSpec(**{"dead_after": 100, "aux_k_coefficient": 1 / 32, **fit}),
    )


def planted_directions(d: int, n_latents: int) -> Tensor:
    """Unit directions: those that an MLP reads and those that it maps them to, the same of a later MLP, and what is
    left to add there of what the first one read."""
    directions = torch.randn(5, n_latents, d, generator=torch.Generator().manual_seed(99))
    return directions / directions.norm(dim=-1, keepdim=True)


def planted(tokens: int, *, d: int = 8, n_latents: int = 24, active: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """Sparse non-negative mixtures of random directions, off centre and not of unit scale; the MLP maps each to another
    direction, and a later MLP, which reads other mixtures, adds to what they mapped to."""
    generator = torch.Generator().manual_seed(seed)
    directions = planted_directions(d, n_latents)

    def mixture() -> Tensor:
        chosen = torch.rand(tokens, n_latents, generator=generator).topk(active, dim=1).indices
        sizes = 0.5 + torch.rand(tokens, active, generator=generator)
        return torch.zeros(tokens, n_latents).scatter(1, chosen, sizes)

    code, later = mixture(), mixture()
    x, y = 3 * code @ directions[0] + 1.5, 7 * code @ directions[1] - 2
    later_y = 2 * (later @ directions[3] + code @ directions[4]) + 1
    return {RESID: x, MLP_IN: x, MLP_OUT: y, LATER_IN: later @ directions[2] - 0.5, LATER_OUT: later_y}


def micro(activations: Mapping[str, Tensor], tokens: range) -> dict[str, Tensor]:
    return {hook: values[tokens.start : tokens.stop] for hook, values in activations.items()}


def run_step(trainer: Trainer, activations: Mapping[str, Tensor]) -> StepMetrics:
    """The next step, from this worker's share of the tokens."""
    plan = trainer.plan
    micros = [micro(activations, t) for t in plan.share(trainer.step_index, trainer.rank, trainer.world)]
    if trainer.statistics is None:
        trainer.initialise(micros)
    for acts in micros:
        trainer.micro(acts)
    return trainer.step()


def run(
    plan: FitPlan, activations: Mapping[str, Tensor], steps: int | None = None
) -> tuple[Trainer, list[StepMetrics]]:
    """The first steps of a plan, or all of them, with one worker."""
    trainer = Trainer(plan, DictionarySet(plan))
    return trainer, [run_step(trainer, activations) for _ in range(steps or plan.n_steps)]


class ThreadGroup:
    """`world` workers that are threads of this process, with an all-reduce between them."""

    def __init__(self, world: int):
        self.world, self.reduced = world, 0
        self._slots: list[Tensor | None] = [None] * world
        self._barrier = threading.Barrier(world, timeout=60)

    def all_reduce(self, rank: int) -> Callable[[Tensor], None]:
        def reduce(flat: Tensor) -> None:
            self._slots[rank] = flat.clone()
            self._barrier.wait()
            total = torch.stack([slot for slot in self._slots if slot is not None]).sum(0)
            self._barrier.wait()
            flat.copy_(total)
            self.reduced += rank == 0

        return reduce

    def run(self, work: Callable[[int], Any]) -> list[Any]:
        """`work(rank)` on every worker."""
        results: list[Any] = [None] * self.world

        def one(rank: int) -> None:
            try:
                results[rank] = work(rank)
            except BaseException as error:  # noqa: BLE001 - raised again by the caller
                results[rank] = error
                self._barrier.abort()

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(self.world)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return results


def weights(trainer: Trainer) -> dict[str, Tensor]:
    """Every tensor of a trainer's state."""
    return {name: tensor.detach().clone() for name, tensor in trainer.state()[0].items()}
