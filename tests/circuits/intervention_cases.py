"""Interventions computed a second time, for tests: on the model's own modules, by torch's hooks, dictionaries dense.

`EditedForward` is the frozen model in float64 whose features respond; `edited_logits` is the model itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import circuit_cases as cases
import torch
from frozen_forward import FrozenForward
from substitutes import AcrossLayers, Substitutes
from torch import Tensor

from interp.circuits.intervene import Intervention
from interp.circuits.replacement_model import ReplacementModel
from interp.circuits.replacements import CrossLayer, PerLayer
from interp.circuits.state import ReplacementState
from interp.dictionaries import Transcoder


class Edit(NamedTuple):
    """The activation of a feature becomes factor * (what it is on the prompt) + shift."""

    layer: int
    pos: int
    latent: int
    factor: float
    shift: float

    def intervention(self) -> Intervention:
        if self.factor:
            return Intervention(self.layer, self.latent, self.pos, "scale", self.factor)
        return Intervention(self.layer, self.latent, self.pos, "set", self.shift)


def replacement_model(name: str, kind: str, activation: str = "relu", **options: Any) -> ReplacementModel:
    """`kind`: plain, skip, cross-layer or kept (adapters)."""
    hooked = cases.hooked_model(name)
    if kind == "cross-layer":
        return ReplacementModel(hooked, cases.cross_layer(hooked, activation), **options)
    if kind == "kept":
        return ReplacementModel(hooked, cases.transcoders(hooked, activation), mlp="kept", **options)
    return ReplacementModel(hooked, cases.transcoders(hooked, activation, kind == "skip"), **options)


def some_edits(state: ReplacementState, count: int = 3, seed: int = 0) -> list[Edit]:
    """Edits of active features in different layers: one is ablated, one set, one scaled, and so on."""
    generator = torch.Generator().manual_seed(seed)
    features = state.features.index
    chosen = features[torch.randperm(len(features), generator=generator)[:count]].tolist()
    does = [(0.0, 0.0), (0.0, 1.5), (2.5, 0.0)]
    return [Edit(*place, *does[i % 3]) for i, place in enumerate(chosen)]


class Layers:
    """The dictionaries of a replacement model, by layer, in the dtype of choice."""

    def __init__(self, rm: ReplacementModel, dtype: torch.dtype):
        import copy

        found: Any = rm.replacement
        self.one_each = hasattr(found, "transcoders")
        source = found.transcoders if self.one_each else [found.transcoder]
        self.made: list[Any] = [None if each is None else copy.deepcopy(each).to(dtype) for each in source]

    def encode(self, layer: int, x: Tensor) -> Tensor:
        return self.made[layer].encode(x) if self.one_each else self.made[0].encode(layer, x)

    def decoder(self, source: int, layer: int) -> Tensor | None:
        if self.one_each:
            return self.made[layer].W_dec if source == layer else None
        return self.made[0].decoder(source, layer)

    def skip(self, layer: int) -> Tensor | None:
        made: Transcoder | None = self.made[layer] if self.one_each else None
        return None if made is None else made.W_skip

    def change(self, layer: int, changes: dict[int, Tensor]) -> Tensor:
        """What changes of activations write to this layer's MLP output."""
        decoders = {source: self.decoder(source, layer) for source in changes if source <= layer}
        return sum(changes[source] @ decoder for source, decoder in decoders.items() if decoder is not None)


def edited(activations: Tensor, clean: Tensor, edits: Sequence[Edit], layer: int) -> Tensor:
    """Activations [.., pos, latents] with the edits of a layer."""
    activations = activations.clone()
    for edit in edits:
        if edit.layer == layer:
            activations[..., edit.pos, edit.latent] = edit.factor * clean[edit.pos, edit.latent] + edit.shift
    return activations


