"""Activations in a folder: written by appending batches, read through memory maps. `cache_files` has the format, which
the stage `activations` keeps in a store.

    with DiskCache.create(folder, model=hooked.fingerprint) as writer:
        writer.append({"layers.0.mlp_in": values})
    DiskCache.open(folder).read("layers.0.mlp_in", 0, 1000)

Shards are cut at a row count that depends on `shard_bytes` alone, so that the files do not depend on the batches they
were appended in. A shard's files appear under their names when all of them are complete; without an index the cache is
not finished and is not read. A writer that was interrupted resumes behind the last complete shard: `rows` says where.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import ArtifactCorrupt, ArtifactMissing, StoreError
from interp.wrapper.cache_files import (
    INDEX,
    TENSOR,
    CacheFile,
    Column,
    Index,
    Shard,
    ShardFiles,
    ShardReader,
    access,
    file_name,
    opened,
)

_PARTIAL = ".partial"


class DiskCache:
    """A finished cache, for reading.

    Attributes:
        rows: number of token positions.
        columns: what it holds, by hook point.
        model: fingerprint of the model that the activations are of.
        about: what its writer noted.
    """

    def __init__(self, directory: Path, index: Index):
        self.directory, self.index = directory, index
        self.rows, self.model, self.about = index.rows, index.model, dict(index.about)
        self.columns, self.shards = dict(index.columns), tuple(index.shards)
        self._reader = ShardReader(index, lambda file: directory / file.name)

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
            shard_bytes: largest size of a shard's data, over all hook points; as much is held in memory.
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
            ArtifactCorrupt: a file is absent, truncated or changed.
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
            for file in shard.files.values():
                _check_file(directory / file.name, file, verify)
        return cache

    @property
    def names(self) -> tuple[str, ...]:
        """The hook points that it holds."""
        return tuple(self.columns)

    def __len__(self) -> int:
        return self.rows

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Float[Tensor, "rows width"]:
        """Rows start .. stop - 1 of one hook point; only these are read from disk."""
        return self._reader.read(name, start, self.rows if stop is None else stop)

    def batches(self, rows: int, names: Sequence[str] | None = None) -> Iterator[dict[str, Tensor]]:
        """All rows in order, `rows` at a time."""
        chosen = self.names if names is None else tuple(names)
        for start in range(0, self.rows, rows):
            yield {name: self.read(name, start, start + rows) for name in chosen}


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
        shutil.rmtree(directory / _PARTIAL, ignore_errors=True)
        found = _complete_shards(directory)
        if found and not resume:
            raise StoreError(
                f"{directory} holds a cache that was never finished",
                value=f"{len(found)} shards and no {INDEX}",
                expected="an empty directory",
                remedy="pass resume=True to go on with it, or remove it",
            )
        for number, hooks in enumerate(found):
            self._take_over(number, hooks)

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
        self._columns = self._columns or columns
        self._pending.append(batch)
        self._pending_rows += rows.pop()
        while self._pending_rows >= self._rows_per_shard:
            self._flush(self._rows_per_shard)

    def close(self) -> DiskCache:
        """Write what is left and the index, and open the cache."""
        if self._pending_rows:
            self._flush(self._pending_rows)
        index = Index(self._model, self._columns, self._shards, self._about)
        partial = self.directory / f"{INDEX}{_PARTIAL}"
        with access(partial):
            partial.write_text(json.dumps(index.to_json(), indent=1))
            _sync(partial)
            partial.replace(self.directory / INDEX)
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
        partial = self.directory / _PARTIAL
        shard = ShardFiles(partial, len(self._shards), self._columns, rows, self._model)
        with shard:
            shard.append({name: value[:rows] for name, value in whole.items()})
        with access(self.directory):
            for file in shard.files.values():
                _sync(partial / file.name)
            for file in shard.files.values():
                (self.directory / file.name).parent.mkdir(exist_ok=True)
                (partial / file.name).replace(self.directory / file.name)
        self._pending, self._pending_rows = [rest], self._pending_rows - rows
        self._shards.append(Shard(rows, shard.files))

    def _take_over(self, number: int, hooks: Sequence[str]) -> None:
        """Count a complete shard of an interrupted writer as written."""
        columns, rows, files = {}, set(), {}
        for hook in hooks:
            name = file_name(hook, number)
            path = self.directory / name
            file = opened(path)
            model, part = (file.metadata() or {}).get("model"), file.get_slice(TENSOR)
            if model != self._model or (self._columns and hook not in self._columns):
                raise StoreError(
                    f"{path} is of another cache",
                    value=f"model {model}",
                    expected=f"model {self._model}",
                    remedy="choose another directory, or remove this one",
                )
            columns[hook] = Column(part.get_shape()[1], part[:0].dtype)
            rows.add(part.get_shape()[0])
            files[hook] = CacheFile(name, path.stat().st_size, _sha256(path))
        if len(rows) != 1:
            raise ArtifactCorrupt("a shard's files differ in rows", value=sorted(rows), expected="one number")
        self._columns = self._columns or columns
        self._shards.append(Shard(rows.pop(), {hook: files[hook] for hook in self._columns}))


def _complete_shards(directory: Path) -> list[list[str]]:
    """The hook points of each shard that all of them have, from the first on; what follows is removed."""
    found: dict[int, list[str]] = {}
    for path in sorted(directory.glob("*/*.safetensors")):
        found.setdefault(int(path.stem), []).append(path.parent.name)
    hooks = sorted({hook for names in found.values() for hook in names})
    for number in sorted(found):
        if sorted(found[number]) != hooks:
            if any(later > number for later in found):
                raise ArtifactCorrupt(
                    "a shard is missing", value=f"{found[number]} of {number:05d}", expected=str(hooks)
                )
            for hook in found.pop(number):
                (directory / file_name(hook, number)).unlink()
    if sorted(found) != list(range(len(found))):
        raise ArtifactCorrupt("a shard is missing", value=str(sorted(found)), expected="numbers without a gap")
    return [hooks for _ in found]


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_file(path: Path, file: CacheFile, verify: str) -> None:
    size = path.stat().st_size if path.is_file() else None
    if size != file.bytes:
        raise ArtifactCorrupt(
            f"{path} is not as it was written",
            value="no file" if size is None else f"{size} bytes",
            expected=f"{file.bytes} bytes",
            remedy="write the cache again",
        )
    if verify == "sha256" and (found := _sha256(path)) != file.sha256:
        raise ArtifactCorrupt(
            f"{path} has changed since it was written", value=found, expected=file.sha256, remedy="write it again"
        )


def _read_index(directory: Path) -> Index:
    path = directory / INDEX
    if not path.is_file():
        shards = len({path.stem for path in directory.glob("*/*.safetensors")})
        raise ArtifactMissing(
            f"{directory} holds no finished activation cache",
            value=f"{shards} shards and no {INDEX}" if shards else "nothing",
            expected=f"a directory with {INDEX}",
            remedy="finish it: DiskCache.create(..., resume=True)" if shards else "check the path",
        )
    try:
        saved = json.loads(path.read_text())
    except ValueError as error:
        raise ArtifactCorrupt(f"{path} is no valid JSON", value=str(error), remedy="write the cache again") from error
    return Index.from_json(saved, str(path))


def _shapes(columns: Mapping[str, Column]) -> str:
    return ", ".join(f"{name} {column.width} {column.dtype}" for name, column in columns.items())
