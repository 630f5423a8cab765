"""Tensors of foreign files: read one at a time, each checked against a table of what the format says.

A `Part` names one tensor of a file, what it becomes here, and its axes: `d_in` and `d_out` are the model's widths, `F`
is the number of latents and is whatever the first tensor that has it says. Files are safetensors or npz; nothing is
ever unpickled. Every complaint names the file, the tensor, what was found and what was expected.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from interp.errors import DictionaryError

_NOT_NPZ = (OSError, EOFError, ValueError, NotImplementedError, zipfile.BadZipFile, zlib.error)
"""What numpy raises of a file that is empty, cut short, compressed in another way or otherwise none."""

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""The types that a dictionary can have."""


@dataclass(frozen=True)
class Part:
    """One tensor of a format.

    Attributes:
        name: what it is here.
        key: what the file calls it.
        axes: names of its dimensions, in the order of the file.
        optional: files may lack it.
        transposed: the file has it the other way round than we do.
    """

    name: str
    key: str
    axes: tuple[str, ...]
    optional: bool = False
    transposed: bool = False


class TensorFile(Protocol):
    """A file of named tensors."""

    path: Path

    def names(self) -> Sequence[str]: ...

    def read(self, name: str) -> Tensor:
        """A copy of one tensor."""
        ...


class SafetensorsFile:
    """A .safetensors file."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self._file = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise _unreadable(path, "safetensors", error) from error

    def names(self) -> Sequence[str]:
        return tuple(self._file.keys())

    def read(self, name: str) -> Tensor:
        try:
            tensor: Tensor = self._file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise _unreadable(self.path, "safetensors", error) from error
        return tensor.clone()  # the file's own memory is mapped, and changes when the file does


class NpzFile:
    """A .npz archive; arrays of Python objects, which would have to be unpickled, are refused."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self._file = np.load(path, allow_pickle=False)
        except _NOT_NPZ as error:
            raise _unreadable(path, "npz", error) from error
        if not isinstance(self._file, np.lib.npyio.NpzFile):
            raise DictionaryError(f"this is one array and no archive of them: {path}", expected="an npz file")

    def names(self) -> Sequence[str]:
        return tuple(self._file.files)

    def read(self, name: str) -> Tensor:
        try:
            array = self._file[name]
        except _NOT_NPZ as error:
            raise _unreadable(self.path, "npz", error) from error
        try:
            return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
        except TypeError as error:
            raise _wrong_dtype(self.path, name, str(array.dtype)) from error


def open_tensors(path: Path) -> TensorFile:
    """The file, by its ending.

    Raises:
        DictionaryError: it is not there, cannot be read, or ends otherwise.
    """
    if not path.is_file():
        raise DictionaryError("a file of the dictionaries is missing", value=str(path), remedy="copy all of them here")
    if path.suffix == ".npz":
        return NpzFile(path)
    if path.suffix == ".safetensors":
        return SafetensorsFile(path)
    what = f"a file with the weights of a dictionary is of no kind that is read: {path}"
    raise DictionaryError(what, value=path.suffix or "no ending", expected=".safetensors or .npz")


def read_parts(file: TensorFile, parts: Iterable[Part], sizes: dict[str, int]) -> dict[str, Tensor]:
    """The tensors of a file by our names, each checked; `F` is added to `sizes` where it was not known.

    Args:
        sizes: size of each axis that is known: `d_in` and `d_out` from the model.

    Raises:
        DictionaryError: a tensor is missing or unknown, or has another shape or type, or values that are not finite.
    """
    wanted = list(parts)
    there, known = set(file.names()), {part.key for part in wanted}
    missing = [part.key for part in wanted if not part.optional and part.key not in there]
    if missing or there - known:
        unknown = sorted(there - known)
        raise DictionaryError(
            f"a file does not hold the tensors of its format: {file.path}",
            value=f"missing {', '.join(missing) or 'none'}; unknown {', '.join(unknown) or 'none'}",
            expected=", ".join(f"{part.key}{' (or not)' if part.optional else ''}" for part in wanted),
        )
    return {part.name: _read_part(file, part, sizes) for part in wanted if part.key in there}


def common_dtype(tensors: Iterable[Tensor]) -> torch.dtype:
    """The narrowest type that holds all of them exactly."""
    found: torch.dtype | None = None
    for tensor in tensors:
        found = tensor.dtype if found is None else torch.promote_types(found, tensor.dtype)
    assert found is not None
    return found


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _read_part(file: TensorFile, part: Part, sizes: dict[str, int]) -> Tensor:
    tensor = file.read(part.key)
    if tensor.dtype not in FLOATS:
        raise _wrong_dtype(file.path, part.key, dtype_name(tensor.dtype))
    _require_shape(file.path, part, tensor.shape, sizes)
    if not torch.isfinite(tensor).all():
        bad = int(tensor.numel() - torch.isfinite(tensor).sum())
        raise DictionaryError(
            f"tensor {part.key} has values that are not finite: {file.path}",
            value=f"{bad} of {tensor.numel()}",
            expected="finite numbers",
        )
    return tensor.T.contiguous() if part.transposed else tensor


def _require_shape(path: Path, part: Part, shape: Sequence[int], sizes: dict[str, int]) -> None:
    if len(shape) == len(part.axes):
        for axis, size in zip(part.axes, shape, strict=True):
            sizes.setdefault(axis, size)
    expected = [sizes.get(axis) for axis in part.axes]
    if list(shape) != expected or math.prod(shape) == 0:
        told = ", ".join(
            axis if size is None else f"{axis}={size}" for axis, size in zip(part.axes, expected, strict=True)
        )
        raise DictionaryError(
            f"tensor {part.key} has another shape: {path}",
            value=str(tuple(shape)),
            expected=f"({told})",
            remedy="d_in and d_out are the model's: check that the dictionaries are for this model",
        )


def _wrong_dtype(path: Path, name: str, found: str) -> DictionaryError:
    return DictionaryError(
        f"tensor {name} is of a type that no dictionary has: {path}",
        value=found,
        expected=", ".join(dtype_name(dtype) for dtype in FLOATS),
    )


def _unreadable(path: Path, kind: str, error: Exception) -> DictionaryError:
    return DictionaryError(
        f"a file with the weights of a dictionary is not readable {kind}: {path}",
        value=str(error),
        remedy="the file was truncated or changed, or holds Python objects, which are never unpickled",
    )


def single_dtype(tensors: dict[str, Tensor], asked: str | None) -> dict[str, Tensor]:
    """All in one type, in place: the one that is asked for, or the one that holds all of them exactly."""
    dtype = getattr(torch, asked) if asked else common_dtype(tensors.values())
    for name in tensors:
        tensors[name] = tensors[name].to(dtype)
    return tensors
