"""The frozen map: it reproduces the model, it is linear, and its transposes are its transposes."""

from __future__ import annotations

import pytest
import torch
from tiny_models import ALL, make, token_ids
from torch import Tensor

from interp.errors import ModelError
from interp.models.families import FAMILIES, Norm
from interp.wrapper import ActivationCache, HookedModel
from interp.wrapper.frozen import BlockView, attention_bias, attention_out, attention_transpose, frozen_view
from interp.wrapper.norms import NormView

LOOSE = {"rtol": 1e-4, "atol": 1e-5}


def _draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _adjoint(forward: Tensor, gradient: Tensor, x: Tensor, pulled: Tensor) -> None:
    """<L x, g> = <x, L^T g>."""
    torch.testing.assert_close((forward * gradient).sum(), (x * pulled).sum())


def _captured(name: str) -> tuple[HookedModel, ActivationCache]:
    hooked = HookedModel(make(name))
    return hooked, hooked.run_with_cache(token_ids(), lambda _: True)


def _attention_of(block: BlockView, cache: ActivationCache) -> Tensor:
    out = attention_out(block, cache[f"{block.name}.attn_in"], cache[f"{block.name}.attn_pattern"])
    return out if block.attn_post_norm is None else block.attn_post_norm.apply(out)


@pytest.mark.parametrize("name", ALL)
def test_frozen_attention_is_the_models(name: str) -> None:
    hooked, cache = _captured(name)
    for block in hooked.frozen.blocks:
        torch.testing.assert_close(_attention_of(block, cache), cache[f"{block.name}.attn_out"], **LOOSE)


@pytest.mark.parametrize("name", ALL)
def test_frozen_norms_are_the_models(name: str) -> None:
    hooked, cache = _captured(name)
    for block in hooked.frozen.blocks:
        before = cache[f"{block.name}.resid_pre"]
        middle = before if block.parallel else before + cache[f"{block.name}.attn_out"]
        torch.testing.assert_close(block.attn_norm.apply(before), cache[f"{block.name}.attn_in"], **LOOSE)
        torch.testing.assert_close(block.mlp_norm.apply(middle), cache[f"{block.name}.mlp_in"], **LOOSE)
    last = cache[hooked.topology.all_resid_hooks[-1]]
    torch.testing.assert_close(hooked.frozen.final_norm.apply(last), cache["final_norm"], **LOOSE)


@pytest.mark.parametrize("name", ALL)
def test_the_frozen_model_with_its_own_mlp_outputs_is_the_model(name: str) -> None:
    """From the embedding to the logits by the frozen map alone, on another embedding than the one frozen at."""
    hooked, cache = _captured(name)
    frozen, stream = hooked.frozen, cache["embed"]
    for block in frozen.blocks:
        if block.layer == frozen.adapter_before and frozen.adapter is not None:
            stream = frozen.adapter.linear(stream, frozen.adapter.mask(stream))
        pattern = cache[f"{block.name}.attn_pattern"]
        denominator = block.attn_norm.denominator(cache[f"{block.name}.resid_pre"])
        out = attention_out(block, block.attn_norm.apply(stream, denominator), pattern)
        if block.attn_post_norm is not None:
            out = block.attn_post_norm.apply(out)
        stream = stream + out + cache[f"{block.name}.mlp_out"]
        torch.testing.assert_close(stream, cache[f"{block.name}.resid_post"], **LOOSE)
    logits = frozen.final_norm.apply(stream) @ frozen.unembed.W_U.T
    with torch.no_grad():
        torch.testing.assert_close(logits, hooked.run_with_hooks(token_ids(), {}), **LOOSE)


@pytest.mark.parametrize("name", ALL)
def test_attention_transpose_is_the_adjoint(name: str) -> None:
    hooked, cache = _captured(name)
    for block in hooked.frozen.blocks:
        pattern = cache[f"{block.name}.attn_pattern"][0].double()
        x, gradient = _draw(9, block.d_model), _draw(9, block.d_model, seed=1)
        forward = attention_out(block, x, pattern, bias=False)
        _adjoint(forward, gradient, x, attention_transpose(block, gradient, pattern))


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "gpt_neox", "gemma2"])
def test_biases_are_what_is_left_of_attention_at_zero(name: str) -> None:
    hooked, cache = _captured(name)
    for block in hooked.frozen.blocks:
        pattern = cache[f"{block.name}.attn_pattern"]
        x = cache[f"{block.name}.attn_in"]
        parts = attention_out(block, x, pattern, bias=False) + attention_bias(block, pattern)
        torch.testing.assert_close(parts, attention_out(block, x, pattern), **LOOSE)
        # Every tiny model of this list has a bias somewhere on this path.
        assert attention_bias(block, pattern).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
