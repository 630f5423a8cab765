"""Files of other programs, made by hand from what their formats say: numpy and safetensors, none of our writers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy import ndarray
from safetensors.numpy import save_file
from tiny_models import make

from interp.dictionaries.foreign import Claim
from interp.wrapper import HookedModel

D, F = 32, 40

MLPS = ("layers.0.mlp", "layers.1.mlp", "layers.2.mlp")
"""Of the tiny models."""

HOOKS = {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "mlp.hook_out"}


@cache
def hooked(name: str = "llama") -> HookedModel:
    return HookedModel(make(name))


def claim(name: str = "llama", source: str = "org/tiny", dtype: str | None = None) -> Claim:
    return Claim(hooked(name), source, dtype)


def arrays(seed: int, *, thresholds: bool = False, skip: bool = False, n: int = F, d: int = D) -> dict[str, ndarray]:
    """One layer, as circuit-tracer has it."""
    rng = np.random.default_rng(seed)
    made = {
        "W_enc": rng.normal(size=(n, d)) / d**0.5,
        "W_dec": rng.normal(size=(n, d)) / n**0.5,
        "b_enc": rng.normal(size=n) * 0.1,
        "b_dec": rng.normal(size=d) * 0.1,
    }
    if thresholds:
        made["activation_function.threshold"] = rng.uniform(0.1, 1.0, size=n)
    if skip:
        made["W_skip"] = rng.normal(size=(d, d)) / d
    return {name: array.astype(np.float32) for name, array in made.items()}


def inputs(d: int = D, n: int = 11) -> ndarray:
    return np.random.default_rng(99).normal(size=(n, d)).astype(np.float32)


def activations(pre: ndarray, *, threshold: ndarray | None = None, k: int | None = None) -> ndarray:
    """relu, jumprelu or topk, as the formats define them."""
    if threshold is not None:
        return pre * (pre > threshold)
    if k is not None:
        smallest = np.sort(pre, axis=-1)[:, -k, None]
        return np.maximum(pre, 0) * (pre >= smallest)
    return np.maximum(pre, 0)


def reconstruction(layer: Mapping[str, ndarray], x: ndarray, k: int | None = None) -> ndarray:
    """What circuit-tracer computes for one layer."""
    pre = x @ layer["W_enc"].T + layer["b_enc"]
    y = activations(pre, threshold=layer.get("activation_function.threshold"), k=k) @ layer["W_dec"] + layer["b_dec"]
    return y + x @ layer["W_skip"].T if "W_skip" in layer else y


def write_config(folder: Path, kind: str = "transcoder_set", **said: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_name": "org/tiny", "model_kind": kind, **HOOKS, **said}
    (folder / "config.yaml").write_text(yaml.safe_dump({k: v for k, v in config.items() if v is not None}))


def layers(**options: Any) -> list[dict[str, np.ndarray]]:
    return [arrays(seed, **options) for seed in range(3)]


def write_set(folder: Path, layers: list[dict[str, ndarray]], **said: Any) -> Path:
    write_config(folder, **said)
    for i, layer in enumerate(layers):
        save_file(layer, folder / f"layer_{i}.safetensors")
    return folder


def cross_layer(n_layers: int = 3, *, thresholds: bool = False, n: int = F, d: int = D) -> list[dict[str, ndarray]]:
    """Layers of a cross-layer transcoder: W_dec is [F, L - i, d]."""
    made = []
    for i in range(n_layers):
        layer = arrays(50 + i, thresholds=thresholds, n=n, d=d)
        rng = np.random.default_rng(70 + i)
        layer["W_dec"] = (rng.normal(size=(n, n_layers - i, d)) / n**0.5).astype(np.float32)
        made.append(layer)
    return made


def write_cross_layer(folder: Path, layers: list[dict[str, ndarray]], **said: Any) -> Path:
    write_config(folder, "cross_layer_transcoder", **said)
    for i, layer in enumerate(layers):
        encoder = {f"W_enc_{i}": layer["W_enc"], f"b_enc_{i}": layer["b_enc"], f"b_dec_{i}": layer["b_dec"]}
        if "activation_function.threshold" in layer:
            encoder[f"threshold_{i}"] = layer["activation_function.threshold"]
        save_file(encoder, folder / f"W_enc_{i}.safetensors")
        save_file({f"W_dec_{i}": layer["W_dec"]}, folder / f"W_dec_{i}.safetensors")
    return folder


def cross_layer_reconstruction(layers: list[dict[str, ndarray]], xs: list[ndarray], k: int | None = None) -> list[Any]:
    """y_j = sum over i <= j of a_i W_dec_i[:, j - i] + b_dec_j."""
    a = [
        activations(x @ at["W_enc"].T + at["b_enc"], threshold=at.get("activation_function.threshold"), k=k)
        for at, x in zip(layers, xs, strict=True)
    ]
    return [
        layers[j]["b_dec"] + sum(a[i] @ layers[i]["W_dec"][:, j - i] for i in range(j + 1)) for j in range(len(layers))
    ]


def tensor(array: ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(array))


def same(found: torch.Tensor, expected: ndarray, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(found.detach().float(), tensor(expected).float(), rtol=tolerance, atol=tolerance)
