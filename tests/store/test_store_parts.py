"""Files that workers put into an artifact themselves: as safe as those that the writer writes, and never made twice."""

from __future__ import annotations

import json
import os
import pickle
import time
from pathlib import Path
from typing import Any

import pytest
from store_cases import KEY, OTHER, dead_writer, make, paths, take_for_dead

from interp.errors import ArtifactCorrupt, LockHeld, StoreError
from interp.store import Part, PartWriter, Store, Writer
from interp.store.digest import FileRecord


def create(store: Store, **options: Any) -> Writer:
    return store.create("fit", KEY, spec={"k": 32}, inputs={"corpus": OTHER}, **options)


def work(parts: PartWriter, number: int, data: bytes | None = None) -> Part:
    """What a worker does."""
    with parts.folder() as folder:
        (folder / "file").write_bytes(data or bytes([number]) * 1000)
        part = parts.put(folder / "file", f"resid/{number:05d}")
    parts.finish(f"{number:05d}", [part])
    return part


def test_what_workers_put_there_is_the_artifact_s(store: Store) -> None:
    with create(store) as writer:
        parts = pickle.loads(pickle.dumps(writer.parts())) if not store.url.startswith("memory") else writer.parts()
        for number in range(3):
            writer.adopt(work(parts, number))
        writer.write("index.json", b"{}")
    found = store.get("fit", KEY)
    assert found.names() == ("index.json", "resid/00000", "resid/00001", "resid/00002")
    assert found.read("resid/00001") == b"\1" * 1000 and found.local("resid/00002").read_bytes() == b"\2" * 1000
    assert found.local("resid/00002", verify="size").read_bytes() == b"\2" * 1000
    found.verify()
    assert len(paths(store)) == 5  # four files and the manifest: no scratch, no lock
    with pytest.raises(StoreError, match="several folders"):
        found.local_dir()
    assert store.gc(older_than=0).remnants == 0 and len(paths(store)) == 5


def test_an_interrupted_attempt_s_parts_are_used_and_not_made_again(store: Store) -> None:
    with pytest.raises(KeyboardInterrupt), create(store) as writer:
        for number in range(2):
            work(writer.parts(), number)
        with writer.parts().folder() as folder:
            (folder / "half").write_bytes(b"half")
            raise KeyboardInterrupt
    with create(store) as writer:
        done = writer.parts().finished()
        assert sorted(done) == ["00000", "00001"]
        before = {path for path in paths(store) if "/resid/" in path}
        for (part,) in done.values():
            writer.adopt(part)
        writer.adopt(work(writer.parts(), 2))
    found = store.get("fit", KEY)
    assert [found.read(name)[0] for name in found.names()] == [0, 1, 2]
    assert before < set(paths(store)) and len(paths(store)) == 4
    assert len(set(found.manifest.placed.values())) == 2


def test_a_killed_driver_s_parts_are_used_too(store: Store) -> None:
    dead_writer(store)
    first = PartWriter(store.scratch("fit", KEY), "attempt-1-abcdef")
    work(first, 0)
    with create(store) as writer:
        ((part,),) = writer.parts().finished().values()
        writer.adopt(part)
    assert store.get("fit", KEY).read("resid/00000") == b"\0" * 1000


def test_a_part_that_is_gone_or_short_is_not_done(store: Store) -> None:
    with pytest.raises(KeyboardInterrupt), create(store) as writer:
        made = [work(writer.parts(), number) for number in range(3)]
        raise KeyboardInterrupt
    place = f"fit/{KEY}"
    store.backend.delete([f"{place}/{made[0].folder}/{made[0].name}"])
    store.backend.write(f"{place}/{made[1].folder}/{made[1].name}", b"short")
    with pytest.raises(StoreError, match="not as it was written"), create(store) as writer:
        assert sorted(writer.parts().finished()) == ["00002"]
        writer.adopt(made[0])
    assert not store.has("fit", KEY)


