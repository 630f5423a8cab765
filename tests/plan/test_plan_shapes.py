"""Sizes from a configuration equal those of the model that is built from it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import tiny_models
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from interp.errors import ModelError
from interp.models.families import FAMILIES
from interp.models.families import family_of as row_of
from interp.plan import shapes
from interp.plan.shapes import family_of, shape_of
from interp.sources.resolve import read_config
from interp.spec.study import ModelSpec
from interp.wrapper.topology import topology_of

CONTEXT = 16


def built(name: str, **changes: Any) -> tuple[Any, dict[str, Any]]:
    """A model without storage, and its configuration as a checkpoint has it."""
    config = tiny_models.CONFIGS[name](**changes)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    return model, json.loads(config.to_json_string(use_diff=False))


@pytest.mark.parametrize("name", tiny_models.ALL)
def test_hook_points_and_widths_are_the_model_s(name: str) -> None:
    model, config = built(name)
    shape = shape_of(config)
    topology = topology_of(model, row_of(config["model_type"]))
    assert shape.hook_names == topology.hook_names
    vectors = [hook for hook in shape.hook_names if not hook.endswith("attn_pattern")]
    assert {hook: shape.width(hook) for hook in vectors} == {hook: topology.width(hook) for hook in vectors}
    assert all(shape.width(f"{hook}") == shape.width(f"{hook}_in") for hook in shape.mlp_names)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", tiny_models.ALL)
def test_parameters_are_the_matrices_of_the_model(name: str, tied: bool) -> None:
    if tied and name.startswith("split"):
        pytest.skip("a SplitLlama has two widths and cannot be tied")
    model, config = built(name, tie_word_embeddings=tied)
    positions = model.transformer.wpe.weight if name == "gpt2" else None
    matrices = [p for p in model.parameters() if p.ndim == 2 and p is not positions]
    assert shape_of(config).parameters == sum(p.numel() for p in matrices)


@pytest.mark.parametrize("name", tiny_models.ALL)
def test_forward_flops_are_those_that_torch_counts(name: str) -> None:
    model = tiny_models.make(name)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=tiny_models.token_ids(1, CONTEXT), use_cache=False)
    expected = CONTEXT * shape_of(model.config.to_dict()).flops_to("logits", CONTEXT)
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.01)  # rotary angles are a small product too


def test_a_forward_pass_that_stops_early_costs_less() -> None:
    _, config = built("split_llama")
    shape = shape_of(config)
    flops = [shape.flops_to(name, 16) for name in shape.hook_names]
    assert flops == sorted(flops)
    assert flops[0] == 0
    assert shape.flops_to("layers_first.1.resid_post", 16) == 2 * shape.flops_to("layers_first.0.resid_pre", 16)
    assert shape.flops_to("adapter_out", 16) - shape.flops_to("layers_first.1.resid_post", 16) == 2 * 32 * 48
    assert shape.parameters_to("layers_first.0.mlp_in") < shape.parameters_to("layers_last.0.mlp_in") < shape.parameters


def test_the_families_are_those_of_the_models() -> None:
    assert {*shapes._ROWS, shapes.SPLIT} == set(FAMILIES)
    for row in FAMILIES.values():
        assert {family_of({"model_type": model_type}) for model_type in row.model_types} == {row.name}
    assert set(shapes._MODEL_TYPES) == {name for row in FAMILIES.values() for name in row.model_types}


def test_the_shipped_model() -> None:
    shape = shape_of(read_config(ModelSpec(source="builtin://tiny-split-llama")))
    assert shape.family == "split-llama"
    assert 3_000_000 < shape.parameters < 8_000_000
    assert len(shape.mlp_names) >= 6


def test_published_configurations_that_leave_their_defaults_out() -> None:
    gemma = {"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34}
    shape = shape_of(gemma)
    assert (shape.groups[0].heads, shape.groups[0].d_head, shape.vocab, shape.tied) == (8, 256, 262_208, True)
    assert shape_of({"model_type": "x", "text_config": gemma}, family="gemma3") == shape
    gpt2 = {"model_type": "gpt2", "n_embd": 768, "n_head": 12, "n_layer": 12, "vocab_size": 50257}
    assert shape_of(gpt2).parameters == 12 * 12 * 768**2 + 50257 * 768
    llama = {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
    llama |= {"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256}
    assert shape_of(llama).parameters == pytest.approx(8.03e9, rel=0.001)  # as the model is called


@pytest.mark.parametrize(
    ("config", "family", "told"),
    [
        ({"model_type": "mamba"}, None, "llama, mistral"),
        ({}, None, "model_type None"),
        ({"model_type": "llama"}, "lama", "no model family"),
        ({"model_type": "llama", "hidden_size": 8}, None, "num_attention_heads"),
        ({"model_type": "llama", "hidden_size": True, "num_attention_heads": 1}, None, "hidden_size"),
        ({"model_type": "split-llama", "n_first": 1}, None, "first and last"),
    ],
)
def test_configurations_that_do_not_do(config: dict[str, Any], family: str | None, told: str) -> None:
    with pytest.raises(ModelError, match=told):
        shape_of(config, family)


def test_another_architecture_may_be_read_as_a_known_one() -> None:
    config = {"model_type": "newllama", "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1}
    config |= {"num_attention_heads": 2, "vocab_size": 10}
    assert shape_of(config, family="llama").family == "llama"
