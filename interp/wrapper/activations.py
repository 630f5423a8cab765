"""What a forward pass gave at the hook points that were asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from interp.errors import HookError
from interp.spec.hookpoints import parse


class ActivationCache(Mapping[str, Tensor]):
    """Activations by hook point, in execution order. Aliases of hook points are understood.

    Tensors have the model's dtype and device and are [batch, pos, width], patterns [batch, head, query, key].
    """

    def __init__(self, values: Mapping[str, Tensor], logits: Tensor | None = None):
        self._values = dict(values)
        self._logits = logits

    @property
    def logits(self) -> Tensor:
        """The head's raw output [batch, pos, d_vocab]."""
        if self._logits is None:
            raise HookError(
                "the logits were not computed",
                value="logits=False",
                expected="logits=True",
                remedy="ask for them: run_with_cache(ids, hook_names, logits=True)",
            )
        return self._logits

    def __getitem__(self, name: str) -> Tensor:
        if name in self._values:
            return self._values[name]
        canonical = parse(name).name
        if canonical not in self._values:
            raise HookError(
                "this hook point is not in the cache",
                value=name,
                expected=f"one of {', '.join(self._values)}" if self._values else "nothing: the cache is empty",
                remedy="ask for it in run_with_cache",
            )
        return self._values[canonical]

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in self._values.items())
        return f"ActivationCache({shapes})"
