"""Activations as blocks of Ray Data and back, without a copy on the reading side. bfloat16 travels as uint16, for
numpy has no such type."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from interp.training.session import Activations


class OutOfPlace(RuntimeError):
    """The stream and the worker disagree about where training is: both must start again from the checkpoint."""


def read(block: Mapping[str, Any] | None, index: int, hooks: Sequence[str], *, bfloat16: bool) -> Activations | None:
    """The activations in a block; None for one without tokens.

    Raises:
        InterpError: what the actor met with, instead of activations.
        OutOfPlace: the block is not number `index` of the stream.
    """
    if block is None:
        raise OutOfPlace(f"the stream of activations ended before micro-batch {index}")
    if "error" in block:
        raise pickle.loads(block["error"][0])
    if int(block["index"][0]) != index:
        raise OutOfPlace(f"micro-batch {int(block['index'][0])} arrived instead of {index}")
    if not int(block["tokens"][0]):
        return None
    return {hook: to_torch(block[hook][0], bfloat16) for hook in hooks}


def to_numpy(values: Tensor) -> Any:
    values = values.contiguous().cpu()
    return (values.view(torch.uint16) if values.dtype == torch.bfloat16 else values).numpy()


def to_torch(values: Any, bfloat16: bool) -> Tensor:
    with warnings.catch_warnings():
        # The memory is shared and read-only; training never writes into activations.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        tensor = torch.from_numpy(values)
    return tensor.view(torch.bfloat16) if bfloat16 else tensor
