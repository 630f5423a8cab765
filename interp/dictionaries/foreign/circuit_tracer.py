"""circuit-tracer's transcoder sets and cross-layer transcoders, read.

    config.yaml           model_name, model_kind, feature_input_hook, feature_output_hook, [activation, k], [scan],
                          [transcoders: one file a layer, in place of layer_{i}.safetensors]
    layer_{i}.safetensors               of a `transcoder_set`: see `layers.CIRCUIT_TRACER`
    W_enc_{i}.safetensors               of a `cross_layer_transcoder`: W_enc_{i} [F, d], b_enc_{i}, b_dec_{i}, and
                                        threshold_{i} where the activation is jumprelu
    W_dec_{i}.safetensors               W_dec_{i} [F, L - i, d]: what layer i writes to layers i .. L - 1

Thresholds mean jumprelu. Without them the format means relu, unless config.yaml says `activation: topk` and `k`. A set
covers all layers of its model. Files of Gemma Scope may be listed in `transcoders`, as circuit-tracer's own sets do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from interp.dictionaries.config import CrossLayerConfig
from interp.dictionaries.cross_layer import CrossLayerTranscoder
from interp.dictionaries.foreign.claim import Claim, behind_gain
from interp.dictionaries.foreign.layers import activation_of, read_transcoder, require_same_activation
from interp.dictionaries.foreign.tensors import Part, dtype_name, open_tensors, read_parts, single_dtype
from interp.dictionaries.transcoder import Transcoder
from interp.errors import DictionaryError
from interp.sources.dictionaries import CONFIG, layer_in, listed_file
from interp.spec.dictionary import ActivationSpec

NAME = "circuit-tracer"
SET, CROSS_LAYER_SET = "transcoder_set", "cross_layer_transcoder"

_ABOUT_ACTIVATION, _KNOWN = re.compile("top_?k|activation", re.IGNORECASE), ("activation", "activation_function")


@dataclass(frozen=True)
class SetConfig:
    """What config.yaml says.

    Attributes:
        topk: k, where the activation is topk.
        thresholds: whether there must be thresholds; None: the files tell.
        listed: one file for each layer, as config.yaml names them; None: `layer_{i}.safetensors`.
    """

    path: Path
    kind: str
    hook_in: str
    hook_out: str
    model_name: str | None
    topk: int | None
    thresholds: bool | None
    listed: tuple[str, ...] | None


def is_here(folder: Path) -> bool:
    """Whether a folder says that circuit-tracer reads it."""
    path = folder / CONFIG
    return path.is_file() and "model_kind" in path.read_text(encoding="utf-8", errors="replace")


def read(folder: Path, claim: Claim) -> dict[str, Transcoder] | dict[str, CrossLayerTranscoder]:
    """All transcoders of a set by their place, or its cross-layer transcoder as `cross-layer`.

    Raises:
        DictionaryError: a file is missing or does not hold what it should, or the set is for other places or sizes.
    """
    config = read_config(folder / CONFIG)
    where = str(config.path)
    before_gain = claim.reads_before_gain(config.hook_in, where)
    claim.require_output(config.hook_out, where)
    claim.tell_model(config.model_name, where)
    if config.kind == CROSS_LAYER_SET:
        transcoder = _read_cross_layer(folder, config, claim, before_gain)
        return {transcoder.config.at: transcoder}
    return _read_set(folder, config, claim, before_gain)


def read_config(path: Path) -> SetConfig:
    """config.yaml, checked.

    Raises:
        DictionaryError: it is no YAML, lacks something, or says something that is unknown.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DictionaryError(f"this config cannot be read: {path}", value=str(error), expected="YAML") from error
    if not isinstance(content, dict):
        raise DictionaryError(f"this config is no mapping: {path}", value=content, expected="keys and values")
    kind = _text(content, "model_kind", path)
    if kind not in (SET, CROSS_LAYER_SET):
        raise _wrong(path, "model_kind", kind, f"{SET} or {CROSS_LAYER_SET}")
    topk, thresholds = _activation(content, path)
    name = content.get("model_name")
    return SetConfig(
        path,
        kind,
        hook_in=_text(content, "feature_input_hook", path),
        hook_out=_text(content, "feature_output_hook", path),
        model_name=None if name is None else str(name),
        topk=topk,
        thresholds=thresholds,
        listed=_listed(content, path),
    )


