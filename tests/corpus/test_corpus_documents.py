"""Documents: the order, what is read, and that nothing is lost without a word."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from interp.corpus import Document, documents
from interp.corpus.rows import batched
from interp.errors import CorpusError, SourceError
from interp.sources.builtin import held_out
from interp.spec.study import CorpusSpec


def spec(source: Path | str, **fields: Any) -> CorpusSpec:
    return CorpusSpec(source=str(source), context=4, tokens=8, **fields)


def read(source: Path | str, **fields: Any) -> dict[str, str]:
    return {document.id: document.text for document in documents(spec(source, **fields))}


def write_jsonl(path: Path, rows: list[Any]) -> bytes:
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(data)
    return data


# --- order -------------------------------------------------------------------------------------------------------


def test_what_the_builtin_model_never_saw_comes_first() -> None:
    sides = [held_out(document.text) for document in documents(spec("builtin://python-stdlib"))]
    assert True in sides and False in sides
    assert sides == sorted(sides, reverse=True)


def test_the_builtin_order_mixes_the_packages() -> None:
    names = [document.id for document in documents(spec("builtin://python-stdlib"))]
    assert names != sorted(names) and len(names) == len(set(names)) > 100


def test_unknown_builtin_corpus() -> None:
    with pytest.raises(SourceError, match="python-stdlib"):
        next(documents(spec("builtin://shakespeare")))


def test_order_of_files_depends_on_their_names_alone(tmp_path: Path) -> None:
    names = [f"{letter}.txt" for letter in "abcdefgh"]
    orders = []
    for folder, creation in (("one", names), ("two", names[::-1])):
        (tmp_path / folder).mkdir()
        for name in creation:
            (tmp_path / folder / name).write_text(name)
        orders.append(list(read(tmp_path / folder)))
    assert orders[0] == orders[1]
    assert sorted(orders[0]) == names and orders[0] != names  # a fair order, not the alphabet's


def test_a_glob_and_its_folder_agree(tmp_path: Path) -> None:
    for name in "abcd":
        (tmp_path / f"{name}.txt").write_text(name)
    assert list(read(tmp_path).items()) == list(read(f"{tmp_path}/*.txt").items())


def test_rows_of_a_file_keep_their_order(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": str(i)} for i in range(5)])
    assert read(tmp_path / "a.jsonl") == {f"a.jsonl#{i + 1}": str(i) for i in range(5)}


def test_documents_are_read_lazily(tmp_path: Path) -> None:
    lines = [json.dumps({"text": "first"}), "this is no JSON"]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert next(documents(spec(tmp_path / "a.jsonl"))) == Document("a.jsonl#1", "first")


# --- formats -----------------------------------------------------------------------------------------------------


def test_text_file_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("héllo\n\nworld", encoding="utf-8")
    assert read(tmp_path / "a.txt") == {"a.txt": "héllo\n\nworld"}


def test_folder_takes_known_files_only_and_recurses(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.txt").write_text("text")
    (tmp_path / ".hidden.txt").write_text("no")
    (tmp_path / "README.md").write_text("no")
    assert read(tmp_path) == {"deep/a.txt": "text"}


def test_format_overrides_the_name(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("pass")
    with pytest.raises(CorpusError, match=r"corpus\.format"):
        read(tmp_path / "a.py")
    assert read(tmp_path / "a.py", format="text") == {"a.py": "pass"}


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet(tmp_path: Path, kind: pa.DataType) -> None:
    column = pa.array([f"row {i}" for i in range(600)]).cast(kind)
    pq.write_table(pa.table({"body": column, "other": range(600)}), tmp_path / "a.parquet", row_group_size=100)
    found = read(tmp_path / "a.parquet", column="body")
    assert list(found.values()) == [f"row {i}" for i in range(600)]
    assert next(iter(found)) == "a.parquet#1"


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [
        (".gz", gzip.compress),
        (".bz2", bz2.compress),
        (".xz", lzma.compress),
        (".zst", zstandard.ZstdCompressor().compress),
    ],
)
class TestCompressed:
    ROWS = [{"text": f"{i} " + "x" * 100} for i in range(4000)]  # noqa: RUF012 - read only

    def _file(self, tmp_path: Path, suffix: str, data: bytes) -> Path:
        path = tmp_path / f"a.jsonl{suffix}"
        path.write_bytes(data)
        return path

    def _plain(self, tmp_path: Path) -> bytes:
        return write_jsonl(tmp_path / "plain.jsonl", self.ROWS)

    def test_is_read(self, tmp_path: Path, suffix: str, compress: Any) -> None:
        path = self._file(tmp_path, suffix, compress(self._plain(tmp_path)))
        assert list(read(path).values()) == [row["text"] for row in self.ROWS]

    def test_joined_files_are_read_to_the_end(self, tmp_path: Path, suffix: str, compress: Any) -> None:
        data = self._plain(tmp_path)
        path = self._file(tmp_path, suffix, compress(data) + compress(data))
        assert len(read(path)) == 2 * len(self.ROWS)

    def test_cut_short_is_an_error(self, tmp_path: Path, suffix: str, compress: Any) -> None:
        data = compress(self._plain(tmp_path))
        path = self._file(tmp_path, suffix, data[: len(data) // 2])
        with pytest.raises(CorpusError, match=path.name):
            read(path)


def test_memory_and_s3_like_paths_go_through_fsspec() -> None:
    import fsspec

    with fsspec.open("memory://corpus-test/a.txt", "w") as file:
        file.write("in memory")
    assert read("memory://corpus-test") == {"a.txt": "in memory"}
    assert read("memory://corpus-test/*.txt") == {"a.txt": "in memory"}
    assert read("memory://corpus-test/a.txt") == {"a.txt": "in memory"}


# --- failures ----------------------------------------------------------------------------------------------------


def test_missing_source_and_empty_folder(tmp_path: Path) -> None:
    for source in (tmp_path / "none.txt", tmp_path, f"{tmp_path}/*.txt"):
        with pytest.raises(SourceError) as caught:
            read(source)
        assert str(source) in str(caught.value)


def test_unknown_protocol() -> None:
    with pytest.raises(SourceError, match="gopher"):
        read("gopher://host/a.txt")


def test_missing_column_names_file_row_and_columns(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": "x"}, {"body": "y", "id": 3}])
    with pytest.raises(CorpusError) as caught:
        read(tmp_path / "a.jsonl")
    for said in ("a.jsonl", "row 2", "'text'", "body, id"):
        assert said in str(caught.value)


def test_missing_parquet_column(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(CorpusError, match="body") as caught:
        read(tmp_path / "a.parquet")
    assert "a.parquet" in str(caught.value)


@pytest.mark.parametrize("value", [3, ["a"], {"b": 1}, True])
def test_column_that_is_no_text(tmp_path: Path, value: Any) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": value}])
    with pytest.raises(CorpusError, match=f"row 1 .*not text(.|\n)*{type(value).__name__}"):
        read(tmp_path / "a.jsonl")


def test_row_that_is_no_object_and_line_that_is_no_json(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ["just a string"])
    with pytest.raises(CorpusError, match="no object"):
        read(tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").write_text('\n{"text": "x"}\n{"text": \n')
    with pytest.raises(CorpusError, match=r"row 3 of .*a\.jsonl is no JSON"):
        read(tmp_path / "a.jsonl")


def test_null_is_a_document_without_text(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": None}])
    assert read(tmp_path / "a.jsonl") == {"a.jsonl#1": ""}


def test_half_of_a_surrogate_pair_becomes_the_replacement_character(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a\\ud83d b"}\n{"text": "\\ud83d\\ude00"}\n')
    assert list(read(tmp_path / "a.jsonl").values()) == ["a\ufffd b", "\U0001f600"]


@pytest.mark.parametrize(("name", "data"), [("a.txt", b"\xff\xfe\x00x"), ("a.parquet", b"PAR1 no, it is not")])
def test_unreadable_file(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CorpusError, match=name):
        read(tmp_path / name)


# --- the hub -----------------------------------------------------------------------------------------------------


def test_hub_without_a_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceError) as caught:
        read("hf://org/there-is-no-such-set", name="sample")
    for said in ("hf://org/there-is-no-such-set", "sample", "HF_HUB_OFFLINE"):
        assert said in str(caught.value)


def test_hub_is_streamed_at_the_pinned_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: dict[str, Any] = {}

    def load_dataset(path: str, name: str | None, **options: Any) -> Any:
        asked.update(path=path, name=name, **options)
        return datasets.IterableDataset.from_generator(lambda: iter([{"text": "one"}, {"text": "two"}]))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = list(documents(spec("hf://org/set", name="part", split="test", revision="abc123")))
    assert found == [Document("org/set#1", "one"), Document("org/set#2", "two")]
    assert asked == {"path": "org/set", "name": "part", "split": "test", "revision": "abc123", "streaming": True}


def test_hub_row_without_the_column(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    stream = datasets.IterableDataset.from_generator(lambda: iter([{"body": "one"}]))
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: stream)
    with pytest.raises(CorpusError, match=r"row 1 of hf://org/set(.|\n)*body"):
        read("hf://org/set")


# --- batches -----------------------------------------------------------------------------------------------------


def test_batches_keep_every_document_in_order() -> None:
    stream = [Document(str(i), "x" * (i % 7)) for i in range(100)]
    grouped = list(batched(stream, characters=10))
    assert [document for batch in grouped for document in batch] == stream
    assert all(sum(len(document.text) for document in batch) <= 10 for batch in grouped)


def test_a_run_of_empty_documents_ends_a_batch() -> None:
    assert len(list(batched([Document("", "")] * 100, characters=10))) > 1
