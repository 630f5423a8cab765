"""Tensors that live in one flat vector, so that one all-reduce or one optimiser call takes them all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.dictionaries import products
from interp.training.dictionary_set import DictionarySet
from interp.training.member import Member

_ALIGNMENT = 16
"""Every tensor begins at a multiple of 64 bytes."""


class FlatTensors:
    """Named views into one float32 vector.

    Attributes:
        flat: the vector, zero at first.
        views: the tensors by name; writing to one writes to the vector.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]], device: torch.device):
        self._spans: dict[str, tuple[int, int]] = {}
        end = 0
        for name, shape in shapes.items():
            self._spans[name] = (end, end + torch.Size(shape).numel())
            end = -(-self._spans[name][1] // _ALIGNMENT) * _ALIGNMENT
        self.flat: Float[Tensor, "n"] = torch.zeros(end, device=device)
        self.views = {name: self.flat[a:b].view(torch.Size(shapes[name])) for name, (a, b) in self._spans.items()}

    def span(self, names: Iterable[str]) -> slice:
        """The part of the vector that holds neighbouring tensors."""
        spans = [self._spans[name] for name in names]
        return slice(spans[0][0], spans[-1][1])

    def shadow(self, dtype: torch.dtype) -> tuple[Float[Tensor, "n"], dict[str, Tensor]]:
        """A copy of the vector in another dtype, and the views into it."""
        copy = self.flat.to(dtype)
        return copy, {name: copy[a:b].view(self.views[name].shape) for name, (a, b) in self._spans.items()}


class TrainingBuffers:
    """The weights of all dictionaries in one vector; their gradients and the step's counters in another.

    Gradients lie as the weights do, so a span of one vector belongs to the same span of the other. Dictionaries that
    are given to this class have their weights and gradients moved into it. With `dtype` bfloat16 there is a third
    vector, the weights in that dtype, which products with matrices read (`dictionaries.products`); it follows from the
    weights, so no checkpoint has it.

    Attributes:
        sums: what a step adds up over micro-batches and workers.
        tokens, stop: of the step, in `sums`.
    """

    def __init__(self, dictionaries: DictionarySet, dtype: torch.dtype = torch.float32):
        weights = {(m.key, name): p for m in dictionaries for name, p in m.parameters().items()}
        shapes: dict[str, Sequence[int]] = {f"{key}#{name}": p.shape for (key, name), p in weights.items()}
        counters = {f"{m.key}@{name}": shape for m in dictionaries for name, shape in m.counters().items()}
        self._weights = FlatTensors(shapes, dictionaries.device)
        self._sums = FlatTensors({**shapes, **counters, "@tokens": (), "@stop": ()}, dictionaries.device)
        for (key, name), parameter in weights.items():
            view = self._weights.views[f"{key}#{name}"]
            view.copy_(parameter.detach())
            parameter.data, parameter.grad = view, self._sums.views[f"{key}#{name}"]
        self._working, self._stale = None, True
        if dtype != torch.float32:
            self._working, copies = self._weights.shadow(dtype)
            for (key, name), parameter in weights.items():
                if parameter.ndim == 2:
                    products.work_in(parameter, copies[f"{key}#{name}"])
        self.sums = self._sums.flat
        self.tokens, self.stop = self._sums.views["@tokens"], self._sums.views["@stop"]
        self._counters = {m.key: {n: self._sums.views[f"{m.key}@{n}"] for n in m.counters()} for m in dictionaries}

    def weights_changed(self) -> None:
        """The next `refresh` has something to do."""
        self._stale = True

    def refresh(self) -> None:
        """Bring the working copies up to date."""
        if self._working is not None and self._stale:
            self._working.copy_(self._weights.flat)
        self._stale = False

    def counters(self, member: Member) -> dict[str, Tensor]:
        """What the step counts of a dictionary."""
        return self._counters[member.key]

    def gradient(self, member: Member) -> Float[Tensor, "n"]:
        """The gradient of all of a dictionary's parameters."""
        return self._sums.flat[self._span(member, member.parameters())]

    def groups(self, member: Member) -> list[dict[str, Any]]:
        """Adam's parameter groups of a dictionary: `params`, `key`, and `multiplier` of the learning rate."""
        return [self._group(member, names, multiplier) for names, multiplier in member.groups()]

    def _group(self, member: Member, names: Iterable[str], multiplier: float) -> dict[str, Any]:
        span = self._span(member, names)
        parameter = nn.Parameter(self._weights.flat[span])
        parameter.grad = self._sums.flat[span]
        return {"params": [parameter], "key": member.key, "multiplier": multiplier}

    def _span(self, member: Member, names: Iterable[str]) -> slice:
        return self._weights.span(f"{member.key}#{name}" for name in names)
