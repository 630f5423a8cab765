"""Files of SAELens, sparsify and dictionary_learning, made by hand from what their formats say, and what they compute.

Numpy and the files' own libraries, none of our readers, writers or activations.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from foreign_cases import D, F, claim, inputs, tensor
from numpy import ndarray
from safetensors.numpy import save_file

from interp.dictionaries import DictionaryConfig, SparseDictionary, build_dictionary

K = 5
MLPS = tuple(f"layers.{i}.mlp" for i in range(3))


def made(seed: int = 0, **shapes: tuple[int, ...]) -> dict[str, ndarray]:
    """Random float32 tensors; thresholds above 0, decoder rows of different norms."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in shapes.items():
        if "threshold" in name:
            values = rng.uniform(0.3, 1.5, size=shape)
        else:
            rows = rng.uniform(0.1, 0.5, size=(shape[0], 1)) if len(shape) == 2 else 0.4
            values = rng.normal(size=shape) * rows
        tensors[name] = np.asarray(values, dtype=np.float32)
    return tensors


def relu(z: ndarray) -> ndarray:
    return np.maximum(z, 0)


def largest(z: ndarray, k: int) -> ndarray:
    """relu(z) at the k largest of each row."""
    return relu(z) * (z >= np.sort(z, axis=-1)[:, -k, None])


def saelens_tensors(architecture: str, seed: int = 0) -> dict[str, ndarray]:
    shapes: dict[str, tuple[int, ...]] = {"W_enc": (D, F), "W_dec": (F, D), "b_dec": (D,)}
    if architecture == "gated":
        shapes |= dict.fromkeys(("b_gate", "r_mag", "b_mag"), (F,))
    else:
        shapes["b_enc"] = (F,)
    if architecture.startswith("jumprelu"):
        shapes["threshold"] = (F,)
    if "batchtopk" in architecture:
        shapes["topk_threshold"] = ()
    if "skip" in architecture:
        shapes["W_skip"] = (D, D)
    return made(seed, **shapes)


def saelens_output(architecture: str, t: dict[str, ndarray], x: ndarray, /, **said: Any) -> ndarray:
    """What SAELens' classes compute at inference, from its source."""
    coder = "transcoder" in architecture
    read = x - t["b_dec"] * (said.get("apply_b_dec_to_input", True) and not coder)
    norms = np.linalg.norm(t["W_dec"], axis=-1) if said.get("rescale_acts_by_decoder_norm") else 1.0
    if architecture == "gated":
        gate, size = read @ t["W_enc"] + t["b_gate"], read @ (t["W_enc"] * np.exp(t["r_mag"])) + t["b_mag"]
        acts = (gate > 0) * relu(size)
    else:
        z = (read @ t["W_enc"] + t["b_enc"]) * norms
        threshold = t.get("threshold", t.get("topk_threshold"))
        acts = largest(z, K) if architecture == "topk" else relu(z) * (True if threshold is None else z > threshold)
    return (acts / norms) @ t["W_dec"] + t["b_dec"] + (x @ t["W_skip"].T if "W_skip" in t else 0)


def write_saelens(folder: Path, architecture: str, tensors: dict[str, ndarray] | None = None, **said: Any) -> Path:
    """Keys with a None are left out; `metadata` is added to."""
    coder = "transcoder" in architecture
    hooks = {"hook_name": "blocks.1.mlp.hook_in", "hook_name_out": "blocks.1.hook_mlp_out"}
    metadata = {"sae_lens_version": "6.54.0", "model_name": "org/tiny", "hook_name": "blocks.1.hook_resid_post"}
    metadata = {**metadata, **(hooks if coder else {}), **said.pop("metadata", {})}
    config = {"architecture": architecture, "d_in": D, "d_sae": F, "dtype": "float32", "device": "cpu"}
    config |= {"apply_b_dec_to_input": not coder, "normalize_activations": "none", "reshape_activations": "none"}
    config |= {"k": K} if architecture in ("topk", "batchtopk", "matryoshka_batchtopk") else {}
    config |= {"d_out": D} if coder else {}
    config |= {"metadata": {key: value for key, value in metadata.items() if value is not None}, **said}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors or saelens_tensors(architecture), folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder


def sparsify_tensors(seed: int = 0, skip: bool = False) -> dict[str, ndarray]:
    shapes: dict[str, tuple[int, ...]] = {"encoder.weight": (F, D), "encoder.bias": (F,), "W_dec": (F, D)}
    return made(seed, **shapes, b_dec=(D,), **({"W_skip": (D, D)} if skip else {}))


def sparsify_output(t: dict[str, ndarray], x: ndarray, transcode: bool = False) -> ndarray:
    z = (x if transcode else x - t["b_dec"]) @ t["encoder.weight"].T + t["encoder.bias"]
    return largest(z, K) @ t["W_dec"] + t["b_dec"] + (x @ t["W_skip"].T if "W_skip" in t else 0)


