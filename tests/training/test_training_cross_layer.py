"""Cross-layer transcoders in training: they find what crosses layers, and their figures are those of their places."""

from __future__ import annotations

import pytest
import torch
from training_cases import (
    LATER_IN,
    LATER_OUT,
    MLP_IN,
    MLP_OUT,
    plan_of,
    planted,
    planted_directions,
    run,
    run_step,
    target,
)

from interp.dictionaries import CrossLayerTranscoder
from interp.training import DictionarySet, FitPlan, Trainer

D, LATENTS = 16, 32
TRAIN = planted(40_000, d=D, n_latents=LATENTS, active=2)
HELD_OUT = planted(2_000, d=D, n_latents=LATENTS, active=2, seed=1)
TOPK = {"type": "topk", "k": 2}
KIND = "cross-layer-transcoder"


def unexplained(y: torch.Tensor, y_hat: torch.Tensor) -> float:
    return ((y - y_hat).square().sum() / (y - y.mean(0)).square().sum()).item()


@pytest.mark.parametrize(
    ("activation", "fvu", "l0"),
    [
        (TOPK, 0.13, 2.0),
        ({"type": "batchtopk", "k": 2}, 0.19, 2.3),
        ({"type": "relu", "l1": 0.3}, 0.15, 7.0),
        ({"type": "jumprelu", "l0": 0.02}, 0.14, 3.0),
        ({"type": "gated", "l1": 0.3}, 0.23, 16.0),
    ],
)
def test_what_a_later_mlp_adds_to_an_earlier_feature_is_found(
    activation: dict[str, object], fvu: float, l0: float
) -> None:
    """Half of what the second MLP gives can be told from what the first one read, and from nothing else."""
    one = target(KIND, activation, n_latents=LATENTS, d=D)
    trainer, metrics = run(plan_of(one, total=40_000, batch=128, micro=128, lr=0.01, dead_after=4000), TRAIN)
    assert trainer.statistics is not None
    clt = dict(trainer.dictionaries.folded(trainer.statistics))[one.key]
    assert isinstance(clt, CrossLayerTranscoder)
    xs, ys = [HELD_OUT[MLP_IN], HELD_OUT[LATER_IN]], [HELD_OUT[MLP_OUT], HELD_OUT[LATER_OUT]]
    with torch.no_grad():
        found = [unexplained(y, y_hat) for y, y_hat in zip(ys, clt(xs), strict=True)]
        alone = unexplained(ys[1], clt.encode(1, xs[1]) @ clt.decoder(1, 1) + clt.b_dec(1))
        active = sum((clt.encode(i, x) > 0).sum(1).float().mean().item() for i, x in enumerate(xs)) / 2
    first, last = metrics[0].dictionaries[one.key], metrics[-1].dictionaries[one.key]
    assert last.loss < 0.7 * first.loss and last.fvu < first.fvu / 2
    assert max(found) < fvu
    assert alone > 0.4, "without the first layer's latents half is missing"
    assert active <= l0
    if activation == TOPK:
        crossing = torch.nn.functional.normalize(clt.decoder(0, 1).detach(), dim=1)
        assert (planted_directions(D, LATENTS)[4] @ crossing.T).amax(1).mean() > 0.9


def test_figures_are_means_over_places() -> None:
    one = target(KIND, {"type": "topk", "k": 3}, n_latents=LATENTS, d=D)
    plan = plan_of(one, total=128)
    trainer, _ = run(plan, TRAIN, steps=1)
    assert trainer.statistics is not None
    clt = trainer.dictionaries.members[0].dictionary
    hooks = ((MLP_IN, MLP_OUT), (LATER_IN, LATER_OUT))
    xs, ys = (
        [trainer.statistics[h].standardise(TRAIN[h][64:128]) for h in names] for names in zip(*hooks, strict=True)
    )
    with torch.no_grad():
        fvu = [unexplained(y, y_hat) for y, y_hat in zip(ys, clt(xs), strict=True)]
        loss = [(y - y_hat).square().sum() / 64 / D for y, y_hat in zip(ys, clt(xs), strict=True)]
        active = [(clt.encode(i, x) > 0).sum().item() / 64 for i, x in enumerate(xs)]
    found = run_step(trainer, TRAIN).dictionaries[one.key]
    assert found.fvu == pytest.approx(sum(fvu) / 2, rel=1e-4)
    assert found.loss == pytest.approx(sum(loss).item() / 2, rel=1e-4)
    assert found.l0 == pytest.approx(sum(active) / 2)


def test_aux_k_brings_back_latents_that_are_not_used() -> None:
    """Half of the latents of each place begin with weights so small that they are never among the k largest."""
    one = target(KIND, TOPK, n_latents=LATENTS, d=D)

    def at_the_end(coefficient: float) -> tuple[float, float]:
        plan = plan_of(one, total=40_000, batch=256, micro=256, lr=0.01, dead_after=512, aux_k_coefficient=coefficient)
        trainer = Trainer(plan, DictionarySet(plan))
        with torch.no_grad():
            for i in range(2):
                trainer.dictionaries.members[0].dictionary.encoder(i)[:16] *= 0.02
        last = [run_step(trainer, TRAIN).dictionaries[one.key] for _ in range(plan.n_steps)][-1]
        return last.dead, last.fvu

    dead_without, fvu_without = at_the_end(0.0)
    dead, fvu = at_the_end(1 / 32)
    assert dead_without > 0.4
    assert dead < 0.1
    assert fvu < fvu_without / 2


def test_a_plan_with_one_survives_json() -> None:
    plan = plan_of(target(KIND, TOPK), target("sae", TOPK, name="other"))
    assert FitPlan.model_validate_json(plan.model_dump_json()) == plan
    assert plan.targets[0].key == "d/cross-layer"
    assert plan.hooks == (MLP_IN, MLP_OUT, LATER_IN, LATER_OUT, "layers.0.resid_post")
