"""Where a study's dictionaries go in a model: its globs expanded against the hook points that the model has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from interp.errors import HookError, SpecError
from interp.plan.shapes import ModelShape
from interp.spec.dictionary import TrainedDictionary
from interp.spec.hookpoints import mlp_pair, parse, select

_NO_VECTOR = ("attn_pattern", "logits")


@dataclass(frozen=True)
class Place:
    """One dictionary, or one place of a cross-layer transcoder: what it reads and writes, how large it is.

    Attributes:
        at: the hook point of an SAE, or `<group>.<i>.mlp`.
        active: latents that are active on a token, where the activation function fixes it; else None.
        d_later: of a cross-layer transcoder, the widths of all later places together: its latents write there too.
    """

    at: str
    hook_in: str
    hook_out: str
    d_in: int
    d_out: int
    latents: int
    active: int | None
    skip: bool
    d_later: int = 0

    @property
    def d_written(self) -> int:
        """Entries that a latent has in all decoders."""
        return self.d_out + self.d_later

    @property
    def parameters(self) -> int:
        """Encoder, decoders, biases, skip path."""
        skip = self.d_in * self.d_out if self.skip else 0
        return (self.d_in + self.d_written + 1) * self.latents + self.d_out + skip


def places_of(dictionary: TrainedDictionary, shape: ModelShape) -> tuple[Place, ...]:
    """Every place that `dictionary.at` selects, in execution order.

    Raises:
        HookError: a pattern matches nothing, or something that no dictionary can be trained on.
        SpecError: a dictionary has fewer latents than are active on a token.
    """
    require_enough_latents([dictionary], shape)
    return placed(dictionary.kind, _latents(dictionary, shape), _active(dictionary), shape)


def require_enough_latents(dictionaries: Sequence[TrainedDictionary], shape: ModelShape) -> None:
    """Refuse dictionaries that have fewer latents than are active on a token, all that do so at once.

    Raises:
        HookError: see `places_of`.
        SpecError: so they are.
    """
    told = []
    for dictionary in dictionaries:
        k = _active(dictionary) or 0
        few = {at: n for at, n in _latents(dictionary, shape).items() if k > n}
        if few:
            at, n = min(few.items(), key=lambda item: item[1])
            more = f" and {len(few) - 1} more" if len(few) > 1 else ""
            told.append(f"{dictionary.name} at {at}{more}: {n} latents, k={k}")
    if told:
        raise SpecError(
            "dictionaries have fewer latents than are active on a token",
            value="; ".join(told),
            expected="activation.k of at most the latents; a sweep's dictionaries are named after its values",
            remedy="raise expansion or lower activation.k",
        )


def _latents(dictionary: TrainedDictionary, shape: ModelShape) -> dict[str, int]:
    return {at: dictionary.width(shape.width(at)) for at in _selected(dictionary, shape)}


def _active(dictionary: TrainedDictionary) -> int | None:
    return getattr(dictionary.activation, "k", None)


def placed(kind: str, latents: Mapping[str, int], active: int | None, shape: ModelShape) -> tuple[Place, ...]:
    """The places of dictionaries of a kind, from the number of latents at each, in execution order."""
    found: list[Place] = []
    d_later = 0
    for at, n in reversed(list(latents.items())):
        hook_in, hook_out = (at, at) if kind == "sae" else mlp_pair(at)
        d_in, d_out = shape.width(hook_in), shape.width(hook_out)
        found.append(Place(at, hook_in, hook_out, d_in, d_out, n, active, kind == "skip-transcoder", d_later))
        d_later += d_out if kind == "cross-layer-transcoder" else 0
    return tuple(reversed(found))


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
