"""The submitter's pod follows the driver to its end, whatever happens to its connection."""

from __future__ import annotations

import asyncio
import io
import socket
from collections.abc import AsyncIterator

import pytest

from ray_jobs.submitter import client_of, follow, main

ENTRYPOINT = "python -m ray_jobs.run_plan --run r"
LINES = ["one\n", "two\n", "three\n", "four\n"]


class Head:
    """Ray's job server: a job that prints LINES; connections to its log end after so many of them."""

    def __init__(self, cuts: list[int | Exception], statuses: list[str | Exception] | None = None):
        self.cuts, self.statuses = cuts, statuses or []
        self.jobs: dict[str, str] = {}
        self.refuse = 0

    def connect(self) -> Head:
        if self.refuse:
            self.refuse -= 1
            raise ConnectionError("Failed to connect to Ray")
        return self

    def submit_job(self, *, entrypoint: str, submission_id: str) -> str:
        if submission_id in self.jobs:
            raise RuntimeError("Request failed with status code 500: already submitted")
        self.jobs[submission_id] = entrypoint
        return submission_id

    def get_job_status(self, job: str) -> str:
        if job not in self.jobs:
            raise RuntimeError("Request failed with status code 404: does not exist")
        status = self.statuses.pop(0) if self.statuses else "SUCCEEDED"
        if isinstance(status, Exception):
            raise status
        return status

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        assert job in self.jobs
        cut = self.cuts.pop(0) if self.cuts else len(LINES)
        if isinstance(cut, Exception):
            raise cut
        for line in LINES[:cut]:
            yield line


def run(head: Head, *, patience: float = 60.0) -> tuple[int, str]:
    out = io.StringIO()
    return follow(head.connect, "job", ENTRYPOINT, out, patience=patience, pause=0.0), out.getvalue()


def test_the_driver_is_submitted_once_and_its_log_printed_once() -> None:
    head = Head([])
    assert run(head) == (0, "".join(LINES))
    assert head.jobs == {"job": ENTRYPOINT}


@pytest.mark.parametrize("end", ["SUCCEEDED", "FAILED", "STOPPED"])
def test_a_cut_connection_is_not_the_end(end: str) -> None:
    head = Head([1, RuntimeError("WebSocket closed"), 3, 0, 4], ["RUNNING", "RUNNING", "RUNNING", "RUNNING", end])
    assert run(head) == (0, "".join(LINES))


def test_a_second_submitter_follows_the_job_of_the_first() -> None:
    head = Head([2], ["RUNNING"])
    head.jobs["job"] = ENTRYPOINT
    assert run(head) == (0, "".join(LINES))


def test_lines_that_come_in_other_pieces_are_printed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    head = Head([])
    head.jobs["job"] = ENTRYPOINT
    pieces = [["one\ntw"], ["o", "ne\ntwo\nthr"], ["one\ntwo\n", "three\nfour\n"]]

    async def tail(job: str) -> AsyncIterator[str]:
        for piece in pieces.pop(0):
            yield piece

    monkeypatch.setattr(head, "tail_job_logs", tail)
    head.statuses = ["RUNNING", "RUNNING", "SUCCEEDED"]
    assert run(head) == (0, "".join(LINES))


def test_a_connection_that_is_dead_without_having_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    head = Head([])
    head.jobs["job"], head.statuses = ENTRYPOINT, ["RUNNING", "SUCCEEDED"]
    tails = iter([LINES[:2], LINES])

    async def tail(job: str) -> AsyncIterator[str]:
        lines = next(tails)
        for line in lines:
            yield line
        if len(lines) < len(LINES):
            await asyncio.Event().wait()

    monkeypatch.setattr(head, "tail_job_logs", tail)
    out = io.StringIO()
    assert follow(head.connect, "job", ENTRYPOINT, out, pause=0.0, quiet=0.05) == 0
    assert out.getvalue() == "".join(LINES)


def test_a_head_that_was_replaced_gets_the_driver_again() -> None:
    head = Head([2], ["RUNNING"])
    head.jobs["job"] = ENTRYPOINT
    second = Head([], ["RUNNING"])
    heads = [head, second, second]
    out = io.StringIO()
    assert follow(lambda: heads.pop(0) if len(heads) > 1 else heads[0], "job", ENTRYPOINT, out, pause=0.0) == 0
    assert second.jobs == {"job": ENTRYPOINT}
    assert out.getvalue() == "one\ntwo\n" + "".join(LINES), "the second driver's log is printed from its beginning"


def test_a_head_that_does_not_answer_for_a_while() -> None:
    head = Head([], [RuntimeError("Request failed with status code 500: busy"), "RUNNING"])
    head.refuse = 3
    assert run(head) == (0, "".join(LINES))


def test_a_head_that_is_gone() -> None:
    head = Head([])
    head.refuse = 10**9
    assert run(head, patience=0.05) == (1, "")


def test_a_head_that_answers_but_takes_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    head, tries = Head([]), list[str]()

    def refused(*, entrypoint: str, submission_id: str) -> str:
        tries.append(entrypoint)
        raise RuntimeError("Request failed with status code 500: no space left on device")

    monkeypatch.setattr(head, "submit_job", refused)
    assert run(head, patience=0.05) == (1, "") and len(tries) > 1


def test_a_driver_that_was_heard_for_longer_than_the_patience_may_be_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    head = Head([])
    head.jobs["job"], head.statuses = ENTRYPOINT, ["RUNNING", "SUCCEEDED"]
    connections = iter([True, False])

    async def tail(job: str) -> AsyncIterator[str]:
        slow = next(connections)
        for line in LINES:
            yield line
            await asyncio.sleep(0.1 if slow else 0)
        if slow:
            raise RuntimeError("WebSocket closed")

    monkeypatch.setattr(head, "tail_job_logs", tail)
    assert run(head, patience=0.3) == (0, "".join(LINES))


def test_a_request_that_nobody_answers_ends() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(OSError, match="timed out"):
        client_of(f"http://127.0.0.1:{silent.getsockname()[1]}", answer=0.2)


def test_the_command_takes_one_entrypoint(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == main(["python", "-m", "x"]) == 2
    assert "usage" in capsys.readouterr().err
