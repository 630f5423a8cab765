"""Listing, finding and collecting garbage."""

from __future__ import annotations

import pytest
from store_cases import KEY, OTHER, dead_writer, make, paths

from interp.errors import ArtifactMissing, StoreError
from interp.store import Store


def test_a_listing_tells_what_is_finished_running_and_left(store: Store) -> None:
    assert store.list() == []
    make(store, "corpus", KEY, a=b"123")
    store.scratch("fit", KEY).write("ck", b"")
    with store.create("trace", KEY, spec={}, inputs={}):
        found = [(e.stage, e.state, e.holder is not None) for e in store.list()]
        assert found == [("corpus", "finished", False), ("fit", "unfinished", False), ("trace", "running", True)]
    assert [e.stage for e in store.list("fit")] == ["fit"]
    entry = store.list("corpus")[0]
    assert (entry.key, entry.files, entry.size) == (KEY, 1, 3)
    assert -5 < entry.age < 60


def test_find_takes_what_a_person_would_type(store: Store) -> None:
    make(store, "corpus", KEY)
    make(store, "fit", OTHER)
    for ref in (f"corpus/{KEY}", KEY, KEY[:4], f"corpus/{KEY[:3]}", f"artifact://{KEY}", "corpus/"):
        assert store.find(ref).stage == "corpus"
    with pytest.raises(StoreError, match="several"):
        store.find("")
    for ref in ("zz", f"fit/{KEY}"):
        with pytest.raises(ArtifactMissing, match="called so"):
            store.find(ref)


def test_gc_keeps_what_it_is_told_to(store: Store) -> None:
    make(store, "corpus", KEY, a=b"1" * 100)
    make(store, "fit", OTHER, a=b"2" * 100)
    before = paths(store)
    report = store.gc(keep=[KEY], dry_run=True)
    assert [entry.key for entry in report.removed] == [OTHER]
    assert report.dry_run
    assert paths(store) == before
    report = store.gc(keep=[KEY])
    assert [entry.key for entry in report.removed] == [OTHER]
    assert (report.kept, report.freed > 100) == (1, True)
    assert paths(store) == [f"corpus/{KEY}/a", f"corpus/{KEY}/manifest.json"]


def test_gc_without_keep_removes_no_finished_artifact(store: Store) -> None:
    make(store)
    assert store.gc(older_than=0).removed == ()
    assert store.has("fit", KEY)


def test_gc_removes_what_was_abandoned_when_it_is_old_enough(store: Store) -> None:
    dead_writer(store)
    store.scratch("fit", KEY).write("ck", b"state")
    store.backend.write(f"fit/{KEY}/half", b"x")
    assert store.gc(older_than=3600).removed == ()
    assert store.gc(keep=[KEY], older_than=-5).removed == ()
    assert [entry.state for entry in store.gc(keep=[], older_than=-5).removed] == ["unfinished"]
    assert paths(store) == []
    assert make(store).manifest.attempt == 1


def test_gc_leaves_a_running_writer_alone(store: Store) -> None:
    with store.create("fit", KEY, spec={}, inputs={}) as writer:
        writer.write("a", b"1")
        report = store.gc(keep=[], older_than=-5)
        assert [entry.key for entry in report.busy] == [KEY]
        assert report.removed == ()
    assert store.get("fit", KEY).read("a") == b"1"


def test_what_is_not_ours_is_neither_listed_nor_removed(store: Store) -> None:
    for path in ("readme.txt", "plots/loss/fit.svg", f"Notes/{KEY}/a", "fit/notes.txt"):
        store.backend.write(path, b"x")
    assert store.list() == []
    assert store.gc(keep=[], older_than=-5).removed == ()
    assert len(paths(store)) == 4


@pytest.mark.s3
def test_folder_markers_are_not_files(s3_store: Store, s3_bucket: str) -> None:
    """pyarrow and consoles leave zero-byte keys that end with '/'."""
    prefix = s3_store.url.split("/", 3)[3]

    def mark(path: str) -> None:
        s3_store.backend._fs.call_s3("put_object", Bucket=s3_bucket, Key=f"{prefix}/{path}/", Body=b"")

    for path in (f"fit/{KEY}", f"fit/{KEY}/scratch", f"fit/{KEY}/scratch/steps", "plots/x"):
        mark(path)
    assert s3_store.list() == []
    assert s3_store.scratch("fit", KEY).list() == []
    artifact = make(s3_store, a=b"1")
    artifact.verify()
    assert paths(s3_store) == [f"fit/{KEY}/a", f"fit/{KEY}/manifest.json"]
    assert [entry.files for entry in s3_store.list()] == [1]
    mark(f"fit/{KEY}/b")
    assert artifact.names() == ("a",)
    s3_store.remove("fit", KEY)
    answer = s3_store.backend._fs.call_s3("list_objects_v2", Bucket=s3_bucket, Prefix=f"{prefix}/fit/{KEY}/")
    assert answer.get("Contents", []) == []


@pytest.mark.s3
def test_gc_drops_uploads_that_nobody_finishes(s3_store: Store, s3_bucket: str) -> None:
    prefix = s3_store.url.split("/", 3)[3]
    call = s3_store.backend._fs.call_s3
    key = f"{prefix}/fit/{KEY}/big"
    upload = call("create_multipart_upload", Bucket=s3_bucket, Key=key)["UploadId"]
    call("upload_part", Bucket=s3_bucket, Key=key, UploadId=upload, PartNumber=1, Body=b"x" * 5 * 2**20)
    assert s3_store.gc(older_than=3600).uploads == 0
    assert s3_store.gc(older_than=-5, dry_run=True).uploads == 1
    assert s3_store.gc(older_than=-5).uploads == 1
    assert call("list_multipart_uploads", Bucket=s3_bucket, Prefix=prefix).get("Uploads", []) == []