def _activation(content: Mapping[str, Any], path: Path) -> tuple[int | None, bool | None]:
    """(k of topk, whether there must be thresholds).

    Raises:
        DictionaryError: something else is said of the activation, which may be another one by another name.
    """
    if other := sorted(key for key in map(str, content) if _ABOUT_ACTIVATION.search(key) and key not in _KNOWN):
        raise _wrong(path, other[0], content.get(other[0]), "none: the activation is said by activation and k")
    said = content.get("activation", content.get("activation_function"))
    k = content.get("k")
    if k is not None and (isinstance(k, bool) or not isinstance(k, int) or k < 1):
        raise _wrong(path, "k", k, "a whole number of at least 1")
    if said is None and k is not None:
        said = "topk"  # no other activation has a k
    known = {None: None, "relu": False, "jumprelu": True, "jump_relu": True, "topk": False}
    if not isinstance(said, str | None) or said not in known:
        raise _wrong(path, "activation", said, "relu, jumprelu or topk")
    if (said == "topk") != (k is not None):
        raise _wrong(path, "k", k, "a whole number with activation: topk, and no k with any other")
    return k, known[said]


def _listed(content: Mapping[str, Any], path: Path) -> tuple[str, ...] | None:
    listed = content.get("transcoders")
    if listed is None:
        return None
    if not isinstance(listed, list) or not listed or not all(isinstance(name, str) for name in listed):
        raise _wrong(path, "transcoders", listed, "a list of files, one for each layer")
    return tuple(listed)


def _text(content: Mapping[str, Any], key: str, path: Path) -> str:
    value = content.get(key)
    if not isinstance(value, str):
        raise _wrong(path, key, value, "a text")
    return value


def _wrong(path: Path, key: str, value: object, expected: str) -> DictionaryError:
    what = f"{key} is not as it should be: {path}"
    return DictionaryError(what, value="nothing" if value is None else value, expected=expected)


def _read_set(folder: Path, config: SetConfig, claim: Claim, before_gain: bool) -> dict[str, Transcoder]:
    listed = config.listed or _layer_files(folder, "layer_{}.safetensors")
    _require_layers(len(listed), claim, folder)
    _require_order(listed, claim, config.path)
    found: dict[str, Transcoder] = {}
    for layer, name in enumerate(listed):
        path = listed_file(folder, name)
        transcoder = read_transcoder(path, layer, claim, NAME, before_gain=before_gain, topk=config.topk)
        _require_thresholds(config, transcoder.config.activation, path)
        found[transcoder.config.at] = transcoder
    require_same_activation({at: transcoder.config.activation for at, transcoder in found.items()})
    return found


def _read_cross_layer(folder: Path, config: SetConfig, claim: Claim, before_gain: bool) -> CrossLayerTranscoder:
    if config.listed is not None:
        raise _wrong(
            config.path, "transcoders", config.listed[0], f"nothing: files of a {CROSS_LAYER_SET} are not listed"
        )
    _require_layers(len(_layer_files(folder, "W_enc_{}.safetensors")), claim, folder)
    require_one_width(width for layer in range(claim.n_layers) for width in claim.widths(layer).values())
    state: dict[str, Tensor] = {}
    places, activations = [], {}
    for layer in range(claim.n_layers):
        path = folder / f"W_enc_{layer}.safetensors"
        sizes = claim.widths(layer)
        parts = read_parts(open_tensors(path), _encoder_parts(layer), sizes)
        threshold = parts.pop("threshold", None)
        activations[path.name] = activation = activation_of(path, threshold, config.topk, sizes["F"])
        _require_thresholds(config, activation, path)
        if before_gain:
            parts = behind_gain(parts, claim, layer)
        state |= {f"W_enc.{layer}": parts["W_enc"], f"b_enc.{layer}": parts["b_enc"], f"biases.{layer}": parts["b_dec"]}
        if threshold is not None:
            state[f"activations.{layer}.threshold"] = threshold
        state |= _read_decoders(folder / f"W_dec_{layer}.safetensors", layer, claim.n_layers, sizes)
        hooks = {"hook_in": f"{claim.place(layer)}_in", "hook_out": f"{claim.place(layer)}_out"}
        places.append({**hooks, **claim.widths(layer), "n_latents": sizes["F"]})
    require_same_activation(activations)
    state = single_dtype(state, claim.dtype)
    said = {
        "places": places,
        "activation": next(iter(activations.values())),
        "dtype": dtype_name(state["W_enc.0"].dtype),
        "model": claim.identity(NAME),
    }
    with torch.device("meta"):
        transcoder = CrossLayerTranscoder(CrossLayerConfig.model_validate(said))
    transcoder.load_state_dict(state, assign=True)
    return transcoder


