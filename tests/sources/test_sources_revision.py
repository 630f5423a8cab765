"""What identifies a corpus: its content, whatever path it is at and whatever date its files have."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest

from interp.errors import CorpusError, SourceError
from interp.sources import revision
from interp.sources.files import find_files
from interp.sources.folders import content_tag
from interp.sources.revision import content_revision, corpus_revision, file_revision
from interp.spec.study import CorpusSpec


def corpus(source: str | Path, **fields: Any) -> CorpusSpec:
    return CorpusSpec.model_validate({"source": str(source), "tokens": 1, **fields})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "corpus"
    (made / "sub").mkdir(parents=True)
    (made / "a.txt").write_text("one")
    (made / "sub" / "b.jsonl").write_text('{"text": "two"}\n')
    (made / "notes.md").write_text("no part of it")
    return made


def test_the_same_content_elsewhere_and_later(folder: Path, tmp_path: Path, aged: Callable[[Path], None]) -> None:
    before = corpus_revision(corpus(folder))
    moved = tmp_path / "moved"
    folder.rename(moved)
    aged(moved / "a.txt")
    (moved / "notes.md").write_text("changed, and still no part of it")
    assert corpus_revision(corpus(moved)) == before
    assert corpus_revision(corpus(f"{moved}/")) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "a.txt").write_text("One"),
        lambda folder: (folder / "c.txt").write_text("three"),
        lambda folder: (folder / "a.txt").unlink(),
        lambda folder: (folder / "a.txt").rename(folder / "z.txt"),  # the order, and so the held-out part, may change
    ],
)
def test_changed_content(folder: Path, change: Callable[[Path], Any]) -> None:
    before = corpus_revision(corpus(folder))
    change(folder)
    assert corpus_revision(corpus(folder)) != before


def test_what_a_file_is_read_as_is_part_of_it(tmp_path: Path) -> None:
    path = tmp_path / "data.txt"
    path.write_text('{"text": "x"}\n')
    as_text, as_rows = corpus_revision(corpus(path)), corpus_revision(corpus(path, format="jsonl"))
    assert as_text != as_rows
    assert corpus_revision(corpus(path, format="text")) == as_text


def test_a_remote_corpus(folder: Path) -> None:
    fs = fsspec.filesystem("memory")
    fs.put(str(folder), "/texts", recursive=True)
    before = corpus_revision(corpus("memory://texts"))
    assert corpus_revision(corpus("memory://texts")) == before
    fs.pipe_file("/texts/a.txt", b"One")
    assert corpus_revision(corpus("memory://texts")) != before


def test_etags_are_believed() -> None:
    class Unread:
        def open(self, *args: Any, **options: Any) -> Any:
            raise AssertionError("a file with an etag is not read")

    assert content_tag(Unread(), {"name": "x", "size": 1, "ETag": '"abc"'}) == "1:abc"


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        corpus_revision(corpus(tmp_path / "missing.txt"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="no files"):
        corpus_revision(corpus(tmp_path / "empty"))
    (tmp_path / "table.csv").write_text("a,b")
    with pytest.raises(CorpusError, match="format"):
        corpus_revision(corpus(tmp_path / "table.csv"))
    with pytest.raises(SourceError, match="built-in corpus"):
        corpus_revision(corpus("builtin://everything"))


def test_files_do_not_come_in_the_order_of_the_alphabet_nor_of_the_disk(tmp_path: Path) -> None:
    for name in "fedcba":
        (tmp_path / f"{name}.txt").write_text(name)
    names = [file.name for file in find_files(corpus(tmp_path))]
    assert sorted(names) == [f"{name}.txt" for name in "abcdef"]
    assert names not in (sorted(names), sorted(names, reverse=True))
    assert [file.name for file in find_files(corpus(tmp_path / "*.txt"))] == names


def test_the_standard_library(monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [("b.py", "y"), ("a.py", "x")]
    monkeypatch.setattr(revision, "_listing", lambda root: "as it was")
    monkeypatch.setattr(revision, "stdlib_documents", lambda: iter(documents))
    found = corpus_revision(corpus("builtin://python-stdlib"))
    assert found.startswith(f"python-{platform.python_version()}-")
    documents.append(("c.py", "z"))
    assert corpus_revision(corpus("builtin://python-stdlib")) == found  # the listing says that nothing changed
    monkeypatch.setattr(revision, "_listing", lambda root: "with a new file")
    assert corpus_revision(corpus("builtin://python-stdlib")) != found


def test_the_listing_sees_every_change_of_a_library(tmp_path: Path) -> None:
    for name in ("a.py", "json/b.py", "site-packages/c.py", "__pycache__/d.py", "e.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    before = revision._listing(tmp_path)
    (tmp_path / "site-packages/c.py").write_text("x")
    (tmp_path / "e.txt").write_text("x")
    assert revision._listing(tmp_path) == before
    (tmp_path / "json/b.py").write_text("x")
    assert revision._listing(tmp_path) != before


def test_a_folder_of_anything(tmp_path: Path) -> None:
    (tmp_path / "d" / "deep").mkdir(parents=True)
    (tmp_path / "d" / "deep" / "x").write_text("1")
    before = content_revision(tmp_path / "d")
    (tmp_path / "d" / "deep" / "x").write_text("2")
    assert content_revision(tmp_path / "d") != before
    with pytest.raises(SourceError):
        content_revision(tmp_path / "missing")


def test_a_small_file_is_known_by_its_content(tmp_path: Path) -> None:
    one, two = tmp_path / "one.npy", tmp_path / "two.npy"
    one.write_bytes(b"vector")
    two.write_bytes(b"vector")
    assert file_revision(str(one)) == file_revision(two.as_uri())
    two.write_bytes(b"other")
    assert file_revision(str(one)) != file_revision(str(two))
    with pytest.raises(SourceError, match="no such file"):
        file_revision(str(tmp_path / "none.npy"))
