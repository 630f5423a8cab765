"""Editing activations: an edit has the effect that the hook point's definition promises."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from tiny_models import ALL, make, token_ids
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from interp.errors import HookError
from interp.wrapper import HookedModel


def _random_like(value: Tensor, seed: int = 0) -> Tensor:
    return torch.randn(value.shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ALL)
def test_a_value_in_its_own_place_changes_nothing(name: str) -> None:
    hooked, ids = HookedModel(make(name)), token_ids()
    with torch.no_grad():
        logits = hooked.run_with_hooks(ids, {})
        same = hooked.run_with_hooks(ids, dict.fromkeys(hooked.topology.hook_names, lambda value, _: value.clone()))
        looked = hooked.run_with_hooks(ids, dict.fromkeys(hooked.topology.hook_names, lambda value, _: None))
    torch.testing.assert_close(same, logits, rtol=1e-5, atol=1e-5)
    assert torch.equal(looked, logits)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("site", ["resid_pre", "attn_in", "attn_out", "resid_mid", "mlp_in", "mlp_out", "resid_post"])
def test_an_edit_is_what_everything_later_sees(name: str, site: str) -> None:
    hooked, ids = HookedModel(make(name)), token_ids()
    hook = f"{hooked.topology.block_name(1)}.{site}"
    if hook not in hooked.topology.hook_names:
        pytest.skip("a parallel block has no resid_mid")
    with torch.no_grad():
        plain = hooked.run_with_cache(ids, lambda _: True, logits=True)
        logits, cache = hooked.run_with_hooks(
            ids, {hook: lambda value, _: _random_like(value)}, return_cache=lambda _: True
        )
    block = hook.rpartition(".")[0]
    assert torch.equal(cache[hook], _random_like(plain[hook]))
    order = hooked.topology.order
    assert all(torch.equal(cache[n], plain[n]) for n in cache if order[n] < order[hook])
    assert not torch.allclose(logits, plain.logits, atol=1e-3)
    middle = (
        cache[f"{block}.resid_mid"] if site == "resid_mid" else cache[f"{block}.resid_pre"] + cache[f"{block}.attn_out"]
    )
    if site != "resid_post":
        torch.testing.assert_close(cache[f"{block}.resid_post"], middle + cache[f"{block}.mlp_out"])
    if site == "resid_post":
        following = hooked.topology.hook_names[order[hook] + 1]
        assert following == "adapter_out" or torch.equal(cache[following], cache[hook])


@pytest.mark.parametrize("name", ["llama", "gpt2", "split_llama"])
def test_the_ends_of_the_model(name: str) -> None:
    hooked, ids = HookedModel(make(name)), token_ids()
    with torch.no_grad():
        logits = hooked.run_with_hooks(ids, {"final_norm": lambda value, _: torch.zeros_like(value)})
        assert logits.abs().max() == 0
        shifted = hooked.run_with_hooks(ids, {"logits": lambda value, _: value + 1})
        torch.testing.assert_close(shifted, hooked.run_with_hooks(ids, {}) + 1)
        # A prompt with another's embeddings is that other prompt.
        other = token_ids(seed=5)
        embed = hooked.run_with_cache(other, "embed")["embed"]
        as_other = hooked.run_with_hooks(ids, {"embed": lambda value, _: embed})
        torch.testing.assert_close(as_other, hooked.run_with_hooks(other, {}))


@contextmanager
def _given_patterns(patterns: list[Tensor]) -> Iterator[str]:
    """An attention function of transformers that uses these patterns, whatever queries and keys say."""

    def attend(module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: object, **__: object):  # type: ignore[no-untyped-def]
        pattern = patterns[module.layer_idx]
        values = value.repeat_interleave(pattern.shape[1] // value.shape[1], dim=1)
        return (pattern @ values).transpose(1, 2).contiguous(), pattern

    ALL_ATTENTION_FUNCTIONS.register("given", attend)
    yield "given"


@pytest.mark.parametrize("name", ALL)
def test_a_replaced_pattern_is_the_one_that_attention_uses(name: str) -> None:
    ids, other = token_ids(), token_ids(seed=9)
    hooked = HookedModel(make(name))
    hooks = hooked.topology.all_attn_pattern_hooks
    with torch.no_grad():
        foreign = hooked.run_with_cache(other, hooks)
        found = hooked.run_with_hooks(ids, {hook: lambda _, name: foreign[name] for hook in hooks})
        with _given_patterns([foreign[hook] for hook in hooks]) as attention:
            reference = make(name)
            reference.set_attn_implementation(attention)
            expected = reference(ids, use_cache=False).logits
    torch.testing.assert_close(hooked.softcapped(found), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, hooked.run_with_hooks(ids, {}), atol=1e-2)


def test_gradients_flow_through_edits_unless_switched_off() -> None:
    hooked, ids = HookedModel(make("llama")), token_ids()
    push = torch.zeros(32, requires_grad=True)
    hooks = {"layers.1.mlp_out": lambda value, _: value + push}
    hooked.run_with_hooks(ids, hooks)[0, -1, 3].backward()
    assert push.grad is not None and push.grad.abs().max() > 0
    # The gradient is the slope of the measured effect.
    direction = _random_like(push)
    with torch.no_grad():
        low, high = (
            hooked.run_with_hooks(ids, {"layers.1.mlp_out": lambda value, _, s=sign: value + s * 1e-3 * direction})
            for sign in (-1, 1)
        )
        assert not hooked.run_with_hooks(ids, hooks).requires_grad
    slope = (high - low)[0, -1, 3] / 2e-3
    torch.testing.assert_close(slope, push.grad @ direction, rtol=2e-2, atol=2e-3)


def test_hooks_get_canonical_names_and_run_once() -> None:
    hooked, seen = HookedModel(make("llama")), []
    hooked.run_with_hooks(token_ids(), {"blocks.0.hook_mlp_out": lambda _, name: seen.append(name)})
    assert seen == ["layers.0.mlp_out"]
    with pytest.raises(HookError):
        hooked.run_with_hooks(token_ids(), {"layers.9.mlp_out": lambda value, _: value})


def test_a_hook_of_the_wrong_form_is_refused_and_the_model_survives() -> None:
    hooked, ids = HookedModel(make("llama")), token_ids()
    expected = hooked.run_with_hooks(ids, {})
    for wrong in (lambda value, _: value[..., :3], lambda value, _: value.double(), lambda value, _: 0.0):
        with pytest.raises(HookError, match="another form"):
            hooked.run_with_hooks(ids, {"layers.0.mlp_out": wrong})
        assert torch.equal(hooked.run_with_hooks(ids, {}), expected)


def test_a_hooks_own_error_comes_through() -> None:
    hooked, ids = HookedModel(make("llama")), token_ids()

    def fail(*_: object) -> None:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        hooked.run_with_hooks(ids, {"layers.0.mlp_out": fail})
    assert hooked.run_with_hooks(ids, {}).isfinite().all()


def test_a_hook_must_not_run_its_own_model() -> None:
    hooked, ids = HookedModel(make("llama")), token_ids()
    again = HookedModel(hooked.model)
    for inner in (hooked, again):
        with pytest.raises(HookError, match="hook of"):
            hooked.run_with_hooks(ids, {"embed": lambda value, _, m=inner: m.run_with_cache(ids, "embed")["embed"]})
    assert hooked.run_with_hooks(ids, {}).isfinite().all()


def test_another_model_may_run_inside_a_hook() -> None:
    hooked, ids = HookedModel(make("llama")), token_ids()
    other = HookedModel(make("llama", seed=3))
    expected = other.run_with_cache(ids, "layers.0.mlp_out")["layers.0.mlp_out"]
    _, cache = hooked.run_with_hooks(
        ids,
        {"layers.0.mlp_out": lambda *_: other.run_with_cache(ids, "layers.0.mlp_out")["layers.0.mlp_out"]},
        return_cache="layers.0.mlp_out",
    )
    assert torch.equal(cache["layers.0.mlp_out"], expected)
