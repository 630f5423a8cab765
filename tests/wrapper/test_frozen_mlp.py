"""An MLP made linear: exact where it is frozen, and the gradient that the RelP rules give through the module itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import ALL, make, token_ids
from torch import Tensor, nn

from interp.wrapper import HookedModel
from interp.wrapper.frozen import BlockView


def blocks(name: str, dtype: torch.dtype = torch.float64, **changes: Any) -> list[tuple[nn.Module, BlockView, Tensor]]:
    """(module, view, what its MLP reads [pos, d_model]) of each block."""
    hooked = HookedModel(make(name, **changes).to(dtype))
    cache = hooked.run_with_cache(token_ids(1, 6), [n for n in hooked.topology.hook_names if n.endswith("mlp_in")])
    modules = [m for group in hooked.family.groups for m in hooked.model.get_submodule(group.path).children()]
    return [(m, view, cache[f"{view.name}.mlp_in"][0]) for m, view in zip(modules, hooked.frozen.blocks, strict=True)]


def written(module: nn.Module, view: BlockView, x: Tensor) -> Tensor:
    """What the model's own modules write."""
    out: Tensor = module.mlp(x[None])[0]
    return module.post_feedforward_layernorm(out) if view.mlp_post_norm is not None else out


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@torch.no_grad()
def test_where_it_is_frozen_it_is_the_mlp(name: str, dtype: torch.dtype) -> None:
    for module, view, x in blocks(name, dtype):
        frozen = view.freeze_mlp(x)
        bias = 0 if frozen.bias is None else frozen.bias
        torch.testing.assert_close(frozen.linear(x) + bias, written(module, view, x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_the_linear_part_is_linear_and_its_transpose_is_its_adjoint(name: str) -> None:
    for _, view, x in blocks(name):
        frozen = view.freeze_mlp(x)
        a, b, g = torch.randn(3, 4, *x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(frozen.linear(2 * a - b), 2 * frozen.linear(a) - frozen.linear(b))
        products = (frozen.linear(a) * g).sum((-2, -1)), (a * frozen.transpose(g)).sum((-2, -1))
        torch.testing.assert_close(*products)
        # Positions do not mix, so some of them alone give the same.
        torch.testing.assert_close(frozen.transpose(g[:, :3]), frozen.transpose(g)[:, :3])
        torch.testing.assert_close(frozen.at(slice(2, 5)).transpose(g[:, 2:5]), frozen.transpose(g)[:, 2:5])
        some = torch.tensor([4, 1, 1])
        torch.testing.assert_close(frozen.at(some).transpose(g[:, some]), frozen.transpose(g)[:, some])
        torch.testing.assert_close(frozen.at(some).linear(a[:, some]), frozen.linear(a)[:, some])


@pytest.mark.parametrize("name", ALL)
def test_its_gradient_is_what_the_rules_give_through_the_module(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, view, x in blocks(name):
        gated = view.known_mlp.gate is not None
        act = module.mlp.act_fn if gated else module.mlp.act
        g = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1))
        without_rules = gradient(module, view, x, g)
        function = act.forward
        monkeypatch.setattr(act, "forward", lambda h, function=function: h * (function(h) / h).detach())
        if gated:
            # The half rule: of a product, half is held.
            module.mlp.down_proj.register_forward_pre_hook(lambda m, args: (args[0] / 2 + args[0].detach() / 2,))
        expected = gradient(module, view, x, g)
        torch.testing.assert_close(view.freeze_mlp(x).transpose(g), expected, atol=1e-12, rtol=1e-10)
        assert (expected - without_rules).abs().max() > 1e-3


def gradient(module: nn.Module, view: BlockView, x: Tensor, g: Tensor) -> Tensor:
    """By autograd through the module; a post-norm's denominator is held."""
    x = x.detach().clone().requires_grad_()
    out = module.mlp(x[None])[0]
    if view.mlp_post_norm is not None:
        norm = module.post_feedforward_layernorm
        out = out / (out.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt().detach() * (1 + norm.weight)
    (pulled,) = torch.autograd.grad((out * g).sum(), x)
    return pulled


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
@torch.no_grad()
def test_hidden_units_that_read_0_write_0(name: str) -> None:
    for module, view, x in blocks(name, hidden_act="relu"):
        x = torch.zeros_like(x)
        frozen = view.freeze_mlp(x)
        torch.testing.assert_close(frozen.linear(x) + frozen.bias, written(module, view, x))
        assert bool(torch.isfinite(frozen.transpose(torch.ones_like(x))).all())


def test_a_model_without_biases_has_none() -> None:
    assert all(view.freeze_mlp(x).bias is None for _, view, x in blocks("llama", mlp_bias=False))
    assert all(view.freeze_mlp(x).bias is None for _, view, x in blocks("gemma2"))
    assert all(view.freeze_mlp(x).bias is not None for _, view, x in blocks("gpt2"))
