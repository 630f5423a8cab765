"""The prompts of a trace: from the study itself, a .txt file (one a line), .jsonl or .parquet, or a folder or glob of
.txt files (one prompt each), on any filesystem.

A row that is no prompt (empty, no JSON, not text) stays in the list with the reason as its `error`: it gets its line in
the results and stops no other. What is wrong with the whole file (not there, no such column) is an error.

Indices count the rows of the file, blank lines of .jsonl apart; files of a folder are in the order of their names. An
id is `p<index>-<hash of the text>`, and of a file of a folder `<its name>-<hash of name and text>`: it stays the same
when others are added behind, and tells two prompts apart. A newline at the end of a line or of a file is not part of
the prompt, nor is the byte order mark that some editors begin a file with.
"""

from __future__ import annotations

import hashlib
import json
import re
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from interp.errors import SourceError
from interp.sources.files import format_of
from interp.sources.folders import explained
from interp.sources.prompt_files import expanded, read_files
from interp.spec.trace import TraceSpec, target_columns

# A .zst that was cut short would be read as if it ended there.
_COMPRESSIONS = (None, "gzip", "bz2", "xz")
_EXPECTED = (
    "a file that ends in .txt, .jsonl or .parquet (and .gz, .bz2 or .xz when compressed), or a folder or glob of .txt"
)
_SHOWN = 60
_LONGEST_STEM = 60

Values = Mapping[str, int | str]


@dataclass(frozen=True)
class _Row:
    """One row: its text, what is wrong with it, what it says in other columns, and its file if that is its own."""

    text: str
    error: str | None = None
    values: Values = field(default_factory=dict)
    file: str | None = None


@dataclass(frozen=True)
class Prompt:
    """One prompt; with an `error` it cannot be traced, and `text` is what there is of it.

    Attributes:
        row: what its row says in the columns that `trace.target` names.
    """

    index: int
    id: str
    text: str
    error: str | None = None
    row: Values = field(default_factory=dict, hash=False)

    @staticmethod
    def of(
        index: int, text: str, error: str | None = None, row: Values | None = None, file: str | None = None
    ) -> Prompt:
        """
        Args:
            file: the name of a file that is all the prompt's own.
        """
        content = text.encode("utf-8", "surrogatepass")
        if error is None and not text.strip():
            error = "the prompt is empty"
        if error is None and any("\ud800" <= letter <= "\udfff" for letter in text):
            error = "the prompt has half of a surrogate pair in it, which is no text"
        if file is None:
            name = f"p{index:04d}-{hashlib.sha256(content).hexdigest()[:8]}"
        else:
            stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", file.rpartition("/")[2].removesuffix(".txt"))[:_LONGEST_STEM]
            named = file.encode("utf-8", "surrogateescape") + b"\0" + content
            name = f"{stem.strip('-.') or 'p'}-{hashlib.sha256(named).hexdigest()[:8]}"
        return Prompt(index, name, text, error, dict(row or {}))

    def content(self) -> dict[str, Any]:
        """What of it a key depends on."""
        told = {"id": self.id, "text": self.text, "error": self.error, "row": dict(self.row)}
        return {name: value for name, value in told.items() if name in ("id", "text") or value}


def prompts_of(spec: TraceSpec) -> list[Prompt]:
    """Every prompt of a study, in order.

    Raises:
        SourceError: the file cannot be read, has no such column, or holds no row at all.
    """
    wanted = target_columns(spec.target)
    rows: Iterable[_Row]
    if isinstance(spec.prompts, str):
        rows = _rows(spec.prompts, spec.column, wanted)
    else:
        _require_columns("a list of prompts", wanted)
        rows = [_Row(text) for text in spec.prompts]
    prompts = [Prompt.of(i, row.text, row.error, row.values, row.file) for i, row in enumerate(rows)]
    if not prompts:
        raise SourceError("there is no prompt in the file", value=str(spec.prompts), expected="at least one row")
    return prompts


