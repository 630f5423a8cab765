"""Many graphs together: sums that do not depend on how they are taken, and that a plain loop confirms."""

from __future__ import annotations

from collections import defaultdict

import circuit_cases as cases
import pytest
import torch

from interp.circuits import aggregate as module
from interp.circuits.aggregate import FeatureSums, aggregate, merged
from interp.circuits.attribution import AttributionComputer
from interp.circuits.graph import AttributionGraph
from interp.circuits.influence import influence_of
from interp.circuits.nodes import NodeKind
from interp.circuits.replacement_model import ReplacementModel
from interp.errors import SpecError

N_GRAPHS = 9


@pytest.fixture(scope="module")
def graphs() -> list[AttributionGraph]:
    rm = cases.replacement_model("llama", "topk", skip=True)
    computer = AttributionComputer(rm, max_features=25)
    made = []
    for seed in range(N_GRAPHS):
        edges = computer.compute_full_graph(rm.build(cases.prompt(4 + seed % 3, seed=seed)))
        made.append(AttributionGraph.from_edges(edges, slug=f"g{seed}"))
    return made


def same(one: FeatureSums, other: FeatureSums) -> None:
    assert (one.model, one.layers, one.slugs) == (other.model, other.layers, other.slugs)
    for name in ("features", "prompts", "positions", "largest", "tops"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    for name in ("influence", "activation", "by_layer", "tokens", "top_influence"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-12, atol=0)


def test_a_plain_loop_gives_the_same(graphs: list[AttributionGraph]) -> None:
    shares: dict[tuple[int, int], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    activations: dict[tuple[int, int], list[float]] = defaultdict(list)
    for graph in graphs:
        _, influence, _ = influence_of(graph.nodes, graph.edges, graph.probabilities)
        for node, (layer, _, latent) in enumerate(graph.nodes.features.tolist()):
            shares[layer, latent][graph.slug] += float(influence[node] / graph.probabilities.double().sum())
            activations[layer, latent].append(float(graph.activations[node]))
    rows = aggregate(graphs).rows()
    assert [row["influence"] for row in rows] == sorted((row["influence"] for row in rows), reverse=True)
    assert {(row["layer"], row["latent"]) for row in rows} == set(shares)
    assert max(row["prompts"] for row in rows) > 1 and max(len(row["top_prompts"]) for row in rows) == module.TOP
    for row in rows:
        expected, values = shares[row["layer"], row["latent"]], activations[row["layer"], row["latent"]]
        assert row["at"] == f"layers.{row['layer']}.mlp"
        assert row["influence"] == pytest.approx(sum(expected.values()))
        assert (row["prompts"], row["positions"]) == (len(expected), len(values))
        assert row["mean_activation"] == pytest.approx(sum(values) / len(values))
        assert row["max_activation"] == max(values)
        best = sorted(expected, key=lambda slug: (-expected[slug], slug))[: module.TOP]
        assert row["top_prompts"] == best
        assert row["top_influences"] == pytest.approx([expected[slug] for slug in best])


def test_layers_and_tokens_account_for_the_whole_influence(graphs: list[AttributionGraph]) -> None:
    sums = aggregate(graphs)
    whole = 0.0
    for graph in graphs:
        _, influence, _ = influence_of(graph.nodes, graph.edges, graph.probabilities)
        kinds = graph.nodes.mask(NodeKind.FEATURE, NodeKind.ERROR, NodeKind.REST, NodeKind.TOKEN)
        whole += float(influence[kinds].sum() / graph.probabilities.double().sum())
    assert float(sums.by_layer.sum() + sums.tokens) == pytest.approx(whole)
    rows = sums.layer_rows()
    assert [row["at"] for row in rows] == [f"layers.{i}.mlp" for i in range(len(rows))]
    assert sum(row["feature"] for row in rows) * N_GRAPHS == pytest.approx(float(sums.influence.sum()))
    assert all(row["error"] > 0 for row in rows) and sum(row["rest"] for row in rows) > 0


@pytest.mark.parametrize("at_once", [1, 40, 1 << 20])
def test_however_graphs_are_taken_together(
    graphs: list[AttributionGraph], at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [FeatureSums.of(graph) for graph in graphs]
    whole = FeatureSums.sum(parts)
    monkeypatch.setattr(module, "_AT_ONCE", at_once)
    same(merged(iter(parts)), whole)
    same(merged([merged(parts[:4]), FeatureSums.sum(parts[4:5]), merged(parts[5:])]), whole)


def test_equal_influences_keep_the_first_graphs(graphs: list[AttributionGraph]) -> None:
    part = FeatureSums.of(graphs[0])
    assert {tuple(row["top_prompts"]) for row in merged([part] * 8).rows()} == {("g0",) * module.TOP}


def test_sums_come_back_from_a_file(graphs: list[AttributionGraph]) -> None:
    for sums in (FeatureSums.of(graphs[0]), aggregate(graphs)):
        same(FeatureSums.from_bytes(sums.to_bytes()), sums)


def test_nothing_and_different_models_are_refused(graphs: list[AttributionGraph]) -> None:
    with pytest.raises(SpecError, match="no graph"):
        aggregate([])
    rm = cases.replacement_model("gpt2")
    other = AttributionGraph.from_edges(AttributionComputer(rm).compute_full_graph(rm.build(cases.prompt(4))))
    with pytest.raises(SpecError, match="different models"):
        aggregate([graphs[0], other])


def test_graphs_of_other_transcoders_are_not_added_up(graphs: list[AttributionGraph]) -> None:
    hooked = cases.hooked_model("llama")
    rm = ReplacementModel(hooked, cases.transcoders(hooked, "topk", skip=True, seed=50))
    other = AttributionGraph.from_edges(AttributionComputer(rm).compute_full_graph(rm.build(cases.prompt(4))))
    assert other.model["fingerprint"] == graphs[0].model["fingerprint"]
    with pytest.raises(SpecError, match="different models or transcoders"):
        aggregate([graphs[0], other])
