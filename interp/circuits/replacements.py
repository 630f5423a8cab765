"""What stands for the MLPs of a model, or is added to them: one protocol, whatever kind of dictionary it is.

    transcoder               m_l = W_dec^T a_l + b_dec [+ W_skip x_l]             a feature writes to its own layer
    cross-layer transcoder   m_l = sum over s <= l of W_dec[s->l]^T a_s + b_dec   a feature writes to all later layers
    adapter                  m_l = MLP_l(x_l) + (a transcoder's output)           the MLP stays, made linear by RelP

with a_l the activations of layer l's features, which read x_l = mlp_in. Layers are counted over the whole model. A new
kind of dictionary is a new class here and a line in `replacement_of`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.dictionaries.cross_layer import CrossLayerTranscoder
from interp.dictionaries.dictionary import Dictionary
from interp.dictionaries.transcoder import Transcoder
from interp.errors import DictionaryError, HookError, ModelError, SpecError
from interp.spec.hookpoints import mlp_pair
from interp.wrapper import HookedModel

_SAMPLED = 4096
"""Numbers of a tensor, about."""

MlpRule = Literal["replaced", "kept"]
ByName = Mapping[str, Transcoder] | Mapping[str, CrossLayerTranscoder]
Transcoders = ByName | Sequence[Transcoder] | CrossLayerTranscoder


class Replacement(Protocol):
    """Features of a model's MLPs: what they read and where they write.

    Attributes:
        n_layers: of the model.
        keeps_mlp: the model's own MLPs stay, and what features write is added to their output.
    """

    @property
    def n_layers(self) -> int: ...

    @property
    def keeps_mlp(self) -> bool: ...

    @property
    def dictionaries(self) -> Sequence[Dictionary]:
        """The dictionaries that it is made of."""
        ...

    def has_features(self, layer: int) -> bool:
        """Whether features read at this layer."""
        ...

    def n_latents(self, layer: int) -> int:
        """How many there are."""
        ...

    def encode(self, layer: int, mlp_in: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch n_latents"]:
        """Activations of the features of a layer, in the dictionary's dtype."""
        ...

    def linear_encoder(
        self, layer: int, latents: Int[Tensor, "n"]
    ) -> tuple[Float[Tensor, "n d_in"], Float[Tensor, "n"]]:
        """(W, b) such that the activation of a latent is W x + b wherever it is active."""
        ...

    def writers(self, layer: int) -> Sequence[int]:
        """The layers whose features write to this layer's MLP output, ascending; none if nothing is replaced here."""
        ...

    def decoder(self, source: int, layer: int) -> Float[Tensor, "n_latents d_out"]:
        """What the features of `source` write to the MLP output of `layer`, at activation 1."""
        ...

    def bias(self, layer: int) -> Float[Tensor, "d_out"] | None:
        """What is written whatever is read; None if nothing is replaced here."""
        ...

    def skip(self, layer: int) -> Float[Tensor, "d_out d_in"] | None:
        """The linear path beside the features, if there is one."""
        ...


@dataclass(frozen=True)
class PerLayer:
    """One transcoder for an MLP; None where it has none."""

    transcoders: tuple[Transcoder | None, ...]
    keeps_mlp: bool = False

    @property
    def dictionaries(self) -> Sequence[Dictionary]:
        return [transcoder for transcoder in self.transcoders if transcoder is not None]

    @property
    def n_layers(self) -> int:
        return len(self.transcoders)

    def _at(self, layer: int) -> Transcoder:
        found = self.transcoders[layer]
        if found is None:
            raise ValueError(f"layer {layer} has no transcoder")
        return found

    def has_features(self, layer: int) -> bool:
        return self.transcoders[layer] is not None

    def n_latents(self, layer: int) -> int:
        return self._at(layer).config.n_latents

    def encode(self, layer: int, mlp_in: Tensor) -> Tensor:
        transcoder = self._at(layer)
        return transcoder.encode(mlp_in.to(transcoder.W_enc.dtype))

    def linear_encoder(self, layer: int, latents: Tensor) -> tuple[Tensor, Tensor]:
        return self._at(layer).linear_encoder(latents)

    def writers(self, layer: int) -> Sequence[int]:
        return (layer,) if self.has_features(layer) else ()

    def decoder(self, source: int, layer: int) -> Tensor:
        return self._at(layer).W_dec

    def bias(self, layer: int) -> Tensor | None:
        found = self.transcoders[layer]
        return None if found is None else found.b_dec

    def skip(self, layer: int) -> Tensor | None:
        found = self.transcoders[layer]
        return None if found is None else found.W_skip


