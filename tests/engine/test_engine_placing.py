"""Sizes of a fit, from configurations alone, and memory as it is found."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from interp.dictionaries.config import DictionaryConfig, ModelIdentity
from interp.engine.job import FitJob
from interp.engine.placing import available_memory, device_memory, largest_share, needs_of, settled
from interp.models.loading import load_model
from interp.plan import places_in, shape_of
from interp.plan.budget import sizes_of
from interp.plan.placement import RESERVE
from interp.sources.resolve import resolve_model
from interp.spec.study import FitSpec, ModelSpec, Study
from interp.training.plan import FitPlan, FitTarget, fit_plan

MODEL = ModelSpec(source="builtin://tiny-split-llama")


def job_of(**fit: Any) -> FitJob:
    hooks = ["layers_first.0.resid_post", "layers_first.1.resid_post"]
    sizes: dict[str, Any] = {"d_in": 256, "d_out": 256, "activation": {"type": "topk", "k": 16}}
    targets = tuple(
        FitTarget(
            name="r", at=hook, config=DictionaryConfig(kind="sae", hook_in=hook, hook_out=hook, n_latents=n, **sizes)
        )
        for hook, n in zip(hooks, (1024, 4096), strict=True)
    )
    plan = FitPlan(
        targets=targets, batch_tokens=2048, micro_tokens=1024, total_tokens=10_000, context=128, fit=FitSpec(**fit)
    )
    return FitJob(plan, MODEL, corpus=None, scratch=None, workers=2)  # type: ignore[arg-type]


def test_a_fit_needs_what_its_parts_take() -> None:
    needs = needs_of(job_of())
    assert needs.members == (16 * 2 * 256 * 1024, 16 * 2 * 256 * 4096)
    assert needs.activations == 2 * 256 * 4
    assert (needs.step_tokens, needs.window_tokens) == (2048, 0)
    assert [needs.activations_of([member]) for member in (0, 1)] == [256 * 4] * 2
    assert needs.working == 1024 * 4 * (2 * 4096 + 3 * 256)
    assert needs.step_micros == 2
    weights = sum(p.numel() * p.element_size() for p in load_model(MODEL).model.parameters())
    assert needs.model == pytest.approx(weights, rel=0.01)
    assert needs.member_flops == 6 * (256 * 1024 + 16 * 256 + 256 * 4096 + 16 * 256)
    assert 0 < needs.forward_part < 1


def test_what_the_study_asks_for_changes_what_is_needed() -> None:
    plain = needs_of(job_of())
    assert needs_of(job_of(optimizer="signum")).members[0] == plain.members[0] * 12 // 16
    assert needs_of(job_of(dtype="bfloat16")).members[0] == plain.members[0] * 18 // 16
    assert needs_of(job_of(shuffle_tokens=10_000)).window_tokens == 4 * 2048, "whole steps"
    assert needs_of(replace(job_of(), cache=object())).model == 0, "activations that are kept need no model"


@pytest.mark.parametrize("cache", [None, "bfloat16"])
@pytest.mark.parametrize("kind", ["sae", "cross-layer-transcoder"])
def test_the_engine_and_the_plan_count_alike(cache: str | None, kind: str) -> None:
    """What `interp plan` says is what the engine decides by. Of parameters the plan counts biases too."""
    sae = kind == "sae"
    data: dict[str, Any] = {
        "apiVersion": "interp/v1",
        "kind": "Study",
        "metadata": {"name": "alike"},
        "model": {"source": MODEL.source, "dtype": "bfloat16" if cache is None else "float32"},
        "corpus": {"source": "builtin://python-stdlib", "tokens": 100_000, "holdout": 1024, "context": 128},
        "dictionaries": [
            {
                "name": "d",
                "kind": kind,
                "at": "layers_first.*.resid_post" if sae else "layers_first.*.mlp",
                "latents": 4096,
            }
            | {"activation": {"type": "topk", "k": 16}}
        ],
        "fit": {"batch_tokens": 4096, "micro_tokens": 1024, "shuffle_tokens": 20_000, "cache": cache},
        "store": "memory://alike",
    }
    study = Study.model_validate(data)
    shape = shape_of(resolve_model(study.model).config, None)
    planned = sizes_of(study, shape, list(places_in(study, shape).values())).needs
    identity = ModelIdentity(source=MODEL.source, fingerprint="0" * 64, family=shape.family)
    plan = fit_plan(study, hook_names=shape.hook_names, width=shape.width, model=identity)
    own = needs_of(FitJob(plan, study.model, corpus=None, scratch=None, cache=cache and object()))  # type: ignore[arg-type]
    assert own.model == planned.model and (own.model > 0) == (cache is None)
    assert [dict(hooks) for hooks in own.hooks] == [dict(hooks) for hooks in planned.hooks]
    same = ("working", "step_tokens", "micro_tokens", "window_tokens", "forward_flops", "activations", "step_micros")
    assert {name: getattr(own, name) for name in same} == {name: getattr(planned, name) for name in same}
    assert own.members == pytest.approx(planned.members, rel=0.01)
    assert own.member_flops == pytest.approx(planned.member_flops, rel=0.01)


def test_what_is_settled_is_told_with_the_numbers() -> None:
    job = job_of()
    needs = needs_of(job)
    chosen, placement = settled(job, needs, 10**9)
    assert (chosen.mode, chosen.shards) == ("colocated", 1) and "1.0 GB a worker" in placement.reason
    beside = sum(needs.members) + needs.working + (1024 + 1024) * needs.activations
    chosen, _ = settled(job, needs, int((beside + needs.model // 2) / (1 - RESERVE)))
    assert (chosen.mode, chosen.shards) == ("streamed", 1)
    chosen, placement = settled(replace(job, shards=2, cache=object(), mode="streamed"), needs, 10**9)
    assert (chosen.mode, chosen.shards) == ("colocated", 2), "there is nothing to stream from a cache"


def test_memory_is_shared_by_the_processes_of_a_machine() -> None:
    memory = available_memory()
    assert 10**8 < memory < 2**50
    assert device_memory("cpu", 0.25) == pytest.approx(memory / 4, rel=0.2)
    assert largest_share(3, [None]) == pytest.approx(1 / 3)
    assert largest_share(5, [None, None]) == pytest.approx(1 / 3), "three on one of them"
