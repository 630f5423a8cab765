"""One writer at a time; of N who try exactly one succeeds; a dead one is replaced; no two can spoil an artifact."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from store_cases import KEY, dead_writer, make, paths, take_for_dead

from interp.errors import LockHeld, StoreError
from interp.store import Store, process
from interp.store.lock import Lock, acquire
from interp.store.names import Place

PLACE = Place("fit", KEY)


def race(store: Store, racers: int) -> list[Lock | LockHeld]:
    """All try to take the lock at once; what each of them got."""
    results: list[Lock | LockHeld] = []
    start = threading.Barrier(racers)

    def run() -> None:
        start.wait()
        try:
            results.append(acquire(store.backend, PLACE, ttl=60))
        except LockHeld as error:
            results.append(error)

    threads = [threading.Thread(target=run) for _ in range(racers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("before", ["nobody", "a dead writer", "a released lock"])
def test_of_sixteen_racers_one_wins(store: Store, before: str) -> None:
    if before == "a dead writer":
        dead_writer(store)
    elif before == "a released lock":
        acquire(store.backend, PLACE, ttl=60).release()
    results = race(store, 16)
    winners = [result for result in results if isinstance(result, Lock)]
    assert len(results) == 16
    assert len(winners) == 1
    assert winners[0].attempt == (1 if before == "nobody" else 2)
    winners[0].confirm()
    winners[0].release()


_RACER = """
import sys, time
from interp.errors import LockHeld
from interp.store import Store, process
store = Store.open(sys.argv[1])
store.has("fit", sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
try:
    with store.create("fit", sys.argv[2], spec={}, inputs={}) as writer:
        writer.write("who", sys.argv[3].encode())
        time.sleep(1.0)
    print("won" if writer.committed else "dropped")
except LockHeld:
    print("held")
"""


@pytest.mark.parametrize("takeover", [False, True])
def test_of_several_processes_one_wins(store: Store, takeover: bool) -> None:
    if store.url.startswith("memory:"):
        pytest.skip("a memory store is one process's own")
    if takeover:
        dead_writer(store)
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", _RACER, store.url, KEY, str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    results = [racer.communicate(timeout=60)[0].strip() for racer in racers]
    assert sorted(results) == ["held", "held", "won"]
    assert store.get("fit", KEY).read("who") == str(results.index("won")).encode()


def test_a_second_writer_is_told_who_where_and_since_when(store: Store) -> None:
    with store.create("fit", KEY, spec={}, inputs={}) as writer:
        with pytest.raises(LockHeld) as caught, store.create("fit", KEY, spec={}, inputs={}):
            pytest.fail("the body must not run")
        message = str(caught.value)
        assert f"another writer is making fit/{KEY}" in message
        for part in ("pid ", "attempt 1 since 20", "last seen ", "renewed within 60 s"):
            assert part in message
        writer.write("a", b"1")
    assert writer.committed


def test_a_writer_whose_process_is_gone_is_replaced_at_once(store: Store) -> None:
    dead_writer(store)
    store.backend.write(f"fit/{KEY}/left", b"half a file")
    started = time.monotonic()
    artifact = make(store, a=b"1")
    assert time.monotonic() - started < 10
    assert artifact.manifest.attempt == 2
    assert paths(store) == [f"fit/{KEY}/attempt-2/a", f"fit/{KEY}/manifest.json"]


def test_a_lock_of_another_machine_is_stale_after_its_ttl_and_not_before(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("interp.store.process.is_gone", lambda machine, pid, born: False)
    ttl = 2.0 if store.url.startswith("s3:") else 0.6
    lock = acquire(store.backend, PLACE, ttl)
    time.sleep(ttl * 1.7)
    with pytest.raises(LockHeld):  # the heartbeat keeps it
        acquire(store.backend, PLACE, ttl)
    lock.stop()  # as when the machine goes down
    time.sleep(ttl * 1.7)
    second = acquire(store.backend, PLACE, ttl)
    assert second.attempt == 2
    with pytest.raises(LockHeld, match="has lost its lock"):
        lock.confirm()
    second.release()


def test_a_lock_that_is_not_whole_counts_by_its_age(store: Store) -> None:
    store.backend.write(PLACE.lock(1), b'{"owner": "x')
    with pytest.raises(LockHeld, match="just starting"):
        acquire(store.backend, PLACE, ttl=60)


def test_the_heartbeat_tells_a_writer_that_it_was_replaced(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    take_for_dead(monkeypatch)
    heir = store.create("fit", KEY, spec={}, inputs={})
    with (
        pytest.raises(LockHeld, match="has lost its lock"),
        store.create("fit", KEY, spec={}, inputs={}, ttl=2) as writer,
    ):
        heir.__enter__()
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            writer.write("a", b"zombie")
            time.sleep(0.1)
    assert not writer.committed
    heir.write("a", b"heir")
    heir.__exit__(None, None, None)
    assert store.get("fit", KEY).read("a") == b"heir"


def test_a_writer_that_was_replaced_cannot_touch_what_its_heir_makes(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_for_dead(monkeypatch)
    with store.create("fit", KEY, spec={}, inputs={}) as zombie:
        zombie.write("a", b"zombie")
        with store.create("fit", KEY, spec={}, inputs={}) as heir:
            heir.write("a", b"heir")
            zombie.write("a", b"zombie again")
        assert heir.committed
        zombie.write("b", b"zombie after the commit")
    assert not zombie.committed  # dropped with a warning: the artifact is there
    artifact = store.get("fit", KEY)
    assert artifact.names() == ("a",)
    assert artifact.read("a") == b"heir"
    artifact.verify()
    assert paths(store) == [f"fit/{KEY}/attempt-2/a", f"fit/{KEY}/manifest.json"]


def test_a_replaced_writer_that_commits_first_is_the_one(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It looked at its lock, was paused and replaced, and goes on: the manifest decides, and the heir drops its own."""
    take_for_dead(monkeypatch)
    first = store.create("fit", KEY, spec={}, inputs={})
    with first:
        first.write("a", b"first")
        monkeypatch.setattr(Lock, "confirm", lambda self: None)
        heir = store.create("fit", KEY, spec={}, inputs={}).__enter__()
        heir.write("a", b"heir")
    assert first.committed
    heir.__exit__(None, None, None)
    assert not heir.committed
    artifact = store.get("fit", KEY)
    assert artifact.read("a") == b"first"
    artifact.verify()


def test_of_many_writers_that_all_think_they_hold_the_lock_one_commits(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_for_dead(monkeypatch)
    monkeypatch.setattr(Lock, "confirm", lambda self: None)
    writers = []
    for number in range(6):
        writer = store.create("fit", KEY, spec={}, inputs={})
        writer.__enter__()
        writer.write("a", str(number).encode())
        writers.append(writer)
    with ThreadPoolExecutor(6) as pool:
        for future in [pool.submit(writer.__exit__, None, None, None) for writer in writers]:
            future.result()
    winner = [number for number, writer in enumerate(writers) if writer.committed]
    assert len(winner) == 1
    artifact = store.get("fit", KEY)
    assert artifact.read("a") == str(winner[0]).encode()
    artifact.verify()


def test_an_answer_that_was_lost_does_not_lose_the_lock_or_the_commit(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same exclusive create twice by the same writer, as when the first answer did not arrive."""
    assert store.backend.create("x/y", b"mine")
    if store.url.startswith("s3:"):
        assert store.backend.create("x/y", b"mine")
    assert not store.backend.create("x/y", b"theirs")
    assert store.backend.replace("x/y", b"mine", b"next")
    assert store.backend.replace("x/y", b"mine", b"next")
    assert not store.backend.replace("x/y", b"mine", b"other")
    assert not store.backend.replace("x/z", b"mine", b"other")
    assert store.backend.read("x/y") == b"next"
    assert store.backend.read("x/z") is None


def test_an_artifact_that_is_being_made_is_not_removed(store: Store) -> None:
    with store.create("fit", KEY, spec={}, inputs={}) as writer:
        writer.write("a", b"1")
        with pytest.raises(LockHeld):
            store.remove("fit", KEY)
    assert store.get("fit", KEY).read("a") == b"1"


def test_a_file_that_vanished_before_the_commit_prevents_it(store: Store) -> None:
    with (
        pytest.raises(StoreError, match=r"a of fit/.+ is not as it was written"),
        store.create("fit", KEY, spec={}, inputs={}) as writer,
    ):
        writer.write("a", b"1")
        store.backend.delete([f"fit/{KEY}/a"])
    assert not store.has("fit", KEY)


def test_a_ttl_below_the_clock_of_s3_is_refused(store: Store) -> None:
    with pytest.raises(StoreError, match="ttl"):
        store.create("fit", KEY, spec={}, inputs={}, ttl=0.5)


def test_a_writer_can_wait_for_a_failing_one_and_takes_over(store: Store) -> None:
    other = store.create("fit", KEY, spec={}, inputs={}).__enter__()
    timer = threading.Timer(0.5, other.__exit__, (RuntimeError, RuntimeError(), None))
    timer.start()
    with store.create("fit", KEY, spec={}, inputs={}, ttl=2, wait=30) as writer:
        writer.write("a", b"1")
    timer.join()
    assert writer.committed


def test_a_writer_that_waits_hears_that_the_other_has_finished(store: Store) -> None:
    other = store.create("fit", KEY, spec={}, inputs={}).__enter__()
    timer = threading.Timer(0.5, other.__exit__, (None, None, None))
    timer.start()
    with (
        pytest.raises(LockHeld, match="finished already"),
        store.create("fit", KEY, spec={}, inputs={}, ttl=2, wait=30),
    ):
        pytest.fail("the body must not run")
    timer.join()


def test_who_is_gone() -> None:
    me = process.this()
    assert not process.is_gone(me.machine, me.pid, me.born)
    assert process.is_gone(me.machine, me.pid, "1") == bool(me.born)  # the pid came back
    assert not process.is_gone("another machine", 2**22 + 1, "1")
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    time.sleep(0.5)
    if me.born:
        assert process.is_gone(me.machine, child.pid, "1")  # a zombie: nobody has waited for it
    child.wait()
    assert process.is_gone(me.machine, child.pid, "")


def test_a_storm_of_writers_that_take_one_another_for_dead(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever happens: at most one commits, and what is committed is one writer's, whole."""
    chance = random.Random(0)
    monkeypatch.setattr("interp.store.process.is_gone", lambda machine, pid, born: chance.random() < 0.5)

    def attempt(key: str, number: int) -> str:
        try:
            with store.create("fit", key, spec={}, inputs={}) as writer:
                for name in ("a", "b", "c"):
                    writer.write(name, str(number).encode())
                    writer.scratch.write(f"{number}", b"state")
                if chance.random() < 0.2:
                    raise RuntimeError
        except LockHeld:
            return "held"
        except RuntimeError:
            return "failed"
        return "committed" if writer.committed else "dropped"

    for key in (f"{round_:02d}" for round_ in range(6)):
        with ThreadPoolExecutor(6) as pool:
            results = list(pool.map(attempt, [key] * 6, range(6)))
        assert results.count("committed") == int(store.has("fit", key)), results
        if store.has("fit", key):
            artifact = store.get("fit", key)
            assert {artifact.read(name) for name in ("a", "b", "c")} == {str(results.index("committed")).encode()}
            artifact.verify()
