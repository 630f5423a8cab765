"""SAELens' dictionaries, written; see `saelens` for the files.

    relu        standard, transcoder, skip_transcoder
    jumprelu    jumprelu, jumprelu_transcoder, jumprelu_skip_transcoder
    batchtopk   as jumprelu with its one threshold for every latent, as SAELens saves its own: exactly what it is at
                inference; k and what was nested are not in the files
    topk        topk, of SAEs alone: SAELens has no such transcoders
    gated       gated, of SAEs alone

What is lost: k of batchtopk, coefficients of penalties, and the normalisation of training, which is folded into the
weights. `metadata.interp` keeps the model's fingerprint and the corpus' key; readers check the first.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from interp.dictionaries.activations import BatchTopKActivation
from interp.dictionaries.base import SparseDictionary
from interp.dictionaries.dictionary import Dictionary
from interp.dictionaries.foreign.places import transformer_lens_name
from interp.dictionaries.foreign.saelens import CONFIG, WEIGHTS
from interp.errors import DictionaryError
from interp.spec.hookpoints import parse
from interp.version import __version__

WRITTEN = re.compile(rf"[^/]+/({re.escape(CONFIG)}|{re.escape(WEIGHTS)})")
"""Names of the files of a folder of dictionaries."""

FORMAT_VERSION = "6.0.0"
"""Of SAELens, whose form of cfg.json this is: without a version it reads one from before 6.0."""

_ARCHITECTURES = {
    ("sae", "relu"): "standard",
    ("sae", "topk"): "topk",
    ("sae", "batchtopk"): "jumprelu",
    ("sae", "jumprelu"): "jumprelu",
    ("sae", "gated"): "gated",
    ("transcoder", "relu"): "transcoder",
    ("transcoder", "batchtopk"): "jumprelu_transcoder",
    ("transcoder", "jumprelu"): "jumprelu_transcoder",
    ("skip-transcoder", "relu"): "skip_transcoder",
    ("skip-transcoder", "batchtopk"): "jumprelu_skip_transcoder",
    ("skip-transcoder", "jumprelu"): "jumprelu_skip_transcoder",
}

logger = logging.getLogger(__name__)


def write(
    loaded: Mapping[str, Dictionary],
    folder: Path,
    *,
    mlps: Sequence[str],
    model_name: str | None = None,
    scan: str | None = None,
) -> None:
    """Each dictionary in a folder of its own, named by its place; the folder is made if need be.

    Raises:
        DictionaryError: SAELens has nothing that computes the same.
    """
    ready = {
        folder_name(dictionary, mlps): (_tensors(dictionary), _config(dictionary, mlps, model_name))
        for dictionary in map(_single, loaded.values())
    }
    for name, (tensors, config) in ready.items():
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        (place / CONFIG).unlink(missing_ok=True)
        save_file(tensors, place / WEIGHTS)
        (place / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    kinds = {dictionary.config.activation.type for dictionary in map(_single, loaded.values())}
    if "batchtopk" in kinds:
        logger.warning("batchtopk is written as jumprelu with its threshold, as SAELens does: k is not in the files")


def folder_name(dictionary: SparseDictionary, mlps: Sequence[str]) -> str:
    """`blocks.3.hook_resid_post`, which SAELens calls the id; `blocks.3.mlp` of a transcoder of an MLP."""
    config = dictionary.config
    if config.at == config.hook_in:
        return transformer_lens_name(config.hook_in, mlps) or config.at
    name = transformer_lens_name(config.hook_in, mlps) if config.at.endswith(".mlp") else None
    return config.at if name is None else f"{name.removesuffix('.mlp.hook_in')}.mlp"


def _single(dictionary: Dictionary) -> SparseDictionary:
    if not isinstance(dictionary, SparseDictionary):
        raise DictionaryError(
            "SAELens has dictionaries of one place only",
            value=dictionary.config.kind,
            expected="sae, transcoder or skip-transcoder",
            remedy="write a cross-layer transcoder for circuit-tracer",
        )
    return dictionary


def _config(dictionary: SparseDictionary, mlps: Sequence[str], model_name: str | None) -> dict[str, Any]:
    config, sae = dictionary.config, dictionary.config.kind == "sae"
    kind = config.kind, config.activation.type
    if kind not in _ARCHITECTURES:
        raise DictionaryError(
            f"SAELens has nothing that computes the same as the {config.kind} at {config.at}",
            value=f"{kind[0]}, {kind[1]}",
            expected=" or ".join(activation for own, activation in _ARCHITECTURES if own == config.kind),
            remedy="keep it in interp's format; a transcoder of topk can be written for sparsify or circuit-tracer",
        )
    made: dict[str, Any] = {
        "architecture": _ARCHITECTURES[kind],
        "d_in": config.d_in,
        "d_sae": config.n_latents,
        "dtype": config.dtype,
        "device": "cpu",
        "apply_b_dec_to_input": sae,
        "normalize_activations": "none",
        "reshape_activations": "none",
    }
    if config.activation.type == "topk":
        made |= {"k": config.activation.k, "rescale_acts_by_decoder_norm": False}
    if not sae:
        made["d_out"] = config.d_out
    return {**made, "metadata": _metadata(dictionary, mlps, model_name)}


def _metadata(dictionary: SparseDictionary, mlps: Sequence[str], model_name: str | None) -> dict[str, Any]:
    config = dictionary.config
    hooks = {"hook_name": config.hook_in}
    if config.kind != "sae":
        hooks["hook_name_out"] = config.hook_out
    for key, hook in hooks.items():
        name = transformer_lens_name(hook, mlps)
        if name is None:
            logger.warning("TransformerLens has no name for %s: SAELens computes it, but cannot attach it", hook)
        hooks[key] = name or parse(hook).name
    model = config.model
    return {
        "sae_lens_version": FORMAT_VERSION,
        "sae_lens_training_version": None,
        "model_name": model_name or (model.source if model else None),
        **hooks,
        "interp": {
            "version": __version__,
            "fingerprint": model.fingerprint if model else None,
            "corpus": config.corpus,
            "trained_as": config.activation.type,
        },
    }


def _tensors(dictionary: SparseDictionary) -> dict[str, Tensor]:
    activation = dictionary.activation
    gated = dictionary.config.activation.type == "gated"
    tensors = {
        "W_enc": dictionary.W_enc.T,
        "b_gate" if gated else "b_enc": dictionary.b_enc,
        "W_dec": dictionary.W_dec,
        "b_dec": dictionary.b_dec,
    }
    if dictionary.W_skip is not None:
        tensors["W_skip"] = dictionary.W_skip
    own = dict(activation.state_dict())
    if isinstance(activation, BatchTopKActivation):
        own["threshold"] = activation.threshold.to(dictionary.b_enc.dtype).expand_as(dictionary.b_enc)
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in {**tensors, **own}.items()}
