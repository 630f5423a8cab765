"""A pool that grows while items wait and shrinks at the end, as the figures of its outcomes and of a trace tell it."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from toys import Squares

from interp.engine import Engine
from interp.engine.base import Outcome
from interp.engine.ray.pool import Pool
from interp.engine.resources import Capacity, Share

ITEMS, FIRST = 300, 20


@dataclass(frozen=True)
class Waits(Squares):
    """The first items are done by whoever is there; the others when four processes have started."""

    def _square(self, number: int) -> int:
        deadline = time.monotonic() + 60
        while number >= FIRST and len(self.processes()) < 4 and time.monotonic() < deadline:
            time.sleep(0.02)
        return super()._square(number)


@pytest.mark.ray
def test_300_items_are_done_once_each_by_one_to_four_actors_and_back(
    ray_engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a machine of four cores."""
    monkeypatch.setattr(ray_engine._session, "capacity", Capacity(4, 4))  # type: ignore[attr-defined]
    worker = Waits(str(tmp_path), seconds=0.02)
    outcomes = list(ray_engine.pool(worker, range(ITEMS), min_actors=1, max_actors=4))
    assert Counter(outcome.index for outcome in outcomes) == Counter(range(ITEMS))
    assert all(outcome.value == outcome.index**2 and outcome.error is None for outcome in outcomes)
    assert [worker.times_done(number) for number in range(ITEMS)] == [1] * ITEMS
    actors = [outcome.actors for outcome in outcomes]
    assert actors[0] == 1 and max(actors) == 4
    largest = len(actors) - actors[::-1].index(4)
    assert actors[:largest] == sorted(actors[:largest]), "it only grows while items wait"
    assert actors[largest:] == [3, 2, 1], "each that finds no item is given back at once"
    assert len(worker.processes()) == 4


@pytest.mark.ray
def test_few_items_start_no_more_actors_than_there_are_items(ray_engine: Engine, tmp_path: Path) -> None:
    worker = Squares(str(tmp_path), seconds=0.05)
    outcomes = list(ray_engine.pool(worker, range(2), min_actors=1, max_actors=4))
    assert sorted(outcome.index for outcome in outcomes) == [0, 1]
    assert len(worker.processes()) <= 2


class _NodeGone:
    """Says that the node of the first workers that died has gone."""

    def __init__(self, times: int):
        self.left, self.asked = times, list[str]()

    def look(self) -> None: ...

    def has_gone(self, node: str) -> bool:
        self.asked.append(node)
        self.left -= 1
        return self.left >= 0


@pytest.mark.ray
def test_an_item_is_not_blamed_for_a_node_that_goes(ray_engine: Engine, tmp_path: Path) -> None:
    """Neither tried as something smaller, nor given up; a death on a node that is there counts as before."""
    kills_twice = Squares(str(tmp_path), kills=(7,))
    assert fate(kills_twice, _NodeGone(0)).error is not None
    nodes = _NodeGone(2)
    outcome = fate(kills_twice, nodes)
    assert outcome.error is not None and "killed its worker 1 times" in outcome.error.what
    assert len(nodes.asked) == 3 and all(nodes.asked), "twice elsewhere, then it was to blame"
    once = Squares(str(tmp_path), kills_once=(5,))
    assert fate(once, _NodeGone(1), item=5).value == 25


def fate(worker: Squares, nodes: _NodeGone, item: int = 7) -> Outcome[int]:
    """What becomes of one item that may not kill its worker once."""
    sizes = {"smallest": 1, "largest": 1, "retries": 0}
    pool = Pool(worker, [item], **sizes, share=Share(0.5, 0, 1), again=lambda n: 0, nodes=nodes)  # type: ignore[arg-type]
    (outcome,) = pool.outcomes()
    return outcome
