"""A prompt's budget: what it changes (where things lie, the size of sweeps) and what it does not (the graph)."""

from __future__ import annotations

import errno
import logging
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import circuit_cases as cases
import pytest
import torch

from interp.circuits import freeze
from interp.circuits.attribution import AttributionComputer, AttributionEdges
from interp.circuits.edges import EdgeTable
from interp.circuits.memory import PromptSize, plan_sweep, spills_patterns
from interp.circuits.nodes import NodeIndex
from interp.circuits.replacement_model import ReplacementModel
from interp.circuits.rows import RowStore, out_of_memory
from interp.circuits.spill import Spill, SpilledTensor
from interp.circuits.sweep import Sweeper
from interp.errors import EngineError, SpecError

T = TypeVar("T")
SOME = ["llama", "gemma2", "gpt_neox", "split_llama_mlp"]


def traced(rm: ReplacementModel, **options: object) -> AttributionEdges:
    return AttributionComputer(rm, **options).compute_full_graph(rm.build(cases.prompt(9)))  # type: ignore[arg-type]


def with_least_memory(run: Callable[[int], T]) -> T:
    """What `run` gives with the smallest budget that it does not refuse."""
    memory = 1
    while True:
        try:
            return run(memory)
        except EngineError as error:
            needed = int(re.search(r"(\d+) bytes are needed", str(error)).group(1))  # type: ignore[union-attr]
            assert needed > memory
            memory = max(needed, memory * 5 // 4)


def assert_same_graph(one: AttributionEdges, other: AttributionEdges) -> None:
    assert torch.equal(one.nodes.features, other.nodes.features)
    assert torch.equal(one.edges.targets, other.edges.targets)
    dense = [each.edges.to_sparse(len(each.nodes)).to_dense() for each in (one, other)]
    torch.testing.assert_close(dense[0], dense[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(one.pre_activations, other.pre_activations, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("max_features", [None, 40])
@pytest.mark.parametrize("name", SOME)
def test_the_graph_does_not_depend_on_the_budget(
    name: str, max_features: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rm = cases.replacement_model(name, "relu", skip=True)
    free = traced(rm, max_features=max_features)
    sizes, spilled = [], []
    dealt, put = Sweeper.deal, Spill.put
    monkeypatch.setattr(Sweeper, "deal", lambda self, *a: sizes.extend(map(len, made := dealt(self, *a))) or made)
    monkeypatch.setattr(Spill, "put", lambda self, tensor: spilled.append(tensor.shape) or put(self, tensor))
    state = with_least_memory(lambda memory: rm.build(cases.prompt(9), memory=memory))

    def compute(memory: int) -> AttributionEdges:
        return AttributionComputer(rm, max_features=max_features, memory=memory).compute_full_graph(state)

    short = with_least_memory(compute)
    assert_same_graph(free, short)
    assert short.residual <= 1e-4
    if max_features is not None:
        assert max(sizes) < 8  # what a round has
        assert any(len(shape) == 2 for shape in spilled)


def test_patterns_lie_on_disk_when_they_are_a_large_part_of_the_budget() -> None:
    rm = cases.replacement_model("llama", "relu")
    in_memory, on_disk = rm.build(cases.prompt(40)), rm.build(cases.prompt(40), memory=300_000)
    for one, other in zip(in_memory.layers, on_disk.layers, strict=True):
        assert isinstance(one.held_pattern, torch.Tensor) and isinstance(other.held_pattern, SpilledTensor)
        assert torch.equal(one.pattern, other.pattern)
        assert torch.equal(one.error, other.error)
    assert on_disk.nbytes < in_memory.nbytes - 3 * 4 * 40 * 40 * 4 + 1
    assert torch.equal(in_memory.features.index, on_disk.features.index)


def test_what_does_not_fit_is_an_error_that_names_bytes_and_remedy() -> None:
    rm = cases.replacement_model("llama", "relu")
    with pytest.raises(EngineError, match=r"9 tokens does not fit[\s\S]*bytes are needed[\s\S]*at most 1000 bytes"):
        rm.build(cases.prompt(9), memory=1000)
    state = rm.build(cases.prompt(9))
    with pytest.raises(EngineError, match=r"does not fit[\s\S]*trace.memory, lower trace.max_features"):
        AttributionComputer(rm, memory=1000).compute_full_graph(state)
    with pytest.raises(SpecError, match="memory must be at least 1"):
        AttributionComputer(rm, memory=0)


def test_a_graph_with_too_many_edges_is_an_error() -> None:
    rm = cases.replacement_model("llama", "relu")
    state = rm.build(cases.prompt(9))
    least: list[int] = []

    def compute(memory: int) -> AttributionEdges:
        least.append(memory)
        return AttributionComputer(rm, max_features=5, memory=memory).compute_full_graph(state)

    with_least_memory(compute)
    with pytest.raises(EngineError, match="the graph does not fit"):
        AttributionComputer(rm, max_features=None, memory=least[-1]).compute_full_graph(state)


def test_parts_of_the_budget_add_up_to_no_more_than_it() -> None:
    for memory in (5_000_000, 50_000_000, 2_000_000_000, 8_000_000_000):
        for n_nodes, n_pos, d_model in ((500, 10, 64), (13_000, 32, 768), (2_000, 2_048, 16)):
            plan = plan_sweep(10_000, n_pos, d_model, n_nodes, 256, memory)
            sweeps = plan.batch * (6 * n_pos * d_model + 8 * n_nodes) + 20 * plan.chunk + 4 * plan.keep
            assert 10_000 + 100 * n_nodes + sweeps + plan.rows <= memory
            assert 1 <= plan.batch <= 256 and plan.chunk >= n_pos * d_model
            assert 2 * plan.edges + 4 * plan.keep + 10_000 <= memory
    assert plan_sweep(0, 10, 64, 500, 7, 8_000_000_000).batch == 7


def test_a_larger_budget_never_makes_smaller_sweeps() -> None:
    batches = [plan_sweep(0, 512, 256, 50_000, 256, memory).batch for memory in range(10**7, 10**9, 10**7)]
    assert batches == sorted(batches) and batches[0] < 20 and batches[-1] == 256


def test_patterns_of_a_long_prompt_go_to_disk_and_those_of_a_short_one_do_not() -> None:
    long = PromptSize(n_layers=24, n_pos=2048, d_model=1024, n_heads=16, d_ff=0, itemsize=4)
    assert spills_patterns(long, 8_000_000_000)
    assert not spills_patterns(long, 64_000_000_000)
    assert not spills_patterns(PromptSize(24, 64, 1024, 16, 0, 4), 8_000_000_000)
    with pytest.raises(EngineError, match="2048 tokens does not fit"):
        spills_patterns(long, 1_000_000_000)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_what_was_spilled_comes_back_and_leaves_no_file(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    spill, made = Spill(), [torch.randn(3, 5).to(dtype), torch.zeros(0, 4, dtype=dtype), torch.ones(5000, 3).to(dtype)]
    put = [spill.put(tensor) for tensor in made]
    for tensor, spilled in zip(made, put, strict=True):
        assert torch.equal(spilled.load(), tensor)
    changed = put[0].load()
    changed.zero_()
    assert torch.equal(put[0].load(), made[0])
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def seek(self, start: int) -> None: ...

        def write(self, data: memoryview) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: Full())
    with pytest.raises(EngineError, match=r"No space left on device[\s\S]*TMPDIR"):
        Spill().put(torch.ones(10))


def test_rows_on_disk_weigh_as_rows_in_memory() -> None:
    index = torch.tensor([[layer, pos, latent] for layer in range(3) for pos in range(4) for latent in range(5)])
    nodes = NodeIndex(3, 4, index.int(), torch.tensor([7, 8]))
    rows = torch.randn(20, len(nodes))
    targets = torch.cat([torch.arange(len(nodes) - 2, len(nodes)), torch.arange(58, 40, -1)])
    below = nodes.layers[None, :] < nodes.layers[targets][:, None]
    rows = rows * (below | (torch.arange(len(nodes)) >= nodes.n_features))
    weights = torch.rand(len(nodes)).double()
    influences = []
    for memory in (10**9, 2_000, 0):
        store = RowStore(nodes, memory)
        for some in (slice(0, 7), slice(7, 20)):
            store.add(targets[some], rows[some])
        influences.append(store.influence(weights))
        assert (store.spill.size > 0) == (memory < 10**9)
        back = torch.zeros(len(nodes), len(nodes))
        for some, part, columns in store.drain():
            back[some[:, None], columns] = part
        assert torch.equal(back[targets], rows)
    for other in influences[1:]:
        torch.testing.assert_close(other, influences[0], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
@pytest.mark.parametrize("max_features", [None, 40])
def test_out_of_memory_halves_the_sweep_and_goes_on(
    error: Exception, max_features: int | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rm = cases.replacement_model("llama", "relu")
    whole = traced(rm, max_features=max_features)
    sizes = fail_above(5, error, monkeypatch)
    with caplog.at_level(logging.WARNING):
        halved = traced(rm, max_features=max_features)
    assert_same_graph(whole, halved)
    failed = [size for size in sizes if size > 5]
    assert failed and "out of memory with" in caplog.text
    # Halved until it fits, and not tried in full again.
    assert failed == sorted(failed, reverse=True) and max(sizes[sizes.index(failed[-1]) + 1 :]) <= 5


def test_a_single_target_that_does_not_fit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_above(
        0, RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"), monkeypatch
    )
    with pytest.raises(EngineError, match="no memory for a sweep of a single target"):
        traced(cases.replacement_model("llama"))


def test_other_failures_are_not_taken_for_a_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_above(0, RuntimeError("shapes do not fit"), monkeypatch)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        traced(cases.replacement_model("llama"))
    assert not out_of_memory(ValueError("out of memory")) and not out_of_memory(OSError(errno.ENOSPC, "No space left"))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("unable to mmap 64 bytes: Cannot allocate memory (12)"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_a_lack_of_memory_has_many_names(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    assert out_of_memory(error)
    tried = fail_above(5, error, monkeypatch)
    traced(cases.replacement_model("llama", "relu"), max_features=40)
    assert max(tried) > 5


def fail_above(most: int, error: Exception, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let sweeps of more than so many targets fail; the sizes that were tried."""
    tried: list[int] = []
    rows = Sweeper.rows

    def limited(self: Sweeper, targets: object, which: torch.Tensor) -> object:
        tried.append(len(which))
        if len(which) > most:
            raise error
        return rows(self, targets, which)  # type: ignore[arg-type]

    monkeypatch.setattr(Sweeper, "rows", limited)
    return tried


def test_more_edges_than_32_bits_can_count_are_counted() -> None:
    n = 2**31 + 10
    counts = torch.tensor([n - 4, 4])
    starts = torch.tensor([0, n - 4, n])
    table = EdgeTable(torch.tensor([5, 6]), starts, torch.ones(1).int().expand(n), torch.ones(1).expand(n))
    assert table.n_edges == n and table.nbytes == 8 * n
    assert torch.equal(table.counts, counts)
    assert table.rows(torch.tensor([1])).n_edges == 4
    with pytest.raises(ValueError, match="32-bit"):
        EdgeTable.from_dense(torch.tensor([0]), torch.zeros(1).expand(1, 2**31))


def test_what_is_worked_on_at_once_changes_no_state(monkeypatch: pytest.MonkeyPatch) -> None:
    rm = cases.replacement_model("llama", "relu", skip=True)
    expected = rm.build(cases.prompt(6))
    monkeypatch.setattr(freeze, "_WRITTEN_AT_ONCE", 40)
    monkeypatch.setattr(freeze, "ENCODED_AT_ONCE", 30)
    found = rm.build(cases.prompt(6))
    assert torch.equal(found.features.index, expected.features.index)
    for one, other in zip(found.layers, expected.layers, strict=True):
        torch.testing.assert_close(one.error, other.error, rtol=0, atol=1e-6)


def test_encoding_counts_in_the_budget() -> None:
    small, wide = (PromptSize(2, 256, 64, 4, 0, 4, n_latents) for n_latents in (64, 1_000_000))
    assert wide.building - small.building == 20 * (2**22 - 256 * 64)
