"""How activations lie on disk: the format of `wrapper.cache` in a folder, and of the stage `activations` in a store.

    <hook point>/00000.safetensors    {"activations": [rows, width]}, every shard but the last with the same rows
    index.json                        written last: hook points, widths, dtypes, rows, each file's size and sha256

A row is one token position. Tensors keep their dtype, bfloat16 too. A file for each hook point, so that whoever needs
some hook points only reads, or fetches, those. The files are written as they grow, one batch at a time, and their
sha256 is taken on the way: nothing is held in memory and nothing is read back.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from interp.errors import ArtifactCorrupt, HookError, StoreAccessError, StoreError

FORMAT = "interp-activations/2"
INDEX = "index.json"
TENSOR = "activations"

_SAFETENSORS = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}
_THREADS = 8
_OPEN = 4
"""Shards of a hook point that stay mapped: reading in order needs one, and two where a batch crosses a border."""


@dataclass(frozen=True)
class Column:
    """What is kept of one hook point."""

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
class CacheFile:
    """One file, as the index describes it; `name` is relative to the index."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Shard:
    """The files of some rows, one a hook point."""

    rows: int
    files: Mapping[str, CacheFile]


@dataclass(frozen=True)
class Index:
    """What `index.json` says.

    Attributes:
        model: fingerprint of the model that the activations are of.
        columns: by hook point.
        about: what the writer noted.
    """

    model: str
    columns: Mapping[str, Column]
    shards: Sequence[Shard]
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "model": self.model,
            "rows": self.rows,
            "hooks": {name: column.to_json() for name, column in self.columns.items()},
            "shards": [asdict(shard) for shard in self.shards],
            "about": dict(self.about),
        }

    @classmethod
    def from_json(cls, saved: Mapping[str, Any], where: str) -> Index:
        """Raises ArtifactCorrupt where it is of another format; `where` names it."""
        if saved.get("format") != FORMAT:
            raise ArtifactCorrupt(f"{where} is of another format", value=saved.get("format"), expected=FORMAT)
        shards = [
            Shard(shard["rows"], {hook: CacheFile(**file) for hook, file in shard["files"].items()})
            for shard in saved["shards"]
        ]
        columns = {name: Column.from_json(value) for name, value in saved["hooks"].items()}
        return cls(str(saved["model"]), columns, shards, dict(saved["about"]))


def file_name(hook: str, number: int) -> str:
    return f"{hook}/{number:05d}.safetensors"


class ShardFiles:
    """Writes the files of one shard below a folder, batch by batch. A context manager; `files` are there after it.

    Args:
        rows: how many there will be: the files say so first.
        model: fingerprint, kept in each file.
    """

    def __init__(self, folder: Path, number: int, columns: Mapping[str, Column], rows: int, model: str):
        self.rows, self.files = rows, dict[str, CacheFile]()
        self._folder, self._columns, self._left = folder, columns, rows
        self._names = {hook: file_name(hook, number) for hook in columns}
        self._open: dict[str, Any] = {}
        self._digests = {hook: hashlib.sha256() for hook in columns}
        # One hook point to a thread: copying, hashing and writing let others run meanwhile, and one core hashes too
        # slowly for a GPU that fills many of them.
        self._pool = ThreadPoolExecutor(min(len(columns), _THREADS, os.cpu_count() or 1), "interp-shard")
        with access(folder):
            for hook, column in columns.items():
                path = folder / self._names[hook]
                path.parent.mkdir(parents=True, exist_ok=True)
                self._open[hook] = path.open("wb")
                self._write(hook, _header(column, rows, model))

    def append(self, batch: Mapping[str, Float[Tensor, "rows width"]]) -> None:
        """The next rows of every hook point; their dtype is changed to the column's.

        Raises:
            StoreError: rows that are too many, of another width, or with values that the dtype does not have.
        """
        if absent := [hook for hook in self._columns if hook not in batch]:
            expected = f"rows of {', '.join(self._columns)}"
            raise StoreError("a batch lacks hook points", value=", ".join(absent), expected=expected)
        count = len(batch[next(iter(self._columns))])
        for hook, column in self._columns.items():
            if batch[hook].shape != (count, column.width) or count > self._left:
                raise StoreError(
                    f"rows at {hook} do not fit into their shard",
                    value=str(tuple(batch[hook].shape)),
                    expected=f"at most {self._left} rows of {column.width}",
                )
        with access(self._folder):
            list(self._pool.map(partial(self._append, batch), self._columns))
        self._left -= count

    def _append(self, batch: Mapping[str, Tensor], hook: str) -> None:
        dtype = self._columns[hook].dtype
        kept = batch[hook].detach().to("cpu", dtype).contiguous()
        if dtype == torch.float16 != batch[hook].dtype and not torch.isfinite(kept).all():
            _refuse(hook, batch[hook])
        if kept.numel():
            self._write(hook, kept.view(torch.uint8).numpy().data.cast("B"))

    def __enter__(self) -> ShardFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()
        with access(self._folder):
            for file in self._open.values():
                file.close()
        if kind is None and self._left:
            raise StoreError("a shard is short of rows", value=self.rows - self._left, expected=f"{self.rows} rows")
        if kind is None:
            for hook, name in self._names.items():
                size = (self._folder / name).stat().st_size
                self.files[hook] = CacheFile(name, size, self._digests[hook].hexdigest())

    def _write(self, hook: str, data: bytes | memoryview) -> None:
        self._open[hook].write(data)
        self._digests[hook].update(data)


