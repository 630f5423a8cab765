"""What a fit takes on GPUs: counted by hand on a small case, and moved by what should move it on the large one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from plan_cases import LLAMA, STUDY, study

from interp.errors import SpecError
from interp.plan import places_in, shape_of
from interp.plan.budget import OPTIMISER_BYTES, Budget, budget_of, to_json
from interp.plan.cost import fit_cost
from interp.plan.machines import GPUS, Gpu, gpu_of
from interp.spec.loading import load_study
from interp.spec.study import Study

ROOT = Path(__file__).resolve().parents[2]
CONFIG = json.loads((ROOT / "docs" / "split-llama-8b-70b.json").read_text())
TOY = Gpu("toy", 2e9, 1e9, 10**9, 1e9, "made up")
ONE = [STUDY["dictionaries"][0]]


def small(gpu: Gpu = TOY, numbers: Any = None, **changes: Any) -> Budget:
    """Nothing is shuffled unless `changes` say so."""
    changes["fit"] = {"shuffle_tokens": 0, **changes.get("fit", STUDY["fit"])}
    of, shape = study(**{"dictionaries": ONE, **changes}), shape_of(LLAMA)
    return budget_of(of, shape, list(places_in(of, shape).values()), gpu, utilisation=0.5, **(numbers or {}))


def large(gpu: str = "h200-141g", numbers: Any = None, dictionaries: Any = None, **fit: Any) -> Budget:
    """The study of the cluster, on a model of the public sizes of Llama 3.1 8B and 70B."""
    of = load_study(ROOT / "specs" / "split-llama-cluster.yaml")
    data = of.model_dump(by_alias=True)
    data["fit"] |= fit
    data["dictionaries"] = [{**one, **(dictionaries or {})} for one in data["dictionaries"]]
    of, shape = Study.model_validate(data), shape_of(CONFIG)
    return budget_of(of, shape, list(places_in(of, shape).values()), gpu_of(gpu), **(numbers or {}))


def test_the_public_sizes() -> None:
    """8.03 and 70.6 billion parameters, of which norms are not counted; here half of the layers of each."""
    whole = [shape_of(CONFIG[name]) for name in ("first", "last")]
    assert [round(shape.parameters / 1e9, 2) for shape in whole] == [8.03, 70.55]
    split = shape_of(CONFIG)
    assert split.parameters == 16 * whole[0].groups[0].block_parameters + 40 * whole[1].groups[0].block_parameters + (
        128256 * (4096 + 8192) + 4096 * 8192
    )


def test_a_small_fit_counted_by_hand() -> None:
    found = small()
    parameters = 4 * (256 * 129 + 64 + 64 * 64)
    per_token = 4 * 3 * 2 * (64 * 256 + 8 * 64 + 64 * 64)
    assert (found.mode, found.shards, found.workers, found.harvesters, found.gpus) == ("colocated", 1, 1, 0, 1)
    assert sum(found.sizes.members) == parameters and len(found.sizes.members) == 4
    assert found.product_hours * 3600 == pytest.approx(100_000 * per_token / (0.5 * 1e9))
    assert found.optimiser_hours * 3600 == pytest.approx(49 * parameters * OPTIMISER_BYTES / 1e9)
    assert found.harvest_hours * 3600 == pytest.approx(100_000 * found.sizes.forward_flops / (0.5 * 1e9))
    assert found.hours == pytest.approx(found.product_hours + found.optimiser_hours + found.harvest_hours)
    told = to_json(found)
    assert told["training_bytes"] == 16 * parameters and told["checkpoint_bytes"] == 12 * parameters
    assert told["activation_bytes_per_token"] == 8 * 64 * 4 and told["artifact_bytes"] == 4 * parameters
    assert json.loads(json.dumps(told)) == told


def test_flops_are_those_of_the_cost() -> None:
    found, of, shape = small(), study(dictionaries=ONE), shape_of(LLAMA)  # which do not depend on the window
    told = to_json(found)
    assert (
        told["harvest_flops"] + told["dictionary_flops"]
        == fit_cost(of, shape, list(places_in(of, shape).values())).flops
    )


def test_the_choices_of_training_are_counted() -> None:
    base = to_json(small())
    signum, half = (to_json(small(fit={**STUDY["fit"], **c})) for c in ({"optimizer": "signum"}, {"dtype": "bfloat16"}))
    assert signum["training_bytes"] * 16 == base["training_bytes"] * 12
    assert half["training_bytes"] * 16 == base["training_bytes"] * 18
    assert half["product_hours"] == pytest.approx(base["product_hours"] / 2)  # the toy's bfloat16 is twice as fast
    window = to_json(small(fit={**STUDY["fit"], "shuffle_tokens": 20_480}))
    assert window["window_bytes"] == 10 * base["window_bytes"]


def test_what_is_given_is_kept_and_more_workers_are_faster() -> None:
    one, two = small(), small(numbers={"workers": 2})
    assert two.workers == 2 and two.hours < one.hours
    streamed = small(numbers={"workers": 2, "harvesters": 3}, fit={**STUDY["fit"], "mode": "streamed"})
    assert (streamed.mode, streamed.harvesters, streamed.gpus) == ("streamed", 3, 5)
    assert streamed.stream_bytes == 100_000 * 8 * 64 * 4


def test_workers_that_micro_batches_cannot_be_dealt_to() -> None:
    """Two micro-batches a step; three workers are three shards of the four dictionaries, five are none."""
    assert small(numbers={"workers": 3}).shards == 3
    found = small(numbers={"workers": 5})
    assert found.why_not is not None and "dealt evenly" in found.why_not and "micro_tokens" in found.why_not


def test_a_cache_is_harvested_first_and_no_model_is_in_the_workers() -> None:
    found, plain = small(fit={**STUDY["fit"], "cache": "bfloat16"}), small()
    assert found.sizes.cache == 100_000 * 8 * 64 * 2 and plain.sizes.cache == 0
    assert found.worker_bytes < plain.worker_bytes and found.harvesters == 1 and found.mode == "colocated"
    assert found.hours == pytest.approx(plain.hours)


def test_memory_decides_the_number_of_gpus() -> None:
    parameters = 256 * 129 + 64 + 64 * 64
    tight = replace(TOY, memory=40_000_000)
    for expansion, shards in ((4, 1), (32, 2)):
        found = small(tight, dictionaries=[{**ONE[0], "expansion": expansion}])
        assert found.why_not is None and (found.shards, found.workers) == (shards, shards)
        assert found.worker_bytes <= 0.85 * tight.memory
    assert parameters * 16 * 4 < 0.85 * tight.memory
    absurd = small(tight, dictionaries=[{**ONE[0], "expansion": 3200}])
    assert absurd.why_not is not None and "does not fit" in absurd.why_not and absurd.gpus == 0
    tiny = small(replace(TOY, memory=1_000_000))
    assert tiny.why_not is not None


def test_8b_and_70b_with_transcoders_at_all_mlps() -> None:
    found = large()
    assert found.why_not is None
    assert found.mode == "streamed" and found.shards == found.workers == 40 and found.harvesters >= 1
    told = to_json(found)
    assert told["parameters"] == pytest.approx(193.0e9, rel=1e-3)
    assert told["training_bytes"] == pytest.approx(3.088e12, rel=1e-3)
    assert told["harvest_flops"] == pytest.approx(15.4e18, rel=5e-3)
    assert told["dictionary_flops"] == pytest.approx(118e18, rel=5e-3)
    assert told["model_bytes"] == pytest.approx(78.6e9, rel=1e-3) and found.worker_bytes == pytest.approx(
        96.0e9, rel=1e-3
    )
    assert found.hours == pytest.approx(39.6, rel=2e-3) and found.harvest_hours == pytest.approx(12.4, rel=5e-3)
    assert found.stream_bytes == pytest.approx(288 * 2**40, rel=2e-3)
    assert found.worker_bytes < 0.85 * found.gpu.memory and found.harvester_bytes < 0.85 * found.gpu.memory
    assert found.harvest_hours <= found.hours  # harvesters keep up
    assert found.bound == "products of the dictionaries"
    fast = large(dtype="bfloat16")
    assert fast.hours < found.hours / 5
    assert large(numbers={"workers": 80}).hours < found.hours


def test_a_shuffling_window_is_kept_at_a_workers_own_hook_points() -> None:
    """A window of 64K tokens is 104 GB at all hook points: what a worker holds of it is a few of these."""
    found = large(dtype="bfloat16", shuffle_tokens=65_536)
    assert found.why_not is None and found.workers == found.shards == 40
    assert found.worker_bytes == pytest.approx(103.7e9, rel=1e-3)


def test_what_to_change_where_it_does_not_fit() -> None:
    assert large("h100-80g").why_not is not None and "dictionary alone" in str(large("h100-80g").why_not)
    narrow = large("h100-80g", dictionaries={"expansion": 8})
    assert "the model does not fit into one GPU" in str(narrow.why_not)
    assert large(dictionaries={"expansion": 8}).gpus < large().gpus
    assert large(optimizer="signum").sizes.needs.members[0] < large().sizes.needs.members[0]


def test_the_table_of_gpus() -> None:
    assert {"h100-80g", "h200-141g", "a100-80g", "l40s-48g", "cpu"} <= set(GPUS)
    for gpu in GPUS.values():
        assert gpu.source and gpu.bf16 >= gpu.fp32 and 10**9 < gpu.bandwidth < gpu.fp32
    with pytest.raises(SpecError, match="h200-141g"):
        gpu_of("abacus")
