"""Token blocks: what is written is what is read, over shards of any size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interp.corpus import CorpusSummary, TokenBlocks
from interp.corpus.tokens import SHARD_BYTES, SUMMARY, rows_per_shard, write_shards
from interp.errors import ArtifactCorrupt

CONTEXT, TOKENS = 4, 26
ROWS = np.arange(28, dtype=np.int32).reshape(7, CONTEXT)


class Folder:
    """An artifact in a folder."""

    def __init__(self, path: Path):
        self.path = path
        self.touched: list[str] = []

    def json(self, name: str) -> Any:
        return json.loads((self.path / name).read_text())

    def local(self, name: str) -> Path:
        self.touched.append(name)
        return self.path / name


def saved(path: Path, per_shard: int) -> Folder:
    for file, name in write_shards(ROWS, "train", path / "scratch", per_shard):
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_bytes(file.read_bytes())
    summary = CorpusSummary(
        context=CONTEXT,
        train_tokens=TOKENS,
        holdout_tokens=0,
        rows_per_shard=per_shard,
        bos_id=0,
        separator="bos",
        pad_id=1,
        vocab_size=99,
        tokenizer_revision="r",
        documents={"train": 3},
    )
    (path / SUMMARY).write_text(json.dumps(summary.to_json()))
    return Folder(path)


@pytest.mark.parametrize("per_shard", [1, 2, 3, 7, 100])
def test_every_slice_comes_back(tmp_path: Path, per_shard: int) -> None:
    blocks = TokenBlocks.open(saved(tmp_path, per_shard), "train")
    assert len(blocks) == 7 and blocks.tokens == TOKENS
    for start in range(8):
        for stop in range(start, 10):
            rows = blocks.rows(start, stop)
            assert rows.dtype == np.int32
            assert rows.tolist() == ROWS[start:stop].tolist()


def test_only_the_last_row_has_filling(tmp_path: Path) -> None:
    blocks = TokenBlocks.open(saved(tmp_path, 3), "train")
    assert blocks.lengths(0, 100).tolist() == [4, 4, 4, 4, 4, 4, 2]
    assert blocks.lengths(2, 4).tolist() == [4, 4]


def test_only_the_shards_that_are_read_are_fetched(tmp_path: Path) -> None:
    folder = saved(tmp_path, 2)
    blocks = TokenBlocks.open(folder, "train")
    blocks.rows(2, 4)
    blocks.rows(3, 4)
    assert folder.touched == ["train/00001.safetensors"]


def test_no_held_out_part(tmp_path: Path) -> None:
    blocks = TokenBlocks.open(saved(tmp_path, 2), "holdout")
    assert len(blocks) == 0 and blocks.rows(0, 5).shape == (0, CONTEXT)


def test_summary_round_trip(tmp_path: Path) -> None:
    folder = saved(tmp_path, 2)
    summary = CorpusSummary.from_json(folder.json(SUMMARY))
    assert CorpusSummary.from_json(summary.to_json()) == summary
    assert folder.json(SUMMARY)["n_train_blocks"] == 7


def test_a_shard_of_another_shape_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, 2)
    (tmp_path / "train" / "00000.safetensors").write_bytes((tmp_path / "train" / "00003.safetensors").read_bytes())
    with pytest.raises(ArtifactCorrupt, match="00000"):
        TokenBlocks.open(folder, "train").rows(0, 1)


def test_shards_are_about_64_megabytes() -> None:
    for context in (2, 1024, 10**9):
        assert rows_per_shard(context) >= 1
    assert rows_per_shard(1024) * 1024 * 4 == SHARD_BYTES