class ShardReader:
    """Rows of the hook points of an index, from the files that `locate` finds.

    Args:
        locate: the path of a file; it is called when a file is first needed, and again after it has been let go.
    """

    def __init__(self, index: Index, locate: Callable[[CacheFile], Path]):
        self.index = index
        self._locate = locate
        self._starts = [0]
        for shard in index.shards:
            self._starts.append(self._starts[-1] + shard.rows)
        self._mapped: dict[str, OrderedDict[int, Any]] = {hook: OrderedDict() for hook in index.columns}

    def column(self, hook: str) -> Column:
        """Raises HookError if there is none."""
        if hook not in self.index.columns:
            expected = f"one of {tuple(self.index.columns)}"
            raise HookError("the cache does not hold this hook point", value=hook, expected=expected)
        return self.index.columns[hook]

    def read(self, hook: str, start: int, stop: int) -> Float[Tensor, "rows width"]:
        """Rows start .. stop - 1; only these are read from disk."""
        column, parts = self.column(hook), []
        for number in self.shards_of(start, stop):
            before = self._starts[number]
            first, last = max(start - before, 0), min(stop - before, self.index.shards[number].rows)
            parts.append(self._slice(hook, number)[first:last])
        if not parts:
            return torch.empty(0, column.width, dtype=column.dtype)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def shards_of(self, start: int, stop: int) -> range:
        """The shards that hold rows start .. stop - 1."""
        stop = min(stop, self._starts[-1])
        if start >= stop:
            return range(0)
        return range(bisect_right(self._starts, start) - 1, bisect_right(self._starts, stop - 1))

    def _slice(self, hook: str, number: int) -> Any:
        mapped = self._mapped[hook]
        if number not in mapped:
            mapped[number] = self._map(hook, number)
            if len(mapped) > _OPEN:
                mapped.popitem(last=False)
        mapped.move_to_end(number)
        return mapped[number]

    def _opened(self, file: CacheFile) -> tuple[Path, Any]:
        """A mapped file, and where it is. One that another process removes in between is located once more."""
        path = self._locate(file)
        try:
            return path, opened(path)
        except ArtifactCorrupt as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
        path = self._locate(file)
        return path, opened(path)

    def _map(self, hook: str, number: int) -> Any:
        shard, column = self.index.shards[number], self.column(hook)
        path, file = self._opened(shard.files[hook])
        found = file.get_slice(TENSOR) if TENSOR in file.keys() else None  # noqa: SIM118  (no mapping)
        shape = None if found is None else tuple(found.get_shape())
        if found is None or shape != (shard.rows, column.width) or found.get_dtype() != _SAFETENSORS[column.dtype]:
            raise ArtifactCorrupt(
                f"{path} does not hold what its index says",
                value="no such tensor" if found is None else f"{shape} {found.get_dtype()}",
                expected=f"{(shard.rows, column.width)} {_SAFETENSORS[column.dtype]}",
                remedy="write the cache again",
            )
        return found


def opened(path: Path) -> Any:
    """A mapped safetensors file.

    Raises:
        ArtifactCorrupt: it is none, or cut short.
    """
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, FileNotFoundError) as error:
        raise ArtifactCorrupt(
            f"{path} is no complete shard", value=str(error), expected="a safetensors file", remedy="remove it"
        ) from error


def _refuse(hook: str, values: Tensor) -> None:
    """Tell values that float16 does not have from those that are no numbers in any dtype."""
    finite = torch.isfinite(values)
    if not finite.all():
        raise StoreError(
            f"activations at {hook} are not finite",
            value=f"{int((~finite).sum())} of {finite.numel()} values",
            remedy="find out why the model makes them: another model.dtype (bfloat16 has float32's range), its weights",
        )
    remedy = "keep them as bfloat16, which has float32's range"
    raise StoreError(f"activations at {hook} do not fit into float16", value=float(values.abs().max()), remedy=remedy)


def _header(column: Column, rows: int, model: str) -> bytes:
    """What a safetensors file with one tensor begins with, https://github.com/huggingface/safetensors#format"""
    if column.dtype not in _SAFETENSORS:
        raise StoreError("activations of this dtype cannot be kept", value=str(column.dtype), expected="a float")
    tensor = {
        "dtype": _SAFETENSORS[column.dtype],
        "shape": [rows, column.width],
        "data_offsets": [0, rows * column.row_bytes],
    }
    text = json.dumps({"__metadata__": {"model": model}, TENSOR: tensor}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # data begins where every dtype is aligned
    return struct.pack("<Q", len(text)) + text


@contextlib.contextmanager
def access(path: Path) -> Iterator[None]:
    """Turns what the operating system refuses into an error with a remedy."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise StoreAccessError(
            f"{path} cannot be written",
            value=str(error),
            expected="a writable directory with space left",
            remedy="free space or choose another place, then run again: complete shards are kept",
        ) from error