def test_two_writers_cannot_corrupt(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """One is taken for dead and lives on: it loses, and what its workers still write harms nothing."""
    slow = create(store)
    slow.__enter__()
    old = work(slow.parts(), 0, b"slow" * 250)
    take_for_dead(monkeypatch)
    with create(store) as writer:
        writer.adopt(*writer.parts().finished()["00000"])
        writer.adopt(work(writer.parts(), 1, b"fast" * 250))
    late = work(slow.parts(), 1, b"late" * 250)
    slow.adopt(old)
    slow.__exit__(None, None, None)
    assert not slow.committed
    found = store.get("fit", KEY)
    found.verify()
    assert found.read("resid/00001") == b"fast" * 250 and found.read("resid/00000") == b"slow" * 250
    orphan = f"fit/{KEY}/{late.folder}/{late.name}"
    assert orphan in paths(store)
    report = store.gc(older_than=0)
    assert report.remnants >= 1 and orphan not in paths(store)
    found.verify()


def test_an_abandoned_artifact_goes_with_its_parts(store: Store) -> None:
    with pytest.raises(KeyboardInterrupt), create(store) as writer:
        work(writer.parts(), 0)
        raise KeyboardInterrupt
    (entry,) = store.list()
    assert entry.state == "unfinished"
    assert store.gc(older_than=0).freed > 1000 and paths(store) == []


def test_a_truncated_or_changed_part_is_found(store: Store) -> None:
    with create(store) as writer:
        writer.adopt(work(writer.parts(), 0))
    found = store.get("fit", KEY)
    path = found.manifest.path("resid/00000")
    store.backend.write(path, b"\0" * 999)
    for verify in ("size", "sha256"):
        with pytest.raises(ArtifactCorrupt, match="resid/00000"):
            found.local("resid/00000", verify=verify)  # type: ignore[arg-type]
    store.backend.write(path, b"\1" * 1000)
    with pytest.raises(ArtifactCorrupt, match="resid/00000"):
        found.local("resid/00000")
    assert [problem.file for problem in found.problems()] == ["resid/00000"]


def test_a_record_that_does_not_fit_its_file_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="not as long"), create(store) as writer:
        (tmp_path / "file").write_bytes(b"abc")
        writer.parts().put(tmp_path / "file", "x", FileRecord(4, "0" * 64))


def test_only_the_holder_of_the_lock_adopts(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = create(store, ttl=2)
    with pytest.raises(LockHeld), writer:
        part = work(writer.parts(), 0)
        take_for_dead(monkeypatch)
        make(store)
        writer._held().confirm()
        writer.adopt(part)


def test_manifests_without_parts_are_as_they_were(store: Store) -> None:
    make(store)
    assert "placed" not in json.loads(store.backend.read(f"fit/{KEY}/manifest.json") or b"")


def test_one_name_is_one_file(store: Store, tmp_path: Path) -> None:
    """Work that was cut in two ways, by attempts of different settings, is no artifact."""
    with pytest.raises(StoreError, match="two different files of"), create(store) as writer:
        part = work(writer.parts(), 0)
        writer.adopt(part)
        writer.adopt(part)
        (tmp_path / "file").write_bytes(b"abc")
        writer.adopt(writer.parts().put(tmp_path / "file", part.name))
    assert not store.has("fit", KEY)


def test_an_artifact_that_was_made_anew_is_not_read_from_its_former_copies(store: Store) -> None:
    """The same key, the same lengths, other bits."""
    names = {}
    for content in (b"\1", b"\2"):
        with create(store) as writer:
            writer.write("x", content * 1000)
        names[content] = store.get("fit", KEY).local("x", verify="size")
        assert names[content].read_bytes() == content * 1000
        assert store.get("fit", KEY).local_dir().joinpath("x").read_bytes() == content * 1000
        if content == b"\1":
            store.remove("fit", KEY)
    if not store.url.startswith("/"):
        assert store.get("fit", KEY).forget(0) == 2000, "the former copies are counted, and go too"


def test_copies_that_were_just_used_stay(store: Store) -> None:
    with create(store) as writer:
        for number in range(3):
            writer.adopt(work(writer.parts(), number))
    found = store.get("fit", KEY)
    local = [found.local(name, verify="size") for name in found.names()]
    if store.url.startswith("/"):
        return
    for path in local:
        os.utime(path, ns=(time.time_ns() - 600 * 10**9, path.stat().st_mtime_ns))
    found.touch(found.names()[1:2])
    assert found.forget(0, recent_s=300) == 2000
    assert [path.exists() for path in local] == [False, True, False]
    found.touch(found.names())  # of what is gone, nothing


def test_copies_of_remote_files_are_bounded(store: Store) -> None:
    with create(store) as writer:
        for number in range(4):
            writer.adopt(work(writer.parts(), number))
    found = store.get("fit", KEY)
    local = [found.local(name, verify="size") for name in found.names()]
    if store.url.startswith("/"):
        assert found.forget(0) == 0 and all(path.exists() for path in local)
        return
    found.local(found.names()[0], verify="size")  # used again: no longer the oldest
    assert found.forget(2000) == 2000
    assert [path.exists() for path in local] == [True, False, False, True]
    assert found.forget(0, using=found.names()[3:]) == 1000 and local[3].exists()
    assert found.local(found.names()[1]).read_bytes() == b"\1" * 1000