@dataclass(frozen=True)
class CrossLayer:
    """One cross-layer transcoder; `places[layer]` is the layer's place in it, None where it has none."""

    transcoder: CrossLayerTranscoder
    places: tuple[int | None, ...]
    keeps_mlp: bool = False

    @property
    def dictionaries(self) -> Sequence[Dictionary]:
        return [self.transcoder]

    @property
    def n_layers(self) -> int:
        return len(self.places)

    def _place(self, layer: int) -> int:
        place = self.places[layer]
        if place is None:
            raise ValueError(f"layer {layer} is not one of the cross-layer transcoder")
        return place

    def has_features(self, layer: int) -> bool:
        return self.places[layer] is not None

    def n_latents(self, layer: int) -> int:
        return self.transcoder.config.places[self._place(layer)].n_latents

    def encode(self, layer: int, mlp_in: Tensor) -> Tensor:
        place = self._place(layer)
        return self.transcoder.encode(place, mlp_in.to(self.transcoder.encoder(place).dtype))

    def linear_encoder(self, layer: int, latents: Tensor) -> tuple[Tensor, Tensor]:
        return self.transcoder.linear_encoder(self._place(layer), latents)

    def writers(self, layer: int) -> Sequence[int]:
        if self.places[layer] is None:
            return ()
        return tuple(source for source in range(layer + 1) if self.places[source] is not None)

    def decoder(self, source: int, layer: int) -> Tensor:
        return self.transcoder.decoder(self._place(source), self._place(layer))

    def bias(self, layer: int) -> Tensor | None:
        place = self.places[layer]
        return None if place is None else self.transcoder.b_dec(place)

    def skip(self, layer: int) -> None:
        return None


def replacement_of(hooked: HookedModel, transcoders: Transcoders, mlp: MlpRule = "replaced") -> Replacement:
    """What these dictionaries do in this model; they are moved to its device.

    Raises:
        ModelMismatch: a dictionary that was trained on another model.
        DictionaryError: something that cannot stand for an MLP of this model.
        ModelError: MLPs that are to be kept and that RelP cannot make linear.
    """
    if mlp not in ("replaced", "kept"):
        raise SpecError("there is no such rule for MLPs", value=mlp, expected="replaced or kept")
    kept = mlp == "kept"
    if kept:
        _check_parts(hooked)
    if isinstance(transcoders, Mapping) and len(transcoders) == 1:
        (only,) = transcoders.values()
        transcoders = only if isinstance(only, CrossLayerTranscoder) else transcoders
    if isinstance(transcoders, CrossLayerTranscoder):
        return CrossLayer(transcoders.to(hooked.device), _places(hooked, transcoders), kept)
    return PerLayer(_by_layer(hooked, transcoders), kept)


def _check_parts(hooked: HookedModel) -> None:
    """Refuse to keep MLPs that cannot be made linear."""
    for block in hooked.frozen.blocks:
        act = block.known_mlp.act
        if (at_nothing := float(act(torch.zeros(1, device=hooked.device)))) != 0.0:
            raise ModelError(
                "RelP writes an activation function as act(h) = h * (act(h) / h), and this one is not 0 at 0",
                value=f"{act} is {at_nothing:.3g} at 0",
                expected="SiLU, GELU, ReLU and the like",
                remedy="replace MLPs by transcoders (mlp: replaced)",
            )


