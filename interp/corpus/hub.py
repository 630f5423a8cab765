"""Documents of a hub data set, streamed by `datasets` at `revision`, which a plan pins; no code of it is run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from interp.corpus.rows import Document, text_of
from interp.errors import SourceError
from interp.sources.hub import repository_of
from interp.spec.study import CorpusSpec


def hub_documents(spec: CorpusSpec) -> Iterator[Document]:
    """Yield the rows of `hf://org/name` in the order in which the data set streams them.

    Raises:
        SourceError: the hub cannot be reached, or has no such data set, configuration, split or revision.
        CorpusError: a row lacks the column, or has something other than text in it.
    """
    import datasets  # a second to import, and only hub corpora need it

    repository = repository_of(spec.source, "dataset")
    # RuntimeError is what `datasets` raises for a data set that is a script.
    refused = (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError)
    try:
        stream = iter(
            datasets.load_dataset(repository, spec.name, split=spec.split, revision=spec.revision, streaming=True)
        )
    except refused as error:
        raise _unreachable(spec, error) from error
    number = 0
    while True:
        try:
            row: Any = next(stream, None)
        except refused as error:
            raise _unreachable(spec, error) from error
        if row is None:
            return
        number += 1
        yield Document(f"{repository}#{number}", text_of(row, spec.column, f"row {number} of {spec.source}"))


def _unreachable(spec: CorpusSpec, error: Exception) -> SourceError:
    return SourceError(
        f"the hub data set cannot be read: {type(error).__name__}: {error}",
        value=f"{spec.source}, configuration {spec.name}, split {spec.split}, revision {spec.revision}",
        expected="a data set of text, jsonl or parquet files on a hub that can be reached",
        remedy="check the names, the network, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE; or copy the files to a folder "
        "or bucket and name that as corpus.source",
    )
