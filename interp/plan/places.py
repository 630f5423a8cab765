"""Where a study's dictionaries go in a model: its globs expanded against the hook points that the model has."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from interp.errors import HookError, SpecError
from interp.plan.shapes import ModelShape
from interp.spec.dictionary import TrainedDictionary
from interp.spec.hookpoints import mlp_pair, parse, select

_NO_VECTOR = ("attn_pattern", "logits")


@dataclass(frozen=True)
class Place:
    """One dictionary: where it is, what it reads and writes, how large it is.

    Attributes:
        at: the hook point of an SAE, or `<group>.<i>.mlp`.
        active: latents that are active on a token, where the activation function fixes it; else None.
    """

    at: str
    hook_in: str
    hook_out: str
    d_in: int
    d_out: int
    latents: int
    active: int | None
    skip: bool

    @property
    def parameters(self) -> int:
        """Encoder, decoder, biases, skip path."""
        skip = self.d_in * self.d_out if self.skip else 0
        return (self.d_in + self.d_out + 1) * self.latents + self.d_out + skip


def places_of(dictionary: TrainedDictionary, shape: ModelShape) -> tuple[Place, ...]:
    """Every dictionary that `dictionary.at` selects, in execution order.

    Raises:
        HookError: a pattern matches nothing, or something that no dictionary can be trained on.
        SpecError: a dictionary has fewer latents than are active on a token.
    """
    found = []
    for at in _selected(dictionary, shape):
        hook_in, hook_out = (at, at) if dictionary.kind == "sae" else mlp_pair(at)
        d_in = shape.width(hook_in)
        latents, k = dictionary.width(d_in), getattr(dictionary.activation, "k", None)
        if k is not None and k > latents:
            raise SpecError(
                f"dictionary {dictionary.name!r} has fewer latents at {at} than are active on a token",
                value=f"{latents} latents, k={k}",
                remedy="raise expansion or lower activation.k",
            )
        skip = dictionary.kind == "skip-transcoder"
        found.append(Place(at, hook_in, hook_out, d_in, shape.width(hook_out), latents, k, skip))
    return tuple(found)


def deepest(names: Iterable[str]) -> str:
    """The hook point that a forward pass reaches last; `embed` of none."""
    return max((parse(name) for name in names), default=parse("embed")).name


def _selected(dictionary: TrainedDictionary, shape: ModelShape) -> tuple[str, ...]:
    sae = dictionary.kind == "sae"
    try:
        names = select(dictionary.at, shape.hook_names if sae else shape.mlp_names)
    except HookError as error:
        what = f"dictionary {dictionary.name!r}: {error.what}"
        raise HookError(what, value=error.value, expected=error.expected, remedy=error.remedy) from error
    for name in names:
        if sae and parse(name).site in _NO_VECTOR:
            raise HookError(
                f"dictionary {dictionary.name!r}: no SAE can be trained at this hook point",
                value=name,
                expected="a vector of the residual stream, of attention or of the MLP",
                remedy="narrow the glob",
            )
    return names
