"""Activations as blocks of Ray Data and back: of a bundle one row, in which all tensors lie one after the other.

    index    of the bundle
    shard    whose hook points these are
    data     micro-batch by micro-batch, hook point by hook point, [tokens, width] in the model's dtype
    error    instead of data: what the actor met with, pickled

Shapes are not written: reader and writer have them from the plan. A block is copied twice, out of the model's tensors
into the row and from there into shared memory; it is read where it lies.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from interp.engine.microbatches import Bundle, MicroBatch
from interp.errors import EngineError, InterpError
from interp.training.session import Activations


class OutOfPlace(RuntimeError):
    """The stream and the worker disagree about where training is: both must start again from the checkpoint."""


def packed(index: int, shard: int, micros: Sequence[Sequence[Tensor]]) -> pa.Table:
    """The block of a bundle: of each micro-batch the activations at a shard's hook points."""
    data = np.empty(sum(values.nbytes for values in _all(micros)), np.uint8)
    room, begin = torch.from_numpy(data), 0
    for values in _all(micros):
        end = begin + values.nbytes
        room[begin:end].view(values.dtype).view(values.shape).copy_(values)
        begin = end
    offsets = pa.py_buffer(np.array([0, len(data)], np.int64))
    column = pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(data)])
    return _table(index, shard, column, None)


def failed(index: int, shards: int, error: InterpError) -> Iterator[pa.Table]:
    """The blocks of a bundle that came to nothing, one for each shard."""
    for shard in range(shards):
        yield _table(index, shard, pa.array([b""], pa.large_binary()), pickle.dumps(error))


def _table(index: int, shard: int, data: pa.Array, error: bytes | None) -> pa.Table:
    columns = {"index": [index], "shard": [shard], "data": data, "error": pa.array([error], pa.large_binary())}
    return pa.table(columns)


def _all(micros: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    return [values for micro in micros for values in micro]


def unpacked(
    block: pa.Table | None, bundle: Bundle, shard: int, widths: Mapping[str, int], dtype: torch.dtype
) -> list[Activations]:
    """The micro-batches of a bundle, as views into the block.

    Args:
        widths: of the hook points that were packed, in their order.

    Raises:
        InterpError: what the actor met with, instead of activations.
        OutOfPlace: the block is of another bundle, or another shard's.
    """
    if block is None:
        raise OutOfPlace(f"the stream of activations ended before bundle {bundle.index}")
    error = block["error"][0].as_py()
    if error is not None:
        raise pickle.loads(error)
    found = block["index"][0].as_py(), block["shard"][0].as_py()
    if found != (bundle.index, shard):
        raise OutOfPlace(f"bundle {found[0]} of shard {found[1]} arrived instead of {bundle.index} of shard {shard}")
    data = _bytes(block["data"].chunk(0))
    expected = sum(micro.tokens for micro in bundle.micros) * sum(widths.values()) * dtype.itemsize
    if data.size != expected:
        raise EngineError("a block of activations has another size", value=data.size, expected=f"{expected} bytes")
    if not expected:
        return []
    with warnings.catch_warnings():
        # The memory is shared and read-only; training never writes into activations.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        flat = torch.from_numpy(np.frombuffer(data, np.uint8)).view(dtype)
    return _cut(flat, bundle.micros, widths)


def _bytes(column: pa.LargeBinaryArray) -> pa.Buffer:
    """The only entry of a column, where it lies: as a scalar of Arrow it would be a copy."""
    _, offsets, data = column.buffers()
    begin, end = np.frombuffer(offsets, np.int64)[column.offset : column.offset + 2]
    return data[begin:end]


def _cut(flat: Tensor, micros: Sequence[MicroBatch], widths: Mapping[str, int]) -> list[Activations]:
    found: list[Activations] = []
    begin = 0
    for micro in micros:
        acts: dict[str, Tensor] = {}
        for hook, width in widths.items():
            end = begin + micro.tokens * width
            acts[hook] = flat[begin:end].view(micro.tokens, width)
            begin = end
        found.append(acts)
    return found