def fingerprint_of(replacement: Replacement) -> str:
    """sha256 over names, shapes and a sample of each tensor: enough to tell trained dictionaries apart, and no reading
    of gigabytes for every actor."""
    digest = hashlib.sha256(b"kept" if replacement.keeps_mlp else b"replaced")
    for dictionary in replacement.dictionaries:
        for name, tensor in dictionary.state_dict().items():
            flat = tensor.detach().flatten()
            sample = flat[:: max(1, len(flat) // _SAMPLED)].double().cpu()
            digest.update(f"{dictionary.config.at} {name} {tuple(tensor.shape)}".encode() + sample.numpy().tobytes())
    return digest.hexdigest()


def uncovered(hooked: HookedModel, replacement: Replacement) -> list[str]:
    """The blocks whose MLPs have no features."""
    topology = hooked.topology
    return [topology.block_name(layer) for layer in range(topology.n_layers) if not replacement.has_features(layer)]


def _places(hooked: HookedModel, transcoder: CrossLayerTranscoder) -> tuple[int | None, ...]:
    transcoder.check_model(hooked)
    places: list[int | None] = [None] * hooked.topology.n_layers
    for place, each in enumerate(transcoder.config.places):
        layer = layer_named(hooked, each.hook_out)
        _check_hooks(hooked, layer, (each.hook_in, each.hook_out), (each.d_in, each.d_out), transcoder.config.kind)
        if any(later is not None for later in places[layer:]):
            raise DictionaryError(
                "the places of this cross-layer transcoder are not in the order in which the model computes them",
                value=[each.hook_out for each in transcoder.config.places],
                expected="each MLP once, the first ones first",
            )
        places[layer] = place
    return tuple(places)


def _by_layer(hooked: HookedModel, transcoders: ByName | Sequence[Transcoder]) -> tuple[Transcoder | None, ...]:
    topology = hooked.topology
    if not isinstance(transcoders, Mapping):
        if len(transcoders) != topology.n_layers:
            raise DictionaryError(
                "a list of transcoders must have one for each layer",
                value=len(transcoders),
                expected=str(topology.n_layers),
                remedy="give a mapping from MLP to transcoder to leave some out",
            )
        transcoders = {f"{topology.block_name(layer)}.mlp": each for layer, each in enumerate(transcoders)}
    placed: dict[int, Transcoder] = {}
    for name, transcoder in transcoders.items():
        layer = layer_named(hooked, name)
        if layer in placed:
            raise DictionaryError("two transcoders stand for one MLP", value=name, expected="one for each MLP")
        if isinstance(transcoder, CrossLayerTranscoder):
            what = "a cross-layer transcoder stands for several MLPs: give it alone"
            raise DictionaryError(what, value=name, expected="one transcoder for each MLP, or one for all")
        transcoder.check_model(hooked)
        config = transcoder.config
        _check_hooks(hooked, layer, (config.hook_in, config.hook_out), (config.d_in, config.d_out), config.kind)
        placed[layer] = transcoder.to(hooked.device)
    if not placed:
        raise DictionaryError("there are no transcoders", expected="at least one MLP with a transcoder")
    return tuple(placed.get(layer) for layer in range(topology.n_layers))


def layer_named(hooked: HookedModel, name: str) -> int:
    """The layer of an MLP, by its name or that of its `mlp_in` or `mlp_out`."""
    try:
        point = hooked.topology.point(mlp_pair(name)[1] if name.endswith(".mlp") else name)
        if point.site not in ("mlp_in", "mlp_out"):
            raise HookError("this hook point is not an MLP's", value=name)
        return hooked.topology.layer_of(point.name)
    except HookError as error:
        raise DictionaryError(
            "this is an MLP that the model does not have",
            value=name,
            expected=f"<group>.<layer>.mlp, such as {hooked.topology.block_name(0)}.mlp",
        ) from error


def _check_hooks(hooked: HookedModel, layer: int, hooks: tuple[str, str], widths: tuple[int, int], kind: str) -> None:
    name = f"{hooked.topology.block_name(layer)}.mlp"
    mlp_in, mlp_out = mlp_pair(name)
    if hooks != (mlp_in, mlp_out):
        raise DictionaryError(
            f"this dictionary does not stand for {name}",
            value=f"{kind}: {hooks[0]} -> {hooks[1]}",
            expected=f"a transcoder: {mlp_in} -> {mlp_out}",
        )
    width = hooked.topology.width(mlp_out)
    if widths != (width, width):
        raise DictionaryError(
            f"the transcoder for {name} has another width than the model",
            value=f"{widths[0]} -> {widths[1]}",
            expected=f"{width} -> {width}",
        )
