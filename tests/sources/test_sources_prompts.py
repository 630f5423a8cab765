"""Prompts from anywhere; a bad row is a row with its reason."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import pytest

from interp.errors import SourceError
from interp.sources.prompts import Prompt, prompts_of
from interp.spec.study import TraceSpec


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
