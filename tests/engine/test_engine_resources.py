"""Processes that do not fit are refused before anything starts, and what fits is shared out evenly."""

from __future__ import annotations

import pytest

from interp.engine import LazyEngine, open_engine
from interp.engine.local import InProcess
from interp.engine.resources import Capacity, pool_size, share, with_threads
from interp.errors import EngineError
from interp.plan.nodes import RESERVE


def test_a_few_processes_get_a_cpu_each_and_their_part_of_the_cores() -> None:
    each = share(Capacity(cores=8, cpus=16), 2, "cpu", "two actors")
    assert (each.cpus, each.gpus, each.threads, each.device) == (1.0, 0.0, 4, "cpu")


@pytest.mark.parametrize("processes", [3, 4, 7, 17])
def test_all_processes_fit_at_once_beside_the_reserve(processes: int) -> None:
    capacity = Capacity(cores=2, cpus=4)
    each = share(capacity, processes, "cpu", "actors")
    assert processes * each.cpus <= capacity.cpus - RESERVE
    assert each.threads == 1


@pytest.mark.parametrize(("cores", "threads"), [(1, (1, 1)), (2, (1, 2)), (64, (5, 5))])
def test_threads_follow_the_work(cores: int, threads: tuple[int, int]) -> None:
    """Harvesters that do 0.3 of it, and workers that do the rest: no core waits for the slower side."""
    capacity = Capacity(cores=cores, cpus=2 * cores)
    harvesters, workers = (1, 1) if cores < 64 else (4, 9)
    each = share(capacity, 1, "cpu", "one")
    found = with_threads(each, capacity, harvesters, 0.3), with_threads(each, capacity, workers, 0.7)
    assert (found[0].threads, found[1].threads) == threads


def test_too_many_processes_are_refused_with_the_numbers() -> None:
    with pytest.raises(EngineError, match=r"40 workers: 40 processes on 4 logical CPUs \(2 cores\)[^$]*at most 17"):
        share(Capacity(cores=2, cpus=4), 40, "cpu", "40 workers")


def test_a_pool_on_one_machine_grows_to_its_cores_or_gpus() -> None:
    laptop, server = Capacity(2, 4), Capacity(16, 32, gpus=2)
    assert pool_size(laptop, 1, 64, "cpu") == 2
    assert pool_size(laptop, 3, 64, "cpu") == 3
    assert pool_size(server, 1, 64, "cpu") == 16
    assert pool_size(server, 1, 64, "auto") == 2
    assert pool_size(server, 4, 64, "cuda") == 4


def test_gpus_are_shared_when_there_are_too_few_and_demanded_when_asked_for() -> None:
    assert share(Capacity(16, 16, gpus=2), 2, "auto", "x").gpus == 1.0
    assert share(Capacity(16, 16, gpus=2), 3, "auto", "x").gpus == 0.5
    assert share(Capacity(16, 16, gpus=1), 3, "auto", "x").gpus == 0.33
    assert share(Capacity(16, 16, gpus=2), 3, "cpu", "x").gpus == 0.0
    with pytest.raises(EngineError, match="there are none"):
        share(Capacity(16, 16), 1, "cuda", "x")


def test_an_engine_that_nobody_uses_is_never_opened() -> None:
    def factory() -> InProcess:
        raise AssertionError("opened")

    with LazyEngine(factory) as engine:
        assert engine.cores >= 1
        assert not engine.opened


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(EngineError, match="ray or inprocess"):
        open_engine("spark")
