"""Sweeps: every way to compute a row gives the same row, and what comes after a target has no part in it."""

from __future__ import annotations

import circuit_cases as cases
import pytest
import torch
from torch import Tensor

from interp.circuits import pull, sweep
from interp.circuits.attribution import AttributionComputer
from interp.circuits.nodes import NodeIndex
from interp.circuits.pull import AttentionPull
from interp.circuits.state import ReplacementState
from interp.circuits.sweep import Sweeper
from interp.circuits.targets import FeatureTargets
from interp.spec.trace import TokensTarget
from interp.wrapper.frozen import attention_transpose

SOME = ["llama", "gemma2", "gpt2", "gpt_neox", "split_llama_mlp"]


def nodes_of(state: ReplacementState) -> NodeIndex:
    return NodeIndex(state.n_layers, state.n_pos, state.features.index, torch.tensor([1]))


def rows_of(sweeper: Sweeper, which: Tensor) -> Tensor:
    """The rows of some features, in the order in which they are given."""
    found = sweeper.rows(FeatureTargets(sweeper.state, sweeper.state.features.index), which)
    order = torch.empty_like(which)
    for place, target in enumerate(found.which.tolist()):
        order[which == target] = place
    return found.weights[order]


@pytest.mark.parametrize("skip", [False, True], ids=["plain", "skip"])
@pytest.mark.parametrize("name", SOME)
def test_a_row_is_the_same_however_it_is_computed(name: str, skip: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # Twelve positions are more than two for each of four heads and the target itself: few vectors come into play.
    state = cases.replacement_model(name, "relu", skip).build(cases.prompt(12))
    nodes, which = nodes_of(state), torch.arange(0, len(state.features), 3)
    expected = rows_of(Sweeper(state, nodes), which)
    scale = expected.abs().max()

    def assert_same(rows: Tensor) -> None:
        assert (rows - expected).abs().max() <= 2e-6 * scale

    assert_same(torch.cat([rows_of(Sweeper(state, nodes), one) for one in which.split(1)]))
    assert_same(rows_of(Sweeper(state, nodes, chunk=1), which))
    assert_same(rows_of(Sweeper(state, nodes, keep=0), which))
    monkeypatch.setattr(sweep, "_FEATURES_AT_ONCE", 5)
    assert_same(rows_of(Sweeper(state, nodes), which))
    monkeypatch.setattr(pull, "_KEYS_AT_ONCE", 4)
    assert_same(rows_of(Sweeper(state, nodes), which))
    monkeypatch.setattr(sweep, "_MOST_TOKEN_PATHS", 0)
    without = Sweeper(state, nodes)
    assert without.token_paths is None
    assert_same(rows_of(without, which))


@pytest.mark.parametrize("name", SOME)
def test_norms_fold_into_the_weights_of_attention(name: str) -> None:
    state = cases.replacement_model(name, "relu").build(cases.prompt(9))
    for layer in state.layers:
        block, n_pos = layer.block, 7
        gradient = torch.randn(5, n_pos, block.d_model)
        through = gradient
        if block.attn_post_norm is not None:
            through = block.attn_post_norm.transpose(through, layer.attn_post_denominator[:n_pos])
        through = attention_transpose(block, through, layer.pattern[:, :n_pos, :n_pos])
        expected = gradient + block.attn_norm.transpose(through, layer.attn_denominator[:n_pos])
        found = gradient.clone()
        AttentionPull.of(layer, n_pos).add_to(found)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", SOME)
def test_gradients_at_one_position_go_through_as_dense_ones_do(name: str) -> None:
    state = cases.replacement_model(name, "relu").build(cases.prompt(9))
    at = torch.tensor([0, 8, 3, 3])
    for layer in state.layers:
        attention, fresh = AttentionPull.of(layer, 9), torch.randn(4, layer.block.d_model)
        dense = torch.zeros(4, 9, layer.block.d_model)
        dense[torch.arange(4), at] = fresh
        found = attention.spread(fresh, at, stays=2 * fresh)
        once = dense.clone()
        attention.add_to(once)
        once += dense
        torch.testing.assert_close(found.shares @ found.vectors, once, atol=1e-5, rtol=1e-5)
        twice, again = once.clone(), once.clone()
        attention.add_to(twice)
        attention.add_to(again, made_of=found)
        torch.testing.assert_close(again, twice, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("max_features", [None, 25])
def test_what_comes_after_the_target_is_not_in_the_graph(name: str, max_features: int | None) -> None:
    rm = cases.replacement_model(name, "relu", skip=True)
    ids, position = cases.prompt(9), 4
    target = TokensTarget(tokens=(3, 5), position=position)
    long, short = (
        AttributionComputer(rm, target=target, max_features=max_features).compute_full_graph(rm.build(some))
        for some in (ids, ids[: position + 1])
    )
    assert int(long.nodes.features[:, 1].max()) <= position
    assert torch.equal(long.nodes.features, short.nodes.features)
    assert long.n_active > short.n_active
    assert int(long.nodes.positions[long.edges.sources.long()].max()) <= position
    for one, other in ((long, short), (short, long)):
        assert one.residual <= 1e-4
        torch.testing.assert_close(one.edges.row_sums(), other.edges.row_sums(), atol=1e-5, rtol=1e-5)
