"""Tiny hooked models with random transcoders, as the tests of circuits trace them."""

from __future__ import annotations

from typing import Any

import tiny_models
import torch

from interp.circuits.replacement_model import ReplacementModel
from interp.dictionaries import CrossLayerTranscoder, Transcoder
from interp.dictionaries.config import CrossLayerConfig, CrossLayerPlace, DictionaryConfig, ModelIdentity
from interp.wrapper import HookedModel

LATENTS = 24
ACTIVATIONS: dict[str, dict[str, Any]] = {
    "relu": {"type": "relu"},
    "topk": {"type": "topk", "k": 4},
    "batchtopk": {"type": "batchtopk", "k": 4},
    "jumprelu": {"type": "jumprelu"},
    "gated": {"type": "gated"},
}
BOS = 0


def hooked_model(name: str, seed: int = 0, **changes: Any) -> HookedModel:
    return HookedModel(tiny_models.make(name, seed, **changes))


def prompt(positions: int = 5, bos: bool = True, seed: int = 3) -> torch.Tensor:
    """Token ids [pos]; position 0 is BOS if `bos`."""
    ids = tiny_models.token_ids(1, positions, seed)[0]
    if bos:
        ids[0] = BOS
    return ids


def transcoder(
    hooked: HookedModel, layer: int, activation: str = "topk", skip: bool = False, seed: int = 0
) -> Transcoder:
    """Random, with every parameter that there is."""
    block = hooked.topology.block_name(layer)
    width = hooked.topology.width(f"{block}.mlp_in")
    config = DictionaryConfig(
        kind="skip-transcoder" if skip else "transcoder",
        hook_in=f"{block}.mlp_in",
        hook_out=f"{block}.mlp_out",
        d_in=width,
        d_out=width,
        n_latents=LATENTS,
        activation=ACTIVATIONS[activation],  # type: ignore[arg-type]
        model=ModelIdentity(source="tiny", fingerprint=hooked.fingerprint),
    )
    made = Transcoder(config, seed=seed + layer)
    draw(made, seed + 100 + layer)
    if activation == "batchtopk":
        made.activation.threshold.fill_(0.2)
    return made.eval()


def draw(made: torch.nn.Module, seed: int) -> None:
    """Random values for every parameter; thresholds are positive."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            scale = 0.2 if parameter.ndim == 2 else 0.3
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
            if "threshold" in name:
                parameter.abs_()


def cross_layer(
    hooked: HookedModel, activation: str = "relu", layers: list[int] | None = None, seed: int = 0
) -> CrossLayerTranscoder:
    """Random, over these layers or all; each layer has another number of latents."""
    blocks = [hooked.topology.block_name(at) for at in (range(hooked.topology.n_layers) if layers is None else layers)]
    widths = [hooked.topology.width(f"{block}.mlp_in") for block in blocks]
    config = CrossLayerConfig(
        places=tuple(
            CrossLayerPlace(
                hook_in=f"{block}.mlp_in", hook_out=f"{block}.mlp_out", d_in=width, d_out=width, n_latents=LATENTS + i
            )
            for i, (block, width) in enumerate(zip(blocks, widths, strict=True))
        ),
        activation=ACTIVATIONS[activation],  # type: ignore[arg-type]
        model=ModelIdentity(source="tiny", fingerprint=hooked.fingerprint),
    )
    made = CrossLayerTranscoder(config, seed=seed)
    draw(made, seed + 200)
    if activation == "batchtopk":
        for place in range(made.n_places):
            made.activation(place).threshold.fill_(0.2)
    return made.eval()


def transcoders(hooked: HookedModel, activation: str = "topk", skip: bool = False, seed: int = 0) -> list[Transcoder]:
    return [transcoder(hooked, layer, activation, skip, seed) for layer in range(hooked.topology.n_layers)]


def replacement_model(
    name: str, activation: str = "topk", skip: bool = False, seed: int = 0, **options: Any
) -> ReplacementModel:
    hooked = hooked_model(name, seed)
    return ReplacementModel(hooked, transcoders(hooked, activation, skip, seed), **options)
