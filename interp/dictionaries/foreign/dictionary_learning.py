"""dictionary_learning's SAEs, read.

    <anywhere>/trainer_<i>/ae.pt, config.json       one SAE; config.json: {trainer: {dict_class, layer, ...}, buffer}

    AutoEncoder             encoder.weight [F, D], encoder.bias, decoder.weight [D, F], bias [D] (pre-bias and b_dec)
    AutoEncoderNew          encoder.weight, encoder.bias, decoder.weight, decoder.bias; no pre-bias
    AutoEncoderTopK         encoder.weight, encoder.bias, decoder.weight, b_dec, k [], threshold [] (not used)
    BatchTopKSAE            the same; at inference what exceeds the threshold
    MatryoshkaBatchTopKSAE  W_enc [D, F], b_enc, W_dec [F, D], b_dec, k, threshold, group_sizes
    JumpReluAutoEncoder     W_enc [D, F], b_enc, W_dec [F, D], b_dec, threshold [F]; no pre-bias
    GatedAutoEncoder        encoder.weight, decoder.weight, decoder_bias, gate_bias, mag_bias, r_mag

`dict_class` decides: BatchTopKSAE and AutoEncoderTopK have the same tensors. ae.pt is a pickle, of which torch reads
tensors alone (weights_only). Biases and thresholds are saved for raw activations. Where an SAE stands, `submodule_name`
tells with `layer`: a module's path, or the names of the field (`resid_post_layer_3`, `mlp_out`); for a module,
`buffer.io: in` means what it reads. Unlike the program's own loader we leave decoder rows as long as they are.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from interp.dictionaries.base import SparseDictionary
from interp.dictionaries.foreign import assemble as fold
from interp.dictionaries.foreign.assemble import Tensors, assemble, axes, read_each
from interp.dictionaries.foreign.claim import Claim
from interp.dictionaries.foreign.places import module_hooks
from interp.dictionaries.foreign.settings import Settings
from interp.dictionaries.foreign.tensors import Part, read_parts
from interp.errors import DictionaryError
from interp.spec.dictionary import ActivationSpec, BatchTopK, Gated, JumpReLU, ReLU, TopK

NAME = "dictionary-learning"
WEIGHTS, CONFIG = "ae.pt", "config.json"

_INTEGERS = ("k", "group_sizes")
_REMEDY = "dictionary_learning writes config.json beside ae.pt: it says the architecture, the layer and the model"
_SITES = {"resid": "", "resid_post": "", "resid_out": "", "mlp": "mlp", "mlp_out": "mlp", "attn": "attn"}
_SITES |= {"attn_out": "attn", "resid_pre": "resid_pre"}
_FIELD_NAME = re.compile(rf"({'|'.join(sorted(_SITES, key=len, reverse=True))})(?:_?layer_?(\d+)|_(\d+))?")


def _linear(b_dec: str, *more: Part, bias: bool = True) -> tuple[Part, ...]:
    """An encoder and a decoder that are torch's Linear."""
    return (
        Part("W_enc", "encoder.weight", ("F", "d_in")),
        *([Part("b_enc", "encoder.bias", ("F",))] if bias else []),
        Part("W_dec", "decoder.weight", ("d_out", "F"), transposed=True),
        Part("b_dec", b_dec, ("d_out",)),
        *more,
    )


_MATRICES = (
    Part("W_enc", "W_enc", ("d_in", "F"), transposed=True),
    Part("b_enc", "b_enc", ("F",)),
    Part("W_dec", "W_dec", ("F", "d_out")),
    Part("b_dec", "b_dec", ("d_out",)),
)
_ONE_THRESHOLD = Part("threshold", "threshold", ())
_GATES = (
    Part("b_enc", "gate_bias", ("F",)),
    Part("r_mag", "r_mag", ("F",)),
    Part("b_mag", "mag_bias", ("F",)),
)


