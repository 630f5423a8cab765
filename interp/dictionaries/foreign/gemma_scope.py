"""Gemma Scope's transcoders, read.

    layer_{i}/width_{w}/average_l0_{n}/params.npz               Gemma Scope: see `layers.GEMMA_SCOPE`
    layer_{i}_width_{w}_l0_{size}[_affine]/params.safetensors   Gemma Scope 2: `layers.GEMMA_SCOPE_2`; with config.json

One file is one layer, which its path tells; a folder has at most one for each layer and need not have all. All are
jumprelu. Gemma Scope's read the normalised input without the norm's gain ("we fold the pre-MLP RMS norm gain
parameters into the MLP input matrices", arXiv:2408.05147, language model technical details), Gemma Scope 2's what the
MLP reads; both predict what the MLP adds to the residual stream, after its post-norm. Their SAEs have the same tensors,
and only config.json can tell one from a transcoder: that a .npz is one is the user's word.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from interp.dictionaries.foreign import circuit_tracer
from interp.dictionaries.foreign.claim import Claim
from interp.dictionaries.foreign.layers import read_transcoder
from interp.dictionaries.transcoder import Transcoder
from interp.errors import DictionaryError
from interp.sources.dictionaries import PARAMS, layer_in

NAME = "gemma-scope"

_IN, _OUT = "pre_feedforward_layernorm.output", "post_feedforward_layernorm.output"
_LAYOUT = f"layer_<i>/width_<w>/average_l0_<n>/{PARAMS[0]}, or layer_<i>_width_<w>_l0_<size>/{PARAMS[1]}"


def is_here(path: Path) -> bool:
    """Whether a folder has such files of its own, or is one; circuit-tracer's sets may list some that lie beside."""
    return not circuit_tracer.is_here(path) and bool(_files(path))


def read(path: Path, claim: Claim) -> dict[str, Transcoder]:
    """The transcoders of a folder by their place, or the one of a file.

    Raises:
        DictionaryError: a layer has several, is not told, or is none of the model's, or a file is not as it should be.
    """
    by_layer: dict[int, list[Path]] = {}
    for file in _files(path):
        by_layer.setdefault(_layer(file, claim), []).append(file)
    for layer, files in by_layer.items():
        if len(files) > 1:
            raise DictionaryError(
                f"layer {layer} has several transcoders",
                value=", ".join(sorted(str(file) for file in files)),
                expected="one for each layer",
                remedy="name one of these, or a folder with one for each layer",
            )
    if not by_layer:
        raise DictionaryError("there are no files of Gemma Scope", value=str(path), expected=_LAYOUT)
    found = {}
    for layer, (file,) in sorted(by_layer.items()):
        _require_transcoder(file)
        transcoder = read_transcoder(file, layer, claim, NAME, before_gain=file.suffix == ".npz")
        if transcoder.config.activation.type != "jumprelu":
            raise DictionaryError(
                f"this file has no thresholds, and Gemma Scope's all have: {file}",
                expected="a tensor threshold",
                remedy="for a set of circuit-tracer, name the folder with its config.yaml",
            )
        found[transcoder.config.at] = transcoder
    return found


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.name in PARAMS else []
    return sorted(file for name in PARAMS for file in path.rglob(name))


def _layer(file: Path, claim: Claim) -> int:
    layer = layer_in(file.absolute())
    if layer is None:
        raise DictionaryError(
            "the path of a file does not tell which layer it is for",
            value=str(file),
            expected=_LAYOUT,
            remedy="keep it in the folders that it was published in",
        )
    if layer >= claim.n_layers:
        raise DictionaryError(
            f"the model has no layer {layer}: {file}",
            value=layer,
            expected=f"0 to {claim.n_layers - 1}, the layers of {claim.source}",
        )
    return layer


def _require_transcoder(file: Path) -> None:
    """What config.json beside the file says, where there is one."""
    path = file.with_name("config.json")
    if not path.is_file():
        return
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DictionaryError(f"this config cannot be read: {path}", value=str(error), expected="JSON") from error
    if not isinstance(said, dict):
        raise DictionaryError(f"this config is no mapping: {path}", value=said, expected="keys and values")
    hooks = {"hf_hook_point_in": _IN, "hf_hook_point_out": _OUT}
    for key, expected in hooks.items():
        value = said.get(key)
        if value is not None and re.sub(r"^.*layers\.(\d+|\{\w*\})\.", "", str(value)) != expected:
            raise DictionaryError(
                f"these are no transcoders of an MLP: {path}",
                value=f"{key}: {value}",
                expected=f"model.layers.<i>.{expected}",
                remedy="name a folder of transcoders; the replacement model has them in the place of the MLPs",
            )
    architecture = said.get("architecture")
    if architecture not in (None, "jump_relu", "jumprelu"):
        what = f"the architecture of a transcoder is unknown: {path}"
        raise DictionaryError(what, value=architecture, expected="jump_relu")
