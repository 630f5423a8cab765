"""What can never run on a profile's cluster is refused before it is sent, with the numbers; and nothing else is."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
from rendered import CPU, GPU, plan, profile, study

from interp.cluster.fits import Room, require_fit
from interp.cluster.profile import Profile
from interp.cluster.render import cluster_of
from interp.errors import SpecError
from interp.plan import places_in
from interp.plan.budget import budget_of
from interp.plan.cost import Cost
from interp.plan.machines import GPUS
from interp.plan.nodes import cpus_each, node_memory, nodes_from_environment
from interp.plan.shapes import ModelShape, shape_of
from interp.spec.study import Study

SMALL = shape_of(
    {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 1000,
    }
)
LARGE = shape_of(
    {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    }
)
"""8 G parameters: 32 GB in float32."""


def gpus(**changes: Any) -> Profile:
    return profile("gpu-queued", workers=[CPU, {**GPU, **changes}])


def fits(of: Study, on: Profile, shape: ModelShape = SMALL, **costs: Cost) -> None:
    require_fit(plan(of, **costs), on, shape)


# -- GPUs and places


def test_workers_and_harvesters_need_a_gpu_each() -> None:
    streamed = study(fit={"workers": 8, "harvesters": 1, "mode": "streamed"})
    with pytest.raises(SpecError) as caught:
        fits(streamed, gpus(max=8))
    assert caught.value.what == (
        "fit needs 9 GPUs at once (8 workers + 1 harvester), and the profile's groups give at most 8"
    )
    assert caught.value.value == "profile h200: gpu 8 x 1"
    assert caught.value.remedy is not None and "fit.harvesters" in caught.value.remedy
    fits(streamed, gpus(max=9))
    fits(streamed, gpus(max=2, gpus=8))


def test_a_fit_that_may_be_colocated_needs_no_harvesters() -> None:
    fits(study(fit={"workers": 8, "harvesters": 8}), gpus(max=8))
    fits(study(fit={"workers": 8, "harvesters": 8, "mode": "colocated"}), gpus(max=8))
    fits(study(fit={"workers": 8, "harvesters": 8, "cache": "model"}), gpus(max=8))


def test_more_workers_than_gpus() -> None:
    with pytest.raises(SpecError, match=r"fit needs 4 GPUs at once \(4 workers\), .* at most 3"):
        fits(study(fit={"workers": 4, "mode": "colocated"}), gpus(max=3))


def test_what_fits_only_streamed_is_told_of_its_harvesters() -> None:
    """Eight GB of dictionaries beside a model of 32 GB: too much for 40 GB, but each by itself has room."""
    wide = study(
        fit={"workers": 2, "harvesters": 2},
        dictionaries=[
            {
                "name": "mlp",
                "kind": "transcoder",
                "at": "layers.0.mlp",
                "activation": {"type": "topk", "k": 8},
                "latents": 65536,
            }
        ],
    )
    a100 = {"gpu": "a100-40g"}
    fits(wide, gpus(max=4, **a100), LARGE)
    with pytest.raises(SpecError, match=r"fit needs 4 GPUs at once \(2 workers \+ 2 harvesters\), .* at most 3"):
        fits(wide, gpus(max=3, **a100), LARGE)
    with pytest.raises(SpecError, match="the model does not fit beside the dictionaries"):
        fits(study(fit={"mode": "colocated", "workers": 2}, dictionaries=_dumped(wide)), gpus(max=4, **a100), LARGE)


def test_trace_begins_with_its_least_actors() -> None:
    wants = study(trace={"prompts": ["one"] * 8, "actors": {"min": 3, "max": 64}})
    with pytest.raises(SpecError, match=r"trace needs 3 GPUs at once \(trace.actors.min\), .* at most 2"):
        fits(wants, gpus(max=2))
    fits(wants, gpus(max=3))
    # An actor without a prompt is never started.
    fits(study(trace={"prompts": ["one", "two"], "actors": {"min": 3, "max": 64}}), gpus(max=2))


def test_evaluation_runs_in_as_many_processes_as_there_are_harvesters() -> None:
    wants = study(fit={"harvesters": 3, "mode": "colocated"}, evaluate={"metrics": ["fvu"]})
    with pytest.raises(SpecError, match=r"evaluate needs 3 GPUs at once \(fit.harvesters\)"):
        fits(wants, gpus(max=2))
    fits(wants, gpus(max=3))


def test_gpus_where_there_are_none() -> None:
    with pytest.raises(SpecError, match="asks for GPUs, and no worker group of profile cpu has any"):
        fits(study(fit={"device": "cuda"}), profile())
    fits(study(fit={"device": "auto"}), profile())
    fits(study(fit={"device": "cpu"}), gpus())


def test_a_gpu_node_is_no_place_for_work_on_cpus_where_there_are_others() -> None:
    on_cpus = study(fit={"device": "cpu", "workers": 4, "harvesters": 1, "mode": "colocated"})
    one_cpu = [{**CPU, "cpus": 1, "max": 1}, GPU]
    with pytest.raises(SpecError, match=r"fit needs 4 places at once \(4 workers\), .* at most 2"):
        fits(on_cpus, profile("gpu-queued", workers=one_cpu))
    fits(on_cpus, profile("gpu-queued", workers=[GPU]))


def test_what_is_cached_needs_no_room() -> None:
    made = plan(study(fit={"workers": 8}), cached=("corpus", "fit", "trace"))
    require_fit(made, gpus(max=1), SMALL)
    with pytest.raises(SpecError):
        require_fit(plan(study(fit={"workers": 8})), gpus(max=1), SMALL)


def test_places_are_those_that_the_engine_finds() -> None:
    """Refused is only what the engine would refuse on all nodes that there can be; on GPUs, all of it."""
    draw = random.Random(0)
    refused = 0
    for _ in range(400):
        groups = [
            {"name": f"g{i}", "cpus": draw.choice([4, 4.5, 8, 16]), "memory": "32G", "max": draw.randint(1, 3)}
            | draw.choice([{}, {}, {"gpus": draw.randint(1, 4), "gpu": "l4-24g"}])
            for i in range(draw.randint(1, 3))
        ]
        of = profile(workers=groups)
        nodes = nodes_from_environment({"INTERP_CLUSTER": json.dumps(cluster_of(of))})
        assert nodes is not None
        for cuda in (False, True):
            room, processes = Room(of, cuda), draw.randint(1, 200)
            found = cpus_each(nodes, processes, cuda)
            if processes > room.places:
                refused += 1
                assert not found
            elif cuda:
                assert found
    assert refused > 100


def test_a_part_of_a_cpu_is_none_for_ray() -> None:
    """1.9 CPUs are one logical CPU, of which half is left to Ray: two processes, not seven."""
    of = profile(workers=[{**CPU, "cpus": 1.9, "max": 1}])
    on_cpus = {"device": "cpu", "mode": "colocated"}
    fits(study(fit={**on_cpus, "workers": 2}), of)
    with pytest.raises(SpecError, match=r"fit needs 4 places at once \(4 workers\), .* at most 2"):
        fits(study(fit={**on_cpus, "workers": 4}), of)


# -- memory


@pytest.mark.parametrize("shm", [None, "4G", "40G"])
def test_memory_is_what_the_engine_will_find(shm: str | None) -> None:
    """Beside /dev/shm, as the profile has it."""
    of = profile(workers=[{**CPU, "memory": "64G", "max": 2, **({} if shm is None else {"shm": shm})}])
    nodes = nodes_from_environment({"INTERP_CLUSTER": json.dumps(cluster_of(of))})
    assert nodes is not None
    beside = 64 * 10**9 - of.workers[0].shared_memory
    for processes, expected in ((1, beside), (2, beside), (3, beside // 2), (7, beside // 4)):
        assert Room(of, cuda=False).memory(processes) == expected
        assert node_memory(nodes, cpus_each(nodes, processes, gpu=False), gpu=False) == expected


def test_a_model_that_no_gpu_holds() -> None:
    one = study(dictionaries=_dictionaries("layers.0.mlp"))
    with pytest.raises(SpecError) as caught:
        fits(one, gpus(gpu="l4-24g", max=8), LARGE)
    assert caught.value.what == "fit does not fit profile h200: the model does not fit into a harvester"
    assert "32.1 GB of model" in str(caught.value.value)
    assert "a profile with larger GPUs" in str(caught.value.remedy)
    fits(one, gpus(max=8), LARGE)


def test_what_a_plan_of_gpus_finds_possible_is_not_refused() -> None:
    """`interp plan --gpu` and this ask the same rule: on 1 to 8 GPUs of each kind, small dictionaries and wide ones."""
    possible = 0
    for gpu, latents, workers in itertools.product(GPUS, (256, 65536), (1, 2, 4, 8)):
        if gpu == "cpu":
            continue
        of = study(fit={"workers": workers, "harvesters": 2}, dictionaries=_dictionaries("layers.*.mlp", latents))
        sets = list(places_in(of, LARGE).values())
        budget = budget_of(of, LARGE, sets, GPUS[gpu], workers=workers, harvesters=2)
        on = gpus(gpu=gpu, max=10)
        if budget.why_not is None:
            possible += 1
            fits(of, on, LARGE)
        else:
            with pytest.raises(SpecError):
                fits(of, on, LARGE)
    assert possible > 10


def test_memory_of_a_node_is_shared_by_those_that_must_meet_on_it() -> None:
    fit = {"device": "cpu", "workers": 1, "harvesters": 1, "mode": "streamed"}
    on_cpus = study(fit=fit, dictionaries=_dictionaries("layers.0.mlp"))
    node = {**CPU, "memory": "64G", "max": 2}
    fits(on_cpus, profile(workers=[node]), LARGE)
    with pytest.raises(SpecError, match="fit does not fit profile cpu"):
        fits(on_cpus, profile(workers=[{**node, "max": 1}]), LARGE)


@pytest.mark.parametrize(
    ("stage", "changes", "most", "remedy"),
    [
        ("corpus", {}, 22.4, "a smaller corpus"),
        ("activations", {"fit": {"cache": "model"}}, 141, "fit.micro_tokens"),
        ("evaluate", {"evaluate": {"metrics": ["fvu"]}}, 141, "evaluate.batch"),
        ("trace", {}, 141, "smaller dictionaries"),
    ],
)
def test_a_process_that_is_larger_than_its_device(stage: str, changes: Any, most: float, remedy: str) -> None:
    """The corpus is made on CPUs, in 32 GB less 0.3 of them for /dev/shm; the rest on a GPU of 141 GB."""
    size = int(most * 10**9)
    fits(study(**changes), gpus(), **{stage: Cost(1, 1, size, size)})
    with pytest.raises(SpecError, match=rf"{stage} needs 1000.0 GB in one process, .* at most {most:.1f} GB") as caught:
        fits(study(**changes), gpus(), **{stage: Cost(1, 1, 10**12, 10**12)})
    assert remedy in str(caught.value.remedy)


def test_a_traces_rows_may_go_to_disk() -> None:
    fits(study(), gpus(), trace=Cost(1, 1, 10**9, 10**15))


def test_of_several_gpus_the_smallest_must_do() -> None:
    both = profile("gpu-queued", workers=[GPU, {**GPU, "name": "small", "gpu": "l4-24g"}])
    with pytest.raises(SpecError, match="fit does not fit"):
        fits(study(dictionaries=_dictionaries("layers.0.mlp")), both, LARGE)


def test_the_shape_is_read_from_the_models_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builtin = study(
        model={"source": "builtin://tiny-split-llama"},
        corpus={"source": "builtin://python-stdlib"},
        fit={"workers": 2},
        dictionaries=_dictionaries("layers_first.*.mlp"),
        trace=None,
    )
    require_fit(plan(builtin), gpus())
    with pytest.raises(SpecError, match="fit needs 2 GPUs"):
        require_fit(plan(builtin), gpus(max=1))


# -- what pods can see


@pytest.mark.parametrize("store", ["/data/store", "./store", "memory://store", "file:///data/store"])
def test_a_store_on_this_machine(store: str) -> None:
    with pytest.raises(SpecError, match="the study's store is on this machine") as caught:
        fits(study(store=store), gpus())
    assert caught.value.expected == "s3://bucket/prefix"


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"model": {"source": "/models/llama"}}, "model.source: /models/llama"),
        ({"model": {"source": "./llama"}}, "model.source: ./llama"),
        ({"model": {"source": "models/llama.gguf"}}, "model.source: models/llama.gguf"),
        ({"model": {"tokenizer": "file:///models/tokenizer"}}, "model.tokenizer: file:///models/tokenizer"),
        ({"corpus": {"source": "/data/*.jsonl"}}, "corpus.source: /data/*.jsonl"),
        ({"trace": {"prompts": "prompts.txt"}}, "trace.prompts: prompts.txt"),
        (
            {"trace": {"prompts": ["one"], "target": {"direction": "/data/direction.npy"}}},
            "trace.target.direction: /data/direction.npy",
        ),
        ({"dictionaries": [{"name": "mlp", "from": "/data/transcoders"}]}, "dictionaries[0].from: /data/transcoders"),
    ],
)
def test_a_source_on_this_machine(changes: Any, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "llama.gguf").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError, match="which pods cannot see") as caught:
        fits(study(**changes), gpus())
    assert caught.value.value == path


def test_all_of_them_are_told_at_once() -> None:
    with pytest.raises(SpecError) as caught:
        fits(study(model={"source": "/a"}, corpus={"source": "/b"}), gpus())
    assert caught.value.value == "model.source: /a; corpus.source: /b"


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"source": "hf://org/llama"}},
        {"model": {"source": "org/llama"}},
        {"model": {"source": "s3://models/llama", "tokenizer": "hf://org/tokenizer"}},
        {"corpus": {"source": "builtin://python-stdlib"}},
        {"corpus": {"source": "hf://org/data"}},
        {"trace": {"prompts": "s3://prompts/facts.jsonl"}},
        {"dictionaries": [{"name": "mlp", "from": "artifact://" + "0" * 64}]},
        {"dictionaries": [{"name": "mlp", "from": "hf://org/transcoders"}]},
    ],
)
def test_what_pods_see(changes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fits(study(**changes), gpus())


def _dictionaries(at: str, latents: int = 256) -> list[dict[str, Any]]:
    return [{"name": "mlp", "kind": "transcoder", "at": at, "activation": {"type": "topk", "k": 8}, "latents": latents}]


def _dumped(of: Study) -> list[dict[str, Any]]:
    return [one.model_dump(mode="json", by_alias=True, exclude_unset=True) for one in of.dictionaries]
