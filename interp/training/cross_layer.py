"""Cross-layer transcoders in training: one dictionary of all its places, with one loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from interp.dictionaries import CrossLayerTranscoder, fold_cross_layer
from interp.dictionaries.activations import Activation
from interp.dictionaries.cross_layer_losses import CrossLayerScales, cross_layer_losses
from interp.training.member import Member, MicroLosses, standardisation
from interp.training.statistics import HookStatistics


class CrossLayerMember(Member):
    """A transcoder of several MLPs. Its FVU and L0 are means over its places, its dead share is of all latents."""

    dictionary: CrossLayerTranscoder

    def offset_names(self, place: int) -> Sequence[str]:
        return f"b_enc.{place}", f"activations.{place}.b_mag", f"activations.{place}.threshold"

    def activation(self, place: int) -> Activation:
        return self.dictionary.activation(place)

    def decoder_biases(self) -> Sequence[nn.Parameter]:
        return tuple(self.dictionary.biases)

    def losses(self, acts: Mapping[str, Tensor], penalty: float) -> MicroLosses:
        xs, ys = ([acts[hook] for hook in hooks] for hooks in self._hooks())
        dead = self.dead_at if self.revives else None
        variances = self.target_variances, self.error_variances
        scales = CrossLayerScales(*variances, penalty, self.fit.aux_k_coefficient, dead)
        found = cross_layer_losses(self.dictionary, xs, ys, scales)
        return MicroLosses(found.total, found.squared_errors, found.penalty, found.aux, found.codes)

    def folded(self, statistics: Mapping[str, HookStatistics]) -> CrossLayerTranscoder:
        sources, targets = ([standardisation(statistics[hook]) for hook in hooks] for hooks in self._hooks())
        return fold_cross_layer(self.dictionary, sources, targets)

    def _hooks(self) -> tuple[list[str], list[str]]:
        return [place.hook_in for place in self.places], [place.hook_out for place in self.places]
