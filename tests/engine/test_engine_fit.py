"""Fits: the stream of activations, checkpoints, and the same dictionaries whatever runs them and whatever is killed."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file
from tiny_study import artifact, make_study, run
from torch import Tensor

from interp.corpus.tokens import TokenBlocks
from interp.engine import Engine
from interp.engine.harvest import Harvester
from interp.engine.job import FitJob
from interp.engine.local import InProcess
from interp.engine.microbatches import MicroBatch, micro_batches, rows_of
from interp.errors import EngineError, ModelMismatch, StoreError
from interp.spec.study import Study
from interp.stages.context import StageContext, no_progress
from interp.stages.fit import fit_job
from interp.store import Store
from interp.training.plan import FitPlan

# 125 steps and 93 of the tokens: the last step has 3 micro-batches, the last of them short.
TOKENS = 125 * 128 + 93


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fit")


@pytest.fixture(scope="module")
def study(folder: Path) -> Study:
    """With its corpus made."""
    sparse = {"latents": 48, "activation": {"type": "topk", "k": 6}}
    dictionaries = [
        {"name": "mlp", "kind": "skip-transcoder", "at": "layers.*.mlp", **sparse},
        {"name": "resid", "kind": "sae", "at": "layers.0.resid_post", **sparse},
        {"name": "clt", "kind": "cross-layer-transcoder", "at": "layers.*.mlp", **sparse},
    ]
    study = make_study(folder, corpus={"tokens": TOKENS}, trace=None, dictionaries=dictionaries)
    run(make_study(folder, corpus={"tokens": TOKENS}, trace=None, dictionaries=[]))
    return study


@pytest.fixture
def make_job(study: Study, request: pytest.FixtureRequest) -> Callable[..., FitJob]:
    """Jobs of the study, each with a scratch of its own."""

    def make(name: str, **changes: Any) -> FitJob:
        store, corpus = Store.open(study.store), artifact(study, "corpus")
        context = StageContext(study, None, InProcess(), store, no_progress)  # type: ignore[arg-type]
        return replace(fit_job(context, corpus, store.scratch("fit", name.encode().hex().ljust(64, "0"))), **changes)

    return make


@pytest.fixture(scope="module")
def reference(study: Study, folder: Path) -> dict[str, Tensor]:
    """What the study's fit gives in this process, without interruption."""
    store, corpus = Store.open(study.store), artifact(study, "corpus")
    context = StageContext(study, None, InProcess(), store, no_progress)  # type: ignore[arg-type]
    job = fit_job(context, corpus, store.scratch("fit", "0" * 64))
    return fitted(InProcess(), job, folder / "reference")


def fitted(engine: Engine, job: FitJob, folder: Path) -> dict[str, Tensor]:
    """Run a job; all weights, by file and name."""
    engine.fit(job, no_progress)
    names = job.fetch_result(folder)
    assert "summary.json" in names
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == job.plan.n_steps
    files = [name for name in names if name.endswith(".safetensors")]
    assert len(files) == 4
    return {f"{file}:{name}": value for file in files for name, value in load_file(folder / file).items()}


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], **tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], **tolerance, msg=lambda m, name=name: f"{name}: {m}")


# --- the stream


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("first", [0, 3, 125])
def test_blocks_dealt_in_turn_are_the_shares_of_the_plan(
    make_job: Callable[..., FitJob], world: int, first: int
) -> None:
    plan = make_job("deal").plan
    stream = list(micro_batches(plan, world, first))
    assert [micro.index for micro in stream] == list(range(first * 4, first * 4 + len(stream)))
    assert len(stream) % world == 0
    for step in range(first, plan.n_steps):
        for rank in range(world):
            dealt = [range(m.start, m.stop) for m in stream if m.step == step and m.index % world == rank]
            assert [tokens for tokens in dealt if tokens] == plan.share(step, rank, world)


def test_activations_do_not_depend_on_how_many_contexts_go_at_once(make_job: Callable[..., FitJob]) -> None:
    job = make_job("harvest")
    harvester, blocks = Harvester(job, "cpu"), TokenBlocks.open(job.corpus, "train")

    def harvest(start: int, stop: int) -> dict[str, Tensor]:
        return harvester.activations(rows_of(blocks, MicroBatch(0, 0, start, stop)), stop - start)

    total = TOKENS - TOKENS % 16 - 5 * 16
    whole = harvest(total, TOKENS)
    single = [harvest(start, min(start + 16, TOKENS)) for start in range(total, TOKENS, 16)]
    for hook, values in whole.items():
        assert len(values) == TOKENS - total
        torch.testing.assert_close(torch.cat([one[hook] for one in single]), values, rtol=1e-5, atol=1e-5)


