"""The loop: a resume is the uninterrupted run, nothing is reported twice, and the result can be read."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter
from training_cases import plan_of, planted, run, target

from interp.dictionaries import ModelIdentity, load_dictionaries
from interp.errors import EngineError
from interp.training import FitPlan, InMemorySession, fit_loop, loop
from interp.training.session import Activations

assert RecordWriter

ACTS = planted(500)
TARGETS = [
    target("sae", {"type": "topk", "k": 3}, name="a"),
    target("skip-transcoder", {"type": "batchtopk", "k": 3}, name="b"),
    target("sae", {"type": "jumprelu"}, name="c"),
    target("transcoder", {"type": "gated"}, name="d"),
    target("cross-layer-transcoder", {"type": "batchtopk", "k": 3}, name="e"),
]
PLAN = plan_of(*TARGETS, total=500, checkpoint_every=128, dead_after=64)


class Killed(Exception):
    """Stands for SIGKILL."""


class KilledSession(InMemorySession):
    """Dies when step `at` is about to begin."""

    at = 5

    def batches(self, start_step: int) -> Iterator[tuple[int, Iterable[Activations]]]:
        for step, micros in super().batches(start_step):
            if step == self.at:
                raise Killed
            yield step, micros


def finished(tmp_path: Path, plan: FitPlan = PLAN) -> Path:
    assert fit_loop(InMemorySession(plan, ACTS, tmp_path / "whole"), plan)
    return tmp_path / "whole"


def rows(folder: Path) -> list[dict[str, object]]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "tokens_per_s"} for row in found]


def event_steps(folder: Path, tag: str) -> list[int]:
    """Steps of a scalar in the TensorBoard file, read as TFRecords."""
    (path,) = (folder / "tensorboard").iterdir()
    content, steps = path.read_bytes(), []
    while content:
        length = int.from_bytes(content[:8], "little")
        event = Event.FromString(content[12 : 12 + length])
        steps += [event.step for value in event.summary.value if value.tag == tag]
        content = content[12 + length + 4 :]
    return steps


@pytest.mark.parametrize("at", [0, 1, 3, 5, 7])
def test_a_killed_run_that_resumes_is_the_uninterrupted_one_bit_for_bit(tmp_path: Path, at: int) -> None:
    whole = finished(tmp_path)
    session = KilledSession(PLAN, ACTS, tmp_path / "resumed")
    session.at = at
    with pytest.raises(Killed):
        fit_loop(session, PLAN)
    again = InMemorySession(PLAN, ACTS, tmp_path / "resumed")
    begin = again.load_checkpoint()
    assert (begin is None) == (at < 2), "a checkpoint every two steps"
    assert fit_loop(again, PLAN)
    for path in whole.rglob("*.safetensors"):
        ours, theirs = load_file(tmp_path / "resumed" / path.relative_to(whole)), load_file(path)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert rows(tmp_path / "resumed") == rows(whole)
    assert [row["step"] for row in rows(whole)] == list(range(8))
    assert event_steps(tmp_path / "resumed", f"fvu/{TARGETS[0].key}") == list(range(8))
    last = [sorted(folder.with_name(f"{folder.name}.checkpoints").iterdir())[-1] for folder in (whole, again.output)]
    for part in last[0].rglob("state.safetensors"):
        states = [load_file(folder / part.relative_to(last[0])) for folder in last]
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_what_is_told_for_people_makes_no_other_fit(tmp_path: Path) -> None:
    """The model copied to another place, or another release of interp."""

    def told(fingerprint: str) -> FitPlan:
        model = ModelIdentity(source="elsewhere", fingerprint=fingerprint, family="other", foreign="x")
        changes = {"model": model, "interp_version": "9.9"}
        targets = (t.model_copy(update={"config": t.config.model_copy(update=changes)}) for t in PLAN.targets)
        return PLAN.model_copy(update={"targets": tuple(targets)})

    session = KilledSession(PLAN, ACTS, tmp_path / "resumed")
    with pytest.raises(Killed):
        fit_loop(session, PLAN)
    with pytest.raises(EngineError, match=r"belongs to another fit(.|\n)*targets"):
        fit_loop(InMemorySession(told("fff"), ACTS, tmp_path / "resumed"), told("fff"))
    same = told("abc123")
    assert fit_loop(InMemorySession(same, ACTS, tmp_path / "resumed"), same)


def test_dictionaries_are_folded_one_at_a_time() -> None:
    """Beside the optimiser's state there may be no room for two of them."""
    trainer, _ = run(PLAN, ACTS, steps=1)
    assert trainer.statistics is not None
    folded = trainer.dictionaries.folded(trainer.statistics)
    key, first = next(folded)
    assert key == TARGETS[0].key
    own = trainer.dictionaries.members[0].dictionary
    assert all(a.data_ptr() != b.data_ptr() for a, b in zip(first.parameters(), own.parameters(), strict=True))
    alive = weakref.ref(first)
    del first
    next(folded)
    assert alive() is None


def test_the_result_reads_raw_activations(tmp_path: Path) -> None:
    whole = finished(tmp_path)
    trainer, _ = run(PLAN, ACTS)
    assert trainer.statistics is not None
    expected = dict(trainer.dictionaries.folded(trainer.statistics))
    found = load_dictionaries(whole, model="abc123")
    assert list(found) == [t.key for t in TARGETS]
    for key, dictionary in found.items():
        places = list(enumerate(dictionary.config.places))
        activations = [dictionary.encode_at(i, ACTS[place.hook_in]) for i, place in places]
        for i, place in places:
            x = ACTS[place.hook_in]
            assert torch.equal(activations[i], expected[key].encode_at(i, x))
            ours, theirs = (d.decode_from(i, activations[i], x) for d in (dictionary, expected[key]))
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
        scales = dictionary.config.normalization
        assert all(each.scale_in != 1 for each in (scales if isinstance(scales, tuple) else [scales]))
    summary = json.loads((whole / "summary.json").read_text())
    assert (summary["tokens"], summary["steps"]) == (500, 8)
    assert list(summary["dictionaries"]) == [t.key for t in TARGETS]
    assert all(0 < figures["fvu"] < 1 for figures in summary["dictionaries"].values())


