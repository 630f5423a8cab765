"""Costs: exact where they can be counted by hand, and moved by what should move them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from plan_cases import LLAMA, STUDY, revisions, study

from interp.plan import Cost, make_plan
from interp.plan.places import Place, deepest, places_of
from interp.plan.shapes import shape_of
from interp.sources.prompts import Prompt

SHAPE = shape_of(LLAMA)
ONE = [STUDY["dictionaries"][0]]
MLP = 3 * 64 * 160
ATTENTION = 2 * 64 * 16 * (4 + 2)
BLOCK = 2 * (MLP + ATTENTION) + 4 * 128 * 64


def cost(name: str, changed: dict[str, Any] | None = None, **fixed: Any) -> Cost:
    stage = make_plan(study(**(changed or {})), None, revisions(**fixed)).stage(name)
    assert stage is not None
    return stage.cost


def test_places() -> None:
    places = places_of(study().trained[0], SHAPE)
    assert [place.at for place in places] == [f"layers.{i}.mlp" for i in range(4)]
    assert places[1] == Place("layers.1.mlp", "layers.1.mlp_in", "layers.1.mlp_out", 64, 64, 256, 8, True)
    assert places[1].parameters == 256 * (64 + 64 + 1) + 64 + 64 * 64
    sae = places_of(study().trained[1], SHAPE)[0]
    assert (sae.hook_in, sae.hook_out, sae.active, sae.skip) == ("layers.1.resid_post",) * 2 + (None, False)


def test_the_deepest_hook_point() -> None:
    assert deepest(["layers.10.mlp_in", "layers.9.resid_post", "embed"]) == "layers.10.mlp_in"
    assert deepest([]) == "embed"


def test_corpus() -> None:
    found = cost("corpus")
    assert (found.tokens, found.flops, found.bytes) == (108_000, 0, 432_000)
    assert cost("corpus", {"corpus": {**STUDY["corpus"], "tokens": "200M"}}).memory == 2 * (64 << 20)


def test_a_fit_counted_by_hand() -> None:
    found = cost("fit", {"dictionaries": ONE})
    dictionary = 2 * (64 * 256 + 8 * 64 + 64 * 64)  # encoder, eight active rows of the decoder, skip path
    assert found.tokens == 100_000
    assert found.flops == 100_000 * (4 * BLOCK + 4 * 3 * dictionary)
    parameters = 4 * (256 * 129 + 64 + 64 * 64)
    weights = 4 * (1000 * 64 + 4 * (MLP + ATTENTION))
    assert found.bytes == 100_000 * (4 + 8 * 64 * 4) + weights + 4 * parameters
    assert found.memory == 16 * parameters + 2048 * 8 * 64 * 4 + 4 * 1024 * (2 * 256 + 64 + 128)


def test_a_cross_layer_transcoder_is_one_dictionary_that_writes_to_all_later_places() -> None:
    of = {"dictionaries": [{**ONE[0], "kind": "cross-layer-transcoder"}], "evaluate": None, "trace": None}
    places = places_of(study(**of).trained[0], SHAPE)
    assert [(place.at, place.d_written) for place in places] == [(f"layers.{i}.mlp", (4 - i) * 64) for i in range(4)]
    parameters = 4 * (256 * (64 + 1) + 64) + 10 * 256 * 64  # encoders and biases; 4 + 3 + 2 + 1 decoders
    assert sum(place.parameters for place in places) == parameters
    found = cost("fit", of)
    assert found.flops == 100_000 * (4 * BLOCK + 3 * 2 * (4 * 64 * 256 + 10 * 8 * 64))
    assert found.memory == 16 * parameters + 2048 * 8 * 64 * 4 + 4 * 1024 * 4 * (2 * 256 + 64 + 128)


def test_only_the_layers_up_to_the_last_hook_point_are_run() -> None:
    first = [{**ONE[0], "at": "layers.0.mlp"}]
    last = [{**ONE[0], "at": "layers.3.mlp"}]
    changes = {"trace": None, "evaluate": None}
    assert (
        cost("fit", {"dictionaries": last, **changes}).flops - cost("fit", {"dictionaries": first, **changes}).flops
        == 100_000 * 3 * BLOCK
    )


def test_hook_points_that_dictionaries_share_are_moved_once() -> None:
    twice = [ONE[0], {**ONE[0], "name": "again"}]
    one, two = cost("fit", {"dictionaries": ONE}), cost("fit", {"dictionaries": twice})
    parameters = 4 * (256 * 129 + 64 + 64 * 64)
    assert two.bytes - one.bytes == 4 * parameters


def test_memory_follows_dtype_and_workers() -> None:
    half = cost("fit", {"model": {"source": "/models/llama", "dtype": "bfloat16"}})
    assert half.bytes < cost("fit").bytes
    fit = {"batch_tokens": 8192, "workers": 8}
    assert cost("fit", {"fit": fit}).memory < cost("fit", {"fit": {**fit, "workers": 1}}).memory


def test_evaluation_runs_the_changed_models_only_when_asked() -> None:
    cheap = cost("evaluate", {"dictionaries": ONE, "evaluate": {"metrics": ["fvu"], "tokens": 1000}})
    full = cost("evaluate", {"dictionaries": ONE, "evaluate": {"metrics": ["fvu", "kl"], "tokens": 1000}})
    head = 2 * 1000 * 64
    dictionaries = 4 * 2 * (64 * 256 + 8 * 64 + 64 * 64)
    assert cheap.flops == 1000 * (4 * BLOCK + dictionaries)
    assert full.flops == 1000 * ((1 + 3 * (4 + 1)) * (4 * BLOCK + head) + 3 * dictionaries)
    assert full.memory > cheap.memory
    assert cost("evaluate", {"evaluate": {}}).tokens == 8000


def test_an_evaluation_holds_what_it_compares() -> None:
    """The activations of a batch at all hook points, and what a place adds to all later ones."""
    spec = {"metrics": ["fvu"], "tokens": 1000}
    every = [{**ONE[0], "kind": "transcoder", "at": "layers.*.mlp"}]
    across = [{**every[0], "kind": "cross-layer-transcoder"}]
    sets = [{"dictionaries": one, "evaluate": {**spec, "batch": batch}} for one in (every, across) for batch in (4, 8)]
    small, large, small_across, large_across = (cost("evaluate", one).memory for one in sets)
    tokens = 4 * 128
    assert large - small >= tokens * 4 * 8 * 64
    assert (large_across - small_across) - (large - small) == tokens * 4 * 3 * 64


def test_a_trace_grows_with_prompts_and_targets() -> None:
    prompts = tuple(Prompt.of(i, "word " * 40) for i in range(3))
    base = cost("trace", prompts=prompts)
    assert cost("trace", prompts=prompts * 2).flops == 2 * base.flops
    assert cost("trace", prompts=prompts * 2).memory == base.memory
    assert base.tokens == 3 * (1 + 200 // 4)
    few = {"trace": {**STUDY["trace"], "max_features": 10}}
    assert cost("trace", few, prompts=prompts).flops < base.flops
    assert cost("trace", few, prompts=prompts).memory < base.memory


def test_bad_prompts_cost_nothing() -> None:
    good = (Prompt.of(0, "words and words"),)
    assert cost("trace", prompts=(*good, Prompt.of(1, ""))) == cost("trace", prompts=good)


def test_a_prompt_longer_than_the_limit_counts_as_the_limit() -> None:
    prompts = (Prompt.of(0, "x" * 100_000),)
    assert cost("trace", prompts=prompts).tokens == 2048


def test_stages_one_after_the_other() -> None:
    assert Cost(1, 2, 3, 40) + Cost(5, 6, 7, 8) == Cost(6, 8, 10, 40)


def test_the_large_case_is_in_reach_of_the_formulas() -> None:
    """8B + 70B, 200M tokens, expansion 32: parameters of the size of the models, and ExaFLOPs."""
    big = {"model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80}
    big |= {"num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256}
    small = {**big, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
    split = {"model_type": "split-llama", "first": small, "last": big, "n_first": 16, "n_last": 40}
    model = replace(revisions().model, config=split)
    places = {"at": ["layers_first.*.mlp", "layers_last.*.mlp"], "expansion": 32}
    of = {
        "model": {"source": "s3://models/split", "dtype": "bfloat16"},
        "corpus": {**STUDY["corpus"], "context": 1024, "tokens": "200M"},
        "dictionaries": [{**ONE[0], **places}],
    }
    found = cost("fit", of, model=model)
    assert 1e20 < found.flops < 1e23
    assert found.memory > 16 * 40 * 2 * 8192 * 32 * 8192  # Adam over the larger group's dictionaries alone
