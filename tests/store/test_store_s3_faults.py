"""An S3 that refuses, is not there, goes away and comes back. The server is a real one."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from s3 import BUCKET, S3Server
from store_cases import KEY, make, paths

from interp.errors import LockHeld, StoreAccessError
from interp.store import Store
from interp.store.backends import s3_errors, s3_transfer

pytestmark = pytest.mark.s3


def message_of(error: BaseException) -> str:
    """All that a traceback would show."""
    import traceback

    return "".join(traceback.format_exception(error))


def test_a_wrong_secret_is_refused_at_once_and_not_repeated(
    s3_url: str, s3_env: S3Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2-not-the-secret")
    store = Store.open(s3_url)
    attempts: list[Callable[[], object]] = [
        lambda: store.has("fit", KEY),
        lambda: store.get("fit", KEY),
        store.list,
        lambda: make(store),
        lambda: store.scratch("fit", KEY).write("ck", b""),
    ]
    for attempt in attempts:
        started = time.monotonic()
        with pytest.raises(StoreAccessError) as caught:
            attempt()
        assert time.monotonic() - started < 10
        text = message_of(caught.value) + caplog.text
        assert "AWS_SECRET_ACCESS_KEY" in text
        assert "HTTP 403" in text
        for secret in ("hunter2", s3_env.secret_key, s3_env.access_key):
            assert secret not in text


def test_a_missing_bucket(s3_env: S3Server) -> None:
    store = Store.open("s3://no-such-bucket/x")
    for attempt in (lambda: store.has("fit", KEY), lambda: store.get("fit", KEY), store.list, lambda: make(store)):
        with pytest.raises(StoreAccessError, match="NoSuchBucket") as caught:
            attempt()
        assert "create the bucket" in str(caught.value)
        assert "s3://no-such-bucket/x" in str(caught.value)


def test_no_credentials_at_all(s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    with pytest.raises(StoreAccessError, match="no credentials were found"):
        Store.open(s3_url).has("fit", KEY)


def test_a_server_that_is_not_there(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(StoreAccessError, match="tries in") as caught:
        Store.open(s3_url, patience=1).has("fit", KEY)
    assert 1 <= time.monotonic() - started < 15
    assert "AWS_ENDPOINT_URL" in str(caught.value)


class Flaky:
    """Fails some requests on the way out or, with `after`, on the way back: done, but the answer is lost."""

    def __init__(
        self, patch: pytest.MonkeyPatch, store: Store, operation: str, times: int, *, after: bool = False
    ) -> None:
        self.failed = 0
        fs = store.backend._fs
        real = fs.call_s3

        def call_s3(name: str, *args: Any, **kwargs: Any) -> Any:
            fails = name == operation and self.failed < times
            if fails and not after:
                self.failed += 1
                raise ConnectionResetError("the connection was cut")
            answer = real(name, *args, **kwargs)
            if fails:
                self.failed += 1
                raise ConnectionResetError("the connection was cut")
            return answer

        patch.setattr(fs, "call_s3", call_s3)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("operation", ["put_object", "head_object", "list_objects_v2", "delete_objects"])
def test_requests_that_fail_are_sent_again(
    s3_store: Store, operation: str, after: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    flaky = Flaky(monkeypatch, s3_store, operation, 2, after=after)
    with caplog.at_level(logging.WARNING, "interp.store"):
        make(s3_store, a=b"1").verify()
    assert flaky.failed == 2
    assert "trying again" in caplog.text
    assert paths(s3_store) == [f"fit/{KEY}/a", f"fit/{KEY}/manifest.json"]


@pytest.mark.parametrize("operation", ["create_multipart_upload", "upload_part", "complete_multipart_upload"])
def test_parts_that_fail_are_sent_again(s3_store: Store, operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_transfer, "PART", 5 * 2**20)
    flaky = Flaky(monkeypatch, s3_store, operation, 2, after=True)
    data = os.urandom(2**20) * 12
    s3_store.backend.write_stream("x", iter([data]), len(data))
    assert flaky.failed >= 2  # parts go up side by side
    assert s3_store.backend.read("x") == data


def test_an_upload_whose_source_fails_leaves_nothing(
    s3_store: Store, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_transfer, "PART", 5 * 2**20)

    def breaks() -> Iterator[bytes]:
        yield b"x" * 11 * 2**20
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        s3_store.backend.write_stream("x", breaks(), 0)
    assert s3_store.backend.stat("x") is None
    prefix = s3_store.url.split("/", 3)[3]
    answer = s3_store.backend._fs.call_s3("list_multipart_uploads", Bucket=s3_bucket, Prefix=prefix)
    assert answer.get("Uploads", []) == []


def test_a_commit_without_an_answer_keeps_its_files(s3_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest may have arrived: if it has, what it names must be there."""
    create = s3_store.backend.create

    def lost(path: str, data: bytes) -> bool:
        create(path, data)
        if path.endswith("manifest.json"):
            raise StoreAccessError("no answer")
        return True

    monkeypatch.setattr(s3_store.backend, "create", lost)
    with pytest.raises(StoreAccessError, match="no answer"):
        make(s3_store, a=b"1")
    s3_store.get("fit", KEY).verify()


