"""What a run leaves beside the artifacts: documents that are created once, and a log in pieces."""

from __future__ import annotations

import threading

import pytest

from interp.errors import ArtifactMissing, StoreError
from interp.store import Store
from interp.store.names import Place
from interp.store.runs import RunFolder, run_names


@pytest.fixture
def run(store: Store) -> RunFolder:
    return RunFolder(store, "study-0a1b2c3d")


def test_one_of_two_creates_a_document(run: RunFolder) -> None:
    assert run.json("run.json") is None
    assert run.create_json("run.json", {"token": "a"}) is True
    assert run.create_json("run.json", {"token": "b"}) is False
    assert run.json("run.json") == {"token": "a"}
    run.write_json("run.json", {"token": "c"})
    assert run.json("run.json") == {"token": "c"}


def test_pieces_come_in_order_and_after_the_one_that_was_read(run: RunFolder) -> None:
    for attempt, number in ((2, 0), (1, 10), (1, 9)):
        run.put_piece("log", attempt, number, f"{attempt}/{number}\n")
    run.put_piece("metrics", 1, 0, "{}\n")
    assert "".join(text for _, text in run.pieces("log")) == "1/9\n1/10\n2/0\n"
    (first, _), *_ = run.pieces("log")
    assert [text for _, text in run.pieces("log", after=first)] == ["1/10\n", "2/0\n"]
    assert run.attempts() == [1, 2] and run.attempts("metrics") == [1]


def test_many_pieces_are_read_at_the_same_time_and_the_last_alone(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(40):
        run.put_piece("log", 1, number, f"{number} a\n{number} b\n")
    threads, read, text = set[int](), list[str](), RunFolder.text
    together = threading.Barrier(4)

    def slow(self: RunFolder, name: str) -> str | None:
        if len(threads) < 4:
            threads.add(threading.get_ident())
            together.wait(10)  # broken, if they came one after another
        read.append(name)
        return text(self, name)

    monkeypatch.setattr(RunFolder, "text", slow)
    assert [piece.split()[0] for _, piece in run.pieces("log")] == [str(number) for number in range(40)]
    read.clear()
    assert [piece for _, piece in run.pieces("log", lines=3)] == ["38 a\n38 b\n", "39 a\n39 b\n"]
    assert len(read) <= 16


def test_runs_are_no_artifacts(store: Store, run: RunFolder) -> None:
    run.write_json("status.json", {"state": "running"})
    run.put_piece("log", 1, 0, "line\n")
    assert run_names(store) == [run.name]
    assert store.list() == []
    assert store.gc(keep=(), older_than=0).removed == ()
    assert run.json("status.json") == {"state": "running"}
    with pytest.raises(StoreError, match="cannot be a stage"):
        Place("runs", run.name)


def test_what_is_not_there_or_damaged_is_told(store: Store, run: RunFolder) -> None:
    with pytest.raises(ArtifactMissing, match=r"has no plan\.json"):
        run.required_text("plan.json")
    run.write_text("status.json", "[1]")
    with pytest.raises(StoreError, match="no JSON object"):
        run.json("status.json")
    for name in ("", "a/b", "..", ".hidden"):
        with pytest.raises(StoreError, match="cannot be the name of a run"):
            RunFolder(store, name)
