"""circuit-tracer's transcoder sets and cross-layer transcoders, written; see `circuit_tracer` for the files.

    relu        no thresholds
    jumprelu    thresholds
    batchtopk   as jumprelu with its one threshold for every latent: exactly what it is at inference
    topk        `activation: topk` and `k` in config.yaml. circuit-tracer itself does not read them and takes such a
                set for relu: it must be given TopK(k) by hand; interp reads them.
    gated       the format has no place for it, nor for an SAE

The set reads `mlp.hook_in` and predicts `mlp.hook_out`, or `hook_mlp_out` where the family has a post-norm or is not
known. Layers are counted over all groups; the format wants every layer of the model, and the same number of latents in
each. config.yaml is written last: a folder that has one is complete.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from interp.dictionaries.activations import Activation, BatchTopKActivation, JumpReLUActivation
from interp.dictionaries.base import SparseDictionary
from interp.dictionaries.config import ModelIdentity
from interp.dictionaries.cross_layer import CrossLayerTranscoder
from interp.dictionaries.foreign.circuit_tracer import CROSS_LAYER_SET, SET, require_one_width
from interp.dictionaries.transcoder import Transcoder
from interp.errors import DictionaryError
from interp.models.families import FAMILIES
from interp.sources.dictionaries import CONFIG
from interp.spec.dictionary import ActivationSpec, TopK
from interp.spec.hookpoints import HookPoint, parse

logger = logging.getLogger(__name__)

_OWN = re.compile(r"(layer|W_enc|W_dec)_\d+\.safetensors")

WRITTEN = re.compile(rf"{_OWN.pattern}|{re.escape(CONFIG)}")
"""Names of the files of a set."""

Written = Mapping[str, Transcoder] | CrossLayerTranscoder


def write_circuit_tracer(
    dictionaries: Written, folder: str | Path, *, mlps: Sequence[str], model_name: str, scan: str | None = None
) -> None:
    """Write a set into `folder`, which is made if need be.

    Args:
        dictionaries: transcoders by place, or a cross-layer transcoder.
        mlps: all MLPs of the model, `layers.0.mlp` and so on, in execution order.
        model_name: the model's name on the hub, which circuit-tracer loads it by.
        scan: where its page finds the features.

    Raises:
        DictionaryError: the format cannot say what they are, or layers are missing.
    """
    root = Path(folder)
    if isinstance(dictionaries, CrossLayerTranscoder):
        hooks = [(place.hook_in, place.hook_out) for place in dictionaries.config.places]
        configs: list[Any] = [dictionaries.config]
        widths = [place.n_latents for place in dictionaries.config.places]
    else:
        dictionaries = _in_order(dictionaries)
        configs = [transcoder.config for transcoder in dictionaries.values()]
        hooks = [(config.hook_in, config.hook_out) for config in configs]
        widths = [config.n_latents for config in configs]
    _require_layers(hooks, mlps)
    _require_alike(configs, widths)
    root.mkdir(parents=True, exist_ok=True)
    (root / CONFIG).unlink(missing_ok=True)
    for path in [path for path in root.iterdir() if _OWN.fullmatch(path.name)]:
        path.unlink()  # a set that was here before may have had more layers
    if isinstance(dictionaries, CrossLayerTranscoder):
        _write_cross_layer(dictionaries, root)
    else:
        for layer, transcoder in enumerate(dictionaries.values()):
            save_file(_tensors(transcoder), root / f"layer_{layer}.safetensors")
    kind = CROSS_LAYER_SET if isinstance(dictionaries, CrossLayerTranscoder) else SET
    text = yaml.safe_dump(_config(kind, configs[0].activation, configs[0].model, model_name, scan), sort_keys=False)
    partial = root / f".{CONFIG}.partial"
    partial.write_text(text, encoding="utf-8")
    partial.replace(root / CONFIG)


def write(
    loaded: Mapping[str, Any],
    folder: Path,
    *,
    mlps: Sequence[str],
    model_name: str | None = None,
    scan: str | None = None,
) -> None:
    """`write_circuit_tracer` as a row of `FORMATS`."""
    if not model_name:
        raise DictionaryError(
            "a set of circuit-tracer names its model", expected="the model's name on the hub", remedy="give model_name"
        )
    values = list(loaded.values())
    one = len(values) == 1 and isinstance(values[0], CrossLayerTranscoder)
    write_circuit_tracer(values[0] if one else loaded, folder, mlps=mlps, model_name=model_name, scan=scan)


def _config(
    kind: str, activation: ActivationSpec, model: ModelIdentity | None, model_name: str, scan: str | None
) -> dict[str, Any]:
    # Without a post-norm both names mean the MLP's output, and some backends of circuit-tracer know only the first.
    family = FAMILIES.get(model.family) if model else None
    plain = family is not None and family.block.mlp_post_norm is None
    config: dict[str, Any] = {
        "model_name": model_name,
        "model_kind": kind,
        "feature_input_hook": "mlp.hook_in",
        "feature_output_hook": "mlp.hook_out" if plain else "hook_mlp_out",
    }
    if isinstance(activation, TopK):
        logger.warning("circuit-tracer takes a topk set for relu unless it is given TopK(%d) by hand", activation.k)
        config |= {"activation": "topk", "k": activation.k}
    return config | {"scan": scan}  # circuit-tracer wants the key, if only to be empty


def _in_order(dictionaries: Mapping[str, Transcoder]) -> dict[str, Transcoder]:
    for at, dictionary in dictionaries.items():
        if not isinstance(dictionary, Transcoder):
            raise DictionaryError(
                f"circuit-tracer's sets hold transcoders, and there is another dictionary at {at}",
                value=dictionary.config.kind,
                expected="transcoder, skip-transcoder, or one cross-layer-transcoder alone",
            )
    return dict(sorted(dictionaries.items(), key=lambda item: parse(item[1].config.hook_in)))


def _require_layers(hooks: list[tuple[str, str]], mlps: Sequence[str]) -> None:
    """The places are the model's MLPs, all of them."""
    if not hooks:
        raise DictionaryError("there are no transcoders to write")
    for hook_in, hook_out in hooks:
        point, out = parse(hook_in), parse(hook_out)
        block = (point.group, point.layer)
        if (point.site, out) != ("mlp_in", HookPoint(*block, "mlp_out")):
            what = "circuit-tracer's transcoders stand in the place of MLPs"
            raise DictionaryError(what, value=f"{hook_in} -> {hook_out}", expected="mlp_in -> mlp_out of one block")
    found = [hook_in.removesuffix("_in") for hook_in, _ in hooks]
    if found != list(mlps):
        missing, unknown = ([at for at in a if at not in b] for a, b in ((mlps, found), (found, mlps)))
        raise DictionaryError(
            "circuit-tracer's sets have every layer of the model",
            value=f"none for {', '.join(missing) or 'nowhere'}; not of the model: {', '.join(unknown) or 'none'}",
            expected=f"one transcoder for each of {', '.join(mlps)}",
        )


