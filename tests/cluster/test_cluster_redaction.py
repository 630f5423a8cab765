"""No secret in what the driver writes: log, status, metrics, whatever way it came there."""

from __future__ import annotations

import io
import logging
import signal
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore.exceptions import ClientError
from driver_runs import FAST, submit

import interp.stages.corpus
import interp.stages.fit
from interp.errors import StoreAccessError
from ray_jobs.driver_log import driver_log
from ray_jobs.redaction import Redactor

PLANTED = {
    "AWS_SECRET_ACCESS_KEY": "wJalr/XUtn+FEMI K7MDENG=",
    "AWS_ACCESS_KEY_ID": "AKIAPLANTED00001",
    "HF_TOKEN": "hf_planted_0123456789",
    "WANDB_API_KEY": 'quo"ted\\planted',
    "SSH_PRIVATE_KEY": "-----BEGIN KEY-----\nMIIplanted1\nMIIplanted2\n-----END KEY-----\n",
    "DB_PASSWORD": "succeeded",
}


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    before = signal.getsignal(signal.SIGTERM)
    yield PLANTED
    signal.signal(signal.SIGTERM, before)


def leaks(text: str) -> list[str]:
    parts = [value for name, value in PLANTED.items() if name not in ("SSH_PRIVATE_KEY", "DB_PASSWORD")]
    parts += ["wJalr%2FXUtn", "MIIplanted1", "MIIplanted2", 'quo\\"ted']
    return [part for part in parts if part in text]


def test_every_way_of_writing_a_secret_is_replaced(planted: dict[str, str]) -> None:
    redactor = Redactor()
    said = redactor.text(
        f"key={planted['HF_TOKEN']} url=https://x?s=wJalr%2FXUtn%2BFEMI%20K7MDENG%3D&t=wJalr%2FXUtn%2BFEMI+K7MDENG%3D "
        f"repr={planted['SSH_PRIVATE_KEY']!r} line: MIIplanted2 {planted['WANDB_API_KEY']}"
    )
    assert not leaks(said)
    assert "key=[redacted HF_TOKEN]" in said and said.count("[redacted AWS_SECRET_ACCESS_KEY]") == 2
    assert redactor.tree({"a": [planted["HF_TOKEN"], 3, None, True], planted["HF_TOKEN"]: 0.5}) == {
        "a": ["[redacted HF_TOKEN]", 3, None, True],
        "[redacted HF_TOKEN]": 0.5,
    }


def test_names_that_say_less_and_credentials_in_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_KEY", "DB_DSN", "PGPASS", "HF_HUB_AUTH"):
        monkeypatch.setenv(name, f"planted-{name}")
    monkeypatch.setenv("HTTPS_PROXY", "http://somebody:planted%2Fproxy@proxy:3128")
    monkeypatch.setenv("PIP_INDEX_URL", "https://planted-index@registry.example/simple")
    monkeypatch.setenv("GIT_AUTHOR_NAME", "Somebody Else")
    text = Redactor().text(
        "planted-WANDB_KEY planted-DB_DSN planted-PGPASS planted-HF_HUB_AUTH "
        "http://somebody:planted%2Fproxy@proxy:3128 planted-index by Somebody Else"
    )
    assert "planted" not in text and "http://somebody:[redacted HTTPS_PROXY]@proxy:3128" in text
    assert text.endswith("[redacted PIP_INDEX_URL] by Somebody Else")


def test_short_values_stay_and_what_was_a_secret_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "12345")
    redactor = Redactor()
    assert redactor.text("12345 steps") == "12345 steps"
    monkeypatch.setenv("SOME_TOKEN", "123456")
    assert redactor.text("123456") == "123456"
    redactor.refresh()
    assert redactor.text("1234567") == "[redacted SOME_TOKEN]7"
    monkeypatch.setenv("SOME_TOKEN", "another1")
    redactor.refresh()
    assert redactor.text("123456 another1") == "[redacted SOME_TOKEN] [redacted SOME_TOKEN]"


def boto_error() -> ClientError:
    """What boto raises of a signed address: its message has what the server said, and this one says all."""
    session = botocore.session.Session()
    client = session.create_client("s3", region_name="us-east-1")
    address = client.generate_presigned_url("get_object", {"Bucket": "b", "Key": "k"})
    secret = session.get_credentials().secret_key
    answer = {"Error": {"Code": "SignatureDoesNotMatch", "Message": f"{address} was signed with {secret}"}}
    return ClientError(answer, "GetObject")


def test_a_run_that_meets_with_secrets_tells_none(
    planted: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    run = submit(tmp_path, tmp_path / "store", **FAST)
    made = interp.stages.corpus.run

    def corpus(context: Any, *rest: Any) -> None:
        context.progress("reading hf_planted_0123456789", total=1, source=planted["WANDB_API_KEY"])
        logging.getLogger("interp.x").info("the key is %r", planted["WANDB_API_KEY"])
        logging.getLogger("botocore").warning(
            "headers %s", {"Authorization": f"Credential={planted['AWS_ACCESS_KEY_ID']}"}
        )
        warnings.warn(f"deprecated: {planted['HF_TOKEN']}", UserWarning, stacklevel=1)
        thread = threading.Thread(target=lambda: 1 / {planted["HF_TOKEN"]: 0}[planted["HF_TOKEN"]])
        thread.start()
        thread.join()
        made(context, *rest)

    def fit(*_: Any) -> None:
        try:
            raise boto_error()
        except ClientError as error:
            raise StoreAccessError("refused", value=str(error)) from error

    monkeypatch.setattr(interp.stages.corpus, "run", corpus)
    monkeypatch.setattr(interp.stages.fit, "run", fit)
    assert run.drive() == 1

    stored = {
        stat.path: (run.store.backend.read(stat.path) or b"").decode() for stat in run.store.backend.objects("runs")
    }
    out = "".join(capfd.readouterr())
    assert {"runs/tiny-1/status.json", "runs/tiny-1/log/0001/00000000.txt"} <= stored.keys()
    assert any("metrics/" in path for path in stored)
    assert {path: leaks(text) for path, text in stored.items() if leaks(text)} == {}
    assert leaks(out) == []
    told = "".join(run.log())
    assert "[redacted AWS_SECRET_ACCESS_KEY]" in told and "SignatureDoesNotMatch" in told
    assert "ended with an error" in told and "deprecated: [redacted HF_TOKEN]" in told
    assert run.status.error is not None and "[redacted AWS_ACCESS_KEY_ID]" in run.status.error.message
    assert run.metrics()[0]["source"] == "[redacted WANDB_API_KEY]"
    # A password that is a common word does not make the status unreadable.
    assert run.status.state == "failed" and run.status.stages[0].state == "done"


def test_the_log_survives_a_bad_call_and_a_reader_that_is_gone() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    stored: list[str] = []
    before = logging.getLogger().handlers[:]
    with driver_log(Redactor(), Gone()) as log:
        logging.getLogger("interp").info("early\nin two lines")
        log.to(stored.append, after=1)
        logging.getLogger("interp").info("%d", "no number")
        logging.getLogger("elsewhere").info("not told")
    assert logging.getLogger().handlers == before
    assert [line.split(" ", 1)[1].strip() for line in stored] == [
        "INFO    interp: in two lines",
        "INFO    interp: a message that cannot be formatted: '%d' ('no number',)",
    ]