def write_sparsify(folder: Path, tensors: dict[str, ndarray] | None = None, **said: Any) -> Path:
    """`folder` is that of a module."""
    config = {"activation": "topk", "expansion_factor": 32, "normalize_decoder": True, "num_latents": F, "k": K}
    config |= {"multi_topk": False, "skip_connection": False, "transcode": False, "d_in": D, **said}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors or sparsify_tensors(skip=bool(said.get("skip_connection"))), folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder


LINEAR = {"encoder.weight": (F, D), "decoder.weight": (D, F)}
MATRICES = {"W_enc": (D, F), "b_enc": (F,), "W_dec": (F, D), "b_dec": (D,)}
DL_SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "AutoEncoder": {**LINEAR, "encoder.bias": (F,), "bias": (D,)},
    "AutoEncoderNew": {**LINEAR, "encoder.bias": (F,), "decoder.bias": (D,)},
    "AutoEncoderTopK": {**LINEAR, "encoder.bias": (F,), "b_dec": (D,), "threshold": ()},
    "BatchTopKSAE": {**LINEAR, "encoder.bias": (F,), "b_dec": (D,), "threshold": ()},
    "MatryoshkaBatchTopKSAE": {**MATRICES, "threshold": ()},
    "JumpReluAutoEncoder": {**MATRICES, "threshold": (F,)},
    "GatedAutoEncoder": {**LINEAR, "decoder_bias": (D,), "gate_bias": (F,), "mag_bias": (F,), "r_mag": (F,)},
}


def dl_output(name: str, t: dict[str, ndarray], x: ndarray) -> ndarray:
    """What dictionary_learning's classes compute, from its source."""
    if name == "GatedAutoEncoder":
        z = (x - t["decoder_bias"]) @ t["encoder.weight"].T
        acts = (z + t["gate_bias"] > 0) * relu(np.exp(t["r_mag"]) * z + t["mag_bias"])
        return acts @ t["decoder.weight"].T + t["decoder_bias"]
    if name.startswith("AutoEncoder") and name != "AutoEncoderTopK":
        before = t["bias"] if name == "AutoEncoder" else 0
        acts = relu((x - before) @ t["encoder.weight"].T + t["encoder.bias"])
        return acts @ t["decoder.weight"].T + t.get("decoder.bias", t.get("bias"))
    if name == "JumpReluAutoEncoder":
        z = x @ t["W_enc"] + t["b_enc"]
        return relu(z * (z > t["threshold"])) @ t["W_dec"] + t["b_dec"]
    if name == "MatryoshkaBatchTopKSAE":
        z = relu((x - t["b_dec"]) @ t["W_enc"] + t["b_enc"])
        return (z * (z > t["threshold"])) @ t["W_dec"] + t["b_dec"]
    z = relu((x - t["b_dec"]) @ t["encoder.weight"].T + t["encoder.bias"])
    acts = largest(z, K) if name == "AutoEncoderTopK" else z * (z > t["threshold"])
    return acts @ t["decoder.weight"].T + t["b_dec"]


def write_dl(folder: Path, name: str, tensors: dict[str, ndarray] | None = None, **said: Any) -> Path:
    """`folder` is that of a trainer; `buffer` says what the buffer says."""
    tensors = made(**DL_SHAPES[name]) if tensors is None else tensors
    state = {key: tensor(value) for key, value in tensors.items()}
    if "TopK" in name:
        state["k"] = torch.tensor(K, dtype=torch.int)
    if "Matryoshka" in name:
        state["group_sizes"] = torch.tensor([F // 4, F - F // 4])
    trainer = {"dict_class": name, "activation_dim": D, "dict_size": F, "layer": 1, "lm_name": "org/tiny"}
    trainer |= {"submodule_name": "resid_post_layer_1", **({"k": K} if "TopK" in name else {}), **said}
    buffer = trainer.pop("buffer", {"io": "out"})
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / "ae.pt")
    said_of_it = {"trainer": {key: value for key, value in trainer.items() if value is not None}, "buffer": buffer}
    (folder / "config.json").write_text(json.dumps(said_of_it))
    return folder


def ours(kind: str, activation: str, *, name: str = "llama", hooks: tuple[str, str] | None = None) -> SparseDictionary:
    """A dictionary of ours for a tiny model, with every parameter random."""
    spec = {"type": activation, **({"k": K} if "topk" in activation else {})}
    hooks = hooks or (("layers.1.resid_post",) * 2 if kind == "sae" else ("layers.1.mlp_in", "layers.1.mlp_out"))
    said = {"kind": kind, "hook_in": hooks[0], "hook_out": hooks[1], "d_in": D, "d_out": D, "n_latents": F}
    config = DictionaryConfig.model_validate({**said, "activation": spec, "model": claim(name).identity("test")})
    dictionary = build_dictionary(config, seed=3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for key, values in dictionary.state_dict().items():
            noise = torch.rand(values.shape, generator=generator)
            values.copy_(0.3 + noise if key.endswith("threshold") else noise - 0.5)
    return dictionary


def output(dictionary: Any, x: ndarray | None = None) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = dictionary(tensor(inputs() if x is None else x))
    return found