def _encoder_parts(layer: int) -> tuple[Part, ...]:
    return (
        Part("W_enc", f"W_enc_{layer}", ("F", "d_in")),
        Part("b_enc", f"b_enc_{layer}", ("F",)),
        Part("b_dec", f"b_dec_{layer}", ("d_out",)),
        Part("threshold", f"threshold_{layer}", ("F",), optional=True),
    )


def _read_decoders(path: Path, layer: int, n_layers: int, sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """What a layer writes to itself and to each later one, by the names that our class has for them."""
    part = Part("W_dec", f"W_dec_{layer}", ("F", "layers", "d_out"))
    decoders = read_parts(open_tensors(path), [part], {**sizes, "layers": n_layers - layer})["W_dec"]
    return {f"W_dec.{layer}.{layer + n}": decoders[:, n].contiguous() for n in range(n_layers - layer)}


def require_one_width(found: Iterable[int]) -> None:
    """Refuse layers of different widths, which a cross-layer transcoder of this format cannot have."""
    widths = sorted(set(found))
    if len(widths) > 1:
        raise DictionaryError(
            "circuit-tracer has cross-layer transcoders for models of one width only",
            value=f"layers of widths {', '.join(map(str, widths))}",
            expected="layers of one width",
        )


def _require_thresholds(config: SetConfig, found: ActivationSpec, path: Path) -> None:
    there = found.type == "jumprelu"
    if config.thresholds is not None and there != config.thresholds:
        raise DictionaryError(
            f"the thresholds of a layer are not as config.yaml says: {path}",
            value="thresholds" if there else "no thresholds",
            expected="thresholds, for jumprelu" if config.thresholds else "none, for relu",
        )


def _layer_files(folder: Path, name: str) -> tuple[str, ...]:
    """The files of a name with a number in it, one for each layer from 0 on."""
    pattern = re.escape(name).replace(r"\{\}", r"(0|[1-9]\d*)")
    layers = {int(match[1]) for path in folder.iterdir() if (match := re.fullmatch(pattern, path.name))}
    if not layers:
        raise DictionaryError(
            "the set has no files", value=str(folder), expected=f"{name.format(0)}, {name.format(1)}, ..."
        )
    if missing := sorted(set(range(max(layers) + 1)) - layers):
        raise DictionaryError(
            f"the set lacks layers: {folder}",
            value=f"no {', '.join(name.format(layer) for layer in missing)}",
            expected=f"{name.format(0)} to {name.format(max(layers))}",
        )
    return tuple(name.format(layer) for layer in sorted(layers))


def _require_order(listed: Sequence[str], claim: Claim, path: Path) -> None:
    """Refuse a list whose files tell other layers than the places that they stand at.

    A model of several groups has layers of another one, whose numbers its files may keep: those only have to rise.
    """
    told = [layer_in(Path(name.partition("?")[0]).with_suffix("")) for name in listed]
    if len(set(told)) == 1:
        return  # by a folder that all of them are in
    kept = [layer for layer in told if layer is not None]
    one_group = len(claim.model.topology.groups) == 1
    if kept != sorted(set(kept)) or (one_group and any(t not in (None, i) for i, t in enumerate(told))):
        wrong = [f"{name} at {i}" for i, (name, t) in enumerate(zip(listed, told, strict=True)) if t not in (None, i)]
        raise _wrong(path, "transcoders", ", ".join(wrong), "one file for each layer, in the order of the layers")


def _require_layers(found: int, claim: Claim, folder: Path) -> None:
    if found != claim.n_layers:
        raise DictionaryError(
            f"the set is for a model of another depth: {folder}",
            value=f"{found} layers",
            expected=f"{claim.n_layers} layers, as {claim.source} has",
        )
