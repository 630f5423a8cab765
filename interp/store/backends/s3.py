"""A store in S3, through s3fs.

Requests are s3fs's own (`call_s3`: botocore's operations), since a store needs conditions (If-None-Match, If-Match)
and the server's clock, which the file-like calls hide. One layer repeats failed requests, this one: s3fs's and
botocore's own are off. Every request here may be sent twice: reads, unconditional puts, parts of an upload and
deletes change nothing the second time; `create` and `replace` recognise their own earlier success by its content.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from interp.errors import StoreAccessError, StoreError
from interp.store.backends import s3_errors, s3_transfer
from interp.store.backends.base import Backend, Stat
from interp.store.location import refuse_credentials

logger = logging.getLogger(__name__)

T = TypeVar("T")

CONNECT_S = 5.0
"""For a connection: an address that swallows packets would hold a request for a minute, whatever the patience."""

FIRST_PATIENCE = 15.0
"""Seconds for a server that has never answered this process: more likely a wrong address than a restart."""
_DELETE_AT_ONCE = 1000


class S3Backend:
    """See `Backend`."""

    def __init__(self, root: str, patience: float) -> None:
        self.url = f"s3://{root}"
        self._bucket, _, self._prefix = root.partition("/")
        self._patience = patience
        self._connection = _connection()

    # --- objects

    def read(self, path: str) -> bytes | None:
        return self._try(f"read {path}", lambda: self._fs.cat_file(self._full(path)), absent=None)

    def chunks(self, path: str, size: int) -> Iterator[bytes]:
        def one(start: int, stop: int) -> bytes | None:
            return self._try(
                f"read {path}", lambda: self._fs.cat_file(self._full(path), start=start, end=stop), absent=None
            )

        return s3_transfer.in_order(one, size)

    def stat(self, path: str) -> Stat | None:
        head = self._head(path)
        return None if head is None else Stat(path, head["ContentLength"], head["LastModified"].timestamp())

    def write(self, path: str, data: bytes) -> None:
        self._try(f"write {path}", lambda: self._call("put_object", path, Body=data))

    def write_stream(self, path: str, chunks: Iterable[bytes], size_hint: int) -> None:
        def request(operation: str, **arguments: Any) -> Any:
            return self._try(f"write {path}", lambda: self._call(operation, path, **arguments))

        s3_transfer.upload(request, chunks, size_hint)

    def create(self, path: str, data: bytes) -> bool:
        made = self._try(
            f"create {path}", lambda: self._call("put_object", path, Body=data, IfNoneMatch="*"), condition=None
        )
        return made is not None or self.read(path) == data

    def replace(self, path: str, old: bytes, new: bytes) -> bool:
        while True:
            head, found = self._head(path), self.read(path)
            if head is None or found not in (old, new):
                return False
            put = self._try(
                f"write {path}",
                partial(self._call, "put_object", path, Body=new, IfMatch=head["ETag"]),
                condition=None,
                absent=None,
            )
            if put is not None:
                return True

    def swap(self, path: str, old: bytes, new: bytes) -> bool:
        return self.replace(path, old, new)

    def age(self, path: str) -> float | None:
        head = self._head(path)
        if head is None:
            return None
        now = parsedate_to_datetime(head["ResponseMetadata"]["HTTPHeaders"]["date"])
        return (now - head["LastModified"]).total_seconds()

    def _head(self, path: str) -> Any:
        head = self._try(f"look at {path}", lambda: self._call("head_object", path), absent=None)
        if head is None and self._bucket not in self._connection.buckets:
            # A HEAD has no error code: whether the object or the whole bucket is missing must be asked.
            self._try("list the bucket", lambda: self._fs.call_s3("list_objects_v2", Bucket=self._bucket, MaxKeys=1))
            self._connection.buckets.add(self._bucket)
        return head

    # --- listings

    def objects(self, prefix: str) -> list[Stat]:
        found = [entry for page in self._pages(prefix) for entry in page.get("Contents", ())]
        return [
            Stat(self._relative(entry["Key"]), entry["Size"], entry["LastModified"].timestamp())
            for entry in found
            if not entry["Key"].endswith("/")
        ]

    def folders(self, prefix: str) -> list[str]:
        pages = self._pages(prefix, Delimiter="/")
        names = (entry["Prefix"] for page in pages for entry in page.get("CommonPrefixes", ()))
        return sorted(name.rstrip("/").rsplit("/", 1)[-1] for name in names)

    def _pages(self, prefix: str, **arguments: Any) -> Iterator[Any]:
        arguments |= {"Bucket": self._bucket, "Prefix": self._key(prefix).rstrip("/") + "/"}
        if arguments["Prefix"] == "/":
            arguments["Prefix"] = ""
        while True:
            page = self._try(f"list {prefix}", lambda: self._fs.call_s3("list_objects_v2", **arguments))
            yield page
            if not page.get("IsTruncated"):
                return
            arguments["ContinuationToken"] = page["NextContinuationToken"]

    def delete(self, paths: Sequence[str]) -> None:
        self._delete_keys([self._key(path) for path in paths])

    def _delete_keys(self, keys: Sequence[str]) -> None:
        for first in range(0, len(keys), _DELETE_AT_ONCE):
            some = [{"Key": key} for key in keys[first : first + _DELETE_AT_ONCE]]
            answer = self._try(
                "remove objects",
                partial(
                    self._fs.call_s3, "delete_objects", Bucket=self._bucket, Delete={"Objects": some, "Quiet": True}
                ),
            )
            for failed in answer.get("Errors", ()):
                remedy = "give these credentials s3:DeleteObject on this bucket"
                what = f"the S3 store refused: cannot remove {failed['Key']} ({failed['Code']})"
                raise StoreAccessError(what, value=self.url, remedy=remedy)

    def clean(self, prefix: str, older_than: float | None, *, dry_run: bool) -> int:
        """Parts of uploads whose writer died, which cost space unseen; below the root, also the keys of folders."""
        latest = time.time() - (older_than or 0)
        entries = [entry for page in self._pages(prefix) for entry in page.get("Contents", ())] if prefix else []
        markers = [entry["Key"] for entry in entries if entry["Key"].endswith("/") and entry["Size"] == 0]
        folder = self._key(prefix).rstrip("/") + "/" if prefix or self._prefix else ""
        answer = self._try(
            "list unfinished uploads",
            lambda: self._fs.call_s3("list_multipart_uploads", Bucket=self._bucket, Prefix=folder),
        )
        uploads = [
            (upload["Key"], upload["UploadId"])
            for upload in answer.get("Uploads", ())
            if upload["Key"].startswith(folder) and upload["Initiated"].timestamp() <= latest
        ]
        if not dry_run:
            self._delete_keys(markers)
            for key, upload_id in uploads:
                self._try(
                    "drop an unfinished upload",
                    partial(
                        self._fs.call_s3, "abort_multipart_upload", Bucket=self._bucket, Key=key, UploadId=upload_id
                    ),
                    absent=None,
                )
        return len(uploads)

    def local(self, path: str) -> Path | None:
        return None

    def adopt(self, source: Path, path: str) -> bool:
        return False

    def impatient(self, seconds: float) -> Backend:
        return S3Backend(self.url.removeprefix("s3://"), seconds)

    # --- requests

    @property
    def _fs(self) -> Any:
        return self._connection.fs()

    def _key(self, path: str) -> str:
        return "/".join(part for part in (self._prefix, path) if part)

    def _full(self, path: str) -> str:
        return f"{self._bucket}/{self._key(path)}"

    def _relative(self, key: str) -> str:
        return key.removeprefix(f"{self._prefix}/") if self._prefix else key

    def _call(self, operation: str, path: str, **arguments: Any) -> Any:
        return self._fs.call_s3(operation, Bucket=self._bucket, Key=self._key(path), **arguments)

    def _try(self, action: str, request: Callable[[], T], **answers: T | None) -> Any:
        """Sends a request until it is answered, for at most `patience` seconds.

        `answers` says what to return for an `absent` object or a `condition` that did not hold; without an answer
        these are refusals like any other.
        """
        started, tries = time.monotonic(), 0
        while True:
            tries += 1
            try:
                result = request()
            except StoreError:
                raise
            except Exception as error:
                found = s3_errors.meaning(error)
                if found == "unknown":
                    raise
                if found in answers:
                    self._connection.answered = True
                    return answers[found]
                if found != "transient":
                    raise s3_errors.refusal(error, action, self.url) from None
                self._pause(error, action, started, tries)
                continue
            self._connection.answered = True
            if tries > 1:
                logger.info("%s answers again: %s took %d tries", self.url, action, tries)
            return result

    def _pause(self, error: Exception, action: str, started: float, tries: int) -> None:
        """Waits before the next try, twice as long each time up to 5 s, or gives up."""
        waited = time.monotonic() - started
        patience = self._patience if self._connection.answered else min(FIRST_PATIENCE, self._patience)
        if waited >= patience:
            raise s3_errors.unreachable(error, action, self.url, waited, tries) from None
        log = logger.warning if tries == 1 else logger.debug
        log("%s: cannot %s now (%s); trying again for up to %.0f s", self.url, action, type(error).__name__, patience)
        time.sleep(min(5.0, 0.1 * 2**tries) * random.uniform(0.5, 1.0))


class _Connection:
    """One s3fs instance for all stores of a process: making one takes longer than a hundred requests.

    A fork makes its own, because event loops and sockets do not survive it. Listings are not cached (another machine
    may have written), and neither is the instance by s3fs (it would be shared with code that wants other settings).
    """

    def __init__(self) -> None:
        self.answered = False
        self.buckets: set[str] = set()
        self._lock = threading.Lock()
        self._pid = 0
        self._made: Any = None
        self._parents: Any = None

    def fs(self) -> Any:
        if self._pid != os.getpid():
            # Not under the old lock: a fork may have copied it while it was taken. And the parent's instance is kept:
            # collecting it would take its sockets out of the epoll set that we share with the parent.
            self._parents = (self._parents, self._made)
            self._lock, self._pid, self._made = threading.Lock(), os.getpid(), None
        with self._lock:
            if self._made is None:
                self._made = _connect()
            return self._made


def _connection() -> _Connection:
    """That of the current AWS_* variables."""
    settings = sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_"))
    return _connections.setdefault(hashlib.sha256(repr(settings).encode()).hexdigest(), _Connection())


_connections: dict[str, _Connection] = {}


def _connect() -> Any:
    from s3fs import S3FileSystem

    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        refuse_credentials(os.environ.get(name, ""), name)
    fs = S3FileSystem(
        skip_instance_cache=True,
        use_listings_cache=False,
        max_concurrency=1,
        config_kwargs={
            "retries": {"total_max_attempts": 1},
            "connect_timeout": CONNECT_S,
            "read_timeout": 60,
            "max_pool_connections": 32,
        },
    )
    fs.retries = 1
    return fs
