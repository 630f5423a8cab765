"""Prompts from anywhere; a bad row is a row with its reason."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import pytest

from interp.errors import SourceError
from interp.sources.prompts import Prompt, prompts_of
from interp.spec.trace import TraceSpec


def prompts(source: Any, **fields: Any) -> list[Prompt]:
    return prompts_of(
        TraceSpec.model_validate({"prompts": source if isinstance(source, list) else str(source), **fields})
    )


def test_a_list() -> None:
    found = prompts(["one", " two \n", "", "one"])
    assert [prompt.text for prompt in found] == ["one", " two \n", "", "one"]
    assert [prompt.error for prompt in found] == [None, None, "the prompt is empty", None]


def test_ids_are_stable_and_differ() -> None:
    found = prompts(["one", "two", "one"])
    assert [prompt.id for prompt in found] == ["p0000-7692c3ad", "p0001-3fc4ccfe", "p0002-7692c3ad"]
    assert [prompt.id for prompt in prompts(["one", "two", "one", "more"])][:3] == [prompt.id for prompt in found]


def test_a_text_file_has_one_a_line(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes("first\r\n\nthird  \nvierte\u2028Zeile\n\n".encode())
    found = prompts(path)
    assert [prompt.text for prompt in found] == ["first", "", "third  ", "vierte\u2028Zeile"]
    assert [prompt.index for prompt in found if prompt.error] == [1]


def test_a_row_in_another_encoding_stops_no_other(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes(b"good\nb\xffd\ngood too\n")
    found = prompts(path)
    assert [prompt.error is None for prompt in found] == [True, False, True]
    assert "byte 1" in str(found[1].error)


def test_json_lines(tmp_path: Path) -> None:
    rows = [
        '{"prompt": "a", "x": 1}',
        "",
        '{"prompt": 3}',
        '{"text": "b"}',
        "[1]",
        '{"prompt": "c"',
        '{"prompt": "d\\nd"}',
    ]
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join([*rows, '{"prompt": "half \\ud800"}', '{"prompt": null}']) + "\n")
    found = prompts(path)
    good = {prompt.index: prompt.text for prompt in found if prompt.error is None}
    assert good == {0: "a", 5: "d\nd"}
    reasons = {prompt.index: str(prompt.error) for prompt in found if prompt.error}
    for index, part in ((1, "no text but int"), (2, "it has text"), (3, "no object"), (4, "no JSON"), (6, "surrogate")):
        assert part in reasons[index]
    assert "NoneType" in reasons[7]
    assert len(found) == 8  # the blank line is none


def test_another_column(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"question": "a"}\n')
    assert [prompt.text for prompt in prompts(path, column="question")] == ["a"]


def test_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"prompt": ["a", None, "b"], "n": [1, 2, 3]}), path)
    assert [(prompt.text, prompt.error is None) for prompt in prompts(path)] == [
        ("a", True),
        ("null", False),
        ("b", True),
    ]
    assert all(prompt.error for prompt in prompts(path, column="n"))
    with pytest.raises(SourceError, match="no column 'text'"):
        prompts(path, column="text")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(SourceError):
        prompts(path)


def test_any_filesystem_and_compression(tmp_path: Path) -> None:
    fsspec.filesystem("memory").pipe_file("/prompts/p.txt", b"a\nb\n")
    assert [prompt.text for prompt in prompts("memory://prompts/p.txt")] == ["a", "b"]
    path = tmp_path / "p.txt.gz"
    path.write_bytes(gzip.compress(b"a\nb\n"))
    assert [prompt.text for prompt in prompts(path)] == ["a", "b"]
    path.write_bytes(gzip.compress(b"a\nb\n" * 1000)[:-10])
    with pytest.raises(SourceError):
        prompts(path)


@pytest.mark.parametrize("name", ["missing.txt", "p.csv", "def f(x):", "p.txt.zst"])
def test_no_such_file_or_no_such_format(tmp_path: Path, name: str) -> None:
    (tmp_path / "p.csv").write_text("a")
    with pytest.raises(SourceError):
        prompts(tmp_path / name)


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_a_file_without_prompts(tmp_path: Path, content: str) -> None:
    for name in ("p.txt", "p.jsonl"):
        (tmp_path / name).write_text(content)
        with pytest.raises(SourceError, match="no prompt"):
            prompts(tmp_path / name)


def test_text_needs_no_arrow() -> None:
    code = "import sys; from interp.sources import prompts; sys.exit('pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_folder_has_one_prompt_a_file(tmp_path: Path) -> None:
    folder = tmp_path / "prompts"
    (folder / "sub").mkdir(parents=True)
    contents = {
        "b two.txt": b"Hello\nworld\n",
        "a.txt": b"no newline",
        "c.txt": b"one kept\n\n",
        "d.txt": b"windows\r\n",
        "e.txt": b"b\xffd\n",
        "f.txt": b"\n",
        ".hidden.txt": b"x",
        "notes.md": b"x",
        "sub/g.txt": b"deeper",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    for source in (folder, f"{folder}/"):
        found = prompts(source)
        assert [prompt.text for prompt in found[:4]] == ["no newline", "Hello\nworld", "one kept\n", "windows"]
        assert [prompt.error is None for prompt in found] == [True] * 4 + [False] * 2
        assert [prompt.id.rpartition("-")[0] for prompt in found] == ["a", "b-two", "c", "d", "e", "f"]
    assert [prompt.id for prompt in prompts(f"{folder}/*.txt")] == [prompt.id for prompt in found]
    assert [prompt.text for prompt in prompts(f"{folder}/**/g.txt")] == ["deeper"]


def test_ids_of_files_are_names_and_differ(tmp_path: Path) -> None:
    names = ["x/é a.txt", "y/é a.txt", "y/é_a.txt", "y/+.txt", f"y/{'long' * 40}.txt"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("the same")
    ids = [prompt.id for prompt in prompts(f"{tmp_path}/*/*.txt")]
    assert len(set(ids)) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]{1,80}", found) and not found.startswith((".", "-")) for found in ids)
    (tmp_path / "x" / "zz.txt").write_text("more")
    assert set(ids) <= {prompt.id for prompt in prompts(f"{tmp_path}/*/*.txt")}


def test_a_folder_or_glob_without_prompts_says_so(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text("{}")
    with pytest.raises(SourceError, match=r"(?s)the folder has no prompts.*p\.jsonl.*end in \.txt"):
        prompts(tmp_path)
    with pytest.raises(SourceError, match=r"(?s)\.txt files only.*p\.jsonl"):
        prompts(f"{tmp_path}/*")
    with pytest.raises(SourceError, match="no file matches"):
        prompts(f"{tmp_path}/*.txt")
    (tmp_path / "one[1].txt").write_text("a file whose name looks like a glob")
    assert [prompt.text for prompt in prompts(f"{tmp_path}/one[1].txt")] == ["a file whose name looks like a glob"]


@pytest.mark.s3
def test_a_folder_on_object_storage(s3_url: str) -> None:
    fs, root = fsspec.core.url_to_fs(s3_url)
    for name, text in (("b.txt", "second\n"), ("a.txt", "first\n"), ("c.md", "x")):
        fs.pipe_file(f"{root}/folder/{name}", text.encode())
    for source in (f"{s3_url}/folder", f"{s3_url}/folder/", f"{s3_url}/folder/*.txt"):
        assert [prompt.text for prompt in prompts(source)] == ["first", "second"]
    assert [prompt.id.split("-")[0] for prompt in prompts(source)] == ["a", "b"]


TARGET = {"difference": [{"column": "good"}, {"column": "bad"}]}


def test_rows_carry_what_the_target_is_named_by(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "good": " x", "bad": 7, "other": 1},
        {"prompt": "a", "good": " x"},
        {"prompt": "a", "good": " x", "bad": True},
        {"prompt": "a", "good": " x", "bad": 8},
    ]
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = prompts(path, target=TARGET)
    assert [dict(prompt.row) for prompt in found] == [{"good": " x", "bad": 7}, {}, {}, {"good": " x", "bad": 8}]
    assert [prompt.error for prompt in found] == [
        None,
        "'bad', which names the target, is not there; a text or a token id belongs there",
        "'bad', which names the target, is bool; a text or a token id belongs there",
        None,
    ]
    contents = [prompt.content() for prompt in found]
    assert contents[0]["row"] == {"good": " x", "bad": 7} and contents[3]["row"]["bad"] == 8
    assert [Prompt(i, **content) for i, content in enumerate(contents)] == found
    assert "row" not in prompts(path)[0].content()


def test_columns_of_a_parquet_file(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"prompt": ["a", "b"], "good": ["x", "y"], "bad": [1, None]}), path)
    found = prompts(path, target=TARGET)
    assert [dict(prompt.row) for prompt in found] == [{"good": "x", "bad": 1}, {}]
    assert "is not there" in str(found[1].error)
    with pytest.raises(SourceError, match="no column 'best'"):
        prompts(path, target={"tokens": [{"column": "best"}]})


def test_text_has_no_columns(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a\n")
    for source in (["a"], tmp_path / "p.txt", tmp_path):
        with pytest.raises(SourceError, match="named by column 'good'"):
            prompts(source, target=TARGET)


@pytest.mark.parametrize("name", ["p.txt", "p.txt.gz", "p.jsonl", "folder"])
def test_a_byte_order_mark_is_no_part_of_the_first_prompt(tmp_path: Path, name: str) -> None:
    mark = b"\xef\xbb\xbf"
    content = mark + (b'{"prompt": "one"}\n{"prompt": "two"}\n' if name == "p.jsonl" else b"one\ntwo\n")
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
        (path / "a.txt").write_bytes(mark + b"one\n")
        (path / "b.txt").write_bytes(b"two")
    else:
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    found = prompts_of(TraceSpec(prompts=str(path)))
    assert [(prompt.text, prompt.error) for prompt in found] == [("one", None), ("two", None)]
