"""Activations on disk: what goes in comes out, and nothing half-written is taken for whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from interp.errors import ArtifactCorrupt, ArtifactMissing, HookError, StoreAccessError, StoreError
from interp.wrapper import DiskCache
from interp.wrapper.cache_files import Column, ShardFiles

ROW_BYTES = 8 * 4 + 6 * 2
NAMES = ("layers.0.mlp_in", "layers.0.mlp_out")


def _rows(start: int, stop: int) -> dict[str, Tensor]:
    numbers = torch.arange(start, stop, dtype=torch.float32)[:, None]
    return {NAMES[0]: numbers + torch.arange(8) / 10, NAMES[1]: (numbers - torch.arange(6)).bfloat16()}


def _write(path: Path, cuts: list[int], rows_per_shard: int = 10) -> DiskCache:
    with DiskCache.create(
        path, model="m", shard_bytes=rows_per_shard * ROW_BYTES, about={"tokens": cuts[-1]}
    ) as writer:
        for start, stop in zip([0, *cuts], cuts, strict=False):
            writer.append(_rows(start, stop))
    return DiskCache.open(path)


def test_what_goes_in_comes_out_bit_for_bit(tmp_path: Path) -> None:
    cache = _write(tmp_path / "c", [7, 8, 25, 37])
    assert (len(cache), cache.names, cache.model, cache.about) == (37, NAMES, "m", {"tokens": 37})
    assert cache.columns[NAMES[1]].dtype == torch.bfloat16 and cache.columns[NAMES[1]].width == 6
    expected = _rows(0, 37)
    for name in NAMES:
        assert torch.equal(cache.read(name), expected[name]) and cache.read(name).dtype == expected[name].dtype
        assert torch.equal(cache.read(name, 9, 31), expected[name][9:31])
        assert torch.equal(cache.read(name, 36, 99), expected[name][36:])
        assert cache.read(name, 37).shape == (0, expected[name].shape[1])
    joined = torch.cat([batch[NAMES[0]] for batch in cache.batches(11)])
    assert torch.equal(joined, expected[NAMES[0]])


def test_files_do_not_depend_on_the_batches(tmp_path: Path) -> None:
    one, many = _write(tmp_path / "one", [37]), _write(tmp_path / "many", list(range(1, 38)))
    assert [shard.rows for shard in one.shards] == [10, 10, 10, 7]
    assert one.shards == many.shards


def test_leading_dimensions_become_rows(tmp_path: Path) -> None:
    value = torch.randn(2, 5, 8)
    with DiskCache.create(tmp_path / "c", model="m") as writer:
        writer.append({"embed": value})
    assert torch.equal(DiskCache.open(tmp_path / "c").read("embed"), value.flatten(0, 1))


def test_shards_stay_below_their_bound(tmp_path: Path) -> None:
    cache = _write(tmp_path / "c", [100], rows_per_shard=10)
    header = 400
    sizes = [sum(file.bytes for file in shard.files.values()) for shard in cache.shards]
    assert all(size <= 10 * ROW_BYTES + header for size in sizes) and len(sizes) == 10


def test_an_unfinished_cache_is_refused_and_can_be_finished(tmp_path: Path) -> None:
    path = tmp_path / "c"
    with pytest.raises(KeyboardInterrupt), DiskCache.create(path, model="m", shard_bytes=10 * ROW_BYTES) as writer:
        writer.append(_rows(0, 25))
        raise KeyboardInterrupt
    (path / ".partial" / NAMES[0]).mkdir(parents=True, exist_ok=True)
    (path / ".partial" / NAMES[0] / "00002.safetensors").write_bytes(b"torn")
    with pytest.raises(ArtifactMissing, match="2 shards"):
        DiskCache.open(path)
    with pytest.raises(StoreError, match="never finished"):
        DiskCache.create(path, model="m")
    (path / NAMES[0] / "00002.safetensors").write_bytes(b"the other hook point's file is not there yet")
    with pytest.raises(StoreError, match="another cache"):
        DiskCache.create(path, model="other", resume=True)
    with DiskCache.create(path, model="m", shard_bytes=10 * ROW_BYTES, resume=True) as writer:
        assert writer.rows == 20
        writer.append(_rows(writer.rows, 37))
    whole = _write(tmp_path / "whole", [37])
    assert DiskCache.open(path).shards == whole.shards
    with pytest.raises(StoreError, match="finished"):
        DiskCache.create(path, model="m", resume=True)


@pytest.mark.parametrize("harm", ["truncate", "remove", "append"])
def test_a_harmed_shard_is_found_when_opened(tmp_path: Path, harm: str) -> None:
    _write(tmp_path / "c", [25])
    shard = tmp_path / "c" / NAMES[0] / "00001.safetensors"
    if harm == "remove":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:-1] if harm == "truncate" else shard.read_bytes() + b"x")
    with pytest.raises(ArtifactCorrupt, match="00001"):
        DiskCache.open(tmp_path / "c")


def test_a_changed_byte_is_found_by_its_hash(tmp_path: Path) -> None:
    _write(tmp_path / "c", [25])
    shard = tmp_path / "c" / NAMES[0] / "00001.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    DiskCache.open(tmp_path / "c")
    with pytest.raises(ArtifactCorrupt, match="changed"):
        DiskCache.open(tmp_path / "c", verify="sha256")


def test_a_torn_shard_is_not_taken_over(tmp_path: Path) -> None:
    _write(tmp_path / "c", [25])
    (tmp_path / "c" / "index.json").unlink()
    shard = tmp_path / "c" / NAMES[0] / "00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-3])
    with pytest.raises(ArtifactCorrupt, match="complete shard"):
        DiskCache.create(tmp_path / "c", model="m", resume=True)


def test_a_broken_or_foreign_index_is_refused(tmp_path: Path) -> None:
    _write(tmp_path / "c", [5])
    index = tmp_path / "c" / "index.json"
    content = json.loads(index.read_text())
    index.write_text(json.dumps({**content, "format": "other/1"}))
    with pytest.raises(ArtifactCorrupt, match="format"):
        DiskCache.open(tmp_path / "c")
    index.write_text("{")
    with pytest.raises(ArtifactCorrupt, match="JSON"):
        DiskCache.open(tmp_path / "c")
    with pytest.raises(ArtifactMissing, match="nothing"):
        DiskCache.open(tmp_path / "absent")


def test_batches_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    writer = DiskCache.create(tmp_path / "c", model="m")
    writer.append(_rows(0, 3))
    with pytest.raises(StoreError, match="does not match"):
        writer.append({NAMES[0]: torch.zeros(1, 8)})
    with pytest.raises(StoreError, match="does not match"):
        writer.append({NAMES[0]: torch.zeros(1, 8), NAMES[1]: torch.zeros(1, 6)})
    with pytest.raises(StoreError, match="rows"):
        writer.append({NAMES[0]: torch.zeros(1, 8), NAMES[1]: torch.zeros(2, 6).bfloat16()})


def test_the_model_and_the_hook_points_are_checked(tmp_path: Path) -> None:
    cache = _write(tmp_path / "c", [5])
    assert DiskCache.open(tmp_path / "c", model="m").rows == 5
    with pytest.raises(StoreError, match="another model"):
        DiskCache.open(tmp_path / "c", model="n")
    with pytest.raises(HookError, match="does not hold"):
        cache.read("embed")


def test_a_disk_that_refuses_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    writer = DiskCache.create(tmp_path / "c", model="m", shard_bytes=10 * ROW_BYTES)
    writer.append(_rows(0, 10))
    monkeypatch.setattr("interp.wrapper.cache_files._header", full)
    with pytest.raises(StoreAccessError, match="No space left"):
        writer.append(_rows(10, 20))
    monkeypatch.undo()
    assert DiskCache.create(tmp_path / "c", model="m", shard_bytes=10 * ROW_BYTES, resume=True).rows == 10


def _shard(folder: Path, dtype: torch.dtype, batch: dict[str, Tensor]) -> None:
    with ShardFiles(folder, 0, {"embed": Column(8, dtype)}, len(batch.get("embed", ())), "m") as shard:
        shard.append(batch)


def test_values_that_are_no_numbers_are_not_blamed_on_the_dtype(tmp_path: Path) -> None:
    value = torch.zeros(3, 8)
    value[1, 2] = float("nan")
    with pytest.raises(StoreError, match=r"not finite[^$]*1 of 24") as told:
        _shard(tmp_path, torch.float16, {"embed": value})
    assert "keep them as bfloat16" not in str(told.value)
    with pytest.raises(StoreError, match=r"do not fit into float16[^$]*keep them as bfloat16"):
        _shard(tmp_path, torch.float16, {"embed": torch.full((3, 8), 1e5)})


def test_a_batch_without_rows_is_none_and_one_without_hook_points_an_error(tmp_path: Path) -> None:
    _shard(tmp_path, torch.float16, {"embed": torch.zeros(0, 8)})
    with pytest.raises(StoreError, match=r"lacks hook points[^$]*embed"):
        _shard(tmp_path, torch.float16, {})
