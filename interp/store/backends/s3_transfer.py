"""Big objects to and from S3: several parts on the way at once, a bounded number of them in memory.

Up: a multipart upload whose parts are repeated one by one when they fail, so that a server that restarts costs
seconds and not the whole file; the object appears when the upload is completed. Down: ranges, handed on in order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

from interp.errors import StoreError

PART = 32 * 2**20
AT_ONCE = 4
_MOST_PARTS = 9_000  # S3 takes 10,000
_RANGE = 16 * 2**20


class Request(Protocol):
    def __call__(self, operation: str, **arguments: Any) -> Any: ...


def upload(request: Request, chunks: Iterable[bytes], size_hint: int) -> None:
    """Uploads what `chunks` yields; in one put when it fits into one part."""
    parts = _parts(chunks, max(PART, -(-size_hint // _MOST_PARTS)))
    first = next(parts, b"")
    second = next(parts, None)
    if second is None:
        request("put_object", Body=first)
        return
    upload_id = request("create_multipart_upload")["UploadId"]
    try:
        tags = _send(request, upload_id, _chained(first, second, parts))
        listed = [{"PartNumber": number, "ETag": tag} for number, tag in enumerate(tags, 1)]
        request("complete_multipart_upload", UploadId=upload_id, MultipartUpload={"Parts": listed})
    except BaseException:
        _abort(request, upload_id)
        raise


def in_order(read: Callable[[int, int], bytes | None], size: int) -> Iterator[bytes]:
    """The ranges of an object in order, `AT_ONCE` of them on the way; ends early when one is absent."""
    starts = range(0, size, _RANGE)
    if len(starts) <= 1:
        if size and (data := read(0, size)):
            yield data
        return
    with ThreadPoolExecutor(AT_ONCE, "interp-download") as pool:
        pending: deque[Future[bytes | None]] = deque()
        rest = iter(starts)
        try:
            while True:
                while len(pending) < AT_ONCE and (start := next(rest, None)) is not None:
                    pending.append(pool.submit(read, start, min(start + _RANGE, size)))
                if not pending:
                    return
                data = pending.popleft().result()
                if data is None:
                    return
                yield data
        finally:
            for future in pending:
                future.cancel()


def _send(request: Request, upload_id: str, parts: Iterator[bytes]) -> list[str]:
    """Sends the parts, at most `AT_ONCE` of them held in memory, and returns their tags in order."""

    def send(number: int, body: bytes) -> str:
        return str(request("upload_part", UploadId=upload_id, PartNumber=number, Body=body)["ETag"])

    tags: list[str] = []
    with ThreadPoolExecutor(AT_ONCE, "interp-upload") as pool:
        pending: deque[Future[str]] = deque()
        for number, body in enumerate(parts, 1):
            pending.append(pool.submit(send, number, body))
            if len(pending) == AT_ONCE:
                tags.append(pending.popleft().result())
        tags.extend(future.result() for future in pending)
    return tags


def _abort(request: Request, upload_id: str) -> None:
    """Best effort: what stays behind is invisible, and `Store.gc` removes it. The first error is the one to report."""
    try:
        request("abort_multipart_upload", UploadId=upload_id)
    except StoreError:
        return


def _parts(chunks: Iterable[bytes], size: int) -> Iterator[bytes]:
    """The same bytes in pieces of exactly `size`, but for the last."""
    held: list[bytes] = []
    length = 0
    for chunk in chunks:
        view = memoryview(chunk)
        while len(view):
            take = view[: size - length]
            held.append(bytes(take))
            length += len(take)
            view = view[len(take) :]
            if length == size:
                yield b"".join(held)
                held, length = [], 0
    if length:
        yield b"".join(held)


def _chained(first: bytes, second: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield second
    yield from rest
