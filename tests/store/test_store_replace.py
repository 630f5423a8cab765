"""Making a finished artifact anew: it is there until the new one takes its place, whatever happens in between."""

from __future__ import annotations

import pytest
from store_cases import KEY, OTHER, dead_writer, make, paths, take_for_dead

from interp.errors import LockHeld, StoreError
from interp.store import Artifact, Store, Writer


def anew(store: Store, artifact: Artifact) -> Writer:
    return store.create("fit", KEY, spec={"k": 32}, inputs={"corpus": OTHER}, replaces=artifact)


def test_the_old_one_is_there_until_the_new_one_is(store: Store) -> None:
    first = make(store, weights=b"old", only_old=b"x")
    with anew(store, first) as writer:
        writer.scratch.write("rows/1", b"1")
        writer.write("weights", b"new")
        assert store.get("fit", KEY).manifest == first.manifest
        first.verify()
    assert writer.committed
    second = store.get("fit", KEY)
    assert second.names() == ("weights",) and second.read("weights") == b"new"
    assert paths(store) == [f"fit/{KEY}/attempt-2/weights", f"fit/{KEY}/manifest.json"]
    with anew(store, second) as writer:
        writer.write("weights", b"newer")
    assert store.get("fit", KEY).read("weights") == b"newer"
    assert paths(store) == [f"fit/{KEY}/attempt-3/weights", f"fit/{KEY}/manifest.json"]


def test_a_failure_leaves_the_old_one_and_the_scratch(store: Store) -> None:
    first = make(store, weights=b"old")
    with pytest.raises(KeyboardInterrupt), anew(store, first) as writer:
        writer.scratch.write("rows/1", b"1")
        writer.write("weights", b"new")
        raise KeyboardInterrupt
    assert store.get("fit", KEY).manifest == first.manifest
    first.verify()
    with anew(store, first) as writer:
        assert writer.scratch.read("rows/1") == b"1"
        writer.write("weights", b"new")
    assert store.get("fit", KEY).read("weights") == b"new"
    assert len(paths(store)) == 2


def test_after_a_killed_one_the_next_has_a_folder_of_its_own(store: Store) -> None:
    first = make(store, weights=b"old")
    dead_writer(store, attempt=2)
    with anew(store, first) as writer:
        assert writer.attempt == 3
        writer.write("weights", b"new")
    assert store.get("fit", KEY).read("weights") == b"new"


def test_only_what_was_meant_is_replaced(store: Store) -> None:
    first = make(store, weights=b"old")
    with anew(store, first) as writer:
        writer.write("weights", b"new")
    with pytest.raises(LockHeld, match="finished already"), anew(store, first):
        pass
    assert store.get("fit", KEY).read("weights") == b"new"


def test_two_at_once_make_one(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make(store, weights=b"old")
    with anew(store, first) as writer, pytest.raises(LockHeld), anew(store, first):
        pass
    second = store.get("fit", KEY)
    take_for_dead(monkeypatch)
    with anew(store, second) as slow:
        slow.write("weights", b"slow")
        with anew(store, second) as quick:
            quick.write("weights", b"quick")
    assert writer.committed and quick.committed and not slow.committed
    assert store.get("fit", KEY).read("weights") == b"quick"
    store.get("fit", KEY).verify()


def test_nobody_cleans_up_below_a_writer(store: Store) -> None:
    first = make(store, weights=b"old")
    with anew(store, first) as writer:
        writer.scratch.write("rows/1", b"1")
        writer.write("weights", b"new")
        store.gc(older_than=0)
        with pytest.raises(LockHeld):
            store.remove("fit", KEY)
        assert writer.scratch.read("rows/1") == b"1"
    assert store.get("fit", KEY).read("weights") == b"new"


def test_what_is_removed_meanwhile_is_not_made(store: Store) -> None:
    first = make(store, weights=b"old")
    with pytest.raises(StoreError, match="removed while"), anew(store, first) as writer:
        writer.write("weights", b"new")
        store.backend.delete([f"fit/{KEY}/manifest.json"])
    assert not store.has("fit", KEY)
