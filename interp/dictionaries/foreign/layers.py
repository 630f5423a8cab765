"""One transcoder of one MLP, from a file of a known layout.

A layout is a table of tensors; three of them cover what circuit-tracer and Gemma Scope write. Adding a format that also
has one file for each layer is another table. Whether the activation is topk is in no file of weights: the caller knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from interp.dictionaries.config import DictionaryConfig
from interp.dictionaries.foreign.claim import Claim, behind_gain
from interp.dictionaries.foreign.tensors import Part, TensorFile, dtype_name, open_tensors, read_parts, single_dtype
from interp.dictionaries.transcoder import Transcoder
from interp.errors import DictionaryError
from interp.spec.dictionary import ActivationSpec, JumpReLU, ReLU, TopK

Layout = tuple[Part, ...]

CIRCUIT_TRACER: Layout = (
    Part("W_enc", "W_enc", ("F", "d_in")),
    Part("W_dec", "W_dec", ("F", "d_out")),
    Part("b_enc", "b_enc", ("F",)),
    Part("b_dec", "b_dec", ("d_out",)),
    Part("threshold", "activation_function.threshold", ("F",), optional=True),
    Part("W_skip", "W_skip", ("d_out", "d_in"), optional=True),
)
"""circuit-tracer's `layer_{i}.safetensors`; the skip path is x @ W_skip^T."""

GEMMA_SCOPE: Layout = (
    Part("W_enc", "W_enc", ("d_in", "F"), transposed=True),
    Part("W_dec", "W_dec", ("F", "d_out")),
    Part("b_enc", "b_enc", ("F",)),
    Part("b_dec", "b_dec", ("d_out",)),
    Part("threshold", "threshold", ("F",)),
)
"""Gemma Scope's `params.npz`."""

GEMMA_SCOPE_2: Layout = (
    Part("W_enc", "w_enc", ("d_in", "F"), transposed=True),
    Part("W_dec", "w_dec", ("F", "d_out")),
    Part("b_enc", "b_enc", ("F",)),
    Part("b_dec", "b_dec", ("d_out",)),
    Part("threshold", "threshold", ("F",)),
    Part("W_skip", "affine_skip_connection", ("d_in", "d_out"), optional=True, transposed=True),
)
"""Gemma Scope 2's `params.safetensors`."""


def layout_of(file: TensorFile) -> Layout:
    """Gemma Scope's files are also listed in circuit-tracer's sets; they are told by their names for tensors."""
    names = file.names()
    if "w_enc" in names:
        return GEMMA_SCOPE_2
    return GEMMA_SCOPE if file.path.suffix == ".npz" else CIRCUIT_TRACER


def read_transcoder(
    path: Path, layer: int, claim: Claim, format: str, *, before_gain: bool, topk: int | None = None
) -> Transcoder:
    """The transcoder of a layer, counted over all groups.

    Args:
        before_gain: it was trained on the normalised input without the norm's gain.
        topk: k, where the activation is topk; otherwise jumprelu where there are thresholds, and relu.

    Raises:
        DictionaryError: the file does not hold what its layout and the model say.
    """
    file, widths = open_tensors(path), claim.widths(layer)
    sizes = dict(widths)
    tensors = read_parts(file, layout_of(file), sizes)
    activation = activation_of(path, tensors.get("threshold"), topk, sizes["F"])
    if before_gain:
        tensors = behind_gain(tensors, claim, layer)
    tensors = single_dtype(tensors, claim.dtype)
    place = claim.place(layer)
    said = {
        "kind": "skip-transcoder" if "W_skip" in tensors else "transcoder",
        "hook_in": f"{place}_in",
        "hook_out": f"{place}_out",
        **widths,
        "n_latents": sizes["F"],
        "activation": activation,
        "dtype": dtype_name(tensors["W_enc"].dtype),
        "model": claim.identity(format),
    }
    config = DictionaryConfig.model_validate(said)
    with torch.device("meta"):  # no memory, no random numbers: the file's tensors become the parameters
        transcoder = Transcoder(config)
    own = {("activation.threshold" if name == "threshold" else name): tensor for name, tensor in tensors.items()}
    transcoder.load_state_dict(own, assign=True)
    return transcoder


def activation_of(path: Path, threshold: Tensor | None, topk: int | None, n_latents: int) -> ActivationSpec:
    """What the weights and the caller say of the activation.

    Raises:
        DictionaryError: they contradict one another, or say something impossible.
    """
    if topk is None:
        if threshold is None:
            return ReLU(type="relu")
        if bool((threshold < 0).any()):
            raise DictionaryError(
                f"a threshold is below 0, so that a latent could be active with a negative activation: {path}",
                value=float(threshold.min()),
                expected="thresholds of 0 and more",
            )
        return JumpReLU(type="jumprelu")
    if threshold is not None:
        raise DictionaryError(
            f"a topk dictionary has thresholds: {path}", value=f"k={topk} and thresholds", expected="one of them"
        )
    if topk > n_latents:
        raise DictionaryError(f"k is more than the latents: {path}", value=f"k={topk}", expected=f"at most {n_latents}")
    return TopK(type="topk", k=topk)


def require_same_activation(specs: Mapping[str, ActivationSpec]) -> None:
    """Refuse a set of which some layers have thresholds and some have not: a file was written by other means."""
    if len({spec.type for spec in specs.values()}) > 1:
        raise DictionaryError(
            "the layers of one set have different activations",
            value=", ".join(f"{name} {spec.type}" for name, spec in specs.items()),
            expected="thresholds in every file, or in none",
        )