class EditedForward(FrozenForward):
    """The frozen model with features that are encoded anew at what MLPs read.

    Attributes:
        only: what stays of all features, by layer [pos, latents]; None: all of them.
    """

    def __init__(self, rm: ReplacementModel, state: ReplacementState):
        self.layers, self.edits, self.only = Layers(rm, torch.float64), list[Edit](), None
        self.features_change: dict[int, Tensor] = {}
        hooked, replacement = rm.hooked, rm.replacement
        substitutes: Substitutes
        if isinstance(replacement, PerLayer):
            substitutes = Substitutes(replacement.transcoders)
        else:
            assert isinstance(replacement, CrossLayer)
            substitutes = AcrossLayers(replacement.transcoder, range(state.n_layers))
        super().__init__(hooked.model, hooked.family, substitutes, state.ids, state.constant, replacement.keeps_mlp)

    def _write_mlp(self, layer: int) -> Tensor:
        clean = self.layers.encode(layer, self.clean_in[layer])
        now = edited(self.layers.encode(layer, self.mlp_in[layer]), clean, self.edits, layer)
        now = now if self.only is None else now * self.only[layer]
        self.features_change[layer] = (now - clean) * ~self.constant[:, None]
        return super()._write_mlp(layer) + self.layers.change(layer, self.features_change)

    @torch.no_grad()
    def logits(self, edits: Sequence[Edit], only: dict[int, Tensor] | None = None) -> Tensor:
        """The head's output at the last position."""
        self.edits, self.only = list(edits), only
        return self.run({}).head[0, -1]


@torch.no_grad()
def edited_logits(rm: ReplacementModel, ids: Tensor, edits: Sequence[Edit], mlps: str) -> Tensor:
    """The head's output [pos, d_vocab] of the model itself, hooked by hand."""
    hooked, layers = rm.hooked, Layers(rm, torch.float32)
    model, family, kept = hooked.model, hooked.family, rm.replacement.keeps_mlp
    constant = rm.constant_positions(ids)[:, None]
    blocks = [block for group in family.groups for block in model.get_submodule(group.path).children()]
    jacobians = EditedForward(rm, rm.build(ids)).jacobians if kept and mlps == "replacement" else {}
    reads: dict[int, Tensor] = {}
    first: dict[int, tuple[Tensor, Tensor]] = {}
    changes: dict[int, Tensor] = {}
    state = {"first": True}

    def write(layer: int, out: Tensor) -> Tensor:
        x = reads[layer][0]
        out = out + layers.made[layer](x) if kept else out
        now = layers.encode(layer, x) * ~constant
        if state["first"]:
            first[layer] = (x, out)
        clean_x, clean_out = first[layer]
        clean = layers.encode(layer, clean_x) * ~constant
        held = edited(now, clean, [] if state["first"] else edits, layer)
        changes[layer] = (held - (now if mlps == "model" else clean)) * ~constant
        own, moved = (out if mlps == "model" else clean_out), (x - clean_x) * ~constant
        if mlps == "replacement" and (skip := layers.skip(layer)) is not None:
            own = own + moved @ skip.T
        if layer in jacobians:
            own = own + torch.einsum("poi,pi->po", jacobians[layer].float(), moved)
        return own + layers.change(layer, changes)

    writer = "mlp" if family.block.mlp_post_norm is None else "mlp_post_norm"
    handles = []
    for layer, block in enumerate(blocks):
        norm = block.get_submodule(family.block.mlp_norm)
        handles.append(norm.register_forward_hook(lambda m, args, out, layer=layer: reads.update({layer: out})))
        module = block.get_submodule(getattr(family.block, writer))
        handles.append(module.register_forward_hook(lambda m, args, out, layer=layer: write(layer, out)))
    found: list[Tensor] = []
    head = model.get_submodule(family.head)
    handles.append(head.register_forward_hook(lambda m, args, out: found.append(out)))
    for _ in range(2):
        model(ids[None], use_cache=False)
        state["first"] = False
    for handle in handles:
        handle.remove()
    return found[1][0]
