"""Autoencoders and transcoders in training: dictionaries of one place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor, nn

from interp.dictionaries import SparseDictionary, decoder_norm, fold
from interp.dictionaries.activations import Activation
from interp.dictionaries.losses import LossScales, losses
from interp.training.member import Member, MicroLosses, standardisation
from interp.training.statistics import HookStatistics


class SingleMember(Member):
    """A dictionary that reads one hook point and predicts one."""

    OFFSETS: ClassVar[tuple[str, ...]] = ("b_enc", "activation.b_mag", "activation.threshold")
    dictionary: SparseDictionary

    def offset_names(self, place: int) -> Sequence[str]:
        return self.OFFSETS

    def activation(self, place: int) -> Activation:
        return self.dictionary.activation

    def decoder_biases(self) -> Sequence[nn.Parameter]:
        return (self.dictionary.b_dec,)

    def losses(self, acts: Mapping[str, Tensor], penalty: float) -> MicroLosses:
        (place,) = self.places
        dead = self.dead if self.revives else None
        variances = self.target_variances[0], self.error_variances[0]
        scales = LossScales(*variances, penalty, self.fit.aux_k_coefficient, dead)
        found = losses(self.dictionary, acts[place.hook_in], acts[place.hook_out], scales)
        return MicroLosses(found.total, found.squared_error[None], found.penalty, found.aux, (found.codes,))

    def folded(self, statistics: Mapping[str, HookStatistics]) -> SparseDictionary:
        (place,) = self.places
        source, target = statistics[place.hook_in], statistics[place.hook_out]
        return fold(self.dictionary, standardisation(source), standardisation(target))

    def ready_gradient_(self, first: bool) -> None:
        super().ready_gradient_(first)
        weights = self.dictionary.W_dec
        if self.dictionary.unit_decoder and weights.grad is not None:
            decoder_norm.project_out_(weights.grad, weights.data)

    def constrain_(self) -> None:
        if self.dictionary.unit_decoder:
            decoder_norm.normalise_(self.dictionary.W_dec.data)
        super().constrain_()