@pytest.fixture
def own_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """A server that this test may kill."""
    with tempfile.TemporaryDirectory(prefix="interp-s3-") as folder:
        server = S3Server(Path(folder))
        server.start()
        for name, value in server.env().items():
            monkeypatch.setenv(name, value)
        yield server
        server.kill()


def test_a_server_killed_and_restarted_while_a_writer_writes(
    own_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_transfer, "PART", 5 * 2**20)
    store = Store.open(f"s3://{BUCKET}/runs", patience=60)
    big = os.urandom(2**20) * 31
    (tmp_path / "big").write_bytes(big)
    reached = threading.Event()

    def slowly() -> Iterator[bytes]:
        for start in range(0, len(big), 2**20):
            if start == 15 * 2**20:
                reached.set()
                time.sleep(0.5)
            yield big[start : start + 2**20]

    def crash() -> None:
        reached.wait(30)
        own_server.kill()
        time.sleep(1.0)
        own_server.start(wait=False)

    crasher = threading.Thread(target=crash)
    crasher.start()
    with store.create("fit", KEY, spec={}, inputs={}, ttl=6) as writer:
        writer.write("before", b"1")
        writer.scratch.write("ck", b"state")
        writer._stream("big", writer._path("big"), slowly(), len(big))
        crasher.join()
        assert writer.scratch.read("ck") == b"state"
        writer.write("after", b"2")
    artifact = store.get("fit", KEY)
    assert artifact.names() == ("after", "before", "big")
    artifact.verify()


def test_a_fork_opens_its_own_connection(s3_store: Store) -> None:
    make(s3_store, a=b"1")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if s3_store.get("fit", KEY).read("a") == b"1" else 2
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert s3_store.get("fit", KEY).read("a") == b"1"


def test_a_lock_that_cannot_be_renewed_for_a_while_is_not_lost(
    s3_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_store.create("fit", KEY, spec={}, inputs={}, ttl=2) as writer:
        Flaky(monkeypatch, s3_store, "head_object", 3)
        time.sleep(3)
        writer.write("a", b"1")
        with pytest.raises(LockHeld), s3_store.create("fit", KEY, spec={}, inputs={}):
            pytest.fail("the body must not run")
    assert writer.committed


def test_what_an_error_means() -> None:
    from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError, SSLError

    def answer(code: str, status: int) -> ClientError:
        return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "PutObject")

    expected = {
        "absent": [answer("NoSuchKey", 404), answer("404", 404), FileNotFoundError()],
        "condition": [answer("PreconditionFailed", 412)],
        "transient": [
            answer("SlowDown", 503),
            answer("InternalError", 500),
            answer("ConditionalRequestConflict", 409),
            answer("RequestTimeout", 400),
            EndpointConnectionError(endpoint_url="x"),
            TimeoutError(),
            ConnectionResetError(),
        ],
        "refused": [
            answer("NoSuchBucket", 404),
            answer("AccessDenied", 403),
            answer("403", 403),
            answer("InsufficientStorage", 507),
            answer("PermanentRedirect", 301),
            NoCredentialsError(),
            SSLError(endpoint_url="x", error="y"),
        ],
        "unknown": [TypeError(), KeyError()],
    }
    assert {kind: [s3_errors.meaning(error) for error in errors] for kind, errors in expected.items()} == {
        kind: [kind] * len(errors) for kind, errors in expected.items()
    }