def _rows(source: str, column: str, wanted: Sequence[str]) -> list[_Row]:
    files = expanded(source)
    if files is not None:
        _require_columns(source, wanted)
        return [_Row(*_whole_text(content), file=name) for name, content in read_files(files)]
    kind, compression = format_of(source)
    if kind is None or compression not in _COMPRESSIONS:
        remedy = "name a file; a single prompt stands in a list: prompts: ['...']"
        raise SourceError("the format of the prompts cannot be told", value=source, expected=_EXPECTED, remedy=remedy)
    if kind == "text":
        _require_columns(source, wanted)
    import fsspec

    with explained(source), fsspec.open(source, "rb", compression=compression) as stream:
        if kind == "parquet":
            return _parquet_rows(stream, column, wanted, source)
        content = stream.read().removeprefix(BOM_UTF8)
    return list(_jsonl_rows(content, column, wanted) if kind == "jsonl" else _text_rows(content))


def _require_columns(source: str, wanted: Sequence[str]) -> None:
    """Text has no columns that a target could be named by."""
    if wanted:
        raise SourceError(
            f"trace.target is named by column {wanted[0]!r}, and these prompts have no columns",
            value=source,
            expected="a .jsonl or .parquet file",
        )


def _whole_text(content: bytes) -> tuple[str, str | None]:
    """A file as one prompt, without the newline at its end."""
    content = content.removeprefix(BOM_UTF8)
    return _decoded(content.removesuffix(b"\n").removesuffix(b"\r") if content.endswith(b"\n") else content)


def _text_rows(content: bytes) -> Iterator[_Row]:
    for line in content.rstrip(b"\r\n").split(b"\n") if content.strip() else ():
        yield _Row(*_decoded(line.removesuffix(b"\r")))


def _jsonl_rows(content: bytes, column: str, wanted: Sequence[str]) -> Iterator[_Row]:
    for line in content.split(b"\n"):
        if not line.strip():
            continue
        text, error = _decoded(line)
        yield _Row(text, error) if error else _json_row(text.strip(), column, wanted)


def _json_row(line: str, column: str, wanted: Sequence[str]) -> _Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        return _Row(line, f"the row is no JSON: {error}")
    if not isinstance(row, dict):
        return _Row(line, f"the row is no object with the key {column!r}")
    if column not in row:
        return _Row(line, f"the row has no key {column!r}; it has {', '.join(row) or 'none'}")
    return _checked(column, wanted, row.get)


def _parquet_rows(stream: Any, column: str, wanted: Sequence[str], source: str) -> list[_Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(stream)
        names = table.schema_arrow.names
        for name, field_name in ((column, "trace.column"), *((other, "trace.target") for other in wanted)):
            if name not in names:
                raise SourceError(
                    f"the prompts have no column {name!r}",
                    value=source,
                    expected=f"one of {', '.join(names)}",
                    remedy=f"set {field_name}",
                )
        columns = {name: table.read([name]).column(0).to_pylist() for name in {column, *wanted}}
    except pyarrow.ArrowException as error:
        raise SourceError("this is no complete parquet file", value=f"{source}: {error}", expected=_EXPECTED) from error
    return [_checked(column, wanted, partial(_cell, columns, i)) for i in range(len(columns[column]))]


def _cell(columns: Mapping[str, Sequence[Any]], index: int, name: str) -> Any:
    return columns[name][index]


def _checked(column: str, wanted: Sequence[str], value_of: Callable[[str], Any]) -> _Row:
    """The row of a prompt and of the values that a target is named by."""
    text = value_of(column)
    if not isinstance(text, str):
        shown = json.dumps(text, default=str)[:_SHOWN]
        return _Row(shown, f"{column!r} is no text but {type(text).__name__}")
    values = {name: value_of(name) for name in wanted}
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | str):
            found = "is not there" if value is None else f"is {type(value).__name__}"
            return _Row(text, f"{name!r}, which names the target, {found}; a text or a token id belongs there")
    return _Row(text, None, values)


def _decoded(line: bytes) -> tuple[str, str | None]:
    try:
        return line.decode("utf-8"), None
    except UnicodeDecodeError as error:
        what = f"the row is not UTF-8: {error.reason} at byte {error.start}"
        return line.decode("utf-8", errors="replace"), what
