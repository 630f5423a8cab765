"""Harvest: tokens a second against the bare forward pass to the same layer.

The floor is the model's own modules up to the last hook point that is needed, stopped there by one plain PyTorch hook
that raises: nothing is read, nothing is kept. Its linear layers go where `run_with_cache` sends its own
(`interp.models.products`), so the ratio is what reading costs; `mkl_to_layer` is the same pass as torch runs it by
itself. Against it: `run_with_cache`, which reads every hook point, and the full forward with the head, which is what
harvesting costs without an early stop.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.timing import side_by_side
from interp.models.products import fast_linears
from interp.wrapper import HookedModel

ROWS, CONTEXT = 8, 128


class _Stop(Exception):
    """The last module has run."""


def bare_forward(hooked: HookedModel, last: str, ids: Tensor, fast: bool = True) -> Callable[[], None]:
    """The forward pass up to the block of a hook point, and nothing more.

    Args:
        fast: with linear layers where `run_with_cache` sends them; else as torch runs them by itself.
    """
    layer = hooked.topology.layer_of(last)
    paths = [
        f"{group.path}.{i}"
        for group in hooked.family.groups
        for i in range(len(hooked.model.get_submodule(group.path)))
    ]
    block = hooked.model.get_submodule(paths[layer])
    linears = partial(fast_linears, next(hooked.model.parameters()), ids.numel())

    def stop(*_: Any) -> None:
        raise _Stop

    def forward() -> None:
        handle = block.register_forward_hook(stop)
        try:
            with torch.no_grad(), linears() if fast else nullcontext():
                hooked.model(ids, use_cache=False)
        except _Stop:
            pass
        finally:
            handle.remove()

    return forward


def compare(hooked: HookedModel, hooks: list[str]) -> dict[str, Any]:
    """Tokens a second of each way, and the share of the bare rate that `run_with_cache` reaches."""
    vocabulary = hooked.topology.d_vocab
    ids = torch.randint(vocabulary, (ROWS, CONTEXT), generator=torch.Generator().manual_seed(0))
    last = max(hooks, key=hooked.topology.order.__getitem__)

    def full() -> None:
        with torch.no_grad():
            hooked.model(ids, use_cache=False)

    seconds = side_by_side(
        {
            "bare_to_layer": bare_forward(hooked, last, ids),
            "mkl_to_layer": bare_forward(hooked, last, ids, fast=False),
            "run_with_cache": lambda: hooked.run_with_cache(ids, hooks),
            "full_forward": full,
        }
    )
    rates = {f"{name}_tokens_per_s": round(ROWS * CONTEXT / value) for name, value in seconds.items()}
    return {"hooks": len(hooks), "last": last, **rates} | {
        "ratio_to_bare": round(seconds["bare_to_layer"] / seconds["run_with_cache"], 3),
        "ratio_to_mkl": round(seconds["mkl_to_layer"] / seconds["run_with_cache"], 3),
    }


def run() -> dict[str, Any]:
    shipped = HookedModel("builtin://tiny-split-llama")
    mlps = [*shipped.topology.all_mlp_in_hooks, *shipped.topology.all_mlp_out_hooks]
    config = LlamaConfig(
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        vocab_size=4096,
        attn_implementation="sdpa",
    )
    torch.manual_seed(0)
    middle = HookedModel(LlamaForCausalLM(config).eval())
    return {
        "tiny-split-llama, all MLPs": compare(shipped, mlps),
        "tiny-split-llama, one hook": compare(shipped, ["layers_first.2.resid_post"]),
        "llama 8 x 512, layer 3": compare(middle, ["layers.3.resid_post"]),
        "llama 8 x 512, 4 MLPs": compare(middle, [f"layers.{i}.mlp_{end}" for i in range(4) for end in ("in", "out")]),
    }
