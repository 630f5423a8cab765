"""A causal language model of two blocks with three hook points each, small enough to compute its losses by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from interp.dictionaries.config import place_name

Hooks = Mapping[str, Callable[[Tensor, str], Tensor | None]]

D, VOCAB, LAYERS = 6, 11, 2


class TinyHooked:
    """What the evaluation needs of a `HookedModel`."""

    device = torch.device("cpu")

    def __init__(self, seed: int = 0, softcap: float | None = None):
        make = torch.Generator().manual_seed(seed)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=make)

        self.softcap = softcap
        self.embed, self.unembed = random(VOCAB, D), random(D, VOCAB)
        self.mix = [random(D, D) / 2 for _ in range(LAYERS)]
        self.mlp = [(random(D, 4 * D), random(4 * D, D) / 4) for _ in range(LAYERS)]

    def softcapped(self, logits: Tensor) -> Tensor:
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    def run_with_cache(self, ids: Tensor, names: Sequence[str], *, logits: bool = False) -> Cache:
        kept: dict[str, Tensor] = {}

        def keep(x: Tensor, name: str) -> None:
            kept[name] = x

        out = self.run_with_hooks(ids, dict.fromkeys(names, keep))
        return Cache(kept, out if logits else None)

    def run_with_hooks(self, ids: Tensor, hooks: Hooks) -> Tensor:
        def at(name: str, value: Tensor) -> Tensor:
            changed = hooks[name](value, name) if name in hooks else None
            return value if changed is None else changed

        x = self.embed[ids]
        for layer, (mix, (w_in, w_out)) in enumerate(zip(self.mix, self.mlp, strict=True)):
            x = x + x.cumsum(1) / torch.arange(1, ids.shape[1] + 1)[:, None] @ mix
            mlp_in = at(f"layers.{layer}.mlp_in", x / (x.norm(dim=-1, keepdim=True) + 1e-3))
            x = x + at(f"layers.{layer}.mlp_out", (mlp_in @ w_in).relu() @ w_out)
            x = at(f"layers.{layer}.resid_post", x)
        return x @ self.unembed


class Cache(dict[str, Tensor]):
    def __init__(self, values: Mapping[str, Tensor], logits: Tensor | None):
        super().__init__(values)
        self.logits = logits


class Fake(nn.Module):
    """A dictionary that computes what the test says; its latents are the entries of what it reads, where positive."""

    def __init__(self, hook_in: str, hook_out: str, f: Callable[[Tensor], Tensor], n_latents: int = D):
        super().__init__()
        at = place_name(hook_in, hook_out)
        place = SimpleNamespace(at=at, hook_in=hook_in, hook_out=hook_out, n_latents=n_latents)
        self.places, self.dtype, self.f = (place,), torch.float32, f

    def encode_at(self, place: int, x: Tensor) -> Tensor:
        return x.relu()

    def decode_from(self, place: int, activations: Tensor, x: Tensor) -> list[Tensor]:
        return [self.f(x)]


def sae(layer: int, f: Callable[[Tensor], Tensor]) -> Fake:
    return Fake(f"layers.{layer}.resid_post", f"layers.{layer}.resid_post", f)


def transcoder(layer: int, f: Callable[[Tensor], Tensor]) -> Fake:
    return Fake(f"layers.{layer}.mlp_in", f"layers.{layer}.mlp_out", f)