def test_targets_prompts_and_slices(name: str) -> None:
    hooked, cache = _captured(name)
    block = hooked.frozen.blocks[1]
    patterns = cache[f"{block.name}.attn_pattern"].double()
    gradients = _draw(2, 5, 9, block.d_model)
    together = attention_transpose(block, gradients, patterns)
    for prompt in range(2):
        torch.testing.assert_close(together[prompt], attention_transpose(block, gradients[prompt], patterns[prompt]))
        for target in range(5):
            alone = attention_transpose(block, gradients[prompt, target], patterns[prompt])
            torch.testing.assert_close(together[prompt, target], alone)
    # A target at position p depends on positions up to p alone: the rest may be cut off.
    cut = attention_transpose(block, gradients[0, :, :4], patterns[0, :, :4, :4])
    only = torch.cat([gradients[0, :, :4], torch.zeros_like(gradients[0, :, 4:])], dim=1)
    torch.testing.assert_close(cut, attention_transpose(block, only, patterns[0])[:, :4])
    # One query position, all keys.
    row = attention_transpose(block, gradients[0, :, 8:], patterns[0, :, 8:])
    assert row.shape == (5, 9, block.d_model)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "qwen3"])
def test_weights_head_by_head(name: str) -> None:
    hooked, cache = _captured(name)
    block = hooked.frozen.blocks[0]
    x, pattern = cache[f"{block.name}.attn_in"][0], cache[f"{block.name}.attn_pattern"][0]
    assert block.W_V.shape == (block.n_heads, block.d_model, block.d_head)
    values = torch.einsum("kd,hde->hke", x, block.W_V)
    if block.b_V is not None:
        values = values + block.b_V[:, None]
    out = torch.einsum("hqk,hke,hed->qd", pattern, values, block.W_O)
    out = out if block.b_O is None else out + block.b_O
    torch.testing.assert_close(out, attention_out(block, x, pattern), **LOOSE)


@pytest.mark.parametrize("kind", ["rms", "rms_offset", "layer"])
def test_a_frozen_norm_is_linear_and_has_its_transpose(kind: str) -> None:
    module = torch.nn.Module()
    module.weight, module.eps = torch.nn.Parameter(_draw(16)), 1e-3
    module.bias = torch.nn.Parameter(_draw(16, seed=1)) if kind == "layer" else None
    view = NormView.of(module, Norm(kind, "eps"))
    x, y, gradient = _draw(5, 16, seed=2), _draw(5, 16, seed=3), _draw(5, 16, seed=4)
    denominator = view.denominator(x)
    linear = view.linear(x, denominator)
    torch.testing.assert_close(view.linear(2 * x + y, denominator), 2 * linear + view.linear(y, denominator))
    _adjoint(linear, gradient, x, view.transpose(gradient, denominator))
    if kind == "layer":
        expected = torch.nn.functional.layer_norm(x, (16,), module.weight, module.bias, 1e-3)
        torch.testing.assert_close(view.apply(x), expected)
    assert view.apply(x.float()).dtype == torch.float32


def test_denominators_are_computed_in_float32() -> None:
    view = NormView("rms", torch.ones(512), None, 1e-6)
    x = _draw(3, 512)
    half = view.denominator(x.bfloat16())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, view.denominator(x.bfloat16().double()).float())


@pytest.mark.parametrize("name", ["split_llama", "split_llama_mlp"])
def test_the_adapter_and_its_transpose(name: str) -> None:
    hooked, cache = _captured(name)
    adapter = hooked.frozen.adapter
    assert adapter is not None and adapter.has_mask == (name == "split_llama_mlp")
    before = cache[f"{hooked.topology.block_name(hooked.frozen.adapter_before - 1)}.resid_post"]
    mask = adapter.mask(before)
    torch.testing.assert_close(adapter.linear(before, mask), cache["adapter_out"], **LOOSE)
    gradient = _draw(2, 9, 48).float()
    _adjoint(adapter.linear(before, mask), gradient, before, adapter.transpose(gradient, mask))


def test_an_adapter_that_is_not_linear_is_refused() -> None:
    model = make("split_llama")
    model.adapter = torch.nn.Sequential(torch.nn.Linear(32, 48, bias=False), torch.nn.GELU())
    with pytest.raises(ModelError, match="adapter"):
        frozen_view(model, FAMILIES["split-llama"])


def test_views_share_the_models_memory() -> None:
    for name in ("llama", "gpt2", "gpt_neox"):
        model = make(name)
        view = frozen_view(model, HookedModel(model).family)
        owned = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        for block in view.blocks:
            assert block.w_v.untyped_storage().data_ptr() in owned
            assert block.w_o.untyped_storage().data_ptr() in owned


def test_a_model_that_is_cast_has_another_view() -> None:
    hooked = HookedModel(make("llama"))
    before = hooked.frozen
    assert hooked.frozen is before
    hooked.model.to(torch.bfloat16)
    assert hooked.frozen.blocks[0].w_o.dtype == hooked.frozen.unembed.W_U.dtype == torch.bfloat16
