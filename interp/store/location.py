"""The URL of a store: a path, `file://`, `memory://` or `s3://bucket/prefix`. Never with credentials in it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from interp.errors import StoreError

_EXPECTED = "a path, file:///path, memory://name or s3://bucket/prefix"


@dataclass(frozen=True)
class Location:
    """`url` is canonical: equal stores have equal URLs, and a folder's is its absolute path."""

    scheme: Literal["file", "memory", "s3"]
    root: str
    url: str


def parse(url: str | os.PathLike[str]) -> Location:
    """What a store's URL means.

    Raises:
        StoreError: an unknown scheme, a missing bucket, or credentials in the URL (which are not repeated).
    """
    text = os.fspath(url)
    if not text.strip():
        raise StoreError("the store's URL is empty", expected=_EXPECTED)
    if "://" not in text:
        return _folder(Path(text))
    scheme, _, rest = text.partition("://")
    refuse_credentials(text, "the store's URL")
    if scheme == "file":
        return _folder(Path(unquote(urlsplit(text).path)))
    if scheme == "memory":
        root = "/" + rest.strip("/")
        return Location("memory", root, f"memory:/{root}")
    if scheme == "s3":
        bucket, _, prefix = rest.partition("/")
        if not bucket:
            raise StoreError("the store's URL names no bucket", value=text, expected="s3://bucket/prefix")
        root = "/".join([bucket, *(part for part in prefix.split("/") if part)])
        return Location("s3", root, f"s3://{root}")
    raise StoreError("a store cannot be of this kind", value=f"{scheme}://", expected=_EXPECTED)


def refuse_credentials(url: str, what: str) -> None:
    """Raises StoreError when `user:password@` or a query stands in a URL; the message does not repeat them."""
    scheme, _, rest = url.partition("://")
    if "@" in rest.split("/", 1)[0] or (scheme != "file" and "?" in rest):
        raise StoreError(
            f"{what} carries credentials or a query, which would end up in logs and plans",
            value=f"{scheme}://***",
            expected="s3://bucket/prefix" if scheme == "s3" else "a URL without '@' and '?'",
            remedy="put them into AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL, or an AWS profile",
        )


def _folder(path: Path) -> Location:
    absolute = os.path.abspath(path.expanduser())  # noqa: PTH100 - a symbolic link to the store stays one
    return Location("file", absolute, absolute)
