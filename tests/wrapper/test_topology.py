"""What a model's shape says."""

from __future__ import annotations

import pytest
from tiny_models import ALL, make, token_ids

from interp.errors import HookError
from interp.wrapper import HookedModel


@pytest.mark.parametrize("name", ALL)
def test_widths_are_what_the_hooks_give(name: str) -> None:
    hooked = HookedModel(make(name))
    cache = hooked.run_with_cache(token_ids(), lambda _: True)
    assert tuple(cache) == hooked.topology.hook_names
    for hook, value in cache.items():
        if hook.endswith("attn_pattern"):
            with pytest.raises(HookError, match="no width"):
                hooked.topology.width(hook)
        else:
            assert value.shape == (2, 9, hooked.topology.width(hook))


def test_two_groups() -> None:
    topology = HookedModel(make("split_llama")).topology
    assert topology.groups == (("layers_first", 2, 32), ("layers_last", 2, 48))
    assert (topology.n_layers, topology.d_model, topology.d_model_first, topology.d_model_last) == (4, 48, 32, 48)
    assert topology.adapter and topology.d_vocab == 101
    assert topology.width("embed") == 32 and topology.width("adapter_out") == 48 and topology.width("logits") == 101
    assert topology.layer_of("layers_last.1.mlp_in") == 3
    assert [topology.block_name(layer) for layer in (1, 2)] == ["layers_first.1", "layers_last.0"]
    assert topology.all_mlp_in_hooks == tuple(f"{topology.block_name(layer)}.mlp_in" for layer in range(4))
    names = topology.hook_names
    assert (
        names.index("layers_first.1.resid_post") < names.index("adapter_out") < names.index("layers_last.0.resid_pre")
    )
    for wrong in ("embed", "adapter_out"):
        with pytest.raises(HookError, match="no block"):
            topology.layer_of(wrong)
    with pytest.raises(HookError):
        topology.block_name(4)


def test_what_differs_between_families() -> None:
    assert HookedModel(make("gemma2")).topology.logit_softcap == 3.0
    assert HookedModel(make("llama")).topology.logit_softcap is None
    assert HookedModel(make("gpt2")).topology.max_positions == 64
    assert HookedModel(make("gpt_neox")).topology.parallel
    assert not HookedModel(make("gpt_neox_sequential")).topology.parallel
