"""What a dictionary costs the model: its loss and its predictions with the reconstruction in the activation's place.

    CE           mean over targets of -log p(next token)
    KL           mean over positions of KL(p_clean || p_changed), in nats
    recovered    (CE_ablated - CE_spliced) / (CE_ablated - CE_clean), and (KL_ablated - KL_spliced) / KL_ablated, with
                 zero-ablation, as SAEBench has it: 1 is the unchanged model, 0 no better than nothing at all.
                 Mean-ablation, a harder reference, is reported beside it.

An SAE replaces the activation at its hook point; a transcoder reads its input hook and replaces the output hook, from
the input as it is in the changed model. Several at once are spliced in one forward pass. What a cross-layer transcoder
puts at a place comes from what it read there and at the earlier places of the same pass.

Positions: all but padding. BOS positions count, as inputs and as targets: they are tokens of the packed text, and the
model's own loss has them. The last position of a context has no target and counts for KL alone. Sums are over tokens,
so that neither the batch size nor a partial context changes the means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.eval.reconstruction import RunningReconstruction

if TYPE_CHECKING:
    from interp.dictionaries import Dictionary

HookFunction = Callable[[Tensor, str], Tensor | None]

_CHUNK_ELEMENTS = 1 << 24
"""Logits that are turned into losses at once: 64 MB in float32."""


def splice(dictionaries: Sequence[Dictionary]) -> dict[str, HookFunction]:
    """Hooks that put each dictionary's reconstruction in the place of its activation, one forward pass at a time."""
    reads: dict[str, list[HookFunction]] = {}
    writes: dict[str, list[HookFunction]] = {}
    for dictionary in dictionaries:
        running = RunningReconstruction(dictionary)
        for index, place in enumerate(dictionary.places):
            autoencoder = place.hook_in == place.hook_out
            read, write = _spliced(running, index, autoencoder)
            if not autoencoder:
                reads.setdefault(place.hook_in, []).append(read)
            writes.setdefault(place.hook_out, []).append(write)
    # Where one dictionary replaces what another reads, the other reads what it was replaced by.
    return {name: _in_turn(writes.get(name, []) + reads.get(name, [])) for name in writes | reads}


def replacement(values: Mapping[str, Float[Tensor, "#batch #pos #d"]]) -> dict[str, HookFunction]:
    """Hooks that put a value in the place of an activation: a reconstruction, or one vector everywhere to ablate it."""

    def constant(value: Tensor) -> HookFunction:
        return lambda x, name: value.to(x).expand_as(x).clone()

    return {name: constant(value) for name, value in values.items()}


@dataclass(frozen=True)
class LossSums:
    """Sums of one way to run the model: `ce` over targets, `kl` over positions."""

    targets: int = 0
    positions: int = 0
    ce: float = 0.0
    kl: float = 0.0

    def merge(self, other: LossSums) -> LossSums:
        return LossSums(
            self.targets + other.targets, self.positions + other.positions, self.ce + other.ce, self.kl + other.kl
        )

    @property
    def mean_ce(self) -> float | None:
        return self.ce / self.targets if self.targets else None

    @property
    def mean_kl(self) -> float | None:
        return self.kl / self.positions if self.positions else None


@dataclass(frozen=True)
class FidelitySums:
    """The four ways to run the model: as it is, with the dictionaries spliced in, and with their outputs ablated."""

    clean: LossSums = LossSums()
    spliced: LossSums = LossSums()
    zero: LossSums = LossSums()
    mean: LossSums = LossSums()

    def merge(self, other: FidelitySums) -> FidelitySums:
        return FidelitySums(
            self.clean.merge(other.clean),
            self.spliced.merge(other.spliced),
            self.zero.merge(other.zero),
            self.mean.merge(other.mean),
        )

    @property
    def ce_recovered(self) -> float | None:
        """None where ablation does not change the loss: there is nothing to recover."""
        lost = self.zero.ce - self.clean.ce
        return (self.zero.ce - self.spliced.ce) / lost if lost else None

    @property
    def kl_recovered(self) -> float | None:
        return 1 - self.spliced.kl / self.zero.kl if self.zero.kl else None


