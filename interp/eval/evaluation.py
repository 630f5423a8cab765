"""All metrics of all dictionaries of a study over rows of tokens: a shard of rows in, sums that merge out.

For each batch the model runs once as it is, which gives the activations at every hook point and the clean logits; then
once spliced for every dictionary and for every set of dictionaries together, and zero-ablated and mean-ablated once for
each output, or outputs together, that they replace: sets at the same places share these two runs.
A cross-layer transcoder counts as a dictionary at each of its places, and as a set.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor

from interp.eval.fidelity import BatchLosses, FidelitySums, HookFunction, LossSums, replacement, splice
from interp.eval.reconstruction import ReconstructionSums, RunningReconstruction
from interp.eval.sparsity import SparsitySums

if TYPE_CHECKING:
    from interp.dictionaries import Dictionary
    from interp.dictionaries.dictionary import DictionaryPlace
    from interp.spec.study import Metric
    from interp.wrapper import HookedModel

    Sets = Mapping[str, Mapping[str, Dictionary]]
    """Dictionaries by the name of their set, then by where they are."""

ALL = "all"
"""`at` of the row for a whole set, spliced together."""

MODEL_METRICS = frozenset({"ce_recovered", "kl"})
"""Metrics that run the model with its activations changed."""

_RECONSTRUCTION = frozenset({"fvu", "cosine"})
_SPARSITY = frozenset({"l0", "dead", "density"})


@dataclass(frozen=True)
class DictionarySums:
    """What was asked for of one dictionary at one place, or (fidelity alone) of a set together."""

    reconstruction: ReconstructionSums | None = None
    sparsity: SparsitySums | None = None
    fidelity: FidelitySums | None = None

    def merge(self, other: DictionarySums) -> DictionarySums:
        return DictionarySums(
            _merged(self.reconstruction, other.reconstruction),
            _merged(self.sparsity, other.sparsity),
            _merged(self.fidelity, other.fidelity),
        )

    def metrics(self, wanted: Collection[Metric]) -> dict[str, float | int | None]:
        """Figures by name: a metric's own under its name, and what stands behind it. An undefined one is None."""
        figures: dict[str, float | int | None] = {}
        if (r := self.reconstruction) is not None:
            figures |= {"fvu": r.fvu} if "fvu" in wanted else {}
            figures |= {"cosine": r.mean_cosine, "l2_ratio": r.mean_ratio} if "cosine" in wanted else {}
        if (s := self.sparsity) is not None:
            figures |= {"l0": s.l0} if "l0" in wanted else {}
            figures |= _dead(s) if "dead" in wanted else {}
            figures |= _density(s) if "density" in wanted else {}
        if (f := self.fidelity) is not None:
            figures |= _cross_entropies(f) if "ce_recovered" in wanted else {}
            figures |= _divergences(f) if "kl" in wanted else {}
        return figures


@dataclass(frozen=True)
class EvaluationSums:
    """The sums of every place of a dictionary, by (set, at)."""

    tokens: int
    of: Mapping[tuple[str, str], DictionarySums]

    def merge(self, other: EvaluationSums) -> EvaluationSums:
        merged = {
            key: _merged(self.of.get(key), other.of.get(key), DictionarySums()) for key in {**self.of, **other.of}
        }
        return EvaluationSums(self.tokens + other.tokens, merged)

    def rows(self, wanted: Collection[Metric]) -> list[dict[str, Any]]:
        """One row for each place of a dictionary, in the study's order, and one for each set together."""
        return [
            {"dictionary": name, "at": at, "tokens": self.tokens} | sums.metrics(wanted)
            for (name, at), sums in self.of.items()
        ]


