"""A full or read-only disk, a file system without hard links, a writer killed in the middle."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from store_cases import KEY, dead_writer, make, paths

from interp.errors import ArtifactMissing, StoreAccessError
from interp.store import Store


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_an_error_with_a_remedy_and_the_rerun_completes(small_disk: Path) -> None:
    store = Store.open(small_disk / "store")
    with (
        pytest.raises(StoreAccessError, match="ENOSPC") as caught,
        store.create("fit", KEY, spec={}, inputs={}) as writer,
    ):
        writer.scratch.write("ck", b"s" * 1000)
        writer.write("small", b"1" * 1000)
        writer.write("big", b"2" * 2**21)
    assert "free some space" in str(caught.value)
    assert not store.has("fit", KEY)
    assert store.scratch("fit", KEY).read("ck") == b"s" * 1000
    assert not [path for path in paths(store) if ".tmp-" in path or path.endswith("big")]
    assert make(store, big=b"2" * 2**19).read("big") == b"2" * 2**19


def test_a_disk_that_is_full_when_the_manifest_is_due(small_disk: Path) -> None:
    store = Store.open(small_disk / "store")
    filler = small_disk / "filler"
    with pytest.raises(StoreAccessError, match="ENOSPC"), store.create("fit", KEY, spec={}, inputs={}) as writer:
        writer.write("a", b"1")
        with pytest.raises(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
    with pytest.raises(ArtifactMissing):
        store.get("fit", KEY)
    filler.unlink()
    assert make(store, a=b"1").read("a") == b"1"


def test_a_full_cache_disk(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from interp.store import cache

    artifact = make(Store.open("memory://full-cache"), big=b"2" * 2**21)
    monkeypatch.setattr(cache, "folder_for", lambda url: small_disk)
    with pytest.raises(StoreAccessError, match="INTERP_CACHE_DIR"):
        artifact.local("big")
    assert not [path for path in small_disk.rglob("*") if path.is_file()]


def test_a_read_only_disk(small_disk: Path) -> None:
    artifact = make(Store.open(small_disk / "store"), a=b"1")
    dead_writer(artifact.store, stage="trace")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    store = artifact.store
    assert store.get("fit", KEY).read("a") == b"1"
    assert artifact.local("a").read_bytes() == b"1"
    assert [entry.state for entry in store.list()] == ["finished", "unfinished"]
    with pytest.raises(StoreAccessError, match="EROFS") as caught, store.create("trace", KEY, spec={}, inputs={}):
        pytest.fail("the body must not run")
    assert "read-only" in str(caught.value)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EIO])
def test_a_write_that_the_system_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    store = Store.open(tmp_path / "store")
    real, failing = os.fsync, False

    def fsync(descriptor: int) -> None:
        if failing:
            raise OSError(code, os.strerror(code))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with (
        pytest.raises(StoreAccessError, match=errno.errorcode[code]) as caught,
        store.create("fit", KEY, spec={}, inputs={}) as writer,
    ):
        failing = True
        writer.write("a", b"1")
    assert "remedy" in str(caught.value)
    assert paths(store) == [f"fit/{KEY}/lock/000001.json"]


def test_a_store_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "store").write_bytes(b"")
    store = Store.open(tmp_path / "store")
    assert not store.has("fit", KEY)
    with pytest.raises(StoreAccessError, match="is a folder"), store.create("fit", KEY, spec={}, inputs={}):
        pytest.fail("the body must not run")


def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "no hard links here")

    monkeypatch.setattr(os, "link", no_links)
    store = Store.open(tmp_path / "store")
    make(store, a=b"1").verify()
    assert store.backend.create("x/y", b"1")
    assert not store.backend.create("x/y", b"2")
    assert paths(store, "x") == ["x/y"]


_WRITER = """
import sys
from interp.store import Store
store = Store.open(sys.argv[1])
with store.create("fit", sys.argv[2], spec={}, inputs={}) as writer:
    writer.scratch.write("ck", b"state")
    writer.write("a", b"1" * 1000)
    def endless():
        while True:
            print("writing", flush=True)
            yield b"2" * 1000
    writer._stream("b", writer._path("b"), endless(), 0)
"""


def test_a_writer_killed_in_the_middle_of_a_file(store: Store) -> None:
    if store.url.startswith("memory:"):
        pytest.skip("a memory store ends with its process")
    child = subprocess.Popen(
        [sys.executable, "-c", _WRITER, store.url, KEY], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    for _ in range(100):
        assert child.stdout.readline() == "writing\n"
    assert [entry.state for entry in store.list()] == ["running"]
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert not store.has("fit", KEY)
    assert [entry.state for entry in store.list()] == ["unfinished"]
    started = time.monotonic()
    with store.create("fit", KEY, spec={}, inputs={}) as writer:
        assert time.monotonic() - started < 10  # at once: that process is known to be gone
        assert writer.scratch.read("ck") == b"state"
        writer.write("b", b"3")
    artifact = store.get("fit", KEY)
    assert artifact.names() == ("b",)
    artifact.verify()
    assert paths(store) == [f"fit/{KEY}/attempt-2/b", f"fit/{KEY}/manifest.json"]


def test_a_child_that_leaves_its_parents_block_commits_nothing(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    with store.create("fit", KEY, spec={}, inputs={}) as writer:
        writer.write("a", b"1")
        child = os.fork()
        if child == 0:
            status = 1
            try:
                writer.__exit__(None, None, None)
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        assert not store.has("fit", KEY)
        writer.write("b", b"2")
    assert store.get("fit", KEY).names() == ("a", "b")
