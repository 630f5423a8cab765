"""The prompts of a trace: from the study itself, a .txt file (one a line), .jsonl or .parquet, on any filesystem.

A row that is no prompt (empty, no JSON, not text) stays in the list with the reason as its `error`: it gets its line in
the results and stops no other. What is wrong with the whole file (not there, no such column) is an error.

Indices count the rows of the file, blank lines of .jsonl apart. An id is `p<index>-<hash of the text>`: it stays the
same when rows are added behind, and tells two files apart.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from interp.errors import SourceError
from interp.sources.files import format_of
from interp.sources.folders import explained
from interp.spec.study import TraceSpec

# A .zst that was cut short would be read as if it ended there.
_COMPRESSIONS = (None, "gzip", "bz2", "xz")
_EXPECTED = "a file that ends in .txt, .jsonl or .parquet (and .gz, .bz2 or .xz when compressed)"
_SHOWN = 60

Row = tuple[str, str | None]
"""The text of a row and what is wrong with it."""


@dataclass(frozen=True)
class Prompt:
    """One prompt; with an `error` it cannot be traced, and `text` is what there is of it."""

    index: int
    id: str
    text: str
    error: str | None = None

    @staticmethod
    def of(index: int, text: str, error: str | None = None) -> Prompt:
        content = text.encode("utf-8", "surrogatepass")
        if error is None and not text.strip():
            error = "the prompt is empty"
        if error is None and any("\ud800" <= letter <= "\udfff" for letter in text):
            error = "the prompt has half of a surrogate pair in it, which is no text"
        return Prompt(index, f"p{index:04d}-{hashlib.sha256(content).hexdigest()[:8]}", text, error)

    def content(self) -> dict[str, str]:
        """What of it a key depends on."""
        told = {"id": self.id, "text": self.text}
        return told if self.error is None else {**told, "error": self.error}


def prompts_of(spec: TraceSpec) -> list[Prompt]:
    """Every prompt of a study, in order.

    Raises:
        SourceError: the file cannot be read, has no such column, or holds no row at all.
    """
    rows: Iterable[Row]
    rows = (
        _rows(spec.prompts, spec.column) if isinstance(spec.prompts, str) else [(text, None) for text in spec.prompts]
    )
    prompts = [Prompt.of(index, text, error) for index, (text, error) in enumerate(rows)]
    if not prompts:
        raise SourceError("there is no prompt in the file", value=str(spec.prompts), expected="at least one row")
    return prompts


def _rows(source: str, column: str) -> list[Row]:
    kind, compression = format_of(source)
    if kind is None or compression not in _COMPRESSIONS:
        remedy = "name a file; a single prompt stands in a list: prompts: ['...']"
        raise SourceError("the format of the prompts cannot be told", value=source, expected=_EXPECTED, remedy=remedy)
    import fsspec

    with explained(source), fsspec.open(source, "rb", compression=compression) as stream:
        if kind == "parquet":
            return _parquet_rows(stream, column, source)
        content = stream.read()
    return list(_jsonl_rows(content, column) if kind == "jsonl" else _text_rows(content))


def _text_rows(content: bytes) -> Iterator[Row]:
    for line in content.rstrip(b"\r\n").split(b"\n") if content.strip() else ():
        yield _decoded(line.removesuffix(b"\r"))


def _jsonl_rows(content: bytes, column: str) -> Iterator[Row]:
    for line in content.split(b"\n"):
        if not line.strip():
            continue
        text, error = _decoded(line)
        yield (text, error) if error else _json_row(text.strip(), column)


def _json_row(line: str, column: str) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        return line, f"the row is no JSON: {error}"
    if not isinstance(row, dict):
        return line, f"the row is no object with the key {column!r}"
    if column not in row:
        return line, f"the row has no key {column!r}; it has {', '.join(row) or 'none'}"
    return _checked(row[column], column)


def _parquet_rows(stream: Any, column: str, source: str) -> list[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(stream)
        names = table.schema_arrow.names
        if column not in names:
            raise SourceError(
                f"the prompts have no column {column!r}",
                value=source,
                expected=f"one of {', '.join(names)}",
                remedy="set trace.column",
            )
        values = table.read([column]).column(0).to_pylist()
    except pyarrow.ArrowException as error:
        raise SourceError("this is no complete parquet file", value=f"{source}: {error}", expected=_EXPECTED) from error
    return [_checked(value, column) for value in values]


def _checked(value: Any, column: str) -> Row:
    if isinstance(value, str):
        return value, None
    shown = json.dumps(value, default=str)[:_SHOWN]
    return shown, f"{column!r} is no text but {type(value).__name__}"


def _decoded(line: bytes) -> Row:
    try:
        return line.decode("utf-8"), None
    except UnicodeDecodeError as error:
        return line.decode("utf-8", errors="replace"), f"the row is not UTF-8: {error.reason} at byte {error.start}"
