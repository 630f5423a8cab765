"""The table itself: it names modules that exist, and what it does not know it says."""

from __future__ import annotations

import dataclasses

import pytest
from tiny_models import ALL, make

from interp.errors import ModelError
from interp.models.families import FAMILIES, family_named, family_of


@pytest.mark.parametrize("name", ALL)
def test_every_path_of_the_row_exists(name: str) -> None:
    model = make(name)
    family = family_of(model.config.model_type)
    for path in (family.embed, family.positions, family.adapter, family.final_norm, family.head):
        assert path is None or model.get_submodule(path) is not None
    for group in family.groups:
        for block in model.get_submodule(group.path):
            layout = family.block
            norms = (layout.attn_norm, layout.mlp_norm, layout.attn_post_norm, layout.mlp_post_norm)
            for norm in filter(None, norms):
                assert isinstance(getattr(block.get_submodule(norm), family.norm.eps), float)
            attention = block.get_submodule(layout.attn)
            for path in (layout.value.module, layout.out):
                assert attention.get_submodule(path).weight.ndim == 2
            assert block.get_submodule(layout.mlp) is not None


def test_the_families_of_the_design_are_there() -> None:
    expected = {"llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "gpt2", "gpt_neox", "split-llama"}
    assert set(FAMILIES) == expected
    types = [model_type for family in FAMILIES.values() for model_type in family.model_types]
    assert len(types) == len(set(types))


def test_rows_are_data_and_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        FAMILIES["llama"].head = "elsewhere"  # type: ignore[misc]


def test_what_is_not_known_is_named() -> None:
    with pytest.raises(ModelError, match="llama, mistral") as error:
        family_named("lama")
    assert error.value.value == "lama"
    with pytest.raises(ModelError, match="mamba"):
        family_of("mamba")
    with pytest.raises(ModelError, match="None"):
        family_of(None)
