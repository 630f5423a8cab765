"""What is on its way to the store: nothing lost, nothing twice, memory bounded, the run never held up."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import ray_jobs.outbox
from interp.errors import StoreAccessError
from interp.store import Store
from interp.store.runs import RunFolder
from ray_jobs.outbox import Outbox


class Refusing:
    """A backend that may be told to refuse, or to take a write and lose the answer."""

    def __init__(self, backend: Any):
        self.backend, self.refuses, self.loses_answers = backend, False, False
        self.tries = 0
        self.written: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def impatient(self, seconds: float) -> Refusing:
        return self

    def write(self, path: str, data: bytes) -> None:
        self.tries += 1
        if self.refuses:
            raise StoreAccessError("the S3 store refused: access denied")
        self.backend.write(path, data)
        self.written.append(path)
        if self.loses_answers:
            raise StoreAccessError("no answer")


@pytest.fixture
def backend(tmp_path: Path) -> Refusing:
    return Refusing(Store.open(tmp_path).backend)


@pytest.fixture
def folder(tmp_path: Path, backend: Refusing) -> RunFolder:
    return RunFolder(Store(str(tmp_path), backend), "tiny-1")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_jobs.outbox, "EVERY_S", 0.05)
    monkeypatch.setattr(ray_jobs.outbox, "_LONGEST_PAUSE_S", 0.05)


def opened(folder: RunFolder, attempt: int = 1, **status: Any) -> Outbox:
    outbox = Outbox(folder, attempt, lambda: {"state": "running", "attempt": attempt, **status})
    outbox.start()
    return outbox


def text_of(folder: RunFolder, kind: str = "log") -> str:
    return "".join(text for _, text in folder.pieces(kind))


def until(reached: Any) -> None:
    deadline = time.monotonic() + 20
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_lines_go_out_in_pieces_as_they_come(folder: RunFolder) -> None:
    outbox = opened(folder)
    outbox.add("log", "one\n")
    until(lambda: text_of(folder) == "one\n")
    outbox.add("log", "two\n")
    outbox.add("metrics", "{}\n")
    assert outbox.close(10)
    assert [name for name, _ in folder.pieces("log")] == ["log/0001/00000001.txt", "log/0001/00000002.txt"]
    assert [name for name, _ in folder.pieces("metrics")] == ["metrics/0001/00000000.jsonl"]


def test_metrics_come_less_often(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_jobs.outbox, "METRICS_EVERY_S", 1000)
    outbox = opened(folder)
    for n in range(3):
        outbox.add("metrics", f"{n}\n")
        outbox.add("log", f"{n}\n")
        until(lambda n=n: text_of(folder).endswith(f"{n}\n"))
    assert not text_of(folder, "metrics")
    monkeypatch.setattr(ray_jobs.outbox, "METRICS_EVERY_S", 0.01)
    until(lambda: text_of(folder, "metrics") == "0\n1\n2\n")
    monkeypatch.setattr(ray_jobs.outbox, "METRICS_EVERY_S", 1000)
    outbox.add("metrics", big := "x" * (64 << 10) + "\n")
    until(lambda: text_of(folder, "metrics") == "0\n1\n2\n" + big)
    outbox.add("metrics", "last\n")
    assert outbox.close(10)
    assert text_of(folder, "metrics").endswith("x\nlast\n")


def test_a_piece_has_64_kib_at_most_and_whole_lines(folder: RunFolder) -> None:
    outbox = opened(folder)
    lines = [f"{n:05d} {'x' * 94}\n" for n in range(2000)]
    for line in lines:
        outbox.add("log", line)
    outbox.add("log", long := "y" * 100_000 + "\n")
    assert outbox.close(10)
    pieces = [text for _, text in folder.pieces("log")]
    assert "".join(pieces) == "".join(lines) + long
    assert all(piece.endswith("\n") and (len(piece) <= 64 << 10 or piece == long) for piece in pieces)
    assert len(pieces) < 10


def test_a_store_that_refuses_for_a_while_loses_nothing_and_holds_nobody_up(
    folder: RunFolder, backend: Refusing, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    outbox = opened(folder)
    backend.refuses = True
    began, slowest = time.monotonic(), 0.0
    lines = []
    while time.monotonic() - began < 1.5:
        lines.append(f"{len(lines)}\n")
        before = time.monotonic()
        outbox.add("log", lines[-1])
        outbox.changed(at_once=True)
        slowest = max(slowest, time.monotonic() - before)
        time.sleep(0.005)
    assert backend.tries >= 3 and not backend.written
    assert slowest < 0.5
    assert not outbox.flush(0.1)
    backend.refuses = False
    assert outbox.close(10)
    assert text_of(folder) == "".join(lines)
    assert folder.json("status.json") == {"state": "running", "attempt": 1}
    said = [record.getMessage() for record in caplog.records]
    assert sum("access denied" in text for text in said) == 1
    assert any("takes log and status again" in text for text in said)


def test_an_answer_that_was_lost_makes_no_line_come_twice(folder: RunFolder, backend: Refusing) -> None:
    outbox = opened(folder)
    backend.loses_answers = True
    outbox.add("log", "one\n")
    until(lambda: len(backend.written) >= 2)
    outbox.add("log", "two\n")
    seen = [name for name, _ in folder.pieces("log")]
    backend.loses_answers = False
    assert outbox.close(10)
    assert text_of(folder) == "one\ntwo\n"
    # Who has read the first piece already finds all the rest after it.
    assert [text for _, text in folder.pieces("log", after=seen[-1])] == ["two\n"]


def test_beyond_the_limit_the_oldest_lines_go_and_the_log_says_so(
    folder: RunFolder, backend: Refusing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_jobs.outbox, "MOST_WAITING", 1000)
    outbox = opened(folder)
    backend.refuses = True
    outbox.add("log", "2026-11-21T19:00:00.000000Z INFO    the piece that is being tried\n")
    until(lambda: backend.tries)
    for n in range(100):
        outbox.add("log", f"2026-11-21T19:00:01.{n:06d}Z INFO    x\n")
        outbox.add("metrics", f'{{"n": {n}, "filler": "{"x" * 40}"}}\n')
    backend.refuses = False
    assert outbox.close(10)
    first, gap, *rest = text_of(folder).splitlines()
    kept = len(rest)
    assert first.endswith("being tried") and 10 < kept < 40
    assert gap == f"2026-11-21T19:00:01.{99 - kept:06d}Z WARNING {100 - kept} lines are missing here: " + (
        "the store did not take them in time"
    )
    assert rest[-1].startswith("2026-11-21T19:00:01.000099Z")
    assert '"missing": ' in text_of(folder, "metrics")


def test_a_store_that_never_comes_back_does_not_keep_the_driver(folder: RunFolder, backend: Refusing) -> None:
    outbox = opened(folder)
    backend.refuses = True
    outbox.add("log", "one\n")
    began = time.monotonic()
    assert not outbox.close(0.3)
    assert time.monotonic() - began < 2
    until(lambda: not any(thread.name == "outbox" for thread in threading.enumerate()))


def test_the_status_is_written_again_when_nothing_happens(folder: RunFolder, backend: Refusing) -> None:
    outbox = opened(folder)
    outbox.changed(at_once=True)
    assert outbox.flush(10)
    written = backend.tries
    time.sleep(0.3)
    assert backend.tries == written
    outbox._status._written -= ray_jobs.outbox.HEARTBEAT_S
    until(lambda: backend.tries > written)
    outbox.close(10)


def test_of_two_attempts_at_once_the_later_one_writes_the_status_until_it_falls_silent(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.write_json("status.json", {"attempt": 2, "state": "running", "updated": "a"})
    outbox = opened(folder, attempt=1)
    outbox.changed(at_once=True)
    assert outbox.flush(10)
    assert folder.json("status.json") == {"attempt": 2, "state": "running", "updated": "a"}
    monkeypatch.setattr(ray_jobs.outbox, "SILENT_S", 0.1)
    time.sleep(0.2)
    outbox.changed(at_once=True)
    assert outbox.close(10)
    assert folder.json("status.json") == {"attempt": 1, "state": "running"}