@dataclass(frozen=True)
class DictClass:
    """One `dict_class`: its activation as ours, its tensors, and whether it reads x - b_dec."""

    activation: str
    parts: tuple[Part, ...]
    pre_bias: bool = True


CLASSES: Mapping[str, DictClass] = {
    "AutoEncoder": DictClass("relu", _linear("bias")),
    "AutoEncoderNew": DictClass("relu", _linear("decoder.bias"), pre_bias=False),
    "AutoEncoderTopK": DictClass("topk", _linear("b_dec", Part("threshold", "threshold", (), optional=True))),
    "BatchTopKSAE": DictClass("batchtopk", _linear("b_dec", _ONE_THRESHOLD)),
    "MatryoshkaBatchTopKSAE": DictClass("batchtopk", (*_MATRICES, _ONE_THRESHOLD)),
    "JumpReluAutoEncoder": DictClass("jumprelu", (*_MATRICES, Part("threshold", "threshold", ("F",))), pre_bias=False),
    "GatedAutoEncoder": DictClass("gated", _linear("decoder_bias", *_GATES, bias=False)),
}


class StateFile:
    """The tensors of a `torch.save`d state; whole numbers apart. Nothing but tensors is ever unpickled."""

    def __init__(self, path: Path):
        self.path = path
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
            raise DictionaryError(
                f"a file with the weights of a dictionary is not readable: {path}",
                value=next(iter(str(error).splitlines()), type(error).__name__),
                expected="a state of tensors, as torch.save writes it",
                remedy="the file was truncated or changed, or holds Python objects, which are never unpickled",
            ) from error
        if not isinstance(content, dict) or not all(isinstance(each, Tensor) for each in content.values()):
            raise DictionaryError(f"this is no state of tensors: {path}", expected="names and tensors")
        self.integers = {name: content.pop(name).tolist() for name in _INTEGERS if name in content}
        self._tensors: dict[str, Tensor] = content

    def names(self) -> Sequence[str]:
        return tuple(self._tensors)

    def read(self, name: str) -> Tensor:
        return self._tensors[name]


def is_here(folder: Path) -> bool:
    """Whether a folder has such files, itself or below."""
    return folder.is_dir() and next(folder.rglob(WEIGHTS), None) is not None


def read(folder: Path, claim: Claim) -> dict[str, SparseDictionary]:
    """All SAEs below a folder, by place.

    Raises:
        DictionaryError: a file is not as it should be, or does not tell where its SAE stands or what it computes.
    """
    folders = sorted(path.parent for path in folder.rglob(WEIGHTS))
    return read_each(folders, lambda each: _read(each, claim), "name the folder of one trainer")


def _read(folder: Path, claim: Claim) -> SparseDictionary:
    config = Settings.read(folder / CONFIG, _REMEDY)
    said, where = config.part("trainer"), str(config.path)
    if said.text("dict_class") not in CLASSES:
        raise said.wrong("dict_class", ", ".join(CLASSES), "interp has nothing that computes the same")
    kind = CLASSES[said.text("dict_class")]
    claim.tell_model(said.optional_text("lm_name"), where)
    hook = _hook(said, config.part("buffer"), claim)
    file, sizes = StateFile(folder / WEIGHTS), axes(hook, hook, claim)
    tensors = read_parts(file, kind.parts, sizes)
    said.require("dict_size", sizes["F"])
    if not kind.pre_bias:
        tensors = fold.with_pre_bias(tensors)
    activation, tensors = _activation(kind, said, file, tensors)
    return assemble(
        tensors,
        kind="sae",
        hook_in=hook,
        hook_out=hook,
        activation=activation,
        claim=claim,
        format=NAME,
        widths=_widths(file, sizes["F"]),
    )