def test_a_finished_run_only_exports_again(tmp_path: Path) -> None:
    whole = finished(tmp_path)
    before = load_file(whole / "a/layers.0.resid_post/weights.safetensors")
    session = InMemorySession(PLAN, ACTS, whole)
    assert fit_loop(session, PLAN)
    assert session.reports == []
    after = load_file(whole / "a/layers.0.resid_post/weights.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_asked_to_stop_it_saves_and_goes_on_later(tmp_path: Path) -> None:
    class Stopped(InMemorySession):
        def should_stop(self) -> bool:
            return True

    assert not fit_loop(Stopped(PLAN, ACTS, tmp_path / "out"), PLAN)
    assert not (tmp_path / "out" / "summary.json").exists()
    session = InMemorySession(PLAN, ACTS, tmp_path / "out")
    assert fit_loop(session, PLAN)
    assert [m.step for m in session.reports] == list(range(1, 8))
    assert rows(tmp_path / "out") == rows(finished(tmp_path))


def test_a_stop_leaves_no_row_of_a_step_that_is_not_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "REPORTS", 3)  # every second step

    class Stopped(InMemorySession):
        def should_stop(self) -> bool:
            return True

    assert fit_loop(InMemorySession(PLAN, ACTS, tmp_path / "whole"), PLAN)
    stopped = Stopped(PLAN, ACTS, tmp_path / "out")
    for _ in range(2):
        assert not fit_loop(stopped, PLAN)
    assert [m.step for m in stopped.reports] == [0, 1], "it is shown"
    assert fit_loop(InMemorySession(PLAN, ACTS, tmp_path / "out"), PLAN)
    assert rows(tmp_path / "out") == rows(tmp_path / "whole")
    for name in ("out", "whole"):
        assert len((tmp_path / name / "metrics.jsonl").read_text().splitlines()) == 5
    assert (tmp_path / "out" / "summary.json").read_bytes() == (tmp_path / "whole" / "summary.json").read_bytes()


def test_a_run_that_was_killed_within_a_save_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("interp.training.checkpoint.save_file", killed)
        with pytest.raises(KeyboardInterrupt):
            fit_loop(InMemorySession(PLAN, ACTS, tmp_path / "out"), PLAN)
    assert list((tmp_path / "out.checkpoints.partial").rglob("*")), "half of a checkpoint is there"
    assert fit_loop(InMemorySession(PLAN, ACTS, tmp_path / "out"), PLAN)
    assert rows(tmp_path / "out") == rows(finished(tmp_path))


def drop(step: int, micros: Sequence[Activations]) -> tuple[int, Sequence[Activations]]:
    return step, micros[1:] if step == 2 else micros


def double(step: int, micros: Sequence[Activations]) -> tuple[int, Sequence[Activations]]:
    return step, [*micros, micros[0]] if step == 2 else micros


def skip(step: int, micros: Sequence[Activations]) -> tuple[int, Sequence[Activations]]:
    return step + (step > 1), micros


@pytest.mark.parametrize(("fault", "message"), [(drop, "wrong number"), (double, "wrong number"), (skip, "order")])
def test_tokens_lost_or_doubled_are_an_error(
    tmp_path: Path, fault: Callable[[int, Sequence[Activations]], tuple[int, Sequence[Activations]]], message: str
) -> None:
    class Faulty(InMemorySession):
        def batches(self, start_step: int) -> Iterator[tuple[int, Iterable[Activations]]]:
            for step, micros in super().batches(start_step):
                yield fault(step, list(micros))

    with pytest.raises(EngineError, match=message):
        fit_loop(Faulty(PLAN, ACTS, tmp_path / "out"), PLAN)
    assert not (tmp_path / "out" / "summary.json").exists()


def test_activations_that_end_early_are_an_error(tmp_path: Path) -> None:
    class Short(InMemorySession):
        def batches(self, start_step: int) -> Iterator[tuple[int, Iterable[Activations]]]:
            for step, micros in super().batches(start_step):
                if step < 6:
                    yield step, micros

    with pytest.raises(EngineError, match="ended early"):
        fit_loop(Short(PLAN, ACTS, tmp_path / "out"), PLAN)


def test_a_checkpoint_of_another_plan_is_refused(tmp_path: Path) -> None:
    finished(tmp_path)
    for other in (PLAN.model_copy(update={"seed": 1}), plan_of(*TARGETS, total=500, lr=0.1, checkpoint_every=128)):
        with pytest.raises(EngineError, match="another fit"):
            fit_loop(InMemorySession(other, ACTS, tmp_path / "whole"), other)
    workers = PLAN.model_copy(update={"fit": PLAN.fit.model_copy(update={"checkpoint_every": 999})})
    assert fit_loop(InMemorySession(workers, ACTS, tmp_path / "whole"), workers), "how often it saves changes nothing"


def test_a_torn_checkpoint_is_an_error(tmp_path: Path) -> None:
    finished(tmp_path)
    (last,) = sorted((tmp_path / "whole.checkpoints").iterdir())[-1:]
    state = last / TARGETS[0].key / "state.safetensors"
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(EngineError, match="cannot be read"):
        fit_loop(InMemorySession(PLAN, ACTS, tmp_path / "whole"), PLAN)