class Evaluator:
    """Evaluates dictionaries on rows of tokens.

    Args:
        hooked: the model that the dictionaries were trained on.
        sets: dictionaries by the name of their set and their place; they must be in evaluation mode.
        metrics: what to measure; the model is run changed only when a metric needs it.
        batch: contexts at once. It changes the memory, not the figures.
        means: of the activation at each `hook_out`, for mean-ablation; needed by `ce_recovered` and `kl`.
    """

    def __init__(
        self,
        hooked: HookedModel,
        sets: Sets,
        metrics: Collection[Metric],
        *,
        batch: int,
        means: Mapping[str, Float[Tensor, "d"]],
    ):
        self.hooked, self.sets, self.batch, self.means = hooked, sets, batch, means
        self.metrics = frozenset(metrics)

    @torch.no_grad()
    def __call__(self, rows: Int[ndarray, "n context"], lengths: Int[ndarray, "n"]) -> EvaluationSums:
        """The sums over `rows`, of which row i has `lengths[i]` tokens that are no padding."""
        total = EvaluationSums(0, {})
        for ids, mask in batches(rows, lengths, self.batch, self.hooked.device):
            total = total.merge(self._batch(ids, mask))
        return total

    def _batch(self, ids: Int[Tensor, "batch pos"], mask: Bool[Tensor, "batch pos"]) -> EvaluationSums:
        changed = bool(MODEL_METRICS & self.metrics)
        cache = self.hooked.run_with_cache(ids, hook_points(self.sets), logits=changed)
        run = _ChangedRuns(self, ids, mask, cache.logits) if changed else None
        of: dict[tuple[str, str], DictionarySums] = {}
        for name, dictionaries in self.sets.items():
            outputs = []
            for place, sums, x_hat in self._activations(dictionaries.values(), cache, mask):
                if run is not None:
                    # Alone, a place reads what it reads in the clean run: its reconstruction is known.
                    spliced = replacement({place.hook_out: x_hat})
                    sums = replace(sums, fidelity=run.fidelity([place.hook_out], spliced))
                of[name, place.at] = sums
                outputs.append(place.hook_out)
            if run is not None and len(outputs) > 1:
                together = splice(list(dictionaries.values()))
                of[name, ALL] = DictionarySums(fidelity=run.fidelity(outputs, together))
        return EvaluationSums(int(mask.sum()), of)

    def _activations(
        self, dictionaries: Iterable[Dictionary], cache: Mapping[str, Tensor], mask: Bool[Tensor, "batch pos"]
    ) -> Iterator[tuple[DictionaryPlace, DictionarySums, Float[Tensor, "batch pos d"]]]:
        """At each place, reconstruction and sparsity on the model's own activations, and the reconstruction itself."""
        for dictionary in dictionaries:
            running = RunningReconstruction(dictionary)
            for index, place in enumerate(dictionary.places):
                sparsity: SparsitySums | None = None

                def look(some: slice, activations: Tensor) -> None:
                    nonlocal sparsity
                    sparsity = _merged(sparsity, SparsitySums.of(activations[mask.flatten()[some]]))

                x_hat = running(index, cache[place.hook_in], look if self.metrics & _SPARSITY else None)
                reconstruction = None
                if self.metrics & _RECONSTRUCTION:
                    reconstruction = ReconstructionSums.of(cache[place.hook_out][mask], x_hat[mask])
                yield place, DictionarySums(reconstruction, sparsity), x_hat


class _ChangedRuns:
    """The changed runs of one batch, and their losses. An ablation depends on the outputs alone, and is run once."""

    def __init__(
        self,
        evaluator: Evaluator,
        ids: Int[Tensor, "batch pos"],
        mask: Bool[Tensor, "batch pos"],
        logits: Float[Tensor, "batch pos vocab"],
    ):
        self._hooked, self._means, self._ids = evaluator.hooked, evaluator.means, ids
        self._losses = BatchLosses(logits, ids, mask, evaluator.hooked.softcapped)
        self._clean = FidelitySums(clean=self._losses.clean())
        self._ablations: dict[frozenset[str], tuple[LossSums, LossSums]] = {}

    def fidelity(self, outputs: Sequence[str], spliced: Mapping[str, HookFunction]) -> FidelitySums:
        """The model's losses with `spliced`, and with all `outputs` of the dictionaries ablated."""
        zero, mean = self._ablated(frozenset(outputs))
        return replace(self._clean, spliced=self._run(spliced), zero=zero, mean=mean)

    def _ablated(self, outputs: frozenset[str]) -> tuple[LossSums, LossSums]:
        """The losses with zero, and with its mean, at each of the outputs."""
        if outputs not in self._ablations:
            zero = torch.zeros((), device=self._ids.device)
            values = (dict.fromkeys(outputs, zero), {name: self._means[name] for name in outputs})
            zeroed, averaged = (self._run(replacement(each)) for each in values)
            self._ablations[outputs] = zeroed, averaged
        return self._ablations[outputs]

    def _run(self, hooks: Mapping[str, HookFunction]) -> LossSums:
        return self._losses.of(self._hooked.run_with_hooks(self._ids, hooks))


