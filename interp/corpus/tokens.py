"""Token blocks on disk: safetensors shards of int32 contexts, read by memory map, a shard at a time.

    train/00000.safetensors ...     {"tokens": int32 [n, context]}, about 64 MB each
    holdout/00000.safetensors ...
    corpus.json                     CorpusSummary

All shards of a part have `rows_per_shard` rows but the last. Only the last row of a part may be partial: it is filled
up with `pad_id`, and `train_tokens` and `holdout_tokens` do not count the filling.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from jaxtyping import Int32, Int64
from numpy import ndarray
from safetensors import safe_open
from safetensors.numpy import save_file

from interp.errors import ArtifactCorrupt

SHARD_BYTES = 64 << 20
SUMMARY = "corpus.json"

Part = Literal["train", "holdout"]


@dataclass(frozen=True)
class CorpusSummary:
    """What a corpus artifact holds.

    Attributes:
        bos_id: the token before each document: the tokenizer's BOS, or its EOS when it has no BOS (`separator`).
        documents: how many there are in each part, how many were `empty`, how many training documents were dropped as
            `duplicates` of held-out ones.
    """

    context: int
    train_tokens: int
    holdout_tokens: int
    rows_per_shard: int
    bos_id: int
    separator: str
    pad_id: int
    vocab_size: int
    tokenizer_revision: str
    documents: Mapping[str, int]

    @property
    def n_train_blocks(self) -> int:
        return -(-self.train_tokens // self.context)

    @property
    def n_holdout_blocks(self) -> int:
        return -(-self.holdout_tokens // self.context)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"n_train_blocks": self.n_train_blocks, "n_holdout_blocks": self.n_holdout_blocks}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> CorpusSummary:
        return cls(**{field.name: saved[field.name] for field in fields(cls)})


class CorpusArtifact(Protocol):
    """The part of `interp.store.Artifact` that reading needs."""

    def json(self, name: str) -> Any: ...
    def local(self, name: str) -> Path: ...


class TokenBlocks:
    """The rows of one part of a corpus artifact; a shard is fetched and mapped when it is first read."""

    def __init__(self, artifact: CorpusArtifact, part: Part, summary: CorpusSummary):
        self.part: Part = part
        self.summary = summary
        self.context = summary.context
        self.tokens = summary.train_tokens if part == "train" else summary.holdout_tokens
        self._artifact = artifact
        self._shards: dict[int, Any] = {}

    @classmethod
    def open(cls, artifact: CorpusArtifact, part: Part) -> TokenBlocks:
        return cls(artifact, part, CorpusSummary.from_json(artifact.json(SUMMARY)))

    def __len__(self) -> int:
        return -(-self.tokens // self.context)

    def rows(self, start: int, stop: int) -> Int32[ndarray, "n context"]:
        """Rows [start, stop); the slice is cut at the end, as Python's slices are."""
        stop = min(stop, len(self))
        per_shard = self.summary.rows_per_shard
        pieces = []
        while start < stop:
            shard, first = divmod(start, per_shard)
            last = min(first + stop - start, per_shard)
            pieces.append(self._shard(shard)[first:last])
            start += last - first
        return np.concatenate(pieces) if pieces else np.empty((0, self.context), np.int32)

    def lengths(self, start: int, stop: int) -> Int64[ndarray, "n"]:
        """How many tokens of each of the rows [start, stop) are no filling."""
        first = np.arange(start, min(stop, len(self)), dtype=np.int64) * self.context
        return np.minimum(self.tokens - first, self.context)

    def _shard(self, index: int) -> Any:
        if index not in self._shards:
            name = shard_name(self.part, index)
            opened = safe_open(self._artifact.local(name), framework="numpy").get_slice("tokens")
            expected = [min(self.summary.rows_per_shard, len(self) - index * self.summary.rows_per_shard), self.context]
            if list(opened.get_shape()) != expected:
                raise ArtifactCorrupt(f"{name} has another shape", value=opened.get_shape(), expected=str(expected))
            self._shards[index] = opened
        return self._shards[index]


def shard_name(part: Part, index: int) -> str:
    return f"{part}/{index:05d}.safetensors"


def rows_per_shard(context: int) -> int:
    return max(1, SHARD_BYTES // (4 * context))


def write_shards(
    rows: Int32[ndarray, "n context"], part: Part, folder: Path, per_shard: int
) -> Iterator[tuple[Path, str]]:
    """Yield (file, name in the artifact) of each shard; a file that is not taken is removed as the next is made."""
    for index in range(-(-len(rows) // per_shard)):
        name = shard_name(part, index)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"tokens": np.ascontiguousarray(rows[index * per_shard : (index + 1) * per_shard])}, path)
        yield path, name
        path.unlink(missing_ok=True)
