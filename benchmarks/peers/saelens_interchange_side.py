"""SAELens' part in the interchange of dictionaries. Runs in its own environment, and imports nothing of `interp`.

    python -m benchmarks.peers.saelens_interchange_side write SHAPE.json OUT    every architecture, as it saves them
    python -m benchmarks.peers.saelens_interchange_side load SHAPE.json OUT     reconstructions of what interp wrote

Weights are random; a scaled or whitened case is a checkpoint of training, and its reconstruction that of the SAE with
the scale or whitening folded in by SAELens itself.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE
from sae_lens.registry import get_sae_class, get_sae_training_class
from sae_lens.saes.sae import SAEMetadata
from sae_lens.training.activation_scaler import ActivationScaler
from safetensors.torch import load_file, save_file

RESID, MLP_IN, MLP_OUT = "blocks.1.hook_resid_post", "blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"


def main(command: str, shape_file: Path, out: Path) -> None:
    shape = json.loads(shape_file.read_bytes())
    x = load_file(out / "x.safetensors")["x"]
    if command == "load":
        for folder in sorted(path.parent for path in out.rglob("sae_weights.safetensors")):
            sae = SAE.load_from_disk(folder)
            with torch.no_grad():
                save_file({"y": sae(x)}, folder / "y.safetensors")
        return
    for name, case in _cases(shape).items():
        torch.manual_seed(len(name))
        folder = out / name
        sae = case(folder, x)
        with torch.no_grad():
            save_file({"y": sae(x).contiguous()}, out / f"{name}.y.safetensors")


def _cases(shape: dict[str, Any]) -> dict[str, Callable[[Path, torch.Tensor], Any]]:
    """Each writes one dictionary and gives what reconstructs."""

    def trained(architecture: str, checkpoint: bool = False, **said: Any) -> Callable[[Path, torch.Tensor], Any]:
        return lambda folder, x: _trained(shape, architecture, folder, x, checkpoint=checkpoint, **said)

    def plain(architecture: str, **said: Any) -> Callable[[Path, torch.Tensor], Any]:
        return lambda folder, _: _plain(shape, architecture, folder, **said)

    k = shape["k"]
    nested = {"k": k, "matryoshka_widths": [shape["latents"] // 4, shape["latents"]]}
    return {
        "standard": trained("standard"),
        "standard, no b_dec": trained("standard", apply_b_dec_to_input=False),
        "topk": trained("topk", k=k),
        "topk, decoder norms free": trained("topk", k=k, rescale_acts_by_decoder_norm=False),
        "topk checkpoint": trained("topk", k=k, checkpoint=True),
        "batchtopk": trained("batchtopk", k=k),
        "batchtopk checkpoint": trained("batchtopk", k=k, checkpoint=True),
        "matryoshka": trained("matryoshka_batchtopk", **nested),
        "matryoshka checkpoint": trained("matryoshka_batchtopk", checkpoint=True, **nested),
        "jumprelu": trained("jumprelu"),
        "jumprelu, no b_dec": trained("jumprelu", apply_b_dec_to_input=False),
        "gated": trained("gated"),
        "gated, no b_dec": trained("gated", apply_b_dec_to_input=False),
        "expected_average_only_in": trained("jumprelu", True, normalize_activations="expected_average_only_in"),
        "batchtopk, scaled": trained("batchtopk", True, k=k, normalize_activations="expected_average_only_in"),
        "covariance_whitening": trained("standard", True, normalize_activations="covariance_whitening"),
        "transcoder": plain("transcoder"),
        "skip_transcoder": plain("skip_transcoder"),
        "jumprelu_transcoder": plain("jumprelu_transcoder"),
        "jumprelu_skip_transcoder": plain("jumprelu_skip_transcoder"),
    }


def _trained(
    shape: dict[str, Any], architecture: str, folder: Path, x: torch.Tensor, checkpoint: bool, **said: Any
) -> Any:
    """The training class with random weights, saved for inference or as a checkpoint; what reconstructs."""
    sae_class, config_class = get_sae_training_class(architecture)
    config = config_class(d_in=shape["d"], d_sae=shape["latents"], metadata=_metadata(shape, hook_name=RESID), **said)
    sae = sae_class(config)
    _randomise(sae)
    if not checkpoint:
        sae.save_inference_model(folder)
        return SAE.load_from_disk(folder)
    sae.save_model(folder)
    scaler = ActivationScaler()
    if config.normalize_activations == "expected_average_only_in":
        scaler.estimate_scaling_factor(shape["d"], iter([x]), 1)
    if config.normalize_activations == "covariance_whitening":
        scaler.estimate_whitening(shape["d"], iter([x]), 1)
    scaler.save(str(folder / "activation_scaler.json"))
    if scaler.scaling_factor is not None:
        sae.fold_activation_norm_scaling_factor(scaler.scaling_factor)
    if scaler.whitening is not None:
        white = scaler.whitening
        sae.fold_activation_whitening(white.mean, white.matrix, white.inverse_matrix)
    final = folder.parent / f".{folder.name}"
    sae.save_inference_model(final)
    return SAE.load_from_disk(final)


def _plain(shape: dict[str, Any], architecture: str, folder: Path, **said: Any) -> Any:
    sae_class, config_class = get_sae_class(architecture)
    metadata = _metadata(shape, hook_name=MLP_IN, hook_name_out=MLP_OUT)
    sizes = {"d_in": shape["d"], "d_out": shape["d"], "d_sae": shape["latents"]}
    sae = sae_class(config_class(**sizes, apply_b_dec_to_input=False, metadata=metadata, **said))
    _randomise(sae)
    sae.save_model(folder)
    return SAE.load_from_disk(folder)


def _metadata(shape: dict[str, Any], **hooks: str) -> SAEMetadata:
    return SAEMetadata(model_name=shape["model"], context_size=32, prepend_bos=True, **hooks)


def _randomise(sae: Any) -> None:
    """Every tensor in general position, thresholds where they let about a tenth through."""
    with torch.no_grad():
        for name, tensor in sae.state_dict().items():
            if "threshold" in name:
                tensor.copy_(torch.rand_like(tensor) * 0.5 + 1.0)
            elif tensor.ndim == 2:
                tensor.copy_(torch.randn_like(tensor) / tensor.shape[0 if name == "W_enc" else 1] ** 0.5)
            else:
                tensor.copy_(torch.randn_like(tensor) * 0.3)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