def hook_points(sets: Sets) -> tuple[str, ...]:
    """Every hook point that a dictionary reads or replaces, once."""
    found: dict[str, None] = {}
    for dictionaries in sets.values():
        for dictionary in dictionaries.values():
            for place in dictionary.places:
                found |= {place.hook_in: None, place.hook_out: None}
    return tuple(found)


@torch.no_grad()
def mean_activations(
    hooked: HookedModel,
    names: Sequence[str],
    rows: Int[ndarray, "n context"],
    lengths: Int[ndarray, "n"],
    batch: int,
) -> dict[str, Float[Tensor, "d"]]:
    """The mean of the activation at each hook point, over all tokens of `rows`, in float64."""
    sums: dict[str, Tensor] = {}
    for ids, mask in batches(rows, lengths, batch, hooked.device):
        cache = hooked.run_with_cache(ids, names)
        for name in names:
            sums[name] = sums.get(name, 0) + cache[name][mask].double().sum(0)
    return {name: total / int(lengths.sum()) for name, total in sums.items()}


def batches(
    rows: Int[ndarray, "n context"], lengths: Int[ndarray, "n"], batch: int, device: torch.device | str
) -> Iterator[tuple[Int[Tensor, "batch pos"], Bool[Tensor, "batch pos"]]]:
    """Token ids as the model takes them, and which of them are no padding."""
    ids = torch.tensor(rows, dtype=torch.long)
    mask = torch.arange(ids.shape[1]) < torch.as_tensor(lengths)[:, None]
    for some, of_some in zip(ids.split(batch), mask.split(batch), strict=True):
        yield some.to(device), of_some.to(device)


def _merged(one: Any, other: Any, otherwise: Any = None) -> Any:
    if one is None or other is None:
        return (other if one is None else one) or otherwise
    return one.merge(other)


def _density(sums: SparsitySums) -> dict[str, float | int | None]:
    """log10 of the share of tokens, of the median latent that fires; nine in ten of them are above `density_low`."""
    return {
        "density": sums.density_quantile(0.5),
        "density_low": sums.density_quantile(0.1),
        "density_high": sums.density_quantile(0.9),
    }


def _dead(sums: SparsitySums) -> dict[str, float | int | None]:
    return {
        "dead": sums.dead_share,
        "dead_latents": sums.dead,
        "denser_than_1_percent": sums.share_denser_than(0.01),
        "denser_than_10_percent": sums.share_denser_than(0.1),
    }


def _cross_entropies(sums: FidelitySums) -> dict[str, float | int | None]:
    return {
        "ce_clean": sums.clean.mean_ce,
        "ce_spliced": sums.spliced.mean_ce,
        "ce_zero_ablated": sums.zero.mean_ce,
        "ce_mean_ablated": sums.mean.mean_ce,
        "ce_recovered": sums.ce_recovered,
    }


def _divergences(sums: FidelitySums) -> dict[str, float | int | None]:
    return {
        "kl": sums.spliced.mean_kl,
        "kl_zero_ablated": sums.zero.mean_kl,
        "kl_mean_ablated": sums.mean.mean_kl,
        "kl_recovered": sums.kl_recovered,
    }
