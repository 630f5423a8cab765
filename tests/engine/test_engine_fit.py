"""Fits: the stream of activations, checkpoints, and the same dictionaries whatever runs them and whatever is killed."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest
import torch
from safetensors.torch import load_file
from tiny_study import artifact, make_study, run
from torch import Tensor

from interp.corpus.tokens import TokenBlocks
from interp.engine import Engine, microbatches
from interp.engine.harvest import Harvester
from interp.engine.job import FitJob
from interp.engine.local import InProcess
from interp.engine.microbatches import MicroBatch, bundles, dealt, rows_of
from interp.engine.session import BaseSession
from interp.errors import EngineError, ModelMismatch, StoreError
from interp.spec.study import Study
from interp.stages.context import StageContext, no_progress
from interp.stages.fit import fit_job
from interp.store import Store
from interp.training.plan import FitPlan, WorkerPlace

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


@pytest.mark.parametrize("replicas", [1, 2, 4])
@pytest.mark.parametrize("first", [0, 3, 125])
@pytest.mark.parametrize("bundle_tokens", [32, 64, 4096])
def test_bundles_dealt_in_turn_are_the_shares_of_the_plan(
    make_job: Callable[..., FitJob], replicas: int, first: int, bundle_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(microbatches, "BUNDLE_TOKENS", bundle_tokens)
    plan = make_job("deal").plan
    stream = list(bundles(plan, replicas, first))
    assert len(stream) % replicas == 0
    indices = [bundle.index for bundle in stream]
    assert indices == list(range(indices[0], indices[0] + len(stream)))
    assert indices[0] == list(bundles(plan, replicas))[-len(stream)].index, "places do not depend on the first step"
    for replica in range(replicas):
        own = [micro for bundle in stream if bundle.index % replicas == replica for micro in bundle.micros]
        assert own == list(dealt(plan, replica, replicas, first))
        assert [range(m.start, m.stop) for m in own] == [
            tokens for step in range(first, plan.n_steps) for tokens in plan.share(step, replica, replicas)
        ]
    assert max(sum(micro.tokens for micro in bundle.micros) for bundle in stream) <= max(32, bundle_tokens)


def test_activations_do_not_depend_on_how_many_contexts_go_at_once(make_job: Callable[..., FitJob]) -> None:
    job = make_job("harvest")
    harvester, blocks = Harvester(job, "cpu"), TokenBlocks.open(job.corpus, "train")

    def harvest(start: int, stop: int) -> dict[str, Tensor]:
        return harvester.activations(rows_of(blocks, MicroBatch(0, start, stop)), stop - start)

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
    assert job.resume_step() == 0 and job.fetch_checkpoint(tmp_path / "none", ()) is None
    for step, text in ((4, "four"), (8, "eight")):
        (tmp_path / "made").mkdir(exist_ok=True)
        (tmp_path / "made" / "state.json").write_text(text)
        job.put_checkpoint(step, tmp_path / "made")
        job.name_checkpoint(step)
    assert job.resume_step() == 8
    fetched = job.fetch_checkpoint(tmp_path / "loaded", ())
    assert fetched is not None and (fetched / "state.json").read_text() == "eight"
    assert job.scratch.list("checkpoint/") == ["checkpoint/00000008/state.json"]
    stored = Path(job.scratch.url) / "checkpoint/00000008/state.json"
    stored.write_bytes(stored.read_bytes()[:-5])
    assert job.fetch_checkpoint(tmp_path / "torn", ()) is None
    job.forget()
    assert job.resume_step() == 0


class ThreadedSession(BaseSession):
    """One of two workers in threads, which add up through a table."""

    table: ClassVar[list[Tensor]] = [torch.zeros(0)] * 2
    barrier: ClassVar[threading.Barrier] = threading.Barrier(2, timeout=30)

    def share(self, flat: Tensor) -> None:
        self.table[self.place.rank] = flat.clone()
        self.barrier.wait()
        flat.copy_(self.table[0] + self.table[1])
        self.barrier.wait()


@pytest.mark.parametrize("torn", [False, True])
def test_a_checkpoint_that_is_torn_for_one_shard_is_loaded_by_none(
    torn: bool, make_job: Callable[..., FitJob], tmp_path: Path
) -> None:
    job = make_job(f"shards {torn}")

    def worker(rank: int) -> tuple[bool, bool]:
        place, own = WorkerPlace(rank, 2, 2), tmp_path / str(rank)
        session = ThreadedSession(job, place=place, device=torch.device("cpu"), folder=own, tell=print)

        def write(folder: Path) -> None:
            (folder / "ab"[rank]).mkdir()
            (folder / "ab"[rank] / "state").write_text("weights")

        before = session.load_checkpoint("ab"[rank])
        session.save_checkpoint(4, write)
        session.barrier.wait()
        if torn and rank:
            stored = Path(job.scratch.url) / "checkpoint/00000004/b/state"
            stored.write_bytes(stored.read_bytes()[:-2])
        session.barrier.wait()
        return before is not None, session.load_checkpoint("ab"[rank]) is not None

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(worker, range(2))) == [(False, not torn)] * 2
    assert job.resume_step() == (0 if torn else 4)


def test_a_torn_result_is_an_error_and_is_made_anew(make_job: Callable[..., FitJob], tmp_path: Path) -> None:
    job = make_job("result")
    with pytest.raises(StoreError, match="no result"):
        job.fetch_result(tmp_path / "none")
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "summary.json").write_text("{}")
    job.put_result(tmp_path / "made")
    assert not job.finished()
    job.name_result()
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
    job = make_job("killed", mode="streamed")
    killer = _Killer(job, "RayTrainWorker", "HarvestActor")
    killer.start()
    found = fitted(ray_engine, job, tmp_path)
    killer.join()
    assert killer.killed == ["RayTrainWorker", "HarvestActor"]
    assert_same(found, reference, rtol=1e-5, atol=1e-6)


@pytest.mark.ray
@pytest.mark.parametrize("mode", ["colocated", "streamed"])
def test_one_worker_fits_the_same_bit_for_bit_in_either_mode(
    ray_engine: Engine, make_job: Callable[..., FitJob], tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With token shuffling, one thread a process, and as in this process."""
    session: Any = ray_engine._session  # type: ignore[attr-defined]
    monkeypatch.setattr(session, "capacity", replace(session.capacity, cores=1))
    job = shuffled(make_job(f"shuffled {mode}", mode=mode))
    here = replace(job, scratch=make_job(f"shuffled here {mode}").scratch)
    assert_same(fitted(ray_engine, job, tmp_path / "ray"), fitted(InProcess(), here, tmp_path / "here"), rtol=0, atol=0)


