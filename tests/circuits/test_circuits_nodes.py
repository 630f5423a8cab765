"""Node order, and rows of edges."""

from __future__ import annotations

import torch

from interp.circuits.edges import EdgeTable
from interp.circuits.nodes import NodeIndex, NodeKind, cantor, cantor_inverse

FEATURES = torch.tensor([[0, 0, 3], [0, 2, 1], [1, 1, 0], [1, 1, 9]], dtype=torch.int32)


def index() -> NodeIndex:
    return NodeIndex(n_layers=2, n_pos=3, features=FEATURES, logits=torch.tensor([5, 4]))


def test_every_node_has_one_kind_and_kinds_come_in_order() -> None:
    nodes = index()
    assert len(nodes) == 4 + 6 + 6 + 2 + 2 + 2 + 1 + 3 + 2
    assert nodes.kinds.tolist() == sorted(nodes.kinds.tolist())
    for kind in NodeKind:
        assert bool((nodes.kinds[nodes.span(kind)] == kind).all())
        assert int(nodes.mask(kind).sum()) == int((nodes.kinds == kind).sum())


def test_layers_and_positions_of_nodes() -> None:
    nodes = index()
    errors = nodes.span(NodeKind.ERROR)
    assert nodes.layers[errors].tolist() == [0, 0, 0, 1, 1, 1]
    assert nodes.positions[errors].tolist() == [0, 1, 2, 0, 1, 2]
    assert nodes.layers[nodes.span(NodeKind.TOKEN)].tolist() == [-1] * 3
    assert nodes.positions[nodes.span(NodeKind.LOGIT)].tolist() == [2, 2]
    assert nodes.layers[nodes.span(NodeKind.FEATURE)].tolist() == FEATURES[:, 0].tolist()
    assert len(nodes.layers) == len(nodes.positions) == len(nodes.kinds) == len(nodes)
    for kind in (NodeKind.ERROR, NodeKind.REST, NodeKind.BOS, NodeKind.ATTN_BIAS, NodeKind.MLP_BIAS):
        for layer in range(2):
            assert bool((nodes.layers[nodes.layer_span(kind, layer)] == layer).all())
            assert bool((nodes.kinds[nodes.layer_span(kind, layer)] == kind).all())


def test_a_feature_that_is_left_out_goes_to_the_rest_of_its_place() -> None:
    nodes = index()
    left, new_index = nodes.keeping(torch.tensor([True, False, True, False]))
    assert left.features.tolist() == [[0, 0, 3], [1, 1, 0]]
    assert new_index[:3:2].tolist() == [0, 1]
    for dropped, cell in ((1, (0, 2)), (3, (1, 1))):
        node = int(new_index[dropped])
        assert left.kinds[node] == NodeKind.REST
        assert (int(left.layers[node]), int(left.positions[node])) == cell
    for kind in list(NodeKind)[1:]:
        assert torch.equal(new_index[nodes.span(kind)], torch.arange(len(left))[left.span(kind)])


def test_cantor_pairing_and_its_inverse() -> None:
    assert cantor(3, 5) == 8 * 9 // 2 + 5
    assert [cantor_inverse(cantor(layer, i)) for layer, i in ((0, 0), (7, 0), (0, 131071), (79, 10**6))] == [
        (0, 0),
        (7, 0),
        (0, 131071),
        (79, 10**6),
    ]


def test_rows_of_edges_are_those_of_the_dense_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(5, 11, generator=generator) * (torch.rand(5, 11, generator=generator) < 0.5)
    rows[2] = 0
    targets = torch.tensor([9, 3, 10, 7, 8])
    table = EdgeTable.from_dense(targets, rows)

    def to_dense(edges: EdgeTable) -> torch.Tensor:
        return edges.to_sparse(11).to_dense()

    expected = torch.zeros(11, 11).index_copy_(0, targets, rows)
    assert torch.equal(to_dense(table), expected)
    assert torch.equal(to_dense(table.sorted()), expected)
    assert table.sorted().targets.tolist() == [3, 7, 8, 9, 10]
    split = [
        EdgeTable.from_dense(targets[:2], rows[:2]),
        EdgeTable.empty(),
        EdgeTable.from_dense(targets[2:], rows[2:]),
    ]
    assert torch.equal(to_dense(EdgeTable.cat(split)), expected)
    torch.testing.assert_close(table.row_sums(), rows.double().sum(1))
    positive = table.where(table.weights > 0)
    assert torch.equal(to_dense(positive), expected.clamp(min=0))
    assert len(positive.targets) == 5


def test_sources_that_become_one_are_added_up() -> None:
    rows = torch.tensor([[1.0, 2.0, 4.0, 0.0], [0.0, -3.0, 0.0, 5.0]])
    table = EdgeTable.from_dense(torch.tensor([2, 3]), rows).relabelled(torch.tensor([1, 0, 1, 2]), 3)
    assert table.targets.tolist() == [1, 2]
    assert table.to_sparse(3).to_dense().tolist() == [[0.0, 0.0, 0.0], [2.0, 5.0, 0.0], [-3.0, 0.0, 5.0]]
