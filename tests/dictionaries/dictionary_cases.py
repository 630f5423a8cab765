"""Small dictionaries of every kind, with weights in general position."""

from __future__ import annotations

import torch

from interp.dictionaries import (
    CrossLayerConfig,
    CrossLayerTranscoder,
    Dictionary,
    DictionaryConfig,
    ModelIdentity,
    SparseDictionary,
    build_dictionary,
)

MODEL = ModelIdentity(source="toy", fingerprint="abc123", family="toy")

ACTIVATIONS = {
    "topk": {"type": "topk", "k": 4},
    "batchtopk": {"type": "batchtopk", "k": 4},
    "relu": {"type": "relu", "l1": 0.7},
    "jumprelu": {"type": "jumprelu", "l0": 0.01, "threshold": 0.3, "bandwidth": 0.4},
    "gated": {"type": "gated", "l1": 0.3},
}
KINDS = ("sae", "transcoder", "skip-transcoder")
EVERY = [(kind, activation) for kind in KINDS for activation in ACTIVATIONS]


def make(
    kind: str = "sae", activation: str = "topk", *, dtype: str = "float64", n_latents: int = 24, seed: int = 1
) -> SparseDictionary:
    """A dictionary whose every parameter is random: biases, thresholds and skip path too."""
    hooks = ("layers.2.resid_post",) * 2 if kind == "sae" else ("layers.2.mlp_in", "layers.2.mlp_out")
    config = DictionaryConfig(
        kind=kind,
        hook_in=hooks[0],
        hook_out=hooks[1],
        d_in=6,
        d_out=6 if kind == "sae" else 5,
        n_latents=n_latents,
        activation=ACTIVATIONS[activation],
        dtype=dtype,
        model=MODEL,
    )
    dictionary = build_dictionary(config, seed=seed)
    _randomise(dictionary, seed)
    return dictionary


def make_cross_layer(activation: str = "topk", *, dtype: str = "float64", seed: int = 1) -> CrossLayerTranscoder:
    """Three places of different widths and numbers of latents, with random parameters."""
    sizes = ((6, 5, 24), (6, 6, 24), (4, 4, 20))
    places = [
        {
            "hook_in": f"layers.{i}.mlp_in",
            "hook_out": f"layers.{i}.mlp_out",
            "d_in": d_in,
            "d_out": d_out,
            "n_latents": n_latents,
        }
        for i, (d_in, d_out, n_latents) in enumerate(sizes)
    ]
    config = CrossLayerConfig(places=places, activation=ACTIVATIONS[activation], dtype=dtype, model=MODEL)
    clt = build_dictionary(config, seed=seed)
    _randomise(clt, seed)
    return clt


def _randomise(dictionary: Dictionary, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in dictionary.state_dict().items():
            noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.dtype)
            tensor.copy_(0.2 + 0.2 * noise if name.endswith("threshold") else noise - 0.5)


def data(n: int = 9, d: int = 6, *, dtype: torch.dtype = torch.float64, seed: int = 5) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
