"""A store that answers and refuses: for a while it takes no write, because it is busy or because nobody may."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from driver_runs import Submitted, submit
from refusing_s3 import RefusingS3
from s3 import S3Server
from tiny_study import make_inputs

pytestmark = [pytest.mark.s3, pytest.mark.slow]

BUSY_S, FORBIDDEN_S = 30.0, 5.0
STEP = 64
LONG_ENOUGH: dict[str, Any] = {"corpus": {"tokens": 8000}, "fit": {"batch_tokens": STEP}}
"""With checkpoints all along the fit."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    make_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def undisturbed(inputs: Path) -> dict[str, bytes]:
    """The dictionaries of a run that nothing happened to."""
    run = submit(inputs, inputs / "undisturbed", **LONG_ENOUGH)
    code, _ = run.start().end()
    assert code == 0
    return run.weights()


@pytest.fixture
def proxy(s3_env: S3Server) -> Iterator[RefusingS3]:
    """Only drivers go through it; what a test looks at, it reads from the server itself."""
    with RefusingS3(s3_env.endpoint) as proxy:
        yield proxy


def checkpoint(run: Submitted) -> int:
    found = run.store.scratch("fit", run.key("fit")).json("checkpoint.json")
    return 0 if found is None else int(found["step"])


def test_a_store_that_is_too_busy_to_write_is_waited_for(
    inputs: Path, s3_url: str, proxy: RefusingS3, undisturbed: dict[str, bytes]
) -> None:
    run = submit(inputs, s3_url, **LONG_ENOUGH)
    driver = run.start(AWS_ENDPOINT_URL=proxy.endpoint)
    driver.until(run.checkpointed)
    proxy.refuse(503, BUSY_S)
    time.sleep(2)  # what was on its way has come
    kept = checkpoint(run), run.log(), run.status
    driver.until(lambda: not proxy.refuses)
    assert (checkpoint(run), run.log(), run.status) == kept, "nothing is written meanwhile"
    code, lines = driver.end()
    assert code == 0

    assert {"/runs/" in path for path in proxy.refused} == {True, False}, "the driver's own words, and the fit's work"
    assert run.folder.attempts() == [1] and (run.status.attempt, run.status.state) == (1, "succeeded")
    assert run.states() == ["done", "done", "done"]
    assert run.log() == lines
    assert any("trying again for up to" in line for line in lines) and any("answers again" in line for line in lines)
    assert run.weights() == undisturbed


def test_a_store_that_forbids_writing_ends_the_attempt_and_the_next_goes_on(
    inputs: Path, s3_url: str, proxy: RefusingS3, undisturbed: dict[str, bytes]
) -> None:
    run = submit(inputs, s3_url, **LONG_ENOUGH)
    driver = run.start(AWS_ENDPOINT_URL=proxy.endpoint)
    driver.until(run.checkpointed)
    proxy.refuse(403, 60)
    driver.until(lambda: any("/runs/" not in path for path in proxy.refused))
    proxy.refuse(403, FORBIDDEN_S)  # longer than it takes to end
    code, lines = driver.end()
    assert code == 1
    assert not proxy.refuses, "its last words have waited for a store that takes them"
    status = run.status
    assert (status.attempt, status.state, run.states()) == (1, "failed", ["done", "failed", "waiting"])
    assert status.error is not None and status.error.kind == "StoreAccessError"
    assert "AccessDenied, HTTP 403" in status.error.message and "s3:GetObject" in status.error.message
    assert run.log() == lines
    kept = checkpoint(run)
    assert kept > 0 and not run.store.has("fit", run.key("fit"))

    code, lines = run.start(AWS_ENDPOINT_URL=proxy.endpoint).end()
    assert code == 0
    assert run.log(2) == lines
    start = next(row for row in run.metrics(2) if (row["stage"], row["step"]) == ("fit", "start"))
    assert start["done"] == kept * STEP
    assert (run.status.attempt, run.status.state, run.states()) == (2, "succeeded", ["cached", "done", "done"])
    assert run.weights() == undisturbed
