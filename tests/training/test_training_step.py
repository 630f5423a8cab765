"""The step: its gradient, its counters, and that neither workers nor micro-batches nor neighbours change it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from training_cases import RESID, ThreadGroup, micro, plan_of, planted, run, run_step, target, weights

from interp.dictionaries.losses import LossScales, losses
from interp.errors import EngineError
from interp.training import DictionarySet, FitPlan, Trainer

ACTIVATIONS = [
    {"type": "topk", "k": 3},
    {"type": "batchtopk", "k": 3},
    {"type": "relu", "l1": 0.1},
    {"type": "jumprelu"},
    {"type": "gated", "l1": 0.1},
]
KINDS = ("sae", "skip-transcoder", "cross-layer-transcoder")
TARGETS = [target(kind, a, name=f"d{i}") for i, a in enumerate(ACTIVATIONS) for kind in KINDS]
ACTS = planted(500)


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        wanted = expected[name]
        scale = wanted.abs().max().item() if tensor.is_floating_point() else 0.0
        torch.testing.assert_close(tensor, wanted, rtol=1e-5, atol=1e-5 * scale, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("world", [2, 3])
def test_workers_do_not_change_what_is_computed(world: int) -> None:
    """Three steps of four micro-batches, and a last one that leaves a worker without any."""
    plan = plan_of(*TARGETS, total=3 * 64 + 20)
    group = ThreadGroup(world)

    def work(rank: int) -> tuple[dict[str, Tensor], list[float]]:
        trainer = Trainer(plan, DictionarySet(plan), rank, world, group.all_reduce(rank))
        metrics = [run_step(trainer, ACTS) for _ in range(plan.n_steps)]
        return weights(trainer), [m.dictionaries[t.key].fvu for m in metrics for t in plan.targets]

    results = group.run(work)
    alone, metrics = run(plan, ACTS)
    for state, fvu in results:
        assert_close(state, weights(alone))
        assert fvu == pytest.approx([m.dictionaries[t.key].fvu for m in metrics for t in plan.targets], rel=1e-5)
    first, *others = [state for state, _ in results]
    for state in others:
        assert all(torch.equal(first[name], state[name]) for name in first), "workers must stay alike, bit for bit"
    assert group.reduced == 1 + plan.n_steps, "one all-reduce for the first data, and one a step"


def test_micro_batches_change_batchtopk_alone() -> None:
    def states(micro: int) -> dict[str, Tensor]:
        return weights(run(plan_of(*TARGETS, total=192, micro=micro), ACTS)[0])

    whole, cut = states(64), states(8)
    batchtopk = {t.key for t in TARGETS if t.config.activation.type == "batchtopk"}
    groups = [m.key for m in DictionarySet(plan_of(*TARGETS)) for _ in m.groups()]

    def belongs(name: str) -> bool:
        key = groups[int(name.split("/")[1])] if name.startswith("adam/") else "/".join(name.split("/")[:2])
        return key in batchtopk

    others = [name for name in whole if not belongs(name)]
    assert_close({name: cut[name] for name in others}, {name: whole[name] for name in others})
    chosen = [name for name in whole if belongs(name) and "/W_enc" in name]
    assert chosen
    assert all(not torch.allclose(cut[name], whole[name], rtol=1e-4) for name in chosen)


def test_a_dictionary_does_not_depend_on_its_neighbours() -> None:
    for one in (TARGETS[0], TARGETS[7], TARGETS[5]):
        alone, _ = run(plan_of(one, total=192), ACTS)
        among, _ = run(plan_of(*TARGETS, total=192), ACTS)
        together = weights(among)
        for name, tensor in weights(alone).items():
            if name.startswith(one.key):
                assert torch.equal(tensor, together[name])


def test_the_first_step_is_the_mean_gradient_clipped_then_adam() -> None:
    one = target("skip-transcoder", {"type": "topk", "k": 3})
    plan = plan_of(one, total=640, lr=0.01, warmup=0, clip_norm=0.5)
    trainer = Trainer(plan, DictionarySet(plan))
    dictionary = DictionarySet(plan).members[0].dictionary
    micros = [micro(ACTS, tokens) for tokens in plan.share(0, 0, 1)]
    trainer.initialise(micros)
    assert trainer.statistics is not None
    hooks = one.config.hook_in, one.config.hook_out
    x, y = (trainer.statistics[hook].standardise(ACTS[hook][:64]) for hook in hooks)
    losses(dictionary, x, y, LossScales(trainer.statistics[hooks[1]].variance)).total.backward()
    gradients = {name: p.grad * 8 / 64 for name, p in dictionary.named_parameters()}  # d_out times the mean loss
    gradients["b_dec"].zero_()  # it is at its mean
    norm = torch.cat([g.flatten() for g in gradients.values()]).norm().item()
    metrics = run_step(trainer, ACTS).dictionaries[one.key]
    assert metrics.grad_norm == pytest.approx(norm, rel=1e-5)
    assert norm > 0.5, "the test must clip"
    for name, p in dictionary.named_parameters():
        rate = 0.01 * (8**0.5 if name == "b_enc" else 1)
        clipped = gradients[name] * 0.5 / norm
        expected = p - rate * clipped / (clipped.abs() + 1e-8)
        found = dict(trainer.dictionaries.members[0].dictionary.named_parameters())[name]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_first_data_is_standardised() -> None:
    trainer, _ = run(plan_of(TARGETS[0], total=64), ACTS)
    assert trainer.statistics is not None
    seen = trainer.statistics[RESID].standardise(ACTS[RESID][:64])
    torch.testing.assert_close(seen.mean(0), torch.zeros(8), atol=1e-5, rtol=0)
    assert seen.square().mean().item() == pytest.approx(1, rel=1e-5)
    assert trainer.statistics[RESID].variance == pytest.approx(8, rel=1e-6)
    raw, _ = run(plan_of(TARGETS[0], total=64, normalize="none"), ACTS)
    assert raw.statistics is not None
    centred = ACTS[RESID][:64] - ACTS[RESID][:64].mean(0)
    torch.testing.assert_close(raw.statistics[RESID].standardise(ACTS[RESID][:64]), centred)
    assert raw.statistics[RESID].variance == pytest.approx(centred.square().sum(1).mean().item(), rel=1e-5)


def test_metrics_are_those_of_the_step() -> None:
    one = TARGETS[0]
    plan = plan_of(one, total=128)
    trainer, _ = run(plan, ACTS, steps=1)
    member = trainer.dictionaries.members[0]
    assert trainer.statistics is not None
    x = trainer.statistics[RESID].standardise(ACTS[RESID][64:128])
    with torch.no_grad():
        activations, error = member.dictionary.encode(x), x - member.dictionary(x)
    found = run_step(trainer, ACTS).dictionaries[one.key]
    assert found.fvu == pytest.approx((error.square().sum() / (x - x.mean(0)).square().sum()).item(), rel=1e-4)
    assert found.l0 == pytest.approx((activations > 0).sum().item() / 64)
    assert found.loss == pytest.approx((error.square().sum() / 64 / 8).item(), rel=1e-4)


def test_silent_latents_are_counted_in_tokens_of_all_workers() -> None:
    plan = plan_of(TARGETS[0], total=64 * 3, dead_after=128)
    trainer = Trainer(plan, DictionarySet(plan))
    member = trainer.dictionaries.members[0]
    with torch.no_grad():
        member.dictionary.b_enc[5] = -1e6
    dead = [run_step(trainer, ACTS).dictionaries[TARGETS[0].key].dead for _ in range(3)]
    assert member.tokens_since_fired[5] == 192
    assert member.tokens_since_fired.min() == 0
    assert 5 in member.dead.tolist()
    assert dead[0] == 0, "64 silent tokens are not 128"
    assert dead[1] >= 1 / 32


def test_held_decoder_rows_stay_at_unit_norm_and_free_ones_move() -> None:
    for activation, held in (("jumprelu", True), ("gated", True), ("topk", False), ("relu", False)):
        spec = {"type": activation} | ({"k": 3} if activation == "topk" else {})
        trainer, _ = run(plan_of(target("sae", spec), total=192), ACTS)
        norms = trainer.dictionaries.members[0].dictionary.W_dec.norm(dim=1)
        assert torch.allclose(norms, torch.ones(32), atol=1e-5) is held, activation


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_activations_that_are_not_finite_end_in_an_error(bad: float) -> None:
    plan = plan_of(TARGETS[0], total=128)
    broken = {hook: values.clone() for hook, values in ACTS.items()}
    broken[RESID][3, 2] = bad
    with pytest.raises(EngineError, match=RESID):
        run(plan, broken)
    late = {hook: values.clone() for hook, values in ACTS.items()}
    late[RESID][70, 2] = bad
    with pytest.raises(EngineError, match="not finite in step 1"):
        run(plan, late)


def test_constant_activations_end_in_an_error() -> None:
    constant = {hook: torch.ones_like(values) for hook, values in ACTS.items()}
    with pytest.raises(EngineError, match="cannot be trained"):
        run(plan_of(TARGETS[0]), constant)


def test_half_precision_activations_train_in_float32() -> None:
    plan: FitPlan = plan_of(TARGETS[0], total=128)
    half = {hook: values.bfloat16() for hook, values in ACTS.items()}
    trainer, _ = run(plan, half)
    assert all(p.dtype == torch.float32 for p in trainer.dictionaries.members[0].dictionary.parameters())
