"""Prompts that are computed together have the graphs that each has alone, whoever is beside them."""

from __future__ import annotations

from collections.abc import Sequence

import circuit_cases as cases
import pytest
import torch
from torch import Tensor

from interp.circuits import lockstep, stacked
from interp.circuits.attribution import AttributionComputer, AttributionEdges
from interp.circuits.lockstep import stacks_of
from interp.circuits.nodes import NodeIndex
from interp.circuits.replacement_model import ReplacementModel
from interp.circuits.stacked import Stack
from interp.circuits.state import ReplacementState
from interp.circuits.sweep import Sweeper
from interp.circuits.targets import FeatureTargets, HeadTargets, Targets
from interp.errors import InterpError, ModelError, PromptError
from interp.spec.trace import Column, TargetSpec, TokensTarget

SOME = ["llama", "mistral", "gemma2", "gemma3", "gpt2", "gpt_neox", "split_llama_mlp"]
LENGTHS = ((12, True), (10, False), (12, False), (11, True))


def model_of(name: str, kind: str) -> ReplacementModel:
    hooked = cases.hooked_model(name)
    made = cases.cross_layer(hooked) if kind == "cross-layer" else cases.transcoders(hooked, "relu", kind == "skip")
    return ReplacementModel(hooked, made, mlp="kept" if kind == "kept" else "replaced")


def prompts(lengths: Sequence[tuple[int, bool]] = LENGTHS) -> list[Tensor]:
    return [cases.prompt(n, bos, seed=place) for place, (n, bos) in enumerate(lengths)]


def fine(found: Sequence[ReplacementState | InterpError]) -> list[ReplacementState]:
    return [each for each in found if isinstance(each, ReplacementState)]


def assert_same(found: AttributionEdges | InterpError, expected: AttributionEdges) -> None:
    """The same nodes, and edges to 1e-5 of the largest."""
    assert isinstance(found, AttributionEdges)
    assert torch.equal(found.nodes.features, expected.nodes.features)
    assert torch.equal(found.nodes.logits, expected.nodes.logits)
    assert found.tokens == expected.tokens and found.n_active == expected.n_active
    dense, same = (dense_of(each) for each in (found, expected))
    assert (dense - same).abs().max() <= 1e-5 * same.abs().max()
    torch.testing.assert_close(found.pre_activations, expected.pre_activations, atol=1e-5, rtol=1e-5)
    assert found.residual <= 1e-4


def dense_of(graph: AttributionEdges) -> Tensor:
    dense = torch.zeros(len(graph.nodes), len(graph.nodes))
    edges = graph.edges
    dense[edges.targets.long().repeat_interleave(edges.counts), edges.sources.long()] = edges.weights
    return dense


def is_stacked(rm: ReplacementModel, states: Sequence[ReplacementState], max_features: int | None) -> bool:
    return any(len(group) > 1 for group in stacks_of(states, max_features, AttributionComputer(rm).memory))


@pytest.mark.parametrize("kind", ["plain", "skip", "cross-layer"])
@pytest.mark.parametrize("name", SOME)
def test_rows_of_a_stack_are_those_of_its_prompts(name: str, kind: str) -> None:
    rm = model_of(name, kind)
    states = [rm.build(prompt) for prompt in prompts()]
    nodes = [NodeIndex(s.n_layers, s.n_pos, s.features.index, torch.tensor([1, 2])) for s in states]
    stack = Stack(states, nodes)
    features: list[Targets | None] = [
        FeatureTargets(state, state.features.index[place :: 7 + place]) for place, state in enumerate(states)
    ]
    heads = [HeadTargets.logits(state, torch.tensor([3, 5]), state.n_pos - 1 - i) for i, state in enumerate(states)]
    for targets in (features, heads, [features[0], None, heads[2], features[3]]):
        for state, index, mine, found in zip(states, nodes, targets, stack.rows(targets), strict=True):
            if mine is None or found is None:
                assert mine is None and found is None
                continue
            expected = Sweeper(state, index).rows(mine, torch.arange(len(mine.positions)))
            rows, same = (each.weights[each.which.argsort()] for each in (found, expected))
            assert (rows - same).abs().max() <= 2e-6 * same.abs().max()
            torch.testing.assert_close(found.values[found.which.argsort()], expected.values[expected.which.argsort()])


