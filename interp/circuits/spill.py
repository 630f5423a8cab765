"""Tensors in a temporary file, for what a prompt's memory has no room for.

The file has no name (where the system allows it, it never had one): whatever happens to the process, nothing is left
behind. It lies where `tempfile` puts files: TMPDIR says where. Writing is plain, so that a full disk is an error and
not a signal; reading maps the file, so that a tensor costs memory only while it is used.
"""

from __future__ import annotations

import mmap
import tempfile
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from interp.errors import EngineError


class Spill:
    """One temporary file; it is made when the first tensor comes, and goes with the last one."""

    def __init__(self) -> None:
        self._file: Any = None
        self.size = 0

    def put(self, tensor: Tensor) -> SpilledTensor:
        """Write a tensor.

        Raises:
            EngineError: there is no room for it, or no place for temporary files.
        """
        data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
        start = -(-self.size // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="interp-", buffering=0)  # noqa: SIM115 - lives as long as this
            self._file.seek(start)
            left = data
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            raise EngineError(
                "a temporary file of this prompt could not be written",
                value=f"{error.strerror or error} after {self.size / 1e9:.2f} GB, for {len(data) / 1e9:.2f} GB more",
                expected=f"room on the disk of {tempfile.gettempdir()}",
                remedy="point TMPDIR to a larger disk, raise trace.memory, or lower trace.max_features",
            ) from error
        self.size = start + len(data)
        return SpilledTensor(self, start, tuple(tensor.shape), tensor.dtype)

    def map(self, start: int, size: int) -> mmap.mmap:
        """A part of the file as memory; what is written to it stays in memory."""
        return mmap.mmap(self._file.fileno(), size, access=mmap.ACCESS_COPY, offset=start)


@dataclass(frozen=True)
class SpilledTensor:
    """A tensor in a temporary file."""

    spill: Spill
    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    def load(self) -> Tensor:
        """The tensor, on the CPU. Its memory is given back when nothing refers to it any more."""
        size = prod(self.shape) * self.dtype.itemsize
        if not size:
            return torch.zeros(self.shape, dtype=self.dtype)
        return torch.frombuffer(self.spill.map(self.start, size), dtype=self.dtype).view(self.shape)


def loaded(tensor: Tensor | SpilledTensor) -> Tensor:
    """The tensor, wherever it is."""
    return tensor.load() if isinstance(tensor, SpilledTensor) else tensor
