"""What a plan says a fit takes is what the engine decides by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_study import artifact, make_study, run

from interp.engine.job import FitJob
from interp.engine.local import InProcess
from interp.engine.placing import needs_of
from interp.plan import make_plan, places_in, shape_of
from interp.plan.budget import sizes_of
from interp.sources.resolve import read_config
from interp.stages.context import StageContext
from interp.stages.fit import plan_of
from interp.store import Store

CHANGES: list[dict[str, Any]] = [
    {},
    {"fit": {"optimizer": "signum", "dtype": "bfloat16", "shuffle_tokens": 1024}},
    {
        "dictionaries": [
            {
                "name": "c",
                "kind": "cross-layer-transcoder",
                "at": "layers.*.mlp",
                "latents": 48,
                "activation": {"type": "topk", "k": 6},
            }
        ]
    },
]


@pytest.mark.parametrize("changes", CHANGES, ids=["plain", "choices", "cross-layer"])
def test_a_plan_counts_as_the_engine_does(tmp_path: Path, changes: dict[str, Any]) -> None:
    of = make_study(tmp_path, **{**changes, "trace": None})
    run(make_study(tmp_path, dictionaries=[], trace=None))
    store = Store.open(of.store)
    planned = make_plan(of, store).stage("fit")
    assert planned is not None
    corpus = artifact(of, "corpus")
    plan = plan_of(StageContext(of, planned, InProcess(), store), corpus)
    engine = needs_of(FitJob(plan, of.model, corpus, store.scratch("fit", planned.key)))
    shape = shape_of(read_config(of.model))
    counted = sizes_of(of, shape, list(places_in(of, shape).values())).needs
    assert counted.members == pytest.approx(engine.members, rel=0.05)  # the engine leaves out biases
    for name in ("model", "activations", "step_tokens", "window_tokens", "forward_flops"):
        assert getattr(counted, name) == getattr(engine, name), name
    assert counted.working == pytest.approx(engine.working, rel=0.01)
    assert counted.member_flops == pytest.approx(engine.member_flops, rel=0.5)  # and the skip path, large in a toy
