"""Where the parts of a fit go: the least that fits, with the numbers when nothing does."""

from __future__ import annotations

from dataclasses import replace

import pytest

from interp.errors import EngineError
from interp.plan.placement import RESERVE, Needs, deal, place, training_bytes

GB = 10**9
HOOKS = ({"a": 300}, {"a": 300, "b": 200}, {"c": 400}, {"d": 100})
SMALL = Needs(model=GB, members=(GB, GB, GB, GB), hooks=HOOKS, working=10**6, step_tokens=8192, micro_tokens=1024)


def test_a_small_model_runs_beside_its_dictionaries() -> None:
    chosen = place(SMALL, 24 * GB, 4)
    assert (chosen.mode, chosen.shards) == ("colocated", 1)
    assert chosen.worker_bytes == 5 * GB + 10**6 + (2048 + 1024) * 1000, "a hook point that two read is there once"
    assert chosen.reason.startswith("model and dictionaries fit into one worker: 4.0 GB of dictionaries")


def test_a_model_that_finds_no_room_beside_them_is_streamed_from() -> None:
    chosen = place(replace(SMALL, model=80 * GB), 24 * GB, 4)
    assert (chosen.mode, chosen.shards) == ("streamed", 1)
    assert "does not fit beside" in chosen.reason and "80.0 GB of model" in chosen.reason


def test_the_window_counts() -> None:
    # The four dictionaries leave 0.2 GB of 5 free; a window of 1M tokens is 1 GB, a quarter of it for each worker.
    needs = replace(SMALL, model=0)
    memory = int(4.2 * GB / (1 - RESERVE))
    assert place(needs, memory, 4).shards == 1
    assert place(replace(needs, window_tokens=10**6), memory, 4).shards == 2


@pytest.mark.parametrize(("memory", "shards"), [(5.0, 1), (3.0, 2), (1.5, 4)])
def test_shards_are_as_few_as_fit(memory: float, shards: int) -> None:
    assert place(replace(SMALL, model=0), int(memory * GB), 8).shards == shards
    assert place(replace(SMALL, model=0), int(memory * GB), 8, shards=4).shards == 4, "unless the study says"


def test_a_worker_has_the_activations_of_its_own_hook_points() -> None:
    """Four shards of one dictionary each; the widest reads 500 bytes a token of the 1000 of all."""
    assert place(SMALL, 24 * GB, 4, shards=4, mode="streamed").worker_bytes == GB + 10**6 + (8192 + 1024) * 500
    # A window of 4M tokens is 4 GB at all hook points and at most 2 GB at those of one dictionary.
    needs = replace(SMALL, model=0, window_tokens=4 * 10**6)
    assert place(needs, int(3.1 * GB / (1 - RESERVE)), 4).shards == 4


def test_a_dictionary_with_wide_hook_points_counts_as_a_whole() -> None:
    """The largest worker is the one with the most bytes together, not the heaviest dictionary with the widest hooks."""
    needs = replace(SMALL, members=(2 * GB, GB), hooks=({"a": 10}, {"b": 10**6}))
    assert place(needs, 99 * GB, 2, shards=2).worker_bytes > (8192 + 1024) * 10**6 + GB
    assert place(needs, 99 * GB, 2, shards=2, mode="streamed").worker_bytes == (8192 + 1024) * 10**6 + GB + 10**6


def test_replicas_share_out_the_micro_batches_of_a_step() -> None:
    """Eight of them: six workers are one shard of six, two of three, three of two; only the last deals evenly."""
    assert place(replace(SMALL, model=0), 24 * GB, 6).shards == 3
    with pytest.raises(EngineError, match=r"8 micro-batches a step, 6 workers for 4 dictionaries in 2 shards"):
        place(SMALL, 24 * GB, 6, shards=2)
    with pytest.raises(EngineError, match=r"evenly[^$]*7 workers for 4 dictionaries"):
        place(SMALL, 24 * GB, 7)


