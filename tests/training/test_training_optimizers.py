"""Optimisers: what they do to a weight, a resume bit for bit, and products in bfloat16 over whole runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from training_cases import plan_of, planted, run, run_step, target, weights

from interp.training import DictionarySet, Trainer
from interp.training.optimizers import BETAS, MOMENTUM, Adam, Optimizer, Signum
from interp.training.schedule import default_lr

TOPK = {"type": "topk", "k": 2}
SAE = target("sae", TOPK, n_latents=32, d=16)
TRAIN, HELD_OUT = (planted(n, d=16, n_latents=32, active=2, seed=seed) for n, seed in ((40_000, 0), (2_000, 1)))


def test_signum_moves_by_the_sign_of_the_mean_gradient_where_there_is_one() -> None:
    weight = nn.Parameter(torch.zeros(200_000))  # longer than what is taken at a time
    optimizer = Signum([{"params": [weight]}], lr=0.5)
    first, second = torch.randn(2, 200_000, generator=torch.Generator().manual_seed(0))
    second[:1000] = 0.0
    for gradient in (first, second):
        weight.grad = gradient.clone()
        optimizer.step()
    mean = (1 - MOMENTUM) * (MOMENTUM * first + second)
    expected = -0.5 * first.sign() - 0.5 * mean.sign() * (second != 0)
    torch.testing.assert_close(weight.detach(), expected)


def test_adam_is_torchs_where_there_is_a_gradient_and_stays_elsewhere() -> None:
    ours, theirs = (nn.Parameter(torch.zeros(200_000)) for _ in range(2))
    optimizer, plain = Adam([{"params": [ours]}], lr=0.5), torch.optim.Adam([theirs], lr=0.5, betas=BETAS, fused=True)
    gradients = torch.randn(4, 200_000, generator=torch.Generator().manual_seed(0))
    gradients[1:3, :1000] = 0.0
    for index, gradient in enumerate(gradients):
        before = ours.detach().clone()
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        plain.step()
        assert torch.equal(ours[1000:], theirs[1000:])
        assert torch.equal(ours[:1000], before[:1000]) == (index in (1, 2))
    moments = optimizer.state[ours]
    torch.testing.assert_close(moments["exp_avg"][:1000], (1 - BETAS[0]) * gradients[3, :1000])
    torch.testing.assert_close(moments["exp_avg_sq"], plain.state[theirs]["exp_avg_sq"], msg="as torch's everywhere")


@pytest.mark.parametrize("optimizer", ["adam", "signum"])
def test_a_latent_that_no_token_activates_stays_where_it_is(optimizer: str) -> None:
    plan = plan_of(SAE, total=64 * 8, lr=0.01, optimizer=optimizer, aux_k_coefficient=0)
    trainer, _ = run(plan, TRAIN, steps=1)
    dictionary, idle = trainer.dictionaries.members[0].dictionary, 0
    while trainer.step_index < plan.n_steps:
        before = {name: tensor.clone() for name, tensor in dictionary.state_dict().items()}
        run_step(trainer, TRAIN)
        silent = trainer.dictionaries.members[0].tokens_since_fired > 0
        for name in ("W_enc", "b_enc", "W_dec"):
            now = dictionary.state_dict()[name]
            assert torch.equal(now[silent], before[name][silent])
            assert not torch.equal(now[~silent], before[name][~silent])
        idle += int(silent.sum())
    assert idle, "the test must have latents that are silent in a step"


@pytest.mark.parametrize("name", ["adam", "signum"])
def test_state_is_named_by_dictionary_and_is_taken_up_by_another_set(name: str) -> None:
    def groups(*keys: str) -> list[dict[str, Any]]:
        made = []
        for key in keys:
            for multiplier in (1.0, 4.0):
                parameter = nn.Parameter(torch.zeros(3))
                parameter.grad = torch.ones(3) * (1 + len(made))
                made.append({"params": [parameter], "key": key, "multiplier": multiplier})
        return made

    pair = Optimizer(name, groups("a", "b"))
    assert pair.state("b") == {}
    pair.set_lr("a", 0.1)
    assert [group["lr"] for group in pair.torch.param_groups][:2] == [0.1, 0.4]
    pair.step()
    state = pair.state("b")
    assert {key.split("/")[0] for key in state} == {"0", "1"}
    alone = Optimizer(name, groups("b"))
    alone.load_state("b", state)
    assert all(torch.equal(alone.state("b")[key], tensor) for key, tensor in state.items())
    alone.step()
    assert any(not torch.equal(pair.state("b")[key], tensor) for key, tensor in alone.state("b").items()), "not shared"


@pytest.mark.parametrize(
    "fit", [{"optimizer": "signum"}, {"dtype": "bfloat16"}, {"optimizer": "signum", "dtype": "bfloat16"}]
)
def test_a_resume_is_bit_for_bit(fit: dict[str, Any]) -> None:
    targets = [SAE, target("skip-transcoder", {"type": "relu"}, n_latents=32, d=16, name="r")]
    plan = plan_of(*targets, total=64 * 8, **fit)
    whole, _ = run(plan, TRAIN)
    half, _ = run(plan, TRAIN, steps=3)
    resumed = Trainer(plan, DictionarySet(plan))
    tensors, values = half.state()
    resumed.load_state({name: tensor.clone() for name, tensor in tensors.items()}, values)
    while resumed.step_index < plan.n_steps:
        run_step(resumed, TRAIN)
    expected, found = weights(whole), weights(resumed)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert all(tensor.dtype != torch.bfloat16 for tensor in found.values()), "working copies are no state"


def held_out(activation: dict[str, Any], seed: int = 0, **fit: Any) -> float:
    one = target("sae", activation, n_latents=32, d=16)
    plan = plan_of(one, total=40_000, batch=128, micro=128, dead_after=4000, **fit)
    trainer, _ = run(plan.model_copy(update={"seed": seed}), TRAIN)
    assert trainer.statistics is not None
    dictionary = dict(trainer.dictionaries.folded(trainer.statistics))[one.key]
    x = HELD_OUT[one.config.hook_in]
    with torch.no_grad():
        return ((x - dictionary(x)).square().sum() / (x - x.mean(0)).square().sum()).item()


@pytest.mark.parametrize("activation", [TOPK, {"type": "batchtopk", "k": 2}, {"type": "gated", "l1": 2.0}])
def test_bfloat16_ends_where_float32_does(activation: dict[str, Any]) -> None:
    """As a mean over seeds: which of the few planted directions a run finds is chance."""
    full, low = (
        sum(held_out(activation, seed, lr=0.01, dtype=dtype) for seed in range(3)) / 3
        for dtype in ("float32", "bfloat16")
    )
    assert low != full
    assert low == pytest.approx(full, rel=0.1, abs=0.002)
    assert full < 0.1


def test_signum_finds_what_was_planted() -> None:
    assert held_out(TOPK, optimizer="signum", lr=0.003) < 0.12


def test_signums_peak_is_the_fields() -> None:
    assert default_lr(2**14, 310, "signum") == default_lr(2**14, 10**5, "signum") == 5e-3
    assert default_lr(2**16, 310, "signum") == 2.5e-3
    assert default_lr(2**14, 10**4) == 2e-4
