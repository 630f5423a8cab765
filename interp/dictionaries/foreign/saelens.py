"""SAELens' dictionaries, read.

    <anywhere>/cfg.json, sae_weights.safetensors    one dictionary; a folder may have many below it

    W_enc [D, F], b_enc [F], W_dec [F, D_out], b_dec [D_out]     all but gated: b_gate in b_enc's place, r_mag, b_mag
    threshold [F]                                   jumprelu; batchtopk and matryoshka are saved as jumprelu
    topk_threshold []                               checkpoints of batchtopk and matryoshka in training
    W_skip [D_out, D]                               skip transcoders, y + x W_skip^T

`architecture` in cfg.json decides what is computed, `metadata.hook_name` (and `hook_name_out`) where. Before 6.0 all
was at the top level and topk was an `activation_fn`. What the config says of inputs and outputs is folded into the
weights (`assemble`): apply_b_dec_to_input, rescale_acts_by_decoder_norm, and expected_average_only_in or
covariance_whitening where activation_scaler.json beside a checkpoint has the numbers. What depends on the token
(layer_norm, constant_norm_rescale) is no linear map of the activations, and is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from interp.dictionaries.base import SparseDictionary
from interp.dictionaries.foreign import assemble as fold
from interp.dictionaries.foreign.assemble import Tensors, assemble, read_each
from interp.dictionaries.foreign.claim import Claim, behind_gain
from interp.dictionaries.foreign.places import hook_named
from interp.dictionaries.foreign.settings import Settings
from interp.dictionaries.foreign.tensors import Part, open_tensors, read_parts
from interp.errors import DictionaryError
from interp.spec.dictionary import ActivationSpec, BatchTopK, Gated, JumpReLU, ReLU, TopK

NAME = "saelens"
WEIGHTS, CONFIG, SCALER, WHITENING = (
    "sae_weights.safetensors",
    "cfg.json",
    "activation_scaler.json",
    "activation_whitening.safetensors",
)

_BASE = (
    Part("W_enc", "W_enc", ("d_in", "F"), transposed=True),
    Part("W_dec", "W_dec", ("F", "d_out")),
    Part("b_dec", "b_dec", ("d_out",)),
    Part("scaling_factor", "scaling_factor", ("F",), optional=True),
)
_B_ENC = Part("b_enc", "b_enc", ("F",))
_THRESHOLD = Part("threshold", "threshold", ("F",))
_LOG_THRESHOLD = Part("threshold", "log_threshold", ("F",))
_SKIP = Part("W_skip", "W_skip", ("d_out", "d_in"))
_GATE = (
    Part("b_enc", "b_gate", ("F",)),
    Part("r_mag", "r_mag", ("F",)),
    Part("b_mag", "b_mag", ("F",)),
)
_TOPK_THRESHOLD = Part("threshold", "topk_threshold", ())


@dataclass(frozen=True)
class Architecture:
    """One `architecture`: kind and activation of ours, and the tensors."""

    kind: str
    activation: str
    parts: tuple[Part, ...]


_BATCHTOPK = Architecture("sae", "batchtopk", (*_BASE, _B_ENC, _TOPK_THRESHOLD))

ARCHITECTURES: Mapping[str, Architecture] = {
    "standard": Architecture("sae", "relu", (*_BASE, _B_ENC)),
    "topk": Architecture("sae", "topk", (*_BASE, _B_ENC)),
    "jumprelu": Architecture("sae", "jumprelu", (*_BASE, _B_ENC, _THRESHOLD)),
    "gated": Architecture("sae", "gated", (*_BASE, *_GATE)),
    "batchtopk": _BATCHTOPK,
    "matryoshka_batchtopk": _BATCHTOPK,
    "transcoder": Architecture("transcoder", "relu", (*_BASE, _B_ENC)),
    "skip_transcoder": Architecture("skip-transcoder", "relu", (*_BASE, _B_ENC, _SKIP)),
    "jumprelu_transcoder": Architecture("transcoder", "jumprelu", (*_BASE, _B_ENC, _THRESHOLD)),
    "jumprelu_skip_transcoder": Architecture("skip-transcoder", "jumprelu", (*_BASE, _B_ENC, _THRESHOLD, _SKIP)),
}


def is_here(folder: Path) -> bool:
    """Whether a folder has such files, itself or below."""
    return folder.is_dir() and next(folder.rglob(WEIGHTS), None) is not None


def read(folder: Path, claim: Claim) -> dict[str, SparseDictionary]:
    """All dictionaries below a folder, by place.

    Raises:
        DictionaryError: a file is not as it should be, is for another model's places or sizes, or computes what no
            dictionary of ours does.
    """
    folders = sorted(path.parent for path in folder.rglob(WEIGHTS))
    return read_each(folders, lambda each: _read(each, claim), "name the folder of one of them: of one checkpoint")


def _read(folder: Path, claim: Claim) -> SparseDictionary:
    said = Settings.read(folder / CONFIG)
    about = said.part("metadata") if said.get("metadata") is not None else said
    where = str(said.path)
    architecture = _architecture(said)
    claim.tell_model(about.optional_text("model_name"), where)
    claim.require_fingerprint(about.part("interp").optional_text("fingerprint"), where)
    _require_plain(said, about)
    hook_in, hook_out, before_gain = _hooks(architecture, about, claim)
    file, sizes = open_tensors(folder / WEIGHTS), fold.axes(hook_in, hook_out, claim)
    older = "log_threshold" in file.names()
    parts = [_LOG_THRESHOLD if older and part is _THRESHOLD else part for part in architecture.parts]
    tensors = read_parts(file, parts, sizes)
    said.require("d_sae", sizes["F"])
    if older:
        tensors["threshold"] = tensors["threshold"].exp()
    activation, tensors = _activation(architecture, said, _as_ours(architecture, said, tensors))
    if before_gain:
        layer_of = claim.model.topology.layer_of
        sae = architecture.kind == "sae"
        tensors = (
            fold.sae_behind_gain(tensors, hook_in, claim) if sae else behind_gain(tensors, claim, layer_of(hook_in))
        )
    widths = said.counts("matryoshka_widths") if activation.type == "batchtopk" else ()
    return assemble(
        tensors,
        kind=architecture.kind,
        hook_in=hook_in,
        hook_out=hook_out,
        activation=activation,
        claim=claim,
        format=NAME,
        widths=widths,
    )


def _architecture(said: Settings) -> Architecture:
    name = said.text("architecture", "standard")
    older = said.get("activation_fn") or said.get("activation_fn_str") or "relu"
    if name == "standard" and older == "topk":
        name = "topk"
    elif older not in ("relu", "topk"):
        raise DictionaryError(f"this activation is not known: {said.path}", value=older, expected="relu or topk")
    if name not in ARCHITECTURES:
        raise said.wrong("architecture", ", ".join(ARCHITECTURES), "interp has nothing that computes the same")
    return ARCHITECTURES[name]


def _require_plain(said: Settings, about: Settings) -> None:
    """Refuse what is no linear map of the activations of the model as it is."""
    normalised = said.get("normalize_activations")
    if normalised in ("layer_norm", "constant_norm_rescale"):
        remedy = "it divides each token by a number of its own, and no weights do that: train it without"
        raise said.wrong("normalize_activations", "none, or expected_average_only_in or covariance_whitening", remedy)
    if said.get("reshape_activations") not in (None, "none"):
        remedy = "hook_z is what each head mixes, side by side, and no hook point of ours"
        raise said.wrong("reshape_activations", "none", remedy)
    if about.get("hook_head_index") is not None:
        raise about.wrong("hook_head_index", "null", "one head's activations are no hook point of ours")
    if about.part("model_from_pretrained_kwargs").get("center_writing_weights"):
        remedy = "its activations have their mean taken away, and those of the model as it is do not"
        raise about.part("model_from_pretrained_kwargs").wrong("center_writing_weights", "false", remedy)


def _hooks(architecture: Architecture, about: Settings, claim: Claim) -> tuple[str, str, bool]:
    where = str(about.path)
    key = "hook_name" if about.get("hook_name") is not None else "hook_point"
    folded = about.part("model_from_pretrained_kwargs").flag("fold_ln")
    found = hook_named(about.text(key), claim, where, folded=folded)
    if architecture.kind == "sae":
        return found.hook, found.hook, found.before_gain
    if about.get("hook_name_out") is None:
        raise about.wrong("hook_name_out", "what the transcoder predicts", "write blocks.<i>.hook_mlp_out there")
    target = hook_named(about.text("hook_name_out"), claim, where, folded=folded)
    if target.before_gain:
        raise about.wrong("hook_name_out", "a hook point that is not before a norm's gain")
    if found.before_gain and not found.hook.endswith(".mlp_in"):
        raise about.wrong("hook_name", "what an MLP reads, or a hook point that is not before a norm's gain")
    return found.hook, target.hook, found.before_gain


def _as_ours(architecture: Architecture, said: Settings, tensors: Tensors) -> Tensors:
    """Everything but the activation: what inputs, outputs and biases are, folded into the weights."""
    factor = tensors.pop("scaling_factor", None)
    if factor is not None and not torch.allclose(factor, torch.ones_like(factor)):
        what = f"the weights have a scaling_factor for finetuning, which SAELens reads no more: {said.path}"
        raise DictionaryError(what, expected="no scaling_factor, or ones", remedy="multiply rows of W_dec by it")
    if said.flag("rescale_acts_by_decoder_norm"):
        tensors = fold.with_decoder_norms(tensors)
    if architecture.kind == "sae":
        if not said.flag("apply_b_dec_to_input", default=True):
            tensors = fold.with_pre_bias(tensors)
    elif said.flag("apply_b_dec_to_input"):
        raise said.wrong("apply_b_dec_to_input", "false, as of every transcoder")
    return _without_normalisation(architecture, said, tensors)


def _without_normalisation(architecture: Architecture, said: Settings, tensors: Tensors) -> Tensors:
    normalised = said.get("normalize_activations")
    if normalised in (None, "none", False):
        return tensors
    key = "normalize_activations"
    if normalised is True:
        normalised = "expected_average_only_in"
    if architecture.kind != "sae" or normalised not in ("expected_average_only_in", "covariance_whitening"):
        raise said.wrong(key, "none" if architecture.kind != "sae" else "none or expected_average_only_in")
    scaler = Settings.read(
        said.path.with_name(SCALER),
        remedy="the number that activations are multiplied by is in no other file: fold it in with SAELens "
        "(fold_activation_norm_scaling_factor, save_model), or write it down there as scaling_factor",
    )
    if normalised == "covariance_whitening":
        d = {"d": tensors["b_dec"].shape[0]}
        parts = [Part("mean", "mean", ("d",))]
        parts += [Part(name, name, ("d", "d")) for name in ("matrix", "inverse_matrix")]
        white = read_parts(open_tensors(said.path.with_name(WHITENING)), parts, d)
        return fold.without_whitening(tensors, white["mean"], white["matrix"], white["inverse_matrix"])
    scale = scaler.get("scaling_factor")
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not scale > 0:
        raise scaler.wrong("scaling_factor", "a number above 0")
    return fold.without_scale(tensors, float(scale))


def _activation(architecture: Architecture, said: Settings, tensors: Tensors) -> tuple[ActivationSpec, Tensors]:
    match architecture.activation:
        case "relu":
            return ReLU(type="relu"), tensors
        case "gated":
            return Gated(type="gated"), tensors
        case "topk":
            older = said.part("activation_fn_kwargs")
            k = (older if said.get("k") is None and older.get("k") is not None else said).count("k")
            return TopK(type="topk", k=_at_most(k, tensors, said)), tensors
    threshold = fold.non_negative(tensors["threshold"])
    if threshold.ndim == 0:  # of a checkpoint in training; it is kept in float64, of which the weights need not be
        threshold = threshold.to(tensors["W_enc"].dtype)
        mean = said.get("k")  # of latents per token: it need not be whole
        if isinstance(mean, int | float) and mean >= 1 and float(mean).is_integer():
            spec = BatchTopK(type="batchtopk", k=_at_most(int(mean), tensors, said))
            return spec, {**tensors, "threshold": threshold}
        threshold = threshold.repeat(len(tensors["W_enc"]))
    return JumpReLU(type="jumprelu"), {**tensors, "threshold": threshold}


def _at_most(k: int, tensors: Tensors, said: Settings) -> int:
    if k > len(tensors["W_enc"]):
        raise said.wrong("k", f"at most {len(tensors['W_enc'])}, the number of latents")
    return k
