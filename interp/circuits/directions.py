"""Reading a direction: one vector in a .npy or .safetensors file, local or remote."""

from __future__ import annotations

import io

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from interp.errors import SourceError
from interp.sources.folders import explained


def read_direction(source: str, width: int) -> Float[Tensor, "d_model"]:
    """The vector of a file, in float32.

    Raises:
        SourceError: the file cannot be read, or holds no vector of this width.
    """
    import fsspec

    expected = f"one vector of {width} numbers in a .npy or .safetensors file"
    with explained(source), fsspec.open(source, "rb") as stream:
        content = stream.read()
    try:
        tensors = _array(content) if source.endswith(".npy") else list(load(content).values())
    except (ValueError, TypeError, EOFError, SafetensorError) as error:
        raise SourceError("the direction cannot be read", value=f"{source}: {error}", expected=expected) from error
    if len(tensors) != 1 or tensors[0].numel() != width or not tensors[0].is_floating_point():
        found = ", ".join(f"{tuple(tensor.shape)} {tensor.dtype}" for tensor in tensors) or "nothing"
        raise SourceError("the direction does not fit the model", value=f"{source}: {found}", expected=expected)
    vector = tensors[0].flatten().float()
    if not bool(torch.isfinite(vector).all()):
        raise SourceError("the direction has numbers that are not finite", value=source, expected=expected)
    if not bool(vector.any()):
        raise SourceError("the direction is 0 everywhere", value=source, expected=expected)
    return vector


def _array(content: bytes) -> list[Tensor]:
    if not content.startswith(b"\x93NUMPY"):
        raise ValueError("it does not begin as a .npy file does")
    return [torch.from_numpy(np.load(io.BytesIO(content), allow_pickle=False))]
