"""Token shuffling: every token once, the same for any number of workers and after any resume, windows of full size."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from training_cases import MLP_IN, MLP_OUT, RESID, plan_of, target

from interp.training import FitPlan, WorkerPlace
from interp.training.session import Activations
from interp.training.shuffle import steps_of

TOPK = {"type": "topk", "k": 3}
HOOKS = (RESID, MLP_IN, MLP_OUT)
ALONE = WorkerPlace()
# 64 tokens a step in 4 micro-batches; the last step has 3 of them, the last one short.
TOTALS = [64 * 9 + 41, 64 * 8, 64 * 5 + 7, 64 * 3, 50]


def shuffled_plan(total: int, shuffle: int, **changes: int) -> FitPlan:
    targets = [target("sae", TOPK), target("skip-transcoder", TOPK, name="e")]
    return plan_of(*targets, total=total, shuffle_tokens=shuffle).model_copy(update=changes)


def raw(plan: FitPlan, place: WorkerPlace, first: int, read: list[int] | None = None) -> Iterator[Activations]:
    """Activations that say which token they are of: at every hook point another function of its number."""
    for step in range(first, plan.n_steps):
        for tokens in plan.share(step, place.replica, place.replicas):
            number = torch.tensor(list(tokens), dtype=torch.float32)[:, None]
            if read is not None:
                read.extend(tokens)
            yield {hook: number.expand(-1, 8) * (i + 1) + i for i, hook in enumerate(HOOKS)}


def mixed(plan: FitPlan, place: WorkerPlace = ALONE, first: int = 0) -> dict[int, list[list[int]]]:
    """The tokens of each micro-batch of each step."""
    found: dict[int, list[list[int]]] = {}
    for step, micros in steps_of(plan, raw(plan, place, plan.stream_start(first)), first, place):
        found[step] = [tokens_of(acts) for acts in micros]
    return found


def tokens_of(acts: Activations) -> list[int]:
    """Which tokens a micro-batch has; at all hook points the same."""
    numbers: Tensor = acts[RESID][:, 0]
    for i, hook in enumerate(HOOKS):
        assert torch.equal(acts[hook], (numbers * (i + 1) + i)[:, None].expand(-1, 8)), "hook points came apart"
    return [int(number) for number in numbers]


@pytest.mark.parametrize("total", TOTALS)
@pytest.mark.parametrize("shuffle", [128, 4 * 64, 1000])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_every_token_goes_once_to_a_cut_of_its_lane(total: int, shuffle: int, world: int) -> None:
    plan = shuffled_plan(total, shuffle)
    of_workers = [mixed(plan, WorkerPlace(rank, world)) for rank in range(world)]
    together = {
        step: [of_workers[i % world][step][i // world] for i in range(len(plan.micro_batches(step)))]
        for step in range(plan.n_steps)
    }
    seen = [token for micros in together.values() for tokens in micros for token in tokens]
    assert sorted(seen) == list(range(total))
    assert together == mixed(plan), "the number of workers changes nothing"
    for step, micros in together.items():
        assert [len(tokens) for tokens in micros] == [len(tokens) for tokens in plan.micro_batches(step)]
        first = plan.stream_start(step)
        window = range(first, min(first + plan.window_steps, plan.n_steps))
        for lane, tokens in enumerate(micros):
            own = {token for s in window for part in plan.micro_batches(s)[lane : lane + 1] for token in part}
            assert own.issuperset(tokens)


@pytest.mark.parametrize(("total", "shuffle"), [(64 * 9 + 41, 256), (64 * 8, 192), (64 * 5 + 7, 128), (64 * 3, 500)])
def test_a_resume_at_any_step_gives_the_same_micro_batches(total: int, shuffle: int) -> None:
    plan = shuffled_plan(total, shuffle)
    for place in (WorkerPlace(), WorkerPlace(1, 2)):
        whole = mixed(plan, place)
        for first in range(plan.n_steps):
            assert mixed(plan, place, first) == {step: whole[step] for step in range(first, plan.n_steps)}


def test_a_window_is_as_large_as_it_says() -> None:
    """A peer's is 32 times smaller. Of a uniform permutation of 32 steps a token moves by about 32 / 3 of them."""
    plan = shuffled_plan(64 * 96, 64 * 32 + 5)
    assert plan.window_steps == 32
    moved = torch.tensor([abs(t // 64 - step) for step, micros in mixed(plan).items() for part in micros for t in part])
    assert moved.float().mean() == pytest.approx(32 / 3, rel=0.05)
    assert moved.max() >= 30
    sources = [len({t // 64 for t in part}) for micros in mixed(plan).values() for part in micros]
    assert sum(sources) / len(sources) == pytest.approx(32 * (1 - (31 / 32) ** 16), rel=0.1), "16 draws of 32 steps"


def test_the_order_is_the_seeds_and_another_in_every_window_and_lane() -> None:
    plan = shuffled_plan(64 * 8, 256)
    found = mixed(plan)
    assert found == mixed(plan) != mixed(shuffled_plan(64 * 8, 256, seed=1))
    orders = [
        tuple(t % 16 + 16 * (t // 64 % 4) for s in range(w, w + 4) for t in found[s][lane])
        for w in (0, 4)
        for lane in range(4)
    ]
    assert len(set(orders)) == 8


def test_it_holds_one_window_and_reads_no_further() -> None:
    plan = shuffled_plan(64 * 12, 64 * 4)
    read: list[int] = []
    steps = steps_of(plan, raw(plan, WorkerPlace(), 0, read), 0, WorkerPlace())
    for step, micros in steps:
        for index, _ in enumerate(micros):
            assert len(read) <= min(64 * 12, 64 * 4 + 64 * step + 16 * (index + 1))


@pytest.mark.parametrize("shuffle", [0, 64, 127])
def test_less_than_two_steps_mix_nothing(shuffle: int) -> None:
    plan = shuffled_plan(64 * 3 + 5, shuffle)
    assert plan.window_steps == 1
    assert [t for micros in mixed(plan).values() for part in micros for t in part] == list(range(64 * 3 + 5))
    assert list(mixed(plan, first=2)) == [2, 3]
