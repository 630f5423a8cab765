"""Documents from text, JSON Lines and parquet files on any fsspec path, glob or folder.

A text file is one document; a row of JSON Lines or parquet is one document, its text in `column`. Files may be
compressed (.gz, .bz2, .xz, .zst). Everything is read as a stream: memory is bounded by one row, one parquet batch or,
for text, one file. Whatever cannot be read is an error that names the file and the row: a corpus that silently lost a
part of its text would still fill its budget.
"""

from __future__ import annotations

import json
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from fsspec.compression import compr

from interp.corpus.rows import Document, missing_column, text_of
from interp.corpus.zstd import ZstdReader
from interp.errors import CorpusError
from interp.sources.files import CorpusFile, find_files
from interp.sources.folders import explained
from interp.spec.study import CorpusSpec

_UNREADABLE = (
    OSError,
    EOFError,
    UnicodeDecodeError,
    zlib.error,
    lzma.LZMAError,
    zstandard.ZstdError,
    pa.ArrowException,
)
_PARQUET_ROWS = 256


def file_documents(spec: CorpusSpec) -> Iterator[Document]:
    """Yield the documents of every file that `spec.source` names."""
    for file in find_files(spec):
        with explained(file.path), _explained(file):
            yield from _READERS[file.format](file, spec.column)


@contextmanager
def _explained(file: CorpusFile) -> Iterator[None]:
    try:
        yield
    except _UNREADABLE as error:
        # A storage library may put credentials into its messages; what reads the content does not.
        said = type(error).__name__ if isinstance(error, OSError) and _is_remote(file) else f"{error}"
        raise CorpusError(
            f"a corpus file cannot be read: {said}",
            value=file.path,
            expected=f"a complete {file.format} file in UTF-8" + (f", {file.compression}" if file.compression else ""),
            remedy="repair or remove the file; a download may have been cut short",
        ) from error


def _is_remote(file: CorpusFile) -> bool:
    protocol = file.fs.protocol
    return not {"file", "memory"} & ({protocol} if isinstance(protocol, str) else set(protocol))


@contextmanager
def _opened(file: CorpusFile) -> Iterator[IO[bytes]]:
    with file.fs.open(file.path, "rb") as raw:
        if file.compression is None:
            yield raw
        elif file.compression == "zstd":
            yield ZstdReader.buffered(raw)
        else:
            with compr[file.compression](raw, mode="rb") as plain:
                yield plain


def _read_text(file: CorpusFile, column: str) -> Iterator[Document]:
    with _opened(file) as stream:
        text = stream.read().decode("utf-8")
    yield Document(file.name, text)


def _read_jsonl(file: CorpusFile, column: str) -> Iterator[Document]:
    with _opened(file) as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise CorpusError(
                    f"row {number} of {file.path} is no JSON: {error.msg}",
                    value=line[:80].decode("utf-8", errors="replace").rstrip(),
                    expected="one JSON object a line",
                    remedy="repair the line, or set corpus.format when this is no JSON Lines file",
                ) from error
            yield Document(f"{file.name}#{number}", text_of(row, column, f"row {number} of {file.path}"))


def _read_parquet(file: CorpusFile, column: str) -> Iterator[Document]:
    with _opened(file) as stream:
        table = pq.ParquetFile(stream)
        names = table.schema_arrow.names
        if column not in names:
            raise missing_column(column, names, file.path)
        number = 0
        for batch in table.iter_batches(batch_size=_PARQUET_ROWS, columns=[column]):
            for value in batch.column(0).to_pylist():
                number += 1
                text = text_of({column: value}, column, f"row {number} of {file.path}")
                yield Document(f"{file.name}#{number}", text)


_READERS = {"text": _read_text, "jsonl": _read_jsonl, "parquet": _read_parquet}
