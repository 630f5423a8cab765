"""Activations on disk: safetensors shards and an index, written once, read through memory maps.

    <directory>/00000.safetensors     {hook point: [rows, width]}, every shard but the last with the same number of rows
    <directory>/index.json            written last: hook points, widths, dtypes, rows, and each shard's size and sha256

A row is one token position. Tensors keep their dtype, bfloat16 too. Shards are cut at a row count that depends on
`shard_bytes` alone, so that the files do not depend on the batches they were appended in. A shard appears under its
name only when it is complete; without an index the cache is not finished and is not read. A writer that was
interrupted resumes behind the last complete shard: `rows` says where.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from interp.errors import ArtifactCorrupt, ArtifactMissing, HookError, StoreAccessError, StoreError

FORMAT = "interp-activations/1"
INDEX = "index.json"


@dataclass(frozen=True)
class Column:
    """What the cache holds of one hook point."""

    width: int
    dtype: torch.dtype

    @property
    def row_bytes(self) -> int:
        return self.width * self.dtype.itemsize

    def to_json(self) -> dict[str, Any]:
        return {"width": self.width, "dtype": str(self.dtype).removeprefix("torch.")}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Column:
        return cls(int(value["width"]), getattr(torch, value["dtype"]))


@dataclass(frozen=True)
class Shard:
    """One file, as the index describes it."""

    file: str
    rows: int
    bytes: int
    sha256: str


class DiskCache:
    """A finished cache, for reading.

    Attributes:
        rows: number of token positions.
        columns: what it holds, by hook point.
        model: fingerprint of the model that the activations are of.
        about: what its writer noted.
    """

    def __init__(self, directory: Path, index: Mapping[str, Any]):
        self.directory = directory
        self.rows = int(index["rows"])
        self.model = str(index["model"])
        self.about: dict[str, Any] = dict(index["about"])
        self.columns = {name: Column.from_json(value) for name, value in index["hooks"].items()}
        self.shards = tuple(Shard(**shard) for shard in index["shards"])
        self._handles: dict[str, Any] = {}

    @classmethod
    def create(
        cls,
        directory: str | Path,
        *,
        model: str,
        shard_bytes: int = 1 << 29,
        resume: bool = False,
        about: Mapping[str, Any] | None = None,
    ) -> CacheWriter:
        """A writer; use it as a context manager. The index is written when its block ends without an error.

        Args:
            model: fingerprint of the model that the activations are of.
            shard_bytes: largest size of a shard's data.
            resume: go on behind the complete shards of an interrupted writer, which are refused otherwise.
        """
        return CacheWriter(Path(directory), model, shard_bytes, resume, dict(about or {}))

    @classmethod
    def open(
        cls, directory: str | Path, *, model: str | None = None, verify: Literal["size", "sha256"] = "size"
    ) -> DiskCache:
        """Open a finished cache and check its files.

        Raises:
            ArtifactMissing: there is no index: no cache, or one that was never finished.
            ArtifactCorrupt: a shard is absent, truncated or changed.
            StoreError: it holds activations of another model than `model`.
        """
        directory = Path(directory)
        cache = cls(directory, _read_index(directory))
        if model is not None and model != cache.model:
            raise StoreError(
                f"{directory} holds activations of another model",
                value=cache.model,
                expected=model,
                remedy="write a cache for this model",
            )
        for shard in cache.shards:
            _check_shard(directory / shard.file, shard, verify)
        return cache

    @property
    def names(self) -> tuple[str, ...]:
        """The hook points that it holds."""
        return tuple(self.columns)

    def __len__(self) -> int:
        return self.rows

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Float[Tensor, "rows width"]:
        """Rows start .. stop - 1 of one hook point; only these are read from disk."""
        column = self._column(name)
        stop = self.rows if stop is None else min(stop, self.rows)
        parts, before = [], 0
        for shard in self.shards:
            first, last = max(start - before, 0), min(stop - before, shard.rows)
            if first < last:
                parts.append(self._handle(shard.file).get_slice(name)[first:last])
            before += shard.rows
        if not parts:
            return torch.empty(0, column.width, dtype=column.dtype)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def batches(self, rows: int, names: Sequence[str] | None = None) -> Iterator[dict[str, Tensor]]:
        """All rows in order, `rows` at a time."""
        chosen = self.names if names is None else tuple(names)
        for start in range(0, self.rows, rows):
            yield {name: self.read(name, start, start + rows) for name in chosen}

    def _column(self, name: str) -> Column:
        if name not in self.columns:
            raise HookError("the cache does not hold this hook point", value=name, expected=f"one of {self.names}")
        return self.columns[name]

    def _handle(self, file: str) -> Any:
        if file not in self._handles:
            self._handles[file] = safe_open(self.directory / file, framework="pt")
        return self._handles[file]


class CacheWriter:
    """Appends rows and cuts them into shards. Made by `DiskCache.create`."""

    def __init__(self, directory: Path, model: str, shard_bytes: int, resume: bool, about: dict[str, Any]):
        self.directory = directory
        self._model, self._shard_bytes, self._about = model, shard_bytes, about
        self._columns: dict[str, Column] = {}
        self._shards: list[Shard] = []
        self._pending: list[dict[str, Tensor]] = []
        self._pending_rows = 0
        directory.mkdir(parents=True, exist_ok=True)
        if (directory / INDEX).exists():
            raise StoreError(
                f"{directory} holds a finished cache", expected="an empty directory", remedy="open it, or remove it"
            )
        for leftover in directory.glob(".*.partial"):
            leftover.unlink()
        found = sorted(directory.glob("*.safetensors"))
        if found and not resume:
            raise StoreError(
                f"{directory} holds a cache that was never finished",
                value=f"{len(found)} shards and no {INDEX}",
                expected="an empty directory",
                remedy="pass resume=True to go on with it, or remove it",
            )
        for number, path in enumerate(found):
            self._take_over(path, number)

    @property
    def rows(self) -> int:
        """Rows appended so far; after a resume, rows that are already safe: append the row of this number next."""
        return sum(shard.rows for shard in self._shards) + self._pending_rows

    def append(self, activations: Mapping[str, Tensor]) -> None:
        """Append the rows of one batch: by hook point, [..., width] with the same leading dimensions throughout."""
        batch = {name: value.detach().flatten(0, -2).cpu() for name, value in activations.items()}
        columns = {name: Column(value.shape[-1], value.dtype) for name, value in batch.items()}
        rows = {value.shape[0] for value in batch.values()}
        if self._columns and columns != self._columns:
            raise StoreError(
                "this batch does not match the cache", value=_shapes(columns), expected=_shapes(self._columns)
            )
        if len(rows) != 1:
            raise StoreError("the hook points of one batch differ in rows", value=sorted(rows), expected="one number")
        self._columns = columns
        self._pending.append(batch)
        self._pending_rows += rows.pop()
        while self._pending_rows >= self._rows_per_shard:
            self._flush(self._rows_per_shard)

    def close(self) -> DiskCache:
        """Write what is left and the index, and open the cache."""
        if self._pending_rows:
            self._flush(self._pending_rows)
        index = {
            "format": FORMAT,
            "model": self._model,
            "rows": self.rows,
            "hooks": {name: column.to_json() for name, column in self._columns.items()},
            "shards": [vars(shard) for shard in self._shards],
            "about": self._about,
        }
        _write_atomically(self.directory / INDEX, lambda path: path.write_text(json.dumps(index, indent=1)))
        return DiskCache.open(self.directory)

    def __enter__(self) -> CacheWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()

    @property
    def _rows_per_shard(self) -> int:
        return max(1, self._shard_bytes // sum(column.row_bytes for column in self._columns.values()))

    def _flush(self, rows: int) -> None:
        whole = {name: torch.cat([batch[name] for batch in self._pending]) for name in self._columns}
        rest = {name: value[rows:].clone() for name, value in whole.items()}
        self._pending, self._pending_rows = [rest], self._pending_rows - rows
        path = self.directory / f"{len(self._shards):05d}.safetensors"
        tensors = {name: value[:rows].contiguous() for name, value in whole.items()}
        # One entry of metadata only: safetensors writes several in any order, and equal content must be equal files.
        _write_atomically(path, lambda partial: save_file(tensors, partial, {"model": self._model}))
        self._shards.append(_describe(path, rows))

    def _take_over(self, path: Path, number: int) -> None:
        """Count a complete shard of an interrupted writer as written."""
        if path.name != f"{number:05d}.safetensors":
            raise ArtifactCorrupt("a shard is missing", value=path.name, expected=f"{number:05d}.safetensors")
        with _opened(path) as file:
            model = (file.metadata() or {}).get("model")
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
            columns = {name: Column(part.get_shape()[1], part[:0].dtype) for name, part in slices.items()}
            rows = next(iter(slices.values())).get_shape()[0]
        if model != self._model or (self._columns and columns.keys() != self._columns.keys()):
            raise StoreError(
                f"{path} is of another cache",
                value=f"model {model}",
                expected=f"model {self._model}",
                remedy="choose another directory, or remove this one",
            )
        self._columns = columns
        self._shards.append(_describe(path, rows))


def _describe(path: Path, rows: int) -> Shard:
    return Shard(path.name, rows, path.stat().st_size, _sha256(path))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ArtifactCorrupt(
            f"{path} is no complete shard", value=str(error), expected="a safetensors file", remedy="remove it"
        ) from error


def _check_shard(path: Path, shard: Shard, verify: str) -> None:
    size = path.stat().st_size if path.is_file() else None
    if size != shard.bytes:
        raise ArtifactCorrupt(
            f"{path} is not as it was written",
            value="no file" if size is None else f"{size} bytes",
            expected=f"{shard.bytes} bytes",
            remedy="write the cache again",
        )
    if verify == "sha256" and (found := _sha256(path)) != shard.sha256:
        raise ArtifactCorrupt(
            f"{path} has changed since it was written", value=found, expected=shard.sha256, remedy="write it again"
        )


def _read_index(directory: Path) -> dict[str, Any]:
    path = directory / INDEX
    if not path.is_file():
        shards = len(list(directory.glob("*.safetensors"))) if directory.is_dir() else 0
        raise ArtifactMissing(
            f"{directory} holds no finished activation cache",
            value=f"{shards} shards and no {INDEX}" if shards else "nothing",
            expected=f"a directory with {INDEX}",
            remedy="finish it: DiskCache.create(..., resume=True)" if shards else "check the path",
        )
    try:
        index = json.loads(path.read_text())
    except ValueError as error:
        raise ArtifactCorrupt(f"{path} is no valid JSON", value=str(error), remedy="write the cache again") from error
    if index.get("format") != FORMAT:
        raise ArtifactCorrupt(f"{path} is of another format", value=index.get("format"), expected=FORMAT)
    return index


def _write_atomically(path: Path, write: Any) -> None:
    """A file appears under its name when it is complete and on disk."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        raise StoreAccessError(
            f"{path} cannot be written",
            value=str(error),
            expected="a writable directory with space left",
            remedy="free space or choose another directory, then resume: complete shards are kept",
        ) from error


def _shapes(columns: Mapping[str, Column]) -> str:
    return ", ".join(f"{name} {column.width} {column.dtype}" for name, column in columns.items())
