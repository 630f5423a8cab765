"""The model that foreign dictionaries are used with, on the word of whoever uses them.

Files of other programs name no fingerprint. What can be checked is checked: the hook points mean this model's MLPs, the
widths and the number of layers are its own. That the weights are those that the dictionaries were trained on is the
user's word, and `ModelIdentity.foreign` says so wherever the dictionary goes.

Two things differ between programs that name the same places:

    ln2.hook_normalized   x / rms(x), before the norm's gain (and bias), where our `mlp_in` is what the MLP reads. An
                          encoder for the one is an encoder for the other with its columns divided by the gain:
                          W n + b = (W / g) (mlp_in - bias) + b, where n = (mlp_in - bias) / g. See `behind_gain`.
                          Of a LayerNorm that is so from TransformerLens 3.0 on, and where gain and bias were folded
                          into the weights behind it; before 3.0 the name means the norm's output, gain and bias
                          included (TransformerLens pull request 770). Files do not say which, so it is refused of
                          models with LayerNorm, unless they say that the norm was folded.
    mlp.hook_out          the MLP's output before the post-norm, where a family has one; then it is not our `mlp_out`.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from interp.dictionaries.config import ModelIdentity
from interp.errors import DictionaryError, HookError, ModelMismatch
from interp.spec.hookpoints import parse

if TYPE_CHECKING:
    from interp.models.families import Family
    from interp.wrapper.frozen import FrozenView
    from interp.wrapper.topology import Topology

logger = logging.getLogger(__name__)

_NEEDS = (
    "the replacement model puts a transcoder in the place of an MLP: it reads what the MLP reads (mlp.hook_in, or "
    "ln2.hook_normalized) and predicts what the MLP adds to the residual stream (hook_mlp_out)"
)
_TEMPLATE = re.compile(r"^blocks\.(\{\w*\}|\d+)\.")

_NEAR = {"ln2.hook_normalized": "mlp_in", "mlp.hook_out": "mlp_out"}
"""Places that are ours but for a norm's gain, or but for a post-norm: `interp.spec.hookpoints` knows them as others."""


class ForeignModel(Protocol):
    """What is asked of a model: a `HookedModel`."""

    @property
    def fingerprint(self) -> str: ...
    @property
    def topology(self) -> Topology: ...
    @property
    def frozen(self) -> FrozenView: ...

    family: Family


