"""sparsify's sparse coders (EleutherAI), read and written.

    <run>/<module>[/seed<n>]/cfg.json, sae.safetensors      one sparse coder; a run has many

    encoder.weight [F, D], encoder.bias [F], W_dec [F, D], b_dec [D], and W_skip [D, D] with skip_connection

cfg.json names neither model nor hook point. The folder's name is the module, from the model's `base_model` on
(`layers.3`, `layers.3.mlp`): an SAE reconstructs the module's output, a transcoder (`transcode`) predicts it from the
module's input. That the model is this one is the word of whoever uses them. Activations are relu, then the k largest:
our topk. `multi_topk` is a loss of training; `SparseCoder.forward` gives the reconstruction from 4 k latents then,
where `encode` and `decode` keep k, as we do. groupmax takes the largest of each of k groups: nothing of ours does.

Written are SAEs and transcoders with topk whose input and output are equally wide, at places that are a module's
output. `normalize_decoder`, of which only training takes note, is false: decoder rows of ours need not be of unit norm.
What else is lost: the normalisation of training, which is folded into the weights, and which prefixes were nested.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from interp.dictionaries.base import SparseDictionary
from interp.dictionaries.dictionary import Dictionary
from interp.dictionaries.foreign.assemble import assemble, axes, read_each
from interp.dictionaries.foreign.claim import Claim
from interp.dictionaries.foreign.places import module_hooks, module_of
from interp.dictionaries.foreign.settings import Settings
from interp.dictionaries.foreign.tensors import Part, open_tensors, read_parts
from interp.errors import DictionaryError
from interp.models.families import FAMILIES
from interp.sources.dictionaries import SPARSIFY_WEIGHTS as WEIGHTS
from interp.sources.dictionaries import module_in
from interp.spec.dictionary import TopK
from interp.version import __version__

NAME = "sparsify"
CONFIG = "cfg.json"

WRITTEN = re.compile(rf"[^/]+/({re.escape(CONFIG)}|{re.escape(WEIGHTS)})")
"""Names of the files of a run's folder."""

_PARTS = (
    Part("W_enc", "encoder.weight", ("F", "d_in")),
    Part("b_enc", "encoder.bias", ("F",)),
    Part("W_dec", "W_dec", ("F", "d_out")),
    Part("b_dec", "b_dec", ("d_out",)),
)
_SKIP = Part("W_skip", "W_skip", ("d_out", "d_in"))


def is_here(folder: Path) -> bool:
    """Whether a folder has such files, itself or below."""
    return folder.is_dir() and next(folder.rglob(WEIGHTS), None) is not None


def read(folder: Path, claim: Claim) -> dict[str, SparseDictionary]:
    """All sparse coders below a folder, by place.

    Raises:
        DictionaryError: a file is not as it should be, a folder's name is no module of the model, or a config says what
            no dictionary of ours does.
    """
    folders = sorted(path.parent for path in folder.rglob(WEIGHTS))
    return read_each(folders, lambda each: _read(each, claim), "name one run, and one seed of it: its own folder")


def _read(folder: Path, claim: Claim) -> SparseDictionary:
    said = Settings.read(folder / CONFIG)
    where = str(said.path)
    claim.require_fingerprint(said.part("interp").optional_text("fingerprint"), where)
    transcode, skip = said.flag("transcode"), said.flag("skip_connection")
    k = _k(said, transcode, skip)
    hook_in, hook_out = _hooks(folder, transcode, claim, where)
    sizes = axes(hook_in, hook_out, claim)
    tensors = read_parts(open_tensors(folder / WEIGHTS), (*_PARTS, *([_SKIP] if skip else [])), sizes)
    said.require("d_in", sizes["d_in"])
    said.require("num_latents", sizes["F"])
    if k > sizes["F"]:
        raise said.wrong("k", f"at most {sizes['F']}, the number of latents")
    return assemble(
        tensors,
        kind=("skip-transcoder" if skip else "transcoder") if transcode else "sae",
        hook_in=hook_in,
        hook_out=hook_out,
        activation=TopK(type="topk", k=k),
        claim=claim,
        format=NAME,
    )


def _k(said: Settings, transcode: bool, skip: bool) -> int:
    if said.text("activation", "topk") != "topk":
        remedy = "interp has nothing that computes the same as groupmax: the largest of each of k groups of latents"
        raise said.wrong("activation", "topk", remedy)
    if said.flag("signed"):
        raise said.wrong("signed", "false", "interp has no latents with negative activations")
    if skip and not transcode:
        raise said.wrong("skip_connection", "false without transcode", "interp has skip paths in transcoders only")
    return said.count("k", "without k the activations are unknown")


