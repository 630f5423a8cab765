"""Dictionaries dealt to shards: the same as trained together, and a checkpoint goes on with other numbers of both."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from training_cases import ThreadGroup, plan_of, planted, target

from interp.training import DictionarySet, FitPlan, InMemorySession, Trainer, WorkerPlace, fit_loop

ACTS = planted(500)
TARGETS = [
    target("sae", {"type": "topk", "k": 3}, name="a"),
    target("skip-transcoder", {"type": "batchtopk", "k": 3}, name="b"),
    target("sae", {"type": "jumprelu"}, name="c", n_latents=64),
    target("cross-layer-transcoder", {"type": "topk", "k": 3}, name="d"),
]
PLAN = plan_of(*TARGETS, total=500, checkpoint_every=128, dead_after=64, shuffle_tokens=128)


class ThreadSession(InMemorySession):
    """One of several workers that are threads; it sees the activations of its own shard's hook points only."""

    def __init__(self, plan: FitPlan, output: Path, place: WorkerPlace, everyone: ThreadGroup, shard: ThreadGroup):
        hooks = plan.shard_hooks(place.shard, place.shards)
        super().__init__(plan, {hook: ACTS[hook] for hook in hooks}, output)
        self.place = place
        self.share = everyone.all_reduce(place.rank)  # type: ignore[method-assign]
        self.all_reduce = shard.all_reduce(place.replica)  # type: ignore[method-assign]
        self.stop_after: int | None = None
        self._step = 0

    def save_checkpoint(self, step: int, write: Callable[[Path], None]) -> None:
        folder = self.checkpoints / f"{step:08d}"
        if self.place.leads:
            folder.mkdir(parents=True, exist_ok=True)
            write(folder)
        self.share(torch.zeros(1))

    def should_stop(self) -> bool:
        self._step += 1
        return self.place.rank == self.place.world - 1 and self._step == self.stop_after


def fitted(output: Path, world: int, shards: int, stop_after: int | None = None) -> bool:
    """Run, or go on with, the fit into a folder that all workers share."""
    everyone = ThreadGroup(world)
    groups = [ThreadGroup(world // shards) for _ in range(shards)]

    def work(rank: int) -> bool:
        place = WorkerPlace(rank, world, shards)
        session = ThreadSession(PLAN, output, place, everyone, groups[place.shard])
        session.stop_after = stop_after
        return fit_loop(session, PLAN)

    (finished,) = set(everyone.run(work))
    return bool(finished)


def weights(folder: Path) -> dict[str, Tensor]:
    files = sorted(folder.rglob("weights.safetensors"))
    assert len(files) == len(TARGETS)
    return {f"{path.parent.name}:{name}": value for path in files for name, value in load_file(path).items()}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "reference"
    assert fit_loop(InMemorySession(PLAN, ACTS, folder), PLAN)
    return folder


def assert_same_fit(found: Path, reference: Path) -> None:
    """To rounding; figures of all dictionaries reach the one that writes them."""
    expected = weights(reference)
    for name, value in weights(found).items():
        torch.testing.assert_close(value, expected[name], rtol=2e-3, atol=2e-4, msg=lambda m, name=name: f"{name}: {m}")
    rows = [
        [json.loads(line) for line in (one / "metrics.jsonl").read_text().splitlines()] for one in (found, reference)
    ]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]] == list(range(8))
    for ours, theirs in zip(*rows, strict=True):
        assert list(ours["dictionaries"]) == [one.key for one in TARGETS]
        for key, figures in theirs["dictionaries"].items():
            assert ours["dictionaries"][key] == pytest.approx(figures, rel=1e-3, abs=1e-5)
    summary = json.loads((found / "summary.json").read_text())
    assert list(summary["dictionaries"]) == [one.key for one in TARGETS]


@pytest.mark.parametrize(("world", "shards"), [(2, 1), (2, 2), (4, 2), (4, 4)])
def test_shards_train_what_one_worker_trains(tmp_path: Path, reference: Path, world: int, shards: int) -> None:
    assert fitted(tmp_path / "out", world, shards)
    assert_same_fit(tmp_path / "out", reference)


@pytest.mark.parametrize(("before", "after"), [((1, 1), (2, 2)), ((4, 2), (1, 1)), ((2, 2), (4, 4))])
def test_a_checkpoint_goes_on_with_other_numbers_of_workers_and_shards(
    tmp_path: Path, reference: Path, before: tuple[int, int], after: tuple[int, int]
) -> None:
    """One worker, the last, is asked to stop: all do, after the same step."""
    out = tmp_path / "out"
    assert not fitted(out, *before, stop_after=5)
    checkpoint = max((tmp_path / "out.checkpoints").iterdir())
    assert checkpoint.name == "00000005"
    assert {path.parent.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*.safetensors")} == {
        one.key for one in TARGETS
    }
    shutil.rmtree(out, ignore_errors=True)
    assert fitted(out, *after)
    assert_same_fit(out, reference)


def test_a_shard_holds_its_own_dictionaries_and_reads_their_hook_points() -> None:
    for shards in (1, 2, 3, 4):
        parts = [PLAN.shard_targets(shard, shards) for shard in range(shards)]
        assert sorted(one.key for part in parts for one in part) == sorted(one.key for one in TARGETS)
        for shard, part in enumerate(parts):
            trainer = Trainer(PLAN, DictionarySet(PLAN, targets=part))
            assert set(trainer.dictionaries.widths()) == set(PLAN.shard_hooks(shard, shards))
    costs = [sum(one.cost for one in PLAN.shard_targets(shard, 2)) for shard in (0, 1)]
    assert max(costs) < 0.6 * sum(costs)