class BatchLosses:
    """Losses of one batch: of the model as it is, and of changed runs against it.

    With logits z of the clean run and z' of a changed one, each less its largest, and s = sum exp z, s' = sum exp z',
        CE = log s' - z'[next]        KL = sum exp(z) (z - z') / s + log s' - log s
    which is exactly 0 for equal logits, and precise to 1e-7 nats in float32 however large the logits are.

    Args:
        logits: of the clean run, the head's raw output.
        mask: True where a token is no padding.
        softcapped: what the model makes of the head's output before the softmax (`HookedModel.softcapped`).
    """

    def __init__(
        self,
        logits: Float[Tensor, "batch pos vocab"],
        ids: Int[Tensor, "batch pos"],
        mask: Bool[Tensor, "batch pos"],
        softcapped: Callable[[Tensor], Tensor] = lambda logits: logits,
    ):
        self._logits, self._softcapped = logits, softcapped
        has_target = torch.zeros_like(mask)
        has_target[:, :-1] = mask[:, :-1] & mask[:, 1:]
        # Positions that count, and for each the next token; the weight of those that have none is 0.
        self._kept = mask.flatten().nonzero().squeeze(1)
        self._next = ids.roll(-1, dims=1).flatten()[self._kept]
        self._weight = has_target.flatten()[self._kept].double()
        self._log_sum = torch.cat([_log_sum(self._rows(logits, at)) for at in self._chunks()])

    def clean(self) -> LossSums:
        """Of the clean run; its KL is 0."""
        return self._sums(self._logits, compare=False)

    def of(self, logits: Float[Tensor, "batch pos vocab"]) -> LossSums:
        """Of a changed run."""
        return self._sums(logits, compare=True)

    def _sums(self, logits: Tensor, *, compare: bool) -> LossSums:
        ce, kl = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        for at in self._chunks():
            rows = self._rows(logits, at)
            log_sum = _log_sum(rows) if compare else self._log_sum[at]
            own = rows.gather(1, self._next[at, None]).squeeze(1)
            ce += ((log_sum - own) * self._weight[at]).sum().cpu()
            if compare:
                clean = self._rows(self._logits, at)
                p = clean.exp()
                cross = (p * clean.sub_(rows)).sum(-1).double() / p.sum(-1).double()
                kl += (cross + log_sum - self._log_sum[at]).sum().cpu()
        return LossSums(int(self._weight.sum()), len(self._kept), float(ce), float(kl))

    def _chunks(self) -> Iterator[slice]:
        """The kept positions, a few at a time."""
        step = max(1, _CHUNK_ELEMENTS // self._logits.shape[-1])
        for start in range(0, len(self._kept), step):
            yield slice(start, start + step)

    def _rows(self, logits: Tensor, at: slice) -> Float[Tensor, "positions vocab"]:
        """The logits that the softmax sees, in float32, each position's less its largest; a copy."""
        rows = self._softcapped(logits.flatten(0, 1)[self._kept[at]].float())
        return rows.sub_(rows.amax(-1, keepdim=True))


def _log_sum(rows: Float[Tensor, "positions vocab"]) -> Float[Tensor, "positions"]:
    return rows.exp().sum(-1).double().log()


def _spliced(running: RunningReconstruction, place: int, autoencoder: bool) -> tuple[HookFunction, HookFunction]:
    """A function that notes the input, and one that gives the reconstruction from it (or, for an SAE, of its own)."""
    noted: list[Tensor] = []

    def read(x: Tensor, name: str) -> None:
        noted[:] = [x]

    def write(x: Tensor, name: str) -> Tensor:
        return running(place, x if autoencoder else noted.pop()).to(x.dtype)

    return read, write


def _in_turn(functions: Sequence[HookFunction]) -> HookFunction:
    def run(x: Tensor, name: str) -> Tensor | None:
        changed = None
        for function in functions:
            result = function(x if changed is None else changed, name)
            changed = changed if result is None else result
        return changed

    return run