def _require_alike(configs: list[Any], widths: list[int]) -> None:
    """One number of latents, one way of choosing them, skip paths everywhere or nowhere."""
    said: dict[str, list[Any]] = {
        "numbers of latents": widths,
        "activations": [(config.activation.type, getattr(config.activation, "k", None)) for config in configs],
        "kinds": [config.kind for config in configs],
    }
    for name, values in said.items():
        if len(set(values)) > 1:
            what = f"circuit-tracer's sets have the same in every layer, and these have several {name}"
            raise DictionaryError(what, value=", ".join(map(str, values)), expected="one for all layers")


def _tensors(transcoder: SparseDictionary) -> dict[str, Tensor]:
    tensors = {name: getattr(transcoder, name) for name in ("W_enc", "W_dec", "b_enc", "b_dec")}
    if transcoder.W_skip is not None:
        tensors["W_skip"] = transcoder.W_skip
    threshold = _threshold(transcoder.activation, transcoder.b_enc)
    if threshold is not None:
        tensors["activation_function.threshold"] = threshold
    return {name: _plain(tensor) for name, tensor in tensors.items()}


def _write_cross_layer(transcoder: CrossLayerTranscoder, root: Path) -> None:
    places = transcoder.config.places
    require_one_width(width for place in places for width in (place.d_in, place.d_out))
    for i in range(len(places)):
        b_enc = transcoder.b_enc[i]
        encoder = {f"W_enc_{i}": transcoder.encoder(i), f"b_enc_{i}": b_enc, f"b_dec_{i}": transcoder.b_dec(i)}
        threshold = _threshold(transcoder.activation(i), b_enc)
        if threshold is not None:
            encoder[f"threshold_{i}"] = threshold
        save_file({name: _plain(tensor) for name, tensor in encoder.items()}, root / f"W_enc_{i}.safetensors")
        decoders = torch.stack([transcoder.decoder(i, j).detach().cpu() for j in range(i, len(places))], dim=1)
        save_file({f"W_dec_{i}": decoders.contiguous()}, root / f"W_dec_{i}.safetensors")


def _threshold(activation: Activation, like: Tensor) -> Tensor | None:
    """What each pre-activation must exceed; None where the format has no thresholds."""
    if isinstance(activation, JumpReLUActivation):
        return activation.threshold
    if isinstance(activation, BatchTopKActivation):
        return activation.threshold.to(like.dtype).expand_as(like)
    if activation.spec.type in ("relu", "topk"):
        return None
    raise DictionaryError(
        "circuit-tracer has no transcoders of this activation",
        value=activation.spec.type,
        expected="relu, jumprelu, topk or batchtopk",
        remedy="train another kind, or trace with interp",
    )


def _plain(tensor: Tensor) -> Tensor:
    """A tensor that a file can hold: on the CPU, in memory of its own."""
    return tensor.detach().cpu().contiguous().clone()
