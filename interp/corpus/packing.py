"""Packing: documents into contexts of equal length, and both parts cut off at exact numbers of tokens.

    held-out part   BOS doc BOS doc BOS do|      the first documents, until `holdout` tokens are full
    (discarded)                            c     the rest of the document that was cut
    training part   BOS doc BOS doc BOS d|       the documents after it, until `tokens` tokens are full

A context may begin in the middle of a document and may span several, as in pretraining. The tokenizer's BOS stands
before every document (its EOS where it has none) and counts as a token. A training document whose text equals a
held-out one's, by sha256, is dropped. Contexts of the training part are shuffled whole, by seed (PCG64); a partial
last context keeps its place at the end.

Memory does not grow with the corpus: each context is written to a temporary file at the place that the permutation
gives it, which takes 4 bytes a token of disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int32, Int64
from numpy import ndarray

from interp.corpus.tokenizer import Separator, TokenizedBatch
from interp.errors import CorpusError


@dataclass(frozen=True)
class Budget:
    """How much is packed: `tokens` to train on and `holdout` to keep out of it, in contexts of `context` tokens."""

    context: int
    tokens: int
    holdout: int


class Packer:
    """Takes tokenised documents in order, until `full`.

    Args:
        folder: where the two temporary files go.
        seed: of the permutation of the training contexts; None keeps the order of the documents.
    """

    def __init__(self, budget: Budget, separator: Separator, folder: Path, *, seed: int | None):
        self.budget = budget
        self.separator = separator
        self.counts = {"train": 0, "holdout": 0, "empty": 0, "duplicates": 0}
        self.largest_id = separator.id
        self._held_out: set[bytes] = set()
        self._holdout = BlockFile(folder / "holdout.i32", budget.holdout, budget.context, separator.pad_id, seed=None)
        self._train = BlockFile(folder / "train.i32", budget.tokens, budget.context, separator.pad_id, seed=seed)

    @property
    def full(self) -> bool:
        return self._train.full and self._holdout.full

    @property
    def packed(self) -> int:
        """Tokens so far, both parts together."""
        return self._holdout.filled + self._train.filled

    def add(self, batch: TokenizedBatch) -> None:
        """Pack documents; what comes after the budgets are full is left alone."""
        for digest, ids in batch.documents():
            if self.full:
                return
            if not len(ids):
                self.counts["empty"] += 1
            elif not self._holdout.full:
                self._held_out.add(digest)
                self._append(self._holdout, "holdout", ids)
            elif digest in self._held_out:
                self.counts["duplicates"] += 1
            else:
                self._append(self._train, "train", ids)

    def finish(self) -> tuple[Int32[ndarray, "n_train context"], Int32[ndarray, "n_holdout context"]]:
        """The contexts of both parts, mapped from disk.

        Raises:
            CorpusError: the documents were not enough.
        """
        if not self.full:
            raise self._too_small()
        return self._train.rows(), self._holdout.rows()

    def _append(self, part: BlockFile, name: str, ids: Int32[ndarray, "length"]) -> None:
        part.append(np.concatenate([np.array([self.separator.id], np.int32), ids]))
        self.counts[name] += 1
        self.largest_id = max(self.largest_id, int(ids.max()))

    def _too_small(self) -> CorpusError:
        train, holdout, counts = self._train.filled, self._holdout.filled, self.counts
        if holdout < self.budget.holdout:
            remedy = f"set corpus.holdout well below {holdout}, or add text"
        else:
            remedy = f"set corpus.tokens to at most {train}, lower corpus.holdout, or add text"
        return CorpusError(
            "the corpus is too small for the study",
            value=f"{train} training and {holdout} held-out tokens, from {counts['train']} and {counts['holdout']} "
            f"documents ({counts['empty']} empty ones and {counts['duplicates']} copies of held-out ones left out)",
            expected=f"{self.budget.tokens} training and {self.budget.holdout} held-out tokens",
            remedy=remedy,
        )


class BlockFile:
    """Exactly `tokens` tokens as contexts in a temporary file, each written once, at its place."""

    def __init__(self, path: Path, tokens: int, context: int, pad_id: int, *, seed: int | None):
        self.tokens, self.context, self.filled = tokens, context, 0
        self.path = path
        self._file = path.open("wb")  # closed in rows()
        self._places = places(tokens // context, seed)
        self._row = np.full(context, pad_id, np.int32)
        self._pad_id = pad_id

    @property
    def full(self) -> bool:
        return self.filled == self.tokens

    def append(self, ids: Int32[ndarray, "length"]) -> None:
        """Take as many of `ids` as the budget allows."""
        ids = ids[: self.tokens - self.filled]
        start = 0
        while start < len(ids):
            at = self.filled % self.context
            n = min(self.context - at, len(ids) - start)
            self._row[at : at + n] = ids[start : start + n]
            start += n
            self.filled += n
            if at + n == self.context or self.full:
                self._write(row=(self.filled - 1) // self.context)

    def rows(self) -> Int32[ndarray, "n context"]:
        """All contexts, mapped; no token can be appended after this."""
        with self._writing():
            self._file.close()
        n_rows = -(-self.tokens // self.context)
        if not n_rows:
            return np.empty((0, self.context), np.int32)
        return np.memmap(self.path, dtype=np.int32, mode="r", shape=(n_rows, self.context))

    def _write(self, row: int) -> None:
        place = int(self._places[row]) if row < len(self._places) else row
        with self._writing():
            self._file.seek(place * self._row.nbytes)
            self._file.write(self._row.tobytes())
        self._row[:] = self._pad_id

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CorpusError(
                f"the packed corpus cannot be written: {error}",
                value=str(self.path),
                expected=f"{4 * self.tokens} bytes of free space",
                remedy="free space there",
            ) from error


def places(n: int, seed: int | None) -> Int64[ndarray, "n"]:
    """Where each of `n` contexts goes: a permutation by seed, or the identity."""
    if seed is None:
        return np.arange(n)
    return np.random.Generator(np.random.PCG64(seed)).permutation(n)