def test_another_model_than_the_planned_one_is_refused(make_job: Callable[..., FitJob]) -> None:
    job = with_other_model(make_job("mismatch"))
    with pytest.raises(ModelMismatch, match="not the one that this fit was planned for"):
        InProcess().fit(job, no_progress)


def with_other_model(job: FitJob) -> FitJob:
    plan = job.plan.model_dump(mode="json")
    for target in plan["targets"]:
        target["config"]["model"]["fingerprint"] = "another"
    return replace(job, plan=FitPlan.model_validate(plan))


# --- checkpoints


def test_the_last_whole_checkpoint_counts_and_a_torn_one_does_not(
    make_job: Callable[..., FitJob], tmp_path: Path
) -> None:
    job = make_job("checkpoints")
    assert job.resume_step() == 0 and job.fetch_checkpoint(tmp_path / "none") is None
    for step, text in ((4, "four"), (8, "eight")):
        (tmp_path / "made").mkdir(exist_ok=True)
        (tmp_path / "made" / "state.json").write_text(text)
        job.keep_checkpoint(step, tmp_path / "made")
    assert job.resume_step() == 8
    fetched = job.fetch_checkpoint(tmp_path / "loaded")
    assert fetched is not None and (fetched / "state.json").read_text() == "eight"
    assert job.scratch.list("checkpoint/") == ["checkpoint/00000008/state.json"]
    stored = Path(job.scratch.url) / "checkpoint/00000008/state.json"
    stored.write_bytes(stored.read_bytes()[:-5])
    assert job.fetch_checkpoint(tmp_path / "torn") is None
    assert job.resume_step() == 0


def test_a_torn_result_is_an_error_and_is_made_anew(make_job: Callable[..., FitJob], tmp_path: Path) -> None:
    job = make_job("result")
    with pytest.raises(StoreError, match="no result"):
        job.fetch_result(tmp_path / "none")
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "summary.json").write_text("{}")
    job.keep_result(tmp_path / "made")
    assert job.finished()
    stored = Path(job.scratch.url) / "result/summary.json"
    stored.write_bytes(stored.read_bytes()[:-5])
    with pytest.raises(StoreError, match="torn"):
        job.fetch_result(tmp_path / "torn")
    assert not job.finished()


# --- on Ray


@pytest.mark.ray
def test_a_killed_worker_and_a_killed_harvester_change_nothing(
    ray_engine: Engine, make_job: Callable[..., FitJob], reference: dict[str, Tensor], tmp_path: Path
) -> None:
    job = make_job("killed")
    killer = _Killer(job)
    killer.start()
    found = fitted(ray_engine, job, tmp_path)
    killer.join()
    assert killer.killed == ["RayTrainWorker", "HarvestActor"]
    assert_same(found, reference, rtol=1e-5, atol=1e-6)


@pytest.mark.ray
def test_two_workers_fit_what_one_fits(
    ray_engine: Engine, make_job: Callable[..., FitJob], reference: dict[str, Tensor], tmp_path: Path
) -> None:
    """Only the order of sums differs."""
    found = fitted(ray_engine, make_job("two", workers=2, harvesters=2), tmp_path)
    assert_same(found, reference, rtol=1e-3, atol=1e-4)


@pytest.mark.ray
def test_what_would_fail_again_is_not_tried_again(ray_engine: Engine, make_job: Callable[..., FitJob]) -> None:
    job = with_other_model(make_job("mismatch on ray"))
    with pytest.raises(ModelMismatch, match="not the one that this fit was planned for"):
        ray_engine.fit(job, no_progress)
    with pytest.raises(EngineError, match="fit with 30 workers and 1 harvesters: 31 processes"):
        ray_engine.fit(make_job("too many", workers=30), no_progress)


class _Killer(threading.Thread):
    """Kills a training worker after the first checkpoint, and a harvester after a later one."""

    def __init__(self, job: FitJob):
        super().__init__(daemon=True)
        self.job, self.killed = job, list[str]()

    def run(self) -> None:
        step = 0
        for kind in ("RayTrainWorker", "HarvestActor"):
            step = self._later_than(step)
            self._kill(kind)

    def _later_than(self, step: int) -> int:
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline and (found := self.job.resume_step()) <= step:
            time.sleep(0.02)
        return found

    def _kill(self, kind: str) -> None:
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if kind in " ".join(process.cmdline()):
                    os.kill(process.pid, signal.SIGKILL)
                    self.killed.append(kind)
                    return
