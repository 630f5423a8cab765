"""`map_ordered` and `pool`: order, laziness, errors, and processes that are killed; the same in process and on Ray."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
from toys import Squares

from interp.engine import Engine
from interp.engine.base import Outcome, attempt
from interp.engine.local import InProcess
from interp.engine.resources import Share
from interp.errors import EngineError, ModelError, PromptError


@pytest.fixture(params=["inprocess", pytest.param("ray", marks=pytest.mark.ray)])
def engine(request: pytest.FixtureRequest) -> Engine:
    return InProcess() if request.param == "inprocess" else request.getfixturevalue("ray_engine")


def test_an_error_that_we_understand_is_raised_in_its_turn(engine: Engine, tmp_path: Path) -> None:
    stream = engine.map_ordered(Squares(str(tmp_path), refused=(3,)), range(6))
    assert [next(stream) for _ in range(3)] == [0, 1, 4]
    with pytest.raises(PromptError, match="not this one"):
        next(stream)


def test_one_items_error_stops_no_other(engine: Engine, tmp_path: Path) -> None:
    worker = Squares(str(tmp_path), refused=(2,), defects=(4,))
    outcomes = {outcome.index: outcome for outcome in engine.pool(worker, iter(range(6)))}
    assert {index: found.value for index, found in outcomes.items() if found.error is None} == {0: 0, 1: 1, 3: 9, 5: 25}
    assert isinstance(outcomes[2].error, PromptError)
    assert isinstance(outcomes[4].error, EngineError)
    assert "ZeroDivisionError: a defect" in str(outcomes[4].error)
    assert len(worker.processes()) == 1


def test_a_worker_that_cannot_start_ends_the_pool(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model here"):
        list(engine.pool(Squares(str(tmp_path), starts=False), range(3)))


@pytest.mark.ray
def test_a_killed_actor_of_a_stream_is_replaced_and_no_batch_is_lost_or_doubled(
    ray_engine: Engine, tmp_path: Path
) -> None:
    worker = Squares(str(tmp_path), kills_once=(5,))
    assert list(ray_engine.map_ordered(worker, range(20), actors=2)) == [n * n for n in range(20)]
    assert [worker.times_done(n) for n in range(20)] == [1] * 20
    assert len(worker.processes()) == 3


@pytest.mark.ray
def test_a_stream_reads_no_further_than_its_window_and_stops_with_its_reader(
    ray_engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("interp.engine.ray.streams.WINDOW_BYTES", 100)
    read = []

    def endless() -> Iterator[int]:
        while True:
            read.append(len(read))
            yield read[-1]

    stream = ray_engine.map_ordered(Squares(str(tmp_path)), endless())
    assert [next(stream) for _ in range(25)] == [n * n for n in range(25)]
    stream.close()
    assert len(read) < 100


@pytest.mark.ray
def test_a_pool_replaces_dead_actors_and_gives_up_on_an_item_that_kills_them_all(
    ray_engine: Engine, tmp_path: Path
) -> None:
    worker = Squares(str(tmp_path), kills_once=(3,), kills=(5,))
    outcomes = {found.index: found for found in ray_engine.pool(worker, range(12), max_actors=2, retries=1)}
    assert sorted(outcomes) == list(range(12))
    assert "killed its worker 2 times" in str(outcomes.pop(5).error)
    assert {index: found.value for index, found in outcomes.items()} == {n: n * n for n in range(12) if n != 5}
    assert [worker.times_done(n) for n in range(12)] == [1] * 5 + [0] + [1] * 6


@pytest.mark.ray
def test_an_item_whose_worker_died_is_tried_again_as_something_smaller(ray_engine: Engine, tmp_path: Path) -> None:
    worker = Squares(str(tmp_path), kills=(4, 8))
    outcomes = {found.index: found for found in ray_engine.pool(worker, [1, 8, 3], again=lambda n: n // 2)}
    assert {index: found.value for index, found in outcomes.items()} == {0: 1, 1: 4, 2: 9}


def test_what_an_item_had_in_memory_does_not_outlive_its_error() -> None:
    class State: ...

    held: list[weakref.ref[State]] = []

    def work(_: int) -> None:
        state = State()
        held.append(weakref.ref(state))
        try:
            try:
                raise KeyError("deep")
            except KeyError as error:
                raise ModelError("deeper") from error
        except ModelError as error:
            raise PromptError("not this one") from error

    gc.disable()  # a cycle would keep the state until it is collected, and a list of errors for good
    try:
        outcome = attempt(work, 0, 0)
        assert held[0]() is None
    finally:
        gc.enable()
    assert isinstance(outcome.error, PromptError) and isinstance(outcome.error.__cause__, ModelError)


@pytest.mark.ray
def test_a_batch_that_kills_every_actor_ends_the_stream(ray_engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="lost its worker"):
        list(ray_engine.map_ordered(Squares(str(tmp_path), kills=(1,)), range(3)))


@pytest.mark.ray
def test_what_does_not_fit_is_refused_at_once(ray_engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="does not fit"):
        ray_engine.pool(Squares(str(tmp_path)), range(3), min_actors=50, max_actors=50)
    with pytest.raises(EngineError, match="connected to Ray already"):
        type(ray_engine)()


def pool_of(worker: Squares, items: int, largest: int, cpus: float = 0.5) -> list[Outcome[int]]:
    """Outcomes of a pool that begins with one actor, as they came."""
    from interp.engine.ray.pool import Pool

    pool = Pool(worker, range(items), smallest=1, largest=largest, retries=1, share=Share(cpus, 0, 1))
    outcomes = list(pool.outcomes())
    assert sorted((found.index, found.value) for found in outcomes) == [(n, n * n) for n in range(items)]
    assert pool.size == 0
    return outcomes


@pytest.mark.ray
def test_a_pool_grows_while_items_wait_and_shrinks_at_the_end(ray_engine: Engine, tmp_path: Path) -> None:
    worker = Squares(str(tmp_path), until=("started", 4))
    actors = [outcome.actors for outcome in pool_of(worker, 12, largest=4)]
    assert max(actors) == 4 and actors[-1] == 1
    assert len(worker.processes()) == 4


@pytest.mark.ray
def test_an_actor_without_room_stops_no_other(ray_engine: Engine, tmp_path: Path) -> None:
    """Three of the four CPUs for each: the second actor never gets its own."""
    worker = Squares(str(tmp_path), seconds=0.02)
    assert {outcome.actors for outcome in pool_of(worker, 10, largest=4, cpus=3)} == {1}
    assert len(worker.processes()) == 1


@pytest.mark.ray
def test_a_pool_goes_on_with_the_actors_that_can_start(ray_engine: Engine, tmp_path: Path) -> None:
    worker = Squares(str(tmp_path), room=1, until=("refused", 3))
    assert {outcome.actors for outcome in pool_of(worker, 6, largest=2)} == {1}
    assert len(worker.processes("refused")) == 3
    with pytest.raises(EngineError, match="starting a worker"):
        pool_of(Squares(str(tmp_path), room=0), 3, largest=2)


@pytest.mark.ray
def test_more_actors_than_cores_are_as_many_as_there_are_cores(ray_engine: Engine, tmp_path: Path) -> None:
    worker = Squares(str(tmp_path), until=("started", ray_engine.cores))
    outcomes = list(ray_engine.pool(worker, range(12), max_actors=64))
    assert sorted(found.index for found in outcomes) == list(range(12))
    assert len(worker.processes()) == ray_engine.cores
