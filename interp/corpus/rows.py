"""What a document is, and how the row of a file or data set becomes one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from interp.errors import CorpusError

BATCH_CHARACTERS = 1 << 18
"""Text that one tokenizer call gets: enough to hide the cost of a task, little enough to spread over workers."""


@dataclass(frozen=True)
class Document:
    """One text; `id` is stable: a file's name below the source, or that and a row number that starts at 1."""

    id: str
    text: str


def batched(stream: Iterable[Document], characters: int = BATCH_CHARACTERS) -> Iterator[list[Document]]:
    """Group documents, in order, into lists of at most `characters` of text; a longer document stands alone."""
    batch: list[Document] = []
    size = 0
    for document in stream:
        if batch and size + len(document.text) > characters:
            yield batch
            batch, size = [], 0
        batch.append(document)
        size += len(document.text) + 1  # the separator: a run of empty documents ends a batch too
    if batch:
        yield batch


def text_of(row: Any, column: str, where: str) -> str:
    """The text of a row. A null is a document without text.

    Raises:
        CorpusError: the row is no object, lacks the column, or has something other than text in it.
    """
    if not isinstance(row, dict):
        raise CorpusError(
            f"{where} is no object",
            value=f"{type(row).__name__} {str(row)[:60]}",
            expected=f"an object with the key {column!r}",
            remedy="repair the row, or set corpus.format to what the file is",
        )
    if column not in row:
        raise missing_column(column, list(row), where)
    value = row[column]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise CorpusError(
            f"column {column!r} of {where} is not text",
            value=f"{type(value).__name__} {str(value)[:60]}",
            expected="a string",
            remedy="set corpus.column to the column that holds the text",
        )
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        # JSON can spell half of a surrogate pair, which is no character: U+FFFD stands for it, as in browsers.
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value


def missing_column(column: str, found: list[str], where: str) -> CorpusError:
    return CorpusError(
        f"there is no column {column!r} in {where}",
        value=f"columns {', '.join(sorted(map(str, found))) or '(none)'}",
        expected=f"a column {column!r} that holds the text",
        remedy="set corpus.column to one of the columns found",
    )
