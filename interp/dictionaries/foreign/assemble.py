"""A dictionary of ours from another program's tensors, by exact translations of what they compute.

Ours read raw activations, and an SAE of ours has a pre-bias: z = W_enc (x - b_dec) + b_enc. What others do otherwise is
affine and goes into the weights, in float64:

    no pre-bias                     b_enc <- b_enc + W_enc b_dec      [b_mag <- b_mag + exp(r_mag) W_enc b_dec]
    top k of z |W_dec|              W_enc, b_enc, thresholds in units of z |W_dec|; W_dec <- W_dec / |W_dec|
    inputs times s, outputs by s    W_enc <- s W_enc, W_dec <- W_dec / s, b_dec <- b_dec / s
    inputs (x - m) M                W_enc <- W_enc M^T, W_dec <- W_dec M^-1, b_dec <- b_dec M^-1 + m
    SAE of (x - c) / g              W_enc <- W_enc / g, W_dec <- g W_dec, b_dec <- g b_dec + c

The last is an SAE that was trained before a norm's gain g and bias c. Thresholds below 0 let nothing more through than
0 does where a ReLU stands before them, as it does in all of these programs: they are set to 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from interp.dictionaries.base import SparseDictionary
from interp.dictionaries.config import DictionaryConfig
from interp.dictionaries.dictionary import KINDS
from interp.dictionaries.foreign.claim import Claim
from interp.dictionaries.foreign.tensors import dtype_name, single_dtype
from interp.errors import DictionaryError
from interp.spec.dictionary import ActivationSpec
from interp.spec.hookpoints import parse

Tensors = dict[str, Tensor]
"""By our names: W_enc, b_enc, W_dec, b_dec, and W_skip, threshold, r_mag, b_mag where there are any."""

_OF_ACTIVATION = ("threshold", "r_mag", "b_mag")


def assemble(
    tensors: Tensors,
    *,
    kind: str,
    hook_in: str,
    hook_out: str,
    activation: ActivationSpec,
    claim: Claim,
    format: str,
    widths: Sequence[int] = (),
) -> SparseDictionary:
    """The dictionary of these tensors, which become its parameters.

    Args:
        widths: of a nested one: how many latents each prefix has that was trained to reconstruct by itself.
    """
    tensors = single_dtype(dict(tensors), claim.dtype)
    n_latents, d_in = tensors["W_enc"].shape
    config = DictionaryConfig.model_validate(
        {
            "kind": kind,
            "hook_in": hook_in,
            "hook_out": hook_out,
            "d_in": d_in,
            "d_out": tensors["W_dec"].shape[1],
            "n_latents": n_latents,
            "activation": activation,
            "matryoshka": [width / n_latents for width in widths],
            "dtype": dtype_name(tensors["W_enc"].dtype),
            "model": claim.identity(format),
        }
    )
    with torch.device("meta"):  # no memory, no random numbers: the file's tensors become the parameters
        dictionary = KINDS[kind](config)
    assert isinstance(dictionary, SparseDictionary)
    own = {(f"activation.{name}" if name in _OF_ACTIVATION else name): tensor for name, tensor in tensors.items()}
    dictionary.load_state_dict(own, assign=True)
    return dictionary


def read_each(
    folders: Iterable[Path], read: Callable[[Path], SparseDictionary], remedy: str
) -> dict[str, SparseDictionary]:
    """The dictionary of each folder by its place, in execution order.

    Raises:
        DictionaryError: two are for one place.
    """
    by_place: dict[str, tuple[Path, SparseDictionary]] = {}
    for folder in folders:
        dictionary = read(folder)
        at = dictionary.config.at
        if at in by_place:
            raise DictionaryError(
                f"there are several dictionaries at {at}",
                value=f"{by_place[at][0]}, {folder}",
                expected="one set of dictionaries, at most one for each place",
                remedy=remedy,
            )
        by_place[at] = folder, dictionary
    order = sorted(by_place.items(), key=lambda item: parse(item[1][1].config.hook_in))
    return {at: dictionary for at, (_, dictionary) in order}


def axes(hook_in: str, hook_out: str, claim: Claim) -> dict[str, int]:
    """Sizes of the axes `d_in` and `d_out`."""
    topology = claim.model.topology
    return {"d_in": topology.width(hook_in), "d_out": topology.width(hook_out)}


# --- exact translations; each returns new tensors, those that it changes in float32 at least


def with_pre_bias(tensors: Tensors) -> Tensors:
    """An SAE that reads x as one that reads x - b_dec."""
    moved = _double(tensors["W_enc"]) @ _double(tensors["b_dec"])
    changed = {"b_enc": _double(tensors["b_enc"]) + moved}
    if "b_mag" in tensors:
        changed["b_mag"] = _double(tensors["b_mag"]) + _double(tensors["r_mag"]).exp() * moved
    return _with(tensors, changed)


def with_decoder_norms(tensors: Tensors) -> Tensors:
    """One whose pre-activations are to be multiplied by the norms of decoder rows, as one where they are."""
    W_dec = _double(tensors["W_dec"])
    norms = W_dec.norm(dim=-1)
    changed = {"W_enc": _double(tensors["W_enc"]) * norms[:, None], "b_enc": _double(tensors["b_enc"]) * norms}
    return _with(tensors, {**changed, "W_dec": W_dec / torch.where(norms > 0, norms, 1)[:, None]})


def without_scale(tensors: Tensors, scale: float) -> Tensors:
    """An SAE of `scale` times the activations as one of the activations."""
    changed = {"W_enc": _double(tensors["W_enc"]) * scale, "W_dec": _double(tensors["W_dec"]) / scale}
    return _with(tensors, {**changed, "b_dec": _double(tensors["b_dec"]) / scale})


def without_whitening(tensors: Tensors, mean: Tensor, matrix: Tensor, inverse: Tensor) -> Tensors:
    """An SAE of (x - mean) @ matrix as one of x; it has a pre-bias."""
    changed = {"W_enc": _double(tensors["W_enc"]) @ matrix.double().T}
    changed["W_dec"] = _double(tensors["W_dec"]) @ inverse.double()
    return _with(tensors, {**changed, "b_dec": _double(tensors["b_dec"]) @ inverse.double() + mean.double()})


def sae_behind_gain(tensors: Tensors, hook: str, claim: Claim) -> Tensors:
    """An SAE of the normalised activations, before the norm's gain and bias, as one of what the norm gives.

    Raises:
        DictionaryError: a gain is 0, so that the norm's output lacks what the SAE reads.
    """
    point, frozen = parse(hook), claim.model.frozen
    if point.site == "final_norm":
        norm = frozen.final_norm
    else:
        block = frozen.blocks[claim.model.topology.layer_of(hook)]
        norm = block.mlp_norm if point.site == "mlp_in" else block.attn_norm
    gain = norm.weight.detach().double().cpu()
    if bool((gain == 0).any()):
        raise DictionaryError(
            f"an SAE at {hook} reads the norm's output before its gain, and some gains are 0",
            value=f"{int((gain == 0).sum())} of {len(gain)}",
            expected="gains that can be undone",
        )
    b_dec = _double(tensors["b_dec"]) * gain
    b_dec = b_dec if norm.bias is None else b_dec + norm.bias.detach().double().cpu()
    changed = {"W_enc": _double(tensors["W_enc"]) / gain, "W_dec": _double(tensors["W_dec"]) * gain}
    return _with(tensors, {**changed, "b_dec": b_dec})


def non_negative(threshold: Tensor) -> Tensor:
    """A threshold behind a ReLU: below 0 it is 0."""
    return threshold.clamp(min=0)


def _double(tensor: Tensor) -> Tensor:
    return tensor.double()


def _with(tensors: Tensors, changed: Mapping[str, Tensor]) -> Tensors:
    wide = {name: torch.promote_types(tensors[name].dtype, torch.float32) for name in changed}
    return {**tensors, **{name: tensor.to(wide[name]).contiguous() for name, tensor in changed.items()}}