@pytest.mark.parametrize("kind", ["plain", "kept"])
@pytest.mark.parametrize("name", SOME)
def test_prompts_that_are_run_together_are_frozen_as_alone(name: str, kind: str) -> None:
    """Sliding windows, learned positions and rotations are the same beside longer prompts."""
    rm = model_of(name, kind)
    assert len(rm.batches({place: n for place, (n, _) in enumerate(LENGTHS)})) == 1
    for prompt, state in zip(prompts(), fine(rm.build_many(prompts())), strict=True):
        alone = rm.build(prompt)
        assert torch.equal(state.ids, alone.ids) and torch.equal(state.constant, alone.constant)
        assert torch.equal(state.features.index, alone.features.index)
        torch.testing.assert_close(state.features.activations, alone.features.activations, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(state.head.normed, alone.head.normed, atol=1e-5, rtol=1e-5)
        for found, expected in zip(state.layers, alone.layers, strict=True):
            for part in ("pattern", "attn_denominator", "mlp_denominator", "mlp_in", "error"):
                torch.testing.assert_close(getattr(found, part), getattr(expected, part), atol=1e-5, rtol=1e-5)
        assert state.nbytes == alone.nbytes


@pytest.mark.parametrize("max_features", [20, None])
@pytest.mark.parametrize("target", ["last-token", TokensTarget(tokens=(3, 5), position=-2)], ids=["last", "tokens"])
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("llama", "skip"),
        ("gemma2", "plain"),
        ("gpt_neox", "plain"),
        ("split_llama_mlp", "plain"),
        ("split_llama_mlp", "cross-layer"),
        ("gpt2", "kept"),
    ],
)
def test_graphs_are_the_same_together_and_alone(
    name: str, kind: str, target: TargetSpec, max_features: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lockstep, "_MOST_ROWS", 2**22)
    monkeypatch.setattr(lockstep, "_MOST_GRADIENT", 2**20)
    rm = model_of(name, kind)
    states = fine(rm.build_many(prompts()))
    assert is_stacked(rm, states, max_features) == (kind != "kept")
    computer = AttributionComputer(rm, target=target, max_features=max_features)
    last = [7, 8, 9, 10]
    found = computer.compute_graphs(states, last_tokens=last)
    for prompt, token, graph in zip(prompts(), last, found, strict=True):
        assert_same(graph, computer.compute_full_graph(rm.build(prompt), last_token=token))


def test_a_graph_does_not_depend_on_who_is_beside_it() -> None:
    rm = model_of("llama", "plain")
    states = [rm.build(prompt) for prompt in prompts()]
    computer = AttributionComputer(rm, max_features=20)
    assert is_stacked(rm, states, 20)
    expected = computer.compute_graphs(states)
    for some in ([0], [3, 0], [2, 1, 0], [1, 3]):
        for place, graph in zip(some, computer.compute_graphs([states[i] for i in some]), strict=True):
            alone = expected[place]
            assert isinstance(alone, AttributionEdges)
            assert_same(graph, alone)


def test_prompts_that_cannot_be_run_stop_no_other() -> None:
    rm = model_of("gpt2", "plain")
    good = prompts()
    found = rm.build_many([good[0], torch.tensor([5000]), [], good[1], torch.ones(65, dtype=torch.long), good[2]])
    assert [isinstance(each, PromptError) for each in found] == [False, True, True, False, True, False]
    for state, prompt in zip(fine(found), good, strict=False):
        assert torch.equal(state.ids, prompt)


def test_prompts_without_their_target_stop_no_other() -> None:
    rm = model_of("llama", "plain")
    states = fine(rm.build_many(prompts()))
    computer = AttributionComputer(rm, target=TokensTarget(tokens=(Column(column="answer"),)), max_features=20)
    rows = [{"answer": 3}, {"answer": 5000}, {}, {"answer": 4}]
    found = computer.compute_graphs(states, rows=rows)
    assert isinstance(found[1], PromptError) and isinstance(found[2], PromptError)
    for place in (0, 3):
        assert_same(found[place], computer.compute_full_graph(states[place], row=rows[place]))


@pytest.mark.parametrize("bad", range(3))
def test_what_is_not_finite_stays_in_its_prompt(bad: int) -> None:
    rm = model_of("split_llama_mlp", "skip")
    states = [rm.build(prompt) for prompt in prompts()[:3]]
    computer = AttributionComputer(rm, max_features=20)
    expected = [computer.compute_full_graph(state) for state in states]
    states[bad].layers[2].error[1] = torch.nan
    assert is_stacked(rm, states, 20)
    for place, graph in enumerate(computer.compute_graphs(states)):
        if place == bad:
            assert isinstance(graph, ModelError) and "not finite" in str(graph)
        else:
            assert_same(graph, expected[place])


def test_without_memory_for_all_there_is_one_at_a_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rm = model_of("llama", "plain")
    states = [rm.build(prompt) for prompt in prompts()]
    computer = AttributionComputer(rm, max_features=20)

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(stacked.StackedDescent, "run", full)
    found = computer.compute_graphs(states)
    assert "one at a time" in caplog.text
    for state, graph in zip(states, found, strict=True):
        assert_same(graph, computer.compute_full_graph(state))


def test_only_small_prompts_of_like_length_are_stacked(monkeypatch: pytest.MonkeyPatch) -> None:
    rm = model_of("llama", "plain")
    lengths = [(12, True), (8, True), (10, True), (9, True), (12, False), (30, True)]
    states = [rm.build(prompt) for prompt in prompts(lengths)]
    memory = AttributionComputer(rm).memory
    by_length = stacks_of(states, 20, memory)
    assert sorted(map(sorted, by_length)) == [[0, 4], [1, 2, 3], [5]]
    assert max(map(len, stacks_of(states, 20, 2 * lockstep._LEAST_SHARE))) == 2
    assert all(len(group) == 1 for group in stacks_of(states, 20, lockstep._LEAST_SHARE))
    monkeypatch.setattr(lockstep, "_MOST_GRADIENT", 8 * 9 * 32)
    assert sorted(map(sorted, stacks_of(states, 20, memory))) == [[0], [1, 3], [2], [4], [5]]