def _activation(kind: DictClass, said: Settings, file: StateFile, tensors: Tensors) -> tuple[ActivationSpec, Tensors]:
    match kind.activation:
        case "relu":
            return ReLU(type="relu"), tensors
        case "gated":
            return Gated(type="gated"), tensors
        case "jumprelu":
            return JumpReLU(type="jumprelu"), {**tensors, "threshold": fold.non_negative(tensors["threshold"])}
        case "topk":
            tensors = {name: tensor for name, tensor in tensors.items() if name != "threshold"}
            return TopK(type="topk", k=_k(said, file, len(tensors["W_enc"]))), tensors
    k = _k(said, file, len(tensors["W_enc"]))
    threshold = fold.non_negative(tensors["threshold"]).to(tensors["W_enc"].dtype)
    return BatchTopK(type="batchtopk", k=k), {**tensors, "threshold": threshold}


def _k(said: Settings, file: StateFile, n_latents: int) -> int:
    """As the config and the weights say it; one of them may be silent."""
    stored = file.integers.get("k")
    if said.get("k") is None and stored is None:
        raise said.wrong("k", "a whole number of at least 1", "without k the activations are unknown")
    k = said.count("k") if said.get("k") is not None else stored
    if stored not in (None, k) or not isinstance(k, int) or not 1 <= k <= n_latents:
        raise DictionaryError(
            f"k of the config and of the weights do not go together: {file.path}",
            value=f"{said.get('k')} and {stored}, with {n_latents} latents",
            expected="one number, of 1 to the number of latents",
        )
    return k


def _widths(file: StateFile, n_latents: int) -> list[int]:
    sizes = file.integers.get("group_sizes", [])
    if sizes and (sum(sizes) != n_latents or min(sizes) < 1):
        raise DictionaryError(f"group_sizes do not add up: {file.path}", value=sizes, expected=f"{n_latents} in all")
    return [sum(sizes[: i + 1]) for i in range(len(sizes))]


def _hook(said: Settings, buffer: Settings, claim: Claim) -> str:
    """Where it stands.

    Raises:
        DictionaryError: the config does not tell, or it is no hook point of the model.
    """
    family, topology, name = claim.model.family, claim.model.topology, said.get("submodule_name")
    if not isinstance(name, str):
        raise said.wrong(
            "submodule_name",
            "where the SAE stands: resid_post, mlp_out, attn_out, or the path of a module",
            "older releases do not say: write it there",
        )
    io = buffer.text("io", "out")
    if io not in ("in", "out"):
        raise buffer.wrong("io", "in or out", "transcoders of dictionary_learning are not read")
    match = _FIELD_NAME.fullmatch(name)
    if match is None:
        given, read = module_hooks(name, family, str(said.path))[::-1]
        hook = read if io == "in" else given
    else:
        told = next((int(number) for number in match.groups()[1:] if number is not None), None)
        layer = said.get("layer") if told is None else told
        if isinstance(layer, bool) or not isinstance(layer, int) or said.get("layer") not in (None, layer):
            raise said.wrong("layer", f"the layer, as {name} says too" if told is not None else "the layer's number")
        if not 0 <= layer < topology.n_layers:
            raise said.wrong("layer", f"0 to {topology.n_layers - 1}, the layers of {claim.source}")
        hook = _site(match[1], layer, claim, str(said.path))
    if hook is None or hook not in topology.hook_names:
        raise said.wrong("submodule_name", f"a module of one of the {topology.n_layers} layers of {claim.source}")
    return hook


def _site(name: str, layer: int, claim: Claim, where: str) -> str:
    """The hook point of a name of the field: what that module gives, and not what a norm behind it makes of that."""
    prefix, block = claim.model.topology.block_name(layer), claim.model.family.block
    if _SITES[name] == "resid_pre":
        return f"{prefix}.resid_pre"
    post_norm = {"mlp": block.mlp_post_norm, "attn": block.attn_post_norm, "": None}[_SITES[name]]
    if post_norm is not None:
        raise DictionaryError(
            f"in models of the family {claim.model.family.name} a norm stands behind this module: {where}",
            value=name,
            expected="a place that is a hook point: resid_post, or the path of that norm",
        )
    return f"{prefix}.{ {'mlp': 'mlp_out', 'attn': 'attn_out', '': 'resid_post'}[_SITES[name]] }"
