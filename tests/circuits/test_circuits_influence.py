"""Influence, scores and pruning on sparse rows against the same formulas written densely."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from interp.circuits.edges import EdgeTable
from interp.circuits.influence import Rows, edge_shares, flow_of, graph_scores, influence_of, node_influence
from interp.circuits.nodes import NodeIndex, NodeKind
from interp.circuits.prune import cumulative_share, prune, top_share
from interp.errors import SpecError

N_LAYERS, N_POS, N_LOGITS = 4, 3, 3


def random_graph(seed: int, per_cell: int = 2, density: float = 0.7) -> tuple[NodeIndex, EdgeTable, Tensor]:
    """A graph with every kind of source and edges from lower layers only."""
    generator = torch.Generator().manual_seed(seed)
    grid = [(layer, pos, 5 * i + layer) for layer in range(N_LAYERS) for pos in range(N_POS) for i in range(per_cell)]
    nodes = NodeIndex(N_LAYERS, N_POS, torch.tensor(grid, dtype=torch.int32).reshape(-1, 3), torch.tensor([7, 2, 9]))
    targets = torch.cat([torch.arange(nodes.n_features), torch.arange(len(nodes))[nodes.span(NodeKind.LOGIT)]])
    below = nodes.layers[None, :] < nodes.layers[targets][:, None]
    below[:, nodes.span(NodeKind.READOUT)] = True
    weights = torch.randn(len(targets), len(nodes), generator=generator)
    kept = torch.rand(weights.shape, generator=generator) < density
    return nodes, EdgeTable.from_dense(targets, weights * below * kept), torch.tensor([0.5, 0.3, 0.1])


def without(nodes: NodeIndex, edges: EdgeTable, kinds: tuple[NodeKind, ...]) -> EdgeTable:
    return edges.where(~nodes.mask(*kinds)[edges.sources.long()])


CONSTANTS = (NodeKind.BOS, NodeKind.ATTN_BIAS, NodeKind.MLP_BIAS, NodeKind.READOUT)


def dense_influence(adjacency: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """(A', I) by the power series."""
    shares = adjacency.abs() / adjacency.abs().sum(1, keepdim=True).clamp(min=1e-10)
    term, total = weights @ shares, torch.zeros_like(weights)
    while term.any():
        total, term = total + term, term @ shares
    return shares, total


def dense(nodes: NodeIndex, edges: EdgeTable, probabilities: Tensor) -> tuple[Tensor, Tensor]:
    weights = torch.zeros(len(nodes), dtype=torch.float64)
    weights[-len(probabilities) :] = probabilities.double()
    return edges.to_sparse(len(nodes)).to_dense().double(), weights


def dense_prune(
    nodes: NodeIndex, adjacency: Tensor, weights: Tensor, node_threshold: float, edge_threshold: float
) -> tuple[Tensor, Tensor]:
    """The published procedure, on a dense matrix without constants."""

    def strongest(scores: Tensor, threshold: float) -> Tensor:
        ordered = scores.sort(descending=True).values
        cumulative = ordered.cumsum(0) / ordered.sum()
        return scores >= ordered[min(int(torch.searchsorted(cumulative, threshold)), len(ordered) - 1)]

    features = nodes.mask(NodeKind.FEATURE)
    always = nodes.mask(NodeKind.TOKEN, NodeKind.LOGIT)
    kept = strongest(dense_influence(adjacency, weights)[1], node_threshold) | always
    inside = adjacency * kept[:, None] * kept[None, :]
    shares, influence = dense_influence(inside, weights)
    scores = shares * (influence + weights)[:, None]
    strong = strongest(scores.flatten(), edge_threshold).reshape(scores.shape) & (inside != 0)
    while True:
        after = kept & (strong.any(0) | always) & (strong.any(1) | ~features)
        if torch.equal(after, kept):
            return kept, strong
        kept = after
        strong = strong & kept[:, None] & kept[None, :]


@pytest.mark.parametrize("seed", range(5))
def test_influence_is_the_power_series(seed: int) -> None:
    nodes, edges, probabilities = random_graph(seed)
    for constants, kept in ((True, edges), (False, without(nodes, edges, CONSTANTS))):
        adjacency, weights = dense(nodes, kept, probabilities)
        shares, expected = dense_influence(adjacency, weights)
        found_shares, found, reach = influence_of(nodes, edges, probabilities, constants=constants)
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-10)
        torch.testing.assert_close(reach, expected + weights, atol=1e-12, rtol=1e-10)
        target, source = edges.target_of_edge.long(), edges.sources.long()
        torch.testing.assert_close(found_shares, shares[target, source], atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_the_published_formulas_with_rest_as_error(seed: int) -> None:
    nodes, edges, probabilities = random_graph(seed)
    adjacency, weights = dense(nodes, without(nodes, edges, CONSTANTS), probabilities)
    shares, influence = dense_influence(adjacency, weights)
    errors, tokens = nodes.mask(NodeKind.ERROR, NodeKind.REST), nodes.mask(NodeKind.TOKEN)
    scores = graph_scores(nodes, edges, probabilities)
    replacement = influence[tokens].sum() / (influence[tokens].sum() + influence[errors].sum())
    reach = influence + weights
    completeness = ((1 - shares[:, errors].sum(1)) * reach).sum() / reach.sum()
    assert scores.replacement == pytest.approx(float(replacement), rel=1e-9)
    assert scores.completeness == pytest.approx(float(completeness), rel=1e-9)


@pytest.mark.parametrize("thresholds", [(0.8, 0.98), (0.5, 0.9), (0.3, 0.5), (1.0, 1.0)])
@pytest.mark.parametrize("seed", range(4))
def test_pruning_is_the_published_procedure(seed: int, thresholds: tuple[float, float]) -> None:
    nodes, edges, probabilities = random_graph(seed)
    plain = without(nodes, edges, CONSTANTS)
    adjacency, weights = dense(nodes, plain, probabilities)
    kept, strong = dense_prune(nodes, adjacency, weights, *thresholds)
    chosen = prune(nodes, plain, probabilities, node_threshold=thresholds[0], edge_threshold=thresholds[1])
    found = torch.zeros_like(strong)
    found[plain.target_of_edge.long(), plain.sources.long()] = chosen.edges
    assert torch.equal(found, strong)
    real = ~nodes.mask(*CONSTANTS) & ((adjacency != 0).any(0) | nodes.mask(NodeKind.TOKEN, NodeKind.LOGIT))
    assert torch.equal(chosen.nodes[real], kept[real])


def test_constants_do_not_change_what_is_kept_and_stay_with_it() -> None:
    nodes, edges, probabilities = random_graph(11)
    plain = without(nodes, edges, CONSTANTS)
    with_constants = prune(nodes, edges, probabilities, node_threshold=0.6, edge_threshold=0.9)
    alone = prune(nodes, plain, probabilities, node_threshold=0.6, edge_threshold=0.9)
    constant = nodes.mask(*CONSTANTS)
    assert torch.equal(with_constants.nodes & ~constant, alone.nodes)
    of_constants = constant[edges.sources.long()]
    assert torch.equal(with_constants.edges[~of_constants], alone.edges)
    assert torch.equal(with_constants.edges[of_constants], alone.nodes[edges.target_of_edge[of_constants].long()])
    counted = prune(nodes, edges, probabilities, node_threshold=0.6, edge_threshold=0.9, constants=True)
    assert counted.edges[of_constants].sum() < with_constants.edges[of_constants].sum()


def test_what_dangles_is_dropped_until_nothing_does() -> None:
    nodes, edges, probabilities = random_graph(2, density=0.2)
    chosen = prune(nodes, edges, probabilities, node_threshold=0.7, edge_threshold=0.8)
    kept = edges.where(chosen.edges)
    targets, sources = kept.target_of_edge.long(), kept.sources.long()
    assert bool(chosen.nodes[targets].all()) and bool(chosen.nodes[sources].all())
    needs_a_way_out = chosen.nodes & nodes.mask(NodeKind.FEATURE, NodeKind.ERROR, NodeKind.REST)
    assert set(needs_a_way_out.nonzero().flatten().tolist()) <= set(sources.tolist())
    causes = ~nodes.mask(*CONSTANTS)[sources]
    needs_a_cause = chosen.nodes & nodes.mask(NodeKind.FEATURE)
    assert set(needs_a_cause.nonzero().flatten().tolist()) <= set(targets[causes].tolist())


def test_of_equal_scores_the_first_are_taken() -> None:
    scores = torch.tensor([1.0, 3.0, 1.0, 1.0, 0.0])
    assert top_share(scores, 0.6).tolist() == [True, True, False, False, False]
    assert top_share(scores, 0.5).tolist() == [False, True, False, False, False]
    assert top_share(scores, 1.0).tolist() == [True, True, True, True, False]
    assert top_share(scores, 0.0).tolist() == [False] * 5
    assert top_share(torch.zeros(3), 0.8).tolist() == [False] * 3
    assert cumulative_share(scores).tolist() == pytest.approx([4 / 6, 0.5, 5 / 6, 1.0, 1.0])


def test_a_row_without_edges_has_no_share() -> None:
    nodes, edges, probabilities = random_graph(0)
    silent = edges.where(edges.row_of_edge != 0)
    _, influence, _ = influence_of(nodes, silent, probabilities)
    assert bool(influence.isfinite().all())


def test_rows_of_one_level_must_stand_together() -> None:
    nodes, edges, _ = random_graph(0)
    shares = edge_shares(edges, torch.ones(len(nodes), dtype=torch.bool))
    levels = nodes.layers[edges.targets.long()]
    shuffled = edges.rows(torch.arange(len(levels)).roll(5))
    with pytest.raises(ValueError, match="stand together"):
        node_influence([Rows(shuffled, shares, levels.roll(5))], torch.zeros(len(nodes)))


def test_rows_may_come_in_parts() -> None:
    nodes, edges, probabilities = random_graph(6)
    _, expected, reach = influence_of(nodes, edges, probabilities)
    order = torch.randperm(len(edges.targets), generator=torch.Generator().manual_seed(0))
    parts = [Rows.of(nodes, edges.rows(some.sort().values)) for some in order.split(7)]
    torch.testing.assert_close(node_influence(parts, reach - expected), expected)


@pytest.mark.parametrize("threshold", [-0.1, 1.5])
def test_a_threshold_is_a_share(threshold: float) -> None:
    nodes, edges, probabilities = random_graph(0)
    with pytest.raises(SpecError, match="node_threshold"):
        prune(nodes, edges, probabilities, node_threshold=threshold, edge_threshold=0.9)


@pytest.mark.parametrize("edges_at_once", [1, 7, 1 << 17])
@pytest.mark.parametrize("constants", [False, True])
def test_a_pass_in_groups_of_rows_gives_the_same(
    constants: bool, edges_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("interp.circuits.influence._EDGES_AT_ONCE", edges_at_once)
    for seed in range(4):
        nodes, edges, probabilities = random_graph(seed, density=0.3 if seed else 0.02)
        shares, influence, _ = influence_of(nodes, edges, probabilities, constants)
        flow = flow_of(nodes, edges, probabilities, constants)
        torch.testing.assert_close(flow.influence, influence, rtol=1e-12, atol=1e-15)
        errors = nodes.mask(NodeKind.ERROR, NodeKind.REST)[edges.sources.long()]
        torch.testing.assert_close(flow.unexplained[edges.targets], edges.row_sums(shares * errors))
