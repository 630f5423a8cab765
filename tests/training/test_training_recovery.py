"""Dictionaries find what was planted, and AuxK brings back latents that are not used."""

from __future__ import annotations

import pytest
import torch
from training_cases import plan_of, planted, planted_directions, run, run_step, target

from interp.training import DictionarySet, Trainer

D, LATENTS = 16, 32
TRAIN = planted(40_000, d=D, n_latents=LATENTS, active=2)
HELD_OUT = planted(2_000, d=D, n_latents=LATENTS, active=2, seed=1)
TOPK = {"type": "topk", "k": 2}


@pytest.mark.parametrize(
    ("kind", "activation", "fvu", "l0", "cosine"),
    [
        ("sae", TOPK, 0.1, 2.0, 0.95),
        ("transcoder", TOPK, 0.13, 2.0, 0.95),
        # With a linear path beside it, what a latent must add is no longer the planted direction.
        ("skip-transcoder", TOPK, 0.08, 2.0, 0.6),
        ("sae", {"type": "batchtopk", "k": 2}, 0.1, 2.3, 0.95),
        ("sae", {"type": "relu", "l1": 0.5}, 0.1, 7.0, 0.95),
        ("sae", {"type": "jumprelu", "l0": 0.02}, 0.1, 6.0, 0.75),
        ("sae", {"type": "gated", "l1": 2.0}, 0.1, 4.0, 0.9),
    ],
)
def test_planted_directions_are_found(
    kind: str, activation: dict[str, object], fvu: float, l0: float, cosine: float
) -> None:
    one = target(kind, activation, n_latents=LATENTS, d=D)
    trainer, _ = run(plan_of(one, total=40_000, batch=128, micro=128, lr=0.01, dead_after=4000), TRAIN)
    assert trainer.statistics is not None
    dictionary = dict(trainer.dictionaries.folded(trainer.statistics))[one.key]
    x, y = HELD_OUT[one.config.hook_in], HELD_OUT[one.config.hook_out]
    with torch.no_grad():
        activations, error = dictionary.encode(x), y - dictionary(x)
    active = (activations > 0).float()
    unexplained = (error.square().sum() / (y - y.mean(0)).square().sum()).item()
    directions = planted_directions(D, LATENTS)[0 if kind == "sae" else 1]
    nearest = (directions @ torch.nn.functional.normalize(dictionary.W_dec.detach(), dim=1).T).amax(1)
    assert unexplained < fvu
    assert active.sum(1).mean().item() <= l0
    assert (active.sum(0) == 0).float().mean().item() < 0.05
    assert nearest.mean() > cosine


def test_aux_k_brings_back_latents_that_are_not_used() -> None:
    """Half of the latents begin with weights so small that they are never among the k largest."""
    one = target("sae", TOPK, n_latents=LATENTS, d=D)

    def at_the_end(coefficient: float) -> tuple[float, float]:
        plan = plan_of(one, total=40_000, batch=256, micro=256, lr=0.01, dead_after=512, aux_k_coefficient=coefficient)
        trainer = Trainer(plan, DictionarySet(plan))
        with torch.no_grad():
            trainer.dictionaries.members[0].dictionary.W_enc[:16] *= 0.02
        last = [run_step(trainer, TRAIN).dictionaries[one.key] for _ in range(plan.n_steps)][-1]
        return last.dead, last.fvu

    dead_without, fvu_without = at_the_end(0.0)
    dead, fvu = at_the_end(1 / 32)
    assert dead_without == 0.5
    assert dead < 0.1
    assert fvu < fvu_without / 2