def test_shards_that_would_repeat_a_long_forward_pass_are_streamed_to() -> None:
    needs = replace(SMALL, forward_flops=1.0, member_flops=10.0)
    assert place(needs, 24 * GB, 4, shards=4).mode == "streamed", "1 of 3.5"
    assert place(needs, 24 * GB, 4, shards=2).mode == "colocated", "1 of 6"
    assert place(replace(needs, forward_flops=100.0), 24 * GB, 4).mode == "colocated", "one shard repeats nothing"
    assert place(needs, 24 * GB, 4, shards=4, mode="colocated").mode == "colocated", "unless the study says"


def test_what_cannot_fit_is_refused_with_the_numbers() -> None:
    with pytest.raises(EngineError, match=r"a dictionary alone[^$]*the largest 30.0 GB[^$]*4 workers of 24.0 GB"):
        place(replace(SMALL, members=(GB, 30 * GB), hooks=HOOKS[:2]), 24 * GB, 4)
    with pytest.raises(EngineError, match=r"the dictionaries do not fit[^$]*80.0 GB[^$]*more fit.workers"):
        place(replace(SMALL, members=(8 * GB,) * 10, hooks=({"a": 1},) * 10), 24 * GB, 4)
    with pytest.raises(EngineError, match=r"fit.workers=6, fit.shards=4"):
        place(SMALL, 24 * GB, 6, shards=4)
    with pytest.raises(EngineError, match=r"more shards than dictionaries"):
        place(SMALL, 24 * GB, 8, shards=8)


def test_what_the_study_fixes_must_fit_too() -> None:
    large = replace(SMALL, model=80 * GB)
    with pytest.raises(EngineError, match=r"does not fit beside[^$]*80.0 GB of model[^$]*colocated[^$]*fit.mode"):
        place(large, 24 * GB, 4, mode="colocated")
    with pytest.raises(EngineError, match=r"the dictionaries do not fit[^$]*4 workers of 3.0 GB"):
        place(SMALL, 3 * GB, 4, shards=1)
    with pytest.raises(EngineError, match=r"the dictionaries do not fit[^$]*4 workers of 3.0 GB"):
        place(SMALL, 3 * GB, 4, shards=1, mode="streamed")
    memory = int(3.1 * GB / (1 - RESERVE))
    assert place(SMALL, memory, 4).shards == 2
    assert place(SMALL, memory, 4, mode="colocated").shards == 2, "two dictionaries and the model"
    assert place(SMALL, int(2.1 * GB / (1 - RESERVE)), 4, mode="colocated").shards == 4


def test_streamed_is_judged_by_what_harvesters_leave() -> None:
    needs = replace(SMALL, forward_flops=1.0, member_flops=10.0)
    memory = int(2.1 * GB / (1 - RESERVE))
    assert place(needs, memory, 4, beside=memory).mode == "streamed"
    found = place(needs, memory, 4, beside=memory // 4)
    assert (found.mode, found.shards) == ("colocated", 4) and found.reason.startswith("harvesters find no room")
    with pytest.raises(EngineError, match=r"the dictionaries do not fit|alone does not fit"):
        place(needs, memory, 4, mode="streamed", beside=memory // 4)
    with pytest.raises(EngineError, match=r"does not fit into a harvester[^$]*80.0 GB"):
        place(replace(needs, model=80 * GB), 24 * GB, 4, beside=12 * GB)
    with pytest.raises(EngineError, match=r"does not fit beside the dictionaries[^$]*4 workers of 24.0 GB"):
        place(replace(needs, model=80 * GB), 24 * GB, 4, beside=0)


def test_members_are_dealt_by_cost() -> None:
    assert deal([5, 1, 1, 1, 1, 1], 2) == [[0], [1, 2, 3, 4, 5]]
    assert deal([1, 2, 3, 4], 2) == [[0, 3], [1, 2]]
    assert deal([0, 0, 0], 3) == [[0], [1], [2]], "none stays empty"
    costs = [(7 * i) % 11 + 1 for i in range(30)]
    loads = [sum(costs[i] for i in shard) for shard in deal(costs, 4)]
    assert sorted(i for shard in deal(costs, 4) for i in shard) == list(range(30))
    assert max(loads) - min(loads) <= max(costs)


def test_bytes_in_training() -> None:
    assert [
        training_bytes(10, optimizer, dtype)
        for optimizer, dtype in [("adam", "float32"), ("signum", "float32"), ("adam", "bfloat16")]
    ] == [160, 120, 180]
