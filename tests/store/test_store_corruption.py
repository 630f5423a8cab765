"""What was truncated, changed or removed after the commit is found, named, and never handed out."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from store_cases import KEY, OTHER, make, paths

from interp.errors import ArtifactCorrupt
from interp.store import Store
from interp.store.backends import s3_transfer

DAMAGE = {
    "truncated": lambda data: data[:-2],
    "emptied": lambda data: b"",
    "changed": lambda data: data[:500] + b"X" + data[501:],
    "removed": lambda data: None,
}


def spoil(store: Store, path: str, damage: str) -> None:
    data = DAMAGE[damage](store.backend.read(path))
    if data is None:
        store.backend.delete([path])
    else:
        store.backend.write(path, data)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_spoilt_file_is_found_by_every_way_of_reading(store: Store, damage: str) -> None:
    artifact = make(store, weights=b"w" * 1000, summary=b"{}")
    spoil(store, f"fit/{KEY}/weights", damage)
    found = {"truncated": "998 bytes", "emptied": "0 bytes", "changed": "1000 bytes, sha256", "removed": "absent"}[
        damage
    ]
    for read in (
        lambda: artifact.read("weights"),
        lambda: artifact.local("weights"),
        artifact.local_dir,
        lambda: store.verify(artifact),
    ):
        with pytest.raises(ArtifactCorrupt) as caught:
            read()
        message = str(caught.value)
        assert f"weights of fit/{KEY}" in message
        assert f"found:    {found}" in message
        assert "expected: 1000 bytes, sha256" in message
        assert f"interp artifacts verify fit/{KEY} --remove" in message
    assert artifact.read("summary") == b"{}"


def test_verify_names_every_file_and_sees_what_was_appended(store: Store) -> None:
    artifact = make(store, a=b"1" * 10, b=b"2" * 10, c=b"3" * 10)
    store.backend.write(f"fit/{KEY}/a", b"1" * 11)
    store.backend.delete([f"fit/{KEY}/c"])
    assert [(p.file, p.found) for p in artifact.problems()] == [("a", "11 bytes"), ("c", "absent")]
    with pytest.raises(ArtifactCorrupt, match="1 more: c"):
        artifact.verify()


def test_a_big_file_cut_short_between_two_ranges(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_transfer, "_RANGE", 300)
    artifact = make(store, weights=b"w" * 1000)
    store.backend.write(f"fit/{KEY}/weights", b"w" * 500)
    with pytest.raises(ArtifactCorrupt, match="500 bytes"):
        artifact.read("weights")
    with pytest.raises(ArtifactCorrupt, match="500 bytes"):
        artifact.local("weights")


@pytest.mark.parametrize("damage", ["truncated", "emptied", "changed"])
def test_a_spoilt_manifest_is_corrupt_and_not_missing(store: Store, damage: str) -> None:
    make(store)
    spoil(store, f"fit/{KEY}/manifest.json", damage)
    with pytest.raises(ArtifactCorrupt, match="manifest"):
        store.get("fit", KEY)
    assert [entry.state for entry in store.list()] == ["corrupt"]


def test_an_edited_manifest_is_corrupt(store: Store) -> None:
    make(store)
    body = json.loads(store.backend.read(f"fit/{KEY}/manifest.json") or b"")
    body["spec"]["k"] = 64
    store.backend.write(f"fit/{KEY}/manifest.json", json.dumps(body).encode())
    with pytest.raises(ArtifactCorrupt, match="digest"):
        store.get("fit", KEY)


def test_an_artifact_under_another_key_is_corrupt(store: Store) -> None:
    make(store, a=b"1")
    for path in paths(store):
        store.backend.write(path.replace(KEY, OTHER), store.backend.read(path) or b"")
    with pytest.raises(ArtifactCorrupt, match=f"the manifest of fit/{KEY}"):
        store.get("fit", OTHER)


def test_a_spoilt_artifact_can_be_removed_and_made_anew(store: Store) -> None:
    make(store, a=b"1")
    spoil(store, f"fit/{KEY}/a", "removed")
    store.remove("fit", KEY)
    assert paths(store) == []
    assert make(store, a=b"1").read("a") == b"1"


def test_a_local_file_is_hashed_once_and_again_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from interp.store import cache

    hashed: list[Path] = []
    chunks = cache.file_chunks
    monkeypatch.setattr(cache, "file_chunks", lambda path: hashed.append(path) or chunks(path))
    artifact = make(Store.open(tmp_path), weights=b"w" * 1000)
    for _ in range(3):
        path = artifact.local("weights")
    assert len(hashed) == 1
    os.utime(path, ns=(1, 1))
    artifact.local("weights")
    assert len(hashed) == 2
    path.write_bytes(b"x" * 1000)
    with pytest.raises(ArtifactCorrupt, match="weights"):
        artifact.local("weights")


@pytest.mark.s3
def test_a_spoilt_copy_in_the_cache_is_fetched_again(s3_store: Store) -> None:
    artifact = make(s3_store, weights=b"w" * 1000)
    path = artifact.local("weights")
    path.write_bytes(b"x" * 1000)
    assert artifact.local("weights").read_bytes() == b"w" * 1000
    s3_store.backend.delete([f"fit/{KEY}/weights"])
    assert artifact.local("weights").read_bytes() == b"w" * 1000  # the copy is whole; `verify` asks the store
    with pytest.raises(ArtifactCorrupt, match="weights"):
        artifact.verify()