@dataclass(frozen=True)
class Claim:
    """That dictionaries belong to a model.

    Attributes:
        model: the model.
        source: where it comes from, as the user names it.
        dtype: what to turn the weights into; None: what the file has.
    """

    model: ForeignModel
    source: str
    dtype: str | None = None

    def identity(self, format: str) -> ModelIdentity:
        """What a dictionary read from this format says of its model."""
        return ModelIdentity(
            source=self.source, fingerprint=self.model.fingerprint, family=self.model.family.name, foreign=format
        )

    def tell_model(self, said: str | None, where: str) -> None:
        """Who gives dictionaries of one model to another should see it; names alone prove nothing."""
        names = [name.rstrip("/").rsplit("/", 1)[-1].lower() for name in (said or self.source, self.source)]
        if names[0] != names[1]:
            logger.warning(
                "%s names the model %s; it is used with %s, on the word of the user", where, said, self.source
            )

    def require_fingerprint(self, said: str | None, where: str) -> None:
        """Refuse another model than the files name by its fingerprint, as those that interp wrote do.

        Raises:
            ModelMismatch: they name another.
        """
        if said not in (None, self.model.fingerprint):
            raise ModelMismatch(
                f"these dictionaries were trained on another model: {where}",
                value=f"model {self.model.fingerprint}",
                expected=f"model {said}",
                remedy="load the model that they were trained on, or train dictionaries on this one",
            )

    @property
    def n_layers(self) -> int:
        return self.model.topology.n_layers

    def place(self, layer: int) -> str:
        """`layers.3.mlp` of layer 3, counted over all groups."""
        return f"{self.model.topology.block_name(layer)}.mlp"

    def widths(self, layer: int) -> dict[str, int]:
        """Size of the axes `d_in` and `d_out`."""
        place = self.place(layer)
        return {axis: self.model.topology.width(f"{place}{end}") for axis, end in (("d_in", "_in"), ("d_out", "_out"))}

    def reads_before_gain(self, hook: str, where: str) -> bool:
        """Whether a format's name for what is read means the normalised input without the norm's gain.

        Raises:
            DictionaryError: it is not what the MLPs of this model read, or see `require_before_gain`.
        """
        if _site(hook) != "mlp_in":
            raise DictionaryError(
                f"the dictionaries do not read what the MLPs read: {where}",
                value=hook,
                expected="mlp.hook_in or ln2.hook_normalized",
                remedy=_NEEDS,
            )
        if not hook.endswith("hook_normalized"):
            return False
        self.require_before_gain(hook, where)
        return True

    def require_before_gain(self, name: str, where: str, *, folded: bool = False) -> None:
        """Refuse a `hook_normalized` of which nobody knows whether it stands before the norm's gain or behind it.

        Args:
            folded: the norm's gain and bias were folded into the weights behind it.

        Raises:
            DictionaryError: the family's norm is a LayerNorm, and it was not folded.
        """
        if self.model.family.norm.kind != "layer" or folded:
            return
        raise DictionaryError(
            f"a LayerNorm's hook_normalized is its output before gain and bias, or with them: {where}",
            value=name,
            expected="a name that means one thing: with them before TransformerLens 3.0, without from 3.0 on",
            remedy="if it is with them, write blocks.<i>.mlp.hook_in (circuit-tracer: mlp.hook_in), or "
            "blocks.<i>.attn_in; if it is without, SAELens' metadata.model_from_pretrained_kwargs says fold_ln: true",
        )

    def require_output(self, hook: str, where: str) -> None:
        """Refuse a place that is not what the MLPs of this model add to the residual stream."""
        before_post_norm = hook.endswith("mlp.hook_out") and self.model.family.block.mlp_post_norm is not None
        if _site(hook) == "mlp_out" and not before_post_norm:
            return
        remedy = _NEEDS
        if before_post_norm:
            remedy = f"models of the family {self.model.family.name} have a norm after the MLP: {_NEEDS}"
        raise DictionaryError(
            f"the dictionaries do not predict what the MLPs add to the residual stream: {where}",
            value=hook,
            expected="hook_mlp_out",
            remedy=remedy,
        )


def behind_gain(tensors: dict[str, Tensor], claim: Claim, layer: int) -> dict[str, Tensor]:
    """A transcoder of the normalised input as one of `mlp_in`: the gain and bias of the MLP's norm, undone.

    Args:
        tensors: with W_enc, b_enc, b_dec and perhaps W_skip; columns of W_enc and W_skip belong to the input.

    Returns:
        What is changed in float32 at least: the quotients of bfloat16 numbers are none, and would be rounded again.

    Raises:
        DictionaryError: a gain is 0, so that `mlp_in` lacks what the transcoder reads.
    """
    norm = claim.model.frozen.blocks[layer].mlp_norm
    gain = norm.weight.detach().double().cpu()
    if bool((gain == 0).any()):
        raise DictionaryError(
            f"a transcoder of layer {layer} reads the norm's output before its gain, and some gains are 0",
            value=f"{int((gain == 0).sum())} of {len(gain)}",
            expected="gains that can be undone",
            remedy="use a transcoder that reads mlp.hook_in",
        )
    changed = dict(tensors)
    for weight, bias in (("W_enc", "b_enc"), ("W_skip", "b_dec")):
        if weight not in tensors:
            continue
        wide = torch.promote_types(tensors[weight].dtype, torch.float32)
        changed[weight] = tensors[weight].to(wide) / gain.to(wide)
        if norm.bias is not None:
            moved = changed[weight].double() @ norm.bias.detach().double().cpu()
            wide = torch.promote_types(tensors[bias].dtype, torch.float32)
            changed[bias] = (tensors[bias].double() - moved).to(wide)
    return changed


def _site(hook: str) -> str | None:
    """What a format's name means among our hook points; None if nothing."""
    plain = _TEMPLATE.sub("", hook)
    if plain in _NEAR:
        return _NEAR[plain]
    for name in (f"blocks.0.{plain}", f"layers.0.{plain}"):
        try:
            return parse(name).site
        except HookError:
            continue
    return None