@pytest.mark.ray
@pytest.mark.parametrize(("mode", "shards"), [("colocated", 1), ("streamed", 1), ("streamed", 2)])
def test_two_workers_fit_what_one_fits(
    ray_engine: Engine,
    make_job: Callable[..., FitJob],
    reference: dict[str, Tensor],
    tmp_path: Path,
    mode: str,
    shards: int,
) -> None:
    """Each on half of the tokens, or each half of the dictionaries: only the order of sums differs."""
    job = make_job(f"two {mode} {shards}", workers=2, harvesters=2, mode=mode, shards=shards)
    assert_same(fitted(ray_engine, job, tmp_path), reference, rtol=1e-3, atol=1e-4)


@pytest.mark.ray
def test_shards_of_which_a_worker_is_killed_go_on_from_what_all_have_kept(
    ray_engine: Engine, make_job: Callable[..., FitJob], reference: dict[str, Tensor], tmp_path: Path
) -> None:
    job = make_job("killed shards", workers=2, mode="colocated", shards=2)
    killer = _Killer(job, "RayTrainWorker")
    killer.start()
    found = fitted(ray_engine, job, tmp_path)
    killer.join()
    assert killer.killed == ["RayTrainWorker"]
    assert_same(found, reference, rtol=1e-3, atol=1e-4)


# --- asked to stop


def test_a_signal_ends_a_fit_at_a_checkpoint(
    make_job: Callable[..., FitJob], reference: dict[str, Tensor], tmp_path: Path
) -> None:
    job = make_job("stopped")
    with pytest.raises(SystemExit) as ended:
        InProcess().fit(job, _Terminates())
    assert ended.value.code == 143
    assert 0 < job.resume_step() < 5 and not job.finished()
    assert_same(fitted(InProcess(), job, tmp_path), reference, rtol=0, atol=0)


@pytest.mark.ray
def test_a_signal_to_the_driver_reaches_the_workers(
    ray_engine: Engine, make_job: Callable[..., FitJob], reference: dict[str, Tensor], tmp_path: Path
) -> None:
    job = make_job("stopped on ray")
    with pytest.raises(SystemExit):
        ray_engine.fit(job, _Terminates())
    assert job.resume_step() > 0
    assert_same(fitted(ray_engine, job, tmp_path), reference, rtol=1e-5, atol=1e-6)


class _Terminates:
    """Progress that sends this process SIGTERM, the first time that it is told something."""

    def __init__(self) -> None:
        self.sent = False

    def __call__(self, step: str, /, **figures: Any) -> None:
        if not self.sent:
            self.sent = True
            os.kill(os.getpid(), signal.SIGTERM)


def shuffled(job: FitJob) -> FitJob:
    """A job that mixes the tokens of 3 steps."""
    fit = job.plan.fit.model_copy(update={"shuffle_tokens": 3 * 128})
    return replace(job, plan=job.plan.model_copy(update={"fit": fit}))


@pytest.mark.ray
def test_what_would_fail_again_is_not_tried_again(ray_engine: Engine, make_job: Callable[..., FitJob]) -> None:
    job = with_other_model(make_job("mismatch on ray"))
    with pytest.raises(ModelMismatch, match="not the one that this fit was planned for"):
        ray_engine.fit(job, no_progress)
    with pytest.raises(EngineError, match="fit with 30 workers and 1 harvesters: 31 processes"):
        ray_engine.fit(make_job("too many", workers=30, mode="streamed"), no_progress)


class _Killer(threading.Thread):
    """Kills a process of the first kind after the first checkpoint, and of the next kind after a later one."""

    def __init__(self, job: FitJob, *kinds: str):
        super().__init__(daemon=True)
        self.job, self.kinds, self.killed = job, kinds, list[str]()

    def run(self) -> None:
        step = 0
        for kind in self.kinds:
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
