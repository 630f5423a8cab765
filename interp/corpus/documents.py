"""The documents of a corpus, in an order that depends on the corpus alone.

The first documents become the held-out part, so the order decides what is held out. It never depends on how a
filesystem lists its files or on how many readers there are:

    builtin://python-stdlib   the documents that the built-in model never saw first, each share by sha256 of the text,
                              so that what is held out of a study was also held out of the model
    files, globs, folders     files by sha256 of their name below the folder that all share, so that the held-out part
                              is not simply the first letters of the alphabet; the rows of a file as they stand
    hf://org/name             as the hub data set streams, at `revision`

A document without text is passed on (the packer skips and counts it).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from interp.corpus.files import file_documents
from interp.corpus.hub import hub_documents
from interp.corpus.rows import Document
from interp.errors import SourceError
from interp.sources.builtin import held_out, stdlib_documents
from interp.sources.revision import STDLIB
from interp.spec.study import CorpusSpec


def documents(spec: CorpusSpec) -> Iterator[Document]:
    """Yield the documents of `spec.source`, lazily.

    Raises:
        SourceError: there is nothing at the source, or it cannot be reached.
        CorpusError: a file, row or column cannot be read.
    """
    if spec.source.startswith("builtin://"):
        return _stdlib(spec.source)
    if spec.source.startswith("hf://"):
        return hub_documents(spec)
    return file_documents(spec)


def _stdlib(source: str) -> Iterator[Document]:
    if source != STDLIB:
        raise SourceError("there is no built-in corpus of that name", value=source, expected=STDLIB)
    # The standard library is about 10 MB of text: sorting it in memory is cheap.
    found = sorted(stdlib_documents(), key=lambda pair: (not held_out(pair[1]), _sha256(pair[1]), pair[0]))
    for name, text in found:
        yield Document(name, text)


def _sha256(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8")).digest()
