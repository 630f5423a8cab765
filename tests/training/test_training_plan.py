"""How tokens are cut into steps and dealt, and which dictionaries a study asks for."""

from __future__ import annotations

import pytest
from training_cases import MLP_IN, MLP_OUT, MODEL, RESID, plan_of, target

from interp.dictionaries import CrossLayerConfig
from interp.errors import HookError
from interp.spec.hookpoints import all_hook_points
from interp.spec.study import Study
from interp.training import DictionarySet, FitPlan, fit_plan
from interp.training.schedule import decay, default_lr, warm_up

TOPK = {"type": "topk", "k": 4}


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("total", [64, 500, 513, 7])
def test_every_token_is_in_one_micro_batch_of_one_worker(world: int, total: int) -> None:
    plan = plan_of(target("sae", TOPK), total=total)
    seen = [
        token
        for step in range(plan.n_steps)
        for rank in range(world)
        for part in plan.share(step, rank, world)
        for token in part
    ]
    assert sorted(seen) == list(range(total))
    assert all(len(part) == 16 for step in range(plan.n_steps) for part in plan.micro_batches(step)[:-1])


def test_a_plan_survives_json() -> None:
    plan = plan_of(target("sae", TOPK), target("skip-transcoder", {"type": "relu"}))
    assert FitPlan.model_validate_json(plan.model_dump_json()) == plan
    assert plan.hooks == (RESID, MLP_IN, MLP_OUT)


def study(**dictionary: object) -> Study:
    return Study.model_validate(
        {
            "apiVersion": "interp/v1",
            "kind": "Study",
            "metadata": {"name": "s"},
            "model": {"source": "builtin://tiny-split-llama"},
            "corpus": {"source": "builtin://python-stdlib", "context": 16, "tokens": 1024},
            "dictionaries": [dictionary],
            "fit": {"batch_tokens": 64, "micro_tokens": 32},
            "store": "memory://s",
        }
    )


HOOKS = all_hook_points([("layers_first", 2), ("layers_last", 2)], adapter=True)


def width(hook: str) -> int:
    return 16 if hook.startswith("layers_first") else 32


def test_a_transcoder_reads_what_the_mlp_reads_and_gives_what_it_adds() -> None:
    spec = {"name": "mlp", "kind": "skip-transcoder", "at": "layers_*.*.mlp", "activation": TOPK, "expansion": 8}
    plan = fit_plan(study(**spec), hook_names=HOOKS, width=width, model=MODEL, corpus="key")
    places = [f"layers_{group}.{layer}.mlp" for group in ("first", "last") for layer in (0, 1)]
    assert [t.key for t in plan.targets] == [f"mlp/{place}" for place in places]
    last = plan.targets[-1].config
    assert (last.hook_in, last.hook_out) == ("layers_last.1.mlp_in", "layers_last.1.mlp_out")
    assert (last.d_in, last.d_out, last.n_latents) == (32, 32, 256)
    assert last.at == plan.targets[-1].at
    assert (last.model, last.corpus) == (MODEL, "key")
    assert (plan.batch_tokens, plan.micro_tokens, plan.total_tokens) == (64, 32, 1024)


def test_a_cross_layer_transcoder_has_all_places_in_execution_order() -> None:
    spec = {"name": "clt", "kind": "cross-layer-transcoder", "activation": TOPK, "expansion": 8}
    at = ["layers_last.*.mlp", "layers_first.1.mlp"]
    plan = fit_plan(study(**spec, at=at), hook_names=HOOKS, width=width, model=MODEL, corpus="key")
    (one,) = plan.targets
    assert one.key == "clt/cross-layer"
    assert isinstance(one.config, CrossLayerConfig)
    assert [(p.at, p.d_in, p.d_out, p.n_latents) for p in one.config.places] == [
        ("layers_first.1.mlp", 16, 16, 128),
        ("layers_last.0.mlp", 32, 32, 256),
        ("layers_last.1.mlp", 32, 32, 256),
    ]
    assert (one.config.model, one.config.corpus) == (MODEL, "key")
    assert FitPlan.model_validate_json(plan.model_dump_json()) == plan
    assert DictionarySet(plan).widths() == {hook: width(hook) for hook in plan.hooks}


def test_an_sae_stands_at_a_hook_point() -> None:
    spec = {"name": "r", "kind": "sae", "at": ["layers_first.*.resid_post"], "activation": TOPK, "latents": 64}
    plan = fit_plan(study(**spec), hook_names=HOOKS, width=width, model=MODEL)
    assert plan.hooks == ("layers_first.0.resid_post", "layers_first.1.resid_post")
    with pytest.raises(HookError):
        fit_plan(study(**spec | {"at": ["layers_first.9.resid_post"]}), hook_names=HOOKS, width=width, model=MODEL)


def test_dead_means_silent_for_a_tenth_of_the_run() -> None:
    plan = plan_of(target("sae", TOPK), total=5000, dead_after=None)
    assert plan.dead_after == 500
    assert plan_of(target("sae", TOPK), dead_after=7).dead_after == 7
    assert plan_of(target("sae", TOPK), total=100, dead_after=None).dead_after == 64, "never less than one step"


def test_schedules() -> None:
    assert [warm_up(step, 100, 0.05) for step in (0, 1, 4, 5, 99)] == [0.2, 0.4, 1, 1, 1]
    assert [decay(step, 100, 0.2) for step in (0, 80, 90, 99)] == [1, 1, 0.5, 0.05]
    assert warm_up(0, 3, 0.05) == decay(2, 3, 0.2) == 1, "a run of three steps has none"
    assert warm_up(0, 100, 0) == decay(99, 100, 0) == 1
    assert default_lr(2**14, 10_000) == default_lr(2**14, 10**6) == 2e-4
    assert default_lr(2**12, 100) == pytest.approx(2e-4 * 2 * 10)
