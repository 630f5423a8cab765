"""Transcoders: predict what an MLP adds to the residual stream from what it reads."""

from __future__ import annotations

from typing import ClassVar

from interp.dictionaries.base import SparseDictionary
from interp.dictionaries.config import Kind


class Transcoder(SparseDictionary, registered=True):
    """y = W_dec^T a(W_enc x + b_enc) + b_dec [+ W_skip x] (arXiv:2406.11944; the skip path: arXiv:2501.18823)."""

    kinds: ClassVar[tuple[Kind, ...]] = ("transcoder", "skip-transcoder")

    @property
    def skip(self) -> bool:
        """Whether a linear map of the input is added."""
        return self.W_skip is not None
