"""The RelP rules as detaches on a model's own MLP module, for tests: what autograd makes of them is the reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def relp(mlp: nn.Module, act: str, halved: str | None) -> Iterator[None]:
    """Inside, act(h) is h * detach(act(h) / h), and a product c that `halved` reads is c / 2 + detach(c) / 2."""
    module = mlp.get_submodule(act)
    function = module.forward
    module.forward = lambda h: h * (function(h) / h).detach()
    handles = []
    if halved is not None:
        handles.append(mlp.get_submodule(halved).register_forward_pre_hook(_half))
    try:
        yield
    finally:
        module.forward = function
        for handle in handles:
            handle.remove()


def _half(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (args[0] / 2 + args[0].detach() / 2, *args[1:])


@torch.enable_grad()
def relp_jacobian(
    mlp: nn.Module, act: str, halved: str | None, x: Tensor, after: Callable[[Tensor], Any] | None = None
) -> Tensor:
    """[pos, d_out, d_in]: how the output at each position changes with the input there.

    Args:
        halved: the module that reads the product of a gate, if there is a gate.
        after: what the output passes through, such as a frozen post-norm.
    """
    x = x.detach().clone().requires_grad_()
    with relp(mlp, act, halved):
        out = mlp(x[None])[0]
    out = out if after is None else after(out)
    # Positions do not mix, so the sum over them has each one's rows apart.
    every = torch.eye(out.shape[-1], dtype=out.dtype)
    (rows,) = torch.autograd.grad(out.sum(0), x, every, is_grads_batched=True)
    return rows.permute(1, 0, 2)