def _hooks(folder: Path, transcode: bool, claim: Claim, where: str) -> tuple[str, str]:
    name = module_in(folder)
    read, given = module_hooks(name, claim.model.family, where)
    topology = claim.model.topology
    if given not in topology.hook_names:
        raise DictionaryError(
            f"the model has no such module: {where}",
            value=name,
            expected=f"a module of one of the {topology.n_layers} layers of {claim.source}",
        )
    if not transcode:
        return given, given
    if read is None:
        raise DictionaryError(
            f"what this module reads is no hook point: {where}", value=name, expected="a block, or its MLP"
        )
    if read.endswith(".mlp_in") and not given.endswith(".mlp_out"):
        raise DictionaryError(f"the MLP's output is normed before the residual stream gets it: {where}", value=name)
    return read, given


# --- written


def write(
    loaded: Mapping[str, Dictionary],
    folder: Path,
    *,
    mlps: Sequence[str] = (),
    model_name: str | None = None,
    scan: str | None = None,
) -> None:
    """Each dictionary in a folder named as its module; the folder is made if need be.

    Raises:
        DictionaryError: sparsify has nothing that computes the same, or no such place.
    """
    ready = {_module(dictionary): dictionary for dictionary in map(_writable, loaded.values())}
    for module, dictionary in ready.items():
        place = folder / module
        place.mkdir(parents=True, exist_ok=True)
        (place / CONFIG).unlink(missing_ok=True)
        save_file(_tensors(dictionary), place / WEIGHTS)
        (place / CONFIG).write_text(json.dumps(_config(dictionary, model_name), indent=2) + "\n", encoding="utf-8")


def _writable(dictionary: Dictionary) -> SparseDictionary:
    config = dictionary.config
    if not isinstance(dictionary, SparseDictionary) or not isinstance(config.activation, TopK):
        raise DictionaryError(
            f"sparsify has nothing that computes the same as the {config.kind} at {config.at}",
            value=f"{config.kind}, {config.activation.type}",
            expected="sae, transcoder or skip-transcoder, with topk",
            remedy="write it for SAELens (--to saelens), or keep it in interp's format",
        )
    if dictionary.config.d_in != dictionary.config.d_out:
        raise DictionaryError(
            f"sparsify's transcoders read and write vectors of one width, unlike the one at {config.at}",
            value=f"{dictionary.config.d_in} to {dictionary.config.d_out}",
        )
    return dictionary


def _module(dictionary: SparseDictionary) -> str:
    """What sparsify calls the place."""
    config = dictionary.config
    family = FAMILIES.get(config.model.family) if config.model else None
    if family is None:
        raise DictionaryError(
            f"the dictionary at {config.at} names no family of models, which name the modules",
            value=config.model.family if config.model else "no model",
            expected=", ".join(FAMILIES),
        )
    module = module_of(config.hook_out, family)
    if module is not None and config.kind != "sae" and module_hooks(module, family, config.at)[0] != config.hook_in:
        module = None
    if module is None:
        raise DictionaryError(
            "sparsify names a place by a module: SAEs are of its output, transcoders go from its input to its output",
            value=config.at,
            expected=f"such a place in models of the family {family.name}",
            remedy="write it for SAELens (--to saelens), or keep it in interp's format",
        )
    return module


def _config(dictionary: SparseDictionary, model_name: str | None) -> dict[str, Any]:
    config = dictionary.config
    assert isinstance(config.activation, TopK)
    model = config.model
    return {
        "activation": "topk",
        "expansion_factor": max(config.n_latents // config.d_in, 1),
        "normalize_decoder": False,
        "num_latents": config.n_latents,
        "k": config.activation.k,
        "multi_topk": False,
        "skip_connection": config.kind == "skip-transcoder",
        "transcode": config.kind != "sae",
        "d_in": config.d_in,
        "interp": {  # sparsify passes over what it does not know
            "version": __version__,
            "model": model_name or (model.source if model else None),
            "fingerprint": model.fingerprint if model else None,
            "corpus": config.corpus,
        },
    }


def _tensors(dictionary: SparseDictionary) -> dict[str, Tensor]:
    tensors = {
        "encoder.weight": dictionary.W_enc,
        "encoder.bias": dictionary.b_enc,
        "W_dec": dictionary.W_dec,
        "b_dec": dictionary.b_dec,
    }
    if dictionary.W_skip is not None:
        tensors["W_skip"] = dictionary.W_skip
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
