"""The same suite over the three kinds of store."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from interp.store import Store


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERP_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture(params=["folder", "memory", pytest.param("s3", marks=pytest.mark.s3)])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return str(request.getfixturevalue("s3_url"))
    return str(tmp_path / "store") if request.param == "folder" else f"memory://{uuid.uuid4().hex}"


@pytest.fixture
def store(store_url: str) -> Store:
    return Store.open(store_url, patience=20)


@pytest.fixture
def s3_store(s3_url: str) -> Store:
    return Store.open(s3_url, patience=30)
