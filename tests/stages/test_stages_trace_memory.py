"""Prompts for which memory ran out: once more with half the budget, and nothing of the first try stays."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_study import PROMPTS, make_study, make_transcoders

from interp.circuits import faithfulness as faithfulness_module
from interp.circuits.memory import too_large
from interp.circuits.replacement_model import ReplacementModel
from interp.circuits.selection import choose_features
from interp.errors import EngineError, PromptError
from interp.sources.prompts import Prompt
from interp.spec.trace import TraceSpec
from interp.stages.dictionary_sets import dictionary_set
from interp.stages.trace_memory import Smaller, smaller, within_memory
from interp.stages.trace_worker import TraceWorker
from interp.store import Store

SPEC = TraceSpec(prompts=("a",), memory=1000, batch=8)


def failing(errors: list[Exception]) -> tuple[list[tuple[int, int]], Any]:
    """Work that ends in these errors, one after another; the budgets that it had."""
    had: list[tuple[int, int]] = []

    def work(spec: TraceSpec) -> str:
        had.append((spec.memory, spec.batch))
        if len(had) <= len(errors):
            raise errors[len(had) - 1]
        return "done"

    return had, work


def test_once_more_with_half() -> None:
    had, work = failing([torch.OutOfMemoryError("CUDA out of memory")])
    assert within_memory(SPEC, 0, work) == "done"
    assert had == [(1000, 8), (500, 4)]
    had, work = failing([])
    assert within_memory(SPEC, 2, work) == "done" and had == [(250, 2)]


def test_an_error_that_came_from_a_lack_of_memory_counts() -> None:
    error = EngineError("there is no memory for a sweep of a single target")
    error.__cause__ = MemoryError()
    had, work = failing([error])
    assert within_memory(SPEC, 0, work) == "done" and len(had) == 2


@pytest.mark.parametrize("error", [ZeroDivisionError(), PromptError("empty"), too_large("a prompt", 2000, 1000)])
def test_nothing_else_is_tried_again(error: Exception) -> None:
    had, work = failing([error])
    with pytest.raises(type(error)) as raised:
        within_memory(SPEC, 0, work)
    assert raised.value is error and len(had) == 1


@pytest.mark.parametrize("halvings", [0, 1])
def test_a_refusal_of_the_smaller_budget_is_no_call_to_raise_it(halvings: int) -> None:
    errors: list[Exception] = [MemoryError()] * (1 - halvings) + [too_large("a prompt", 2000, 500)]
    _, work = failing(errors)
    with pytest.raises(EngineError, match=r"a smaller budget did not help[\s\S]*500 bytes[\s\S]*fewer actors"):
        within_memory(SPEC, halvings, work)


def test_the_second_try_begins_when_the_first_has_given_back_its_memory() -> None:
    class State: ...

    held: list[weakref.ref[State]] = []

    def work(spec: TraceSpec) -> bool:
        if held:
            return held[0]() is None
        state = State()
        held.append(weakref.ref(state))
        raise MemoryError

    gc.disable()
    try:
        assert within_memory(SPEC, 0, work)
    finally:
        gc.enable()


def test_each_death_halves_the_budget() -> None:
    prompt = Prompt.of(0, "a")
    assert smaller(smaller((prompt,))) == Smaller((prompt,), 2)


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> TraceWorker:
    folder = tmp_path_factory.mktemp("memory")
    borrowed = [{"name": "mlp", "from": str(make_transcoders(folder))}]
    trace = {"prompts": [PROMPTS[1]], "dictionaries": "mlp", "faithfulness": {"features": 2, "curve": [1.0]}}
    study = make_study(folder, dictionaries=borrowed, trace=trace)
    assert study.trace is not None
    scratch = Store.open(str(folder / "store")).scratch("trace", "memory")
    return TraceWorker(study.model, dictionary_set(study, "mlp", {}), study.trace, scratch, {}, "cpu")


@pytest.mark.parametrize("where", ["build", "selection", "faithfulness"])
def test_wherever_it_runs_out(worker: TraceWorker, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    budgets: list[int] = []
    place, name, real = {
        "build": (ReplacementModel, "build", ReplacementModel.build),
        "selection": ("interp.circuits.attribution", "choose_features", choose_features),
        "faithfulness": (faithfulness_module, "faithfulness", faithfulness_module.faithfulness),
    }[where]

    def once(*args: Any, **options: Any) -> Any:
        budgets.append(options.get("memory", 0))
        if len(budgets) == 1:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
        return real(*args, **options)

    if isinstance(place, str):
        monkeypatch.setattr(f"{place}.{name}", once)
        work = TraceWorker(
            worker.model,
            worker.transcoders,
            worker.spec.model_copy(update={"max_features": 5}),
            worker.scratch,
            {},
            "cpu",
        ).start()
    else:
        monkeypatch.setattr(place, name, once)
        work = worker.start()
    (row,) = work((Prompt.of(0, PROMPTS[1]),))
    assert isinstance(row, dict) and row["status"] == "ok" and len(budgets) == 2
    if where == "build":
        assert budgets == [worker.spec.memory, worker.spec.memory // 2]


def test_after_a_death_the_budget_is_smaller(worker: TraceWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    budgets: list[int] = []
    build = ReplacementModel.build

    def watched(*args: Any, memory: int) -> Any:
        budgets.append(memory)
        return build(*args, memory=memory)

    monkeypatch.setattr(ReplacementModel, "build", watched)
    worker.start()(Smaller((Prompt.of(1, PROMPTS[1]),), 2))
    assert budgets == [worker.spec.memory // 4]


def test_a_worker_leaves_no_file_that_its_death_would_leave(
    worker: TraceWorker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Edges go straight into the scratch: there is no folder in TMPDIR that somebody would have to remove."""

    def made(*_: Any, **__: Any) -> str:
        raise AssertionError("a temporary folder")

    monkeypatch.setattr("tempfile.mkdtemp", made)
    (row,) = worker.start()((Prompt.of(2, PROMPTS[1]),))
    assert f"graphs/{row['slug']}.safetensors" in worker.scratch.list("graphs/")
