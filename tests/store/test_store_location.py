"""The URL of a store."""

from __future__ import annotations

from pathlib import Path

import pytest

from interp.errors import StoreError
from interp.store import Store
from interp.store.location import parse


def test_equal_stores_have_equal_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for url in ("a/b", "./a/b/", f"{tmp_path}/a/b", f"file://{tmp_path}/a/b", "a/../a/b", "~/a/b", Path("a/b")):
        assert Store.open(url).url == f"{tmp_path}/a/b"
    assert Store.open(f"file://{tmp_path}/a%20b").url == f"{tmp_path}/a b"
    for url in ("s3://bucket/a/b", "s3://bucket/a/b/", "s3://bucket//a/b"):
        assert Store.open(url).url == "s3://bucket/a/b"
    assert parse("s3://bucket").root == "bucket"
    assert parse("memory://x").url == parse("memory:///x/").url


def test_nothing_is_touched_by_opening(tmp_path: Path) -> None:
    Store.open(tmp_path / "new")
    assert not Store.open(tmp_path / "new").has("fit", "a")
    assert Store.open(tmp_path / "new").list() == []
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIAKEY:hunter2secret@bucket/x",
        "s3://bucket/x?secret=hunter2secret",
        "s3://hunter2secret@bucket",
    ],
)
def test_credentials_in_a_url_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(StoreError, match="AWS_SECRET_ACCESS_KEY") as caught:
        Store.open(url)
    assert "hunter2secret" not in str(caught.value)
    assert "AKIAKEY" not in str(caught.value)


def test_credentials_in_the_endpoint_are_refused_and_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://user:hunter2secret@127.0.0.1:1")
    with pytest.raises(StoreError, match="AWS_ENDPOINT_URL") as caught:
        Store.open("s3://bucket").has("fit", "a")
    assert "hunter2secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["", "  ", "s3://", "s3:///x", "gs://bucket/x", "http://host/x"])
def test_what_is_no_store_is_refused(url: str) -> None:
    with pytest.raises(StoreError, match="expected"):
        Store.open(url)
