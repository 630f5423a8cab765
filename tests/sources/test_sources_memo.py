"""Digests are remembered for files that did not change, and for no others."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from interp.errors import SourceError
from interp.sources import memo as memo_module
from interp.sources.memo import Memo, cache_root, replacing


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file counts as one that nobody writes to any more."""
    monkeypatch.setattr(memo_module, "_SETTLED_NS", -1)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files whose content was read."""
    seen: list[Path] = []
    original = memo_module._sha256

    def counting(path: Path, before: os.stat_result) -> str:
        seen.append(path)
        return original(path, before)

    monkeypatch.setattr(memo_module, "_sha256", counting)
    return seen


def digest(path: Path) -> str:
    with Memo() as memo:
        return memo.sha256(path)


@pytest.mark.usefixtures("settled")
def test_a_file_is_read_once(tmp_path: Path, reads: list[Path]) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"content")
    assert [digest(path) for _ in range(3)] == [hashlib.sha256(b"content").hexdigest()] * 3
    assert reads == [path]


@pytest.mark.usefixtures("settled")
def test_a_change_of_equal_size_and_date_is_seen(tmp_path: Path, reads: list[Path]) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"content")
    status = path.stat()
    before = digest(path)
    path.write_bytes(b"CONTENT")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_mtime_ns == status.st_mtime_ns
    assert digest(path) != before
    assert len(reads) == 2


def test_a_file_that_was_just_written_is_not_remembered(tmp_path: Path, reads: list[Path]) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"content")
    digest(path), digest(path)
    assert len(reads) == 2


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"content")
    original = memo_module._sha256

    def disturbed(path: Path, before: os.stat_result) -> str:
        path.write_bytes(b"content and more")
        return original(path, before)

    monkeypatch.setattr(memo_module, "_sha256", disturbed)
    with pytest.raises(SourceError, match="changed while it was read"):
        digest(path)


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("content", ["", "no json", "[1]", '{"a": 3}'])
def test_a_damaged_memo_is_made_again(tmp_path: Path, content: str) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"content")
    (cache_root()).mkdir(parents=True)
    (cache_root() / "digests.json").write_text(content)
    assert digest(path) == hashlib.sha256(b"content").hexdigest()
    assert str(path) in (cache_root() / "digests.json").read_text()


@pytest.mark.usefixtures("settled")
def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"content")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("INTERP_CACHE_DIR", str(tmp_path / "file" / "below"))
    assert digest(path) == hashlib.sha256(b"content").hexdigest()


@pytest.mark.usefixtures("settled")
def test_what_was_hashed_before_an_error_is_kept(tmp_path: Path, reads: list[Path]) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"content")
    with pytest.raises(SourceError), Memo() as memo:
        memo.sha256(path)
        memo.sha256(tmp_path / "missing")
    digest(path)
    assert reads == [path]


def test_replacing_is_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), replacing(path) as file:
        file.write(b"half of the n")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    with replacing(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
