"""Scratch outlives failures, holds whole objects or none, and goes with the commit."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from store_cases import KEY, dead_writer, make, paths

from interp.errors import StoreError
from interp.store import Store


def test_scratch_survives_failed_attempts_and_goes_with_the_commit(store: Store) -> None:
    for attempt in (1, 2):
        with pytest.raises(RuntimeError), store.create("fit", KEY, spec={}, inputs={}) as writer:
            assert writer.scratch.list("steps/") == [f"steps/{n}" for n in range(1, attempt)]
            writer.scratch.write(f"steps/{attempt}", b"state")
            raise RuntimeError
    with store.create("fit", KEY, spec={}, inputs={}) as writer:
        assert writer.scratch.read("steps/2") == b"state"
        writer.write("a", b"1")
    assert store.scratch("fit", KEY).list() == []
    assert paths(store) == [f"fit/{KEY}/attempt-3/a", f"fit/{KEY}/manifest.json"]


def test_scratch_survives_a_killed_attempt(store: Store) -> None:
    store.scratch("fit", KEY).write("ck", b"state")
    dead_writer(store)
    with store.create("fit", KEY, spec={}, inputs={}) as writer:
        assert writer.scratch.read("ck") == b"state"


def test_scratch_reads_what_was_written(store: Store, tmp_path: Path) -> None:
    scratch = store.scratch("fit", KEY)
    assert scratch.read("none") is None
    assert scratch.json("none") is None
    assert not scratch.fetch("none", tmp_path / "none")
    scratch.write("empty", b"")
    scratch.write_json("graphs/1.json", {"a": [1]})
    scratch.write_json("graphs/2.json", {"a": [2]})
    scratch.write("graphs.txt", b"")
    assert scratch.read("empty") == b""
    assert scratch.json("graphs/2.json") == {"a": [2]}
    assert scratch.list() == ["empty", "graphs.txt", "graphs/1.json", "graphs/2.json"]
    assert scratch.list("graphs/") == ["graphs/1.json", "graphs/2.json"]
    assert scratch.list("gra") == ["graphs.txt", "graphs/1.json", "graphs/2.json"]
    scratch.write_json("graphs/2.json", {"a": [3]})
    assert scratch.json("graphs/2.json") == {"a": [3]}
    scratch.delete("graphs/1.json", "never there")
    assert scratch.list("graphs/") == ["graphs/2.json"]


def test_scratch_carries_files_of_any_size(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "state"
    source.write_bytes(os.urandom(2**20) * 40)
    scratch = store.scratch("fit", KEY)
    scratch.put(source, "state")
    assert scratch.fetch("state", tmp_path / "back" / "state")
    assert (tmp_path / "back" / "state").read_bytes() == source.read_bytes()
    assert scratch.read("state") == source.read_bytes()
    assert [path.name for path in (tmp_path / "back").iterdir()] == ["state"]


@pytest.mark.parametrize("damage", ["cut", "short", "empty", "changed", "longer"])
def test_a_torn_object_counts_as_absent_with_a_warning(
    store: Store, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    scratch = store.scratch("fit", KEY)
    scratch.write("ck", b"s" * 1000)
    path = f"fit/{KEY}/scratch/ck"
    whole = store.backend.read(path) or b""
    torn = {
        "cut": whole[:-100],
        "short": whole[:10],
        "empty": b"",
        "changed": whole[:10] + b"X" + whole[11:],
        "longer": b"s" + whole,
    }
    store.backend.write(path, torn[damage])
    with caplog.at_level(logging.WARNING, "interp.store"):
        assert scratch.read("ck") is None
    assert "ck in the scratch of" in caplog.text
    assert not scratch.fetch("ck", tmp_path / "ck")
    assert not (tmp_path / "ck").exists()
    scratch.write("ck", b"again")
    assert scratch.read("ck") == b"again"


def test_scratch_names_stay_inside(store: Store) -> None:
    with pytest.raises(StoreError, match="name"):
        store.scratch("fit", KEY).write("../manifest.json", b"")


def test_scratch_after_the_commit_does_no_harm(store: Store) -> None:
    """A worker that has not heard of the commit writes on."""
    artifact = make(store, a=b"1")
    store.scratch("fit", KEY).write("late", b"x")
    artifact.verify()
    assert store.gc(older_than=0).remnants == 1
    assert paths(store) == [f"fit/{KEY}/a", f"fit/{KEY}/manifest.json"]
