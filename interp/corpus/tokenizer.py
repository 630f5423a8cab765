"""Documents to token ids: the work that corpus actors do, a batch of documents at a time.

Text is text: a document that spells a special token (`<|endoftext|>`) gets the ids of its letters, so that nothing in
a corpus can forge a document boundary. No BOS or EOS is added here; packing does it. A document longer than
`PIECE_CHARACTERS` is tokenised in pieces cut after a line's end, because the tokenizer's working memory is some hundred
bytes a token; only the tokens at such a cut can differ from those of the whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int32
from numpy import ndarray

from interp.corpus.rows import Document
from interp.errors import CorpusError
from interp.spec.study import ModelSpec

PIECE_CHARACTERS = 1 << 20


@dataclass(frozen=True)
class TokenizedBatch:
    """The ids of several documents, one after another.

    `lengths[i]` is 0 for a document without text; `digests[i]` is the sha256 of its text.
    """

    ids: Int32[ndarray, "tokens"]
    lengths: tuple[int, ...]
    digests: tuple[bytes, ...]

    def documents(self) -> Iterator[tuple[bytes, Int32[ndarray, "length"]]]:
        start = 0
        for digest, length in zip(self.digests, self.lengths, strict=True):
            yield digest, self.ids[start : start + length]
            start += length


@dataclass(frozen=True)
class Separator:
    """The token that stands before every document, and the one that fills up a last row."""

    id: int
    kind: str
    pad_id: int

    @classmethod
    def of(cls, tokenizer: Any) -> Separator:
        """BOS, or EOS for a tokenizer without BOS.

        Raises:
            CorpusError: it has neither.
        """
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        if bos is None and eos is None:
            raise CorpusError(
                "the tokenizer has neither a BOS nor an EOS token, so documents cannot be told apart",
                value=getattr(tokenizer, "name_or_path", None),
                expected="bos_token or eos_token in tokenizer_config.json",
                remedy="set model.tokenizer to a folder with a complete tokenizer",
            )
        return cls(
            id=eos if bos is None else bos, kind="eos" if bos is None else "bos", pad_id=bos if eos is None else eos
        )


@dataclass(frozen=True)
class TokenizeWorker:
    """What an actor needs to tokenise: the model, of which it reads the tokenizer and no weights."""

    model: ModelSpec

    def start(self) -> Callable[[Sequence[Document]], TokenizedBatch]:
        tokenizer = self.load()
        return lambda batch: tokenize(tokenizer, batch)

    def load(self) -> Any:
        """The tokenizer that the study names, or the one beside the weights.

        Raises:
            SourceError: there is none.
            ModelError: there is one that cannot be read.
        """
        from interp.models.loading import load_tokenizer

        return load_tokenizer(self.model)


def tokenize(tokenizer: Any, batch: Sequence[Document]) -> TokenizedBatch:
    """The ids of each document of `batch`, in order."""
    encode = _encoder(tokenizer)
    pieces = [list(_pieces(document.text)) for document in batch]
    encoded = iter(encode([piece for of_one in pieces for piece in of_one]))
    ids: list[Int32[ndarray, "length"]] = [np.empty(0, np.int32)]
    lengths = []
    for of_one in pieces:
        parts = [np.asarray(next(encoded), dtype=np.int32) for _ in of_one]
        lengths.append(sum(map(len, parts)))
        ids.extend(parts)
    digests = tuple(hashlib.sha256(document.text.encode("utf-8")).digest() for document in batch)
    return TokenizedBatch(np.concatenate(ids), tuple(lengths), digests)


def _encoder(tokenizer: Any) -> Callable[[list[str]], list[list[int]]]:
    if not tokenizer.is_fast:
        return lambda texts: [
            tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True) for text in texts
        ]
    backend = tokenizer.backend_tokenizer
    # tokenizer.json may carry limits for short inputs, which would cut documents without a word.
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    return lambda texts: [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]


def _pieces(text: str) -> Iterator[str]:
    """The text in pieces of at most `PIECE_CHARACTERS`, cut after a line's end where there is one; none if blank."""
    if not text.strip():
        return
    start = 0
    while len(text) - start > PIECE_CHARACTERS:
        line_end = text.rfind("\n", start, start + PIECE_CHARACTERS)
        stop = line_end + 1 if line_end > start else start + PIECE_CHARACTERS
        yield text[start:stop]
        start = stop
    yield text[start:]
