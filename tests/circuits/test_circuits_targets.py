"""What a graph can explain: values, certificates and edges of every kind of target."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import circuit_cases as cases
import numpy as np
import pytest
import tiny_models
import torch
from frozen_forward import FrozenForward, Observed
from interventions import assert_edges_are_measured, dense, read_features, traced
from safetensors.torch import save_file
from target_cases import IDS, INNER, block, direction_files, model
from torch import Tensor

from interp.circuits.attribution import AttributionComputer, AttributionEdges
from interp.circuits.graph import AttributionGraph
from interp.circuits.nodes import NodeIndex, NodeKind
from interp.circuits.replacement_model import ReplacementModel
from interp.errors import HookError
from interp.spec.trace import (
    Column,
    DifferenceTarget,
    DirectionTarget,
    FeaturePlace,
    FeaturesTarget,
    LogitsSpec,
    TargetSpec,
    TokensTarget,
)
from interp.wrapper import HookedModel

FAMILIES = ["llama", "gemma2", "gpt2", "gpt_neox", "split_llama_mlp"]
RESIDUAL = 1e-4


@pytest.fixture
def directions(tmp_path: Path) -> Callable[[int], str]:
    return direction_files(tmp_path)


def head_at(rm: ReplacementModel, pos: int) -> Tensor:
    logits = rm.hooked.run_with_cache(IDS[None], [], logits=True).logits
    assert logits is not None
    return logits[0, pos]


def check(rm: ReplacementModel, target: TargetSpec, value: Tensor, read: Any) -> AttributionEdges:
    """Value, certificate, and every edge."""
    state, edges = traced(rm, IDS, target=target)
    ends = edges.pre_activations[edges.nodes.n_features :]
    torch.testing.assert_close(ends, value.float(), atol=1e-5, rtol=1e-5)
    assert edges.residual <= RESIDUAL
    assert edges.nodes.logit_pos is not None
    assert bool((edges.nodes.features[:, 1] <= edges.nodes.logit_pos).all())
    assert_edges_are_measured(rm, state, edges, read)
    assert dense(edges)[edges.nodes.span(NodeKind.LOGIT)].abs().max() > 0.01
    return edges


@pytest.mark.parametrize("name", FAMILIES)
def test_tokens_by_id_by_text_and_by_column_at_any_position(name: str) -> None:
    rm = model(name)
    for position, at in ((INNER, INNER), (-2, 4), (-1, 5), (0, 0)):
        head = head_at(rm, at)
        expected = (head - head.mean())[[7, 9]]
        edges = check(rm, TokensTarget(tokens=(7, "t9"), position=position), expected, None)
        assert edges.nodes.logits.tolist() == [7, 9] and edges.logit_tokens == ("t7", "t9")
        prediction = rm.hooked.softcapped(head).softmax(-1)[[7, 9]]
        torch.testing.assert_close(edges.probabilities, prediction)
    computer = AttributionComputer(rm, target=TokensTarget(tokens=(Column(column="answer"), Column(column="other"))))
    edges = computer.compute_full_graph(rm.build(IDS), row={"answer": "t9", "other": 7})
    assert edges.nodes.logits.tolist() == [9, 7]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("position", [INNER, -1])
def test_a_difference_of_two_tokens(name: str, position: int) -> None:
    rm = model(name)
    head = head_at(rm, position)

    def read(frozen: FrozenForward, edges: AttributionEdges, seen: Observed) -> Tensor:
        return (seen.head[:, position, 7] - seen.head[:, position, 9])[:, None]

    target = DifferenceTarget(difference=(7, "t9"), position=position)
    edges = check(rm, target, (head[7] - head[9])[None], read)
    assert edges.nodes.logits.tolist() == [-1] and edges.probabilities.tolist() == [1.0]
    # It is the difference of the two rows.
    _, both = traced(rm, IDS, target=TokensTarget(tokens=(7, 9), position=position))
    first, second = dense(both)[both.nodes.span(NodeKind.LOGIT), :-2]
    torch.testing.assert_close(dense(edges)[-1, :-1], first - second, atol=1e-5, rtol=1e-5)


SITES = ["final_norm", "resid_pre", "resid_mid", "resid_post"]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("site", SITES)
def test_a_direction_of_the_stream_or_of_what_the_head_reads(
    name: str, site: str, directions: Callable[[int], str]
) -> None:
    rm = model(name)
    if site == "resid_mid" and rm.hooked.topology.parallel:
        with pytest.raises(HookError, match="no resid_mid"):
            traced(rm, IDS, target=DirectionTarget(direction=directions(32), at=f"{block(rm, 0)}.resid_mid"))
        return
    # In SplitLlama 1 is the last block before the adapter, and 2 the first after it.
    for layer, position in ((0, INNER), (2, -1), (rm.hooked.topology.n_layers - 1, INNER)):
        at = site if site == "final_norm" else f"{block(rm, layer)}.{site}"
        file = directions(rm.hooked.topology.width(at))
        vector = torch.from_numpy(np.load(file))

        def read(frozen: FrozenForward, edges: AttributionEdges, seen: Observed) -> Tensor:
            stream = seen.normed if site == "final_norm" else seen.streams[layer, site]  # noqa: B023
            return (stream[:, position] @ vector.double())[:, None]  # noqa: B023

        value = rm.hooked.run_with_cache(IDS[None], [at])[at][0, position] @ vector
        edges = check(rm, DirectionTarget(direction=file, at=at, name="north", position=position), value[None], read)
        assert edges.logit_tokens == ("north",) and edges.nodes.logits.tolist() == [-1]


@pytest.mark.parametrize("name", FAMILIES)
def test_where_mlps_are_kept_a_direction_sees_what_adapters_write(name: str, directions: Callable[[int], str]) -> None:
    rm = model(name, mlp="kept")
    at = f"{block(rm, 2)}.resid_post"
    file = directions(rm.hooked.topology.width(at))
    vector = torch.from_numpy(np.load(file))

    def read(frozen: FrozenForward, edges: AttributionEdges, seen: Observed) -> Tensor:
        return (seen.streams[2, "resid_post"][:, INNER] @ vector.double())[:, None]

    value = (rm.stream(IDS, at)[INNER] @ vector)[None]
    edges = check(rm, DirectionTarget(direction=file, at=at, position=INNER), value, read)
    bare = rm.hooked.run_with_cache(IDS[None], [at])[at][0, INNER] @ vector
    assert abs(float(edges.pre_activations[-1] - bare)) > 0.01


def test_a_model_that_uses_sdpa_has_the_same_graph_and_goes_on_using_it(directions: Callable[[int], str]) -> None:
    target = DirectionTarget(direction=directions(32), at="layers.1.resid_post", position=INNER)
    made = tiny_models.make("llama")
    made.set_attn_implementation("sdpa")
    hooked = HookedModel(made)
    rm = ReplacementModel(hooked, cases.transcoders(hooked, "relu", skip=True))
    found, expected = traced(rm, IDS, target=target)[1], traced(model("llama"), IDS, target=target)[1]
    assert torch.equal(dense(found), dense(expected)) and torch.equal(found.pre_activations, expected.pre_activations)
    assert not hooked.computes_patterns


def test_a_direction_is_a_npy_or_safetensors_file_and_hook_points_have_aliases(tmp_path: Path) -> None:
    rm = model("llama")
    vector = torch.randn(32, generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "v.npy", vector.numpy())
    save_file({"any": vector[None]}, tmp_path / "v.safetensors")
    one = DirectionTarget(direction=str(tmp_path / "v.npy"), at="blocks.1.hook_resid_post")
    other = DirectionTarget(direction=str(tmp_path / "v.safetensors"), at="layers.1.resid_post")
    (_, first), (_, second) = (traced(rm, IDS, target=target) for target in (one, other))
    assert torch.equal(dense(first), dense(second))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kept", [False, True], ids=["replaced", "kept"])
def test_features_active_and_not_as_targets(name: str, kept: bool) -> None:
    rm = model(name, mlp="kept" if kept else "replaced")
    last = rm.hooked.topology.n_layers - 1
    state = rm.build(IDS)
    for position in (INNER, -1):
        at = position % 6
        chosen = []
        for layer in (0, last):
            active = state.features.latents[state.features.at(layer, at)].tolist()
            silent = next(latent for latent in range(cases.LATENTS) if latent not in active)
            chosen += [(layer, active[0]), (layer, silent)]
        places = tuple(FeaturePlace(at=f"{block(rm, layer)}.mlp", latent=latent) for layer, latent in chosen)

        def read(frozen: FrozenForward, edges: AttributionEdges, seen: Observed) -> Tensor:
            each = [read_features(frozen, seen, n, torch.tensor([at]), torch.tensor([f])) for n, f in chosen]  # noqa: B023
            return torch.cat(each, dim=1)

        values = torch.cat([pre_activation(rm, layer, latent, at) for layer, latent in chosen])
        edges = check(rm, FeaturesTarget(features=places, position=position), values, read)
        assert (values[[0, 2]] > 0).all() and (values[[1, 3]] <= 0).all()
        assert edges.nodes.logits.tolist() == [-1, -2, -3, -4] and edges.probabilities.tolist() == [0.25] * 4


def pre_activation(rm: ReplacementModel, layer: int, latent: int, at: int) -> Tensor:
    transcoder = rm.replacement.transcoders[layer]
    return transcoder.pre_activations(rm.stream(IDS, f"{block(rm, layer)}.mlp_in")[at])[latent][None].detach()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_target_at_an_inner_position_has_the_graph_of_the_prompt_that_ends_there(
    name: str, directions: Callable[[int], str]
) -> None:
    rm = model(name)
    at = f"{block(rm, 2)}.resid_post"
    places = (FeaturePlace(at=f"{block(rm, 2)}.mlp", latent=1), FeaturePlace(at=f"{block(rm, 1)}.mlp", latent=0))
    makers: list[Callable[[int], TargetSpec]] = [
        lambda position: TokensTarget(tokens=(3, 4), position=position),
        lambda position: DifferenceTarget(difference=(3, 4), position=position),
        lambda position: DirectionTarget(direction=directions(rm.hooked.topology.width(at)), at=at, position=position),
        lambda position: FeaturesTarget(features=places, position=position),
    ]
    for make in makers:
        for max_features in (None, 20):
            inner = traced(rm, IDS, target=make(INNER), max_features=max_features)[1]
            whole = traced(rm, IDS[: INNER + 1], target=make(-1), max_features=max_features)[1]
            found, expected = by_name(inner), by_name(whole)
            assert found.keys() == expected.keys() and len(found) > 100
            torch.testing.assert_close(
                torch.tensor([found[ends] for ends in expected]),
                torch.tensor(list(expected.values())),
                rtol=1e-4,
                atol=1e-5,
            )


def by_name(edges: AttributionEdges) -> dict[tuple[Any, Any], float]:
    """Weights by what the ends are, whatever the numbers of the nodes. Rounding leaves no edge of 0 and no 0."""
    nodes = edges.nodes
    names = [name_of(nodes, node) for node in range(len(nodes))]
    ends = zip(
        edges.edges.target_of_edge.tolist(), edges.edges.sources.tolist(), edges.edges.weights.tolist(), strict=True
    )
    return {(names[target], names[source]): weight for target, source, weight in ends if abs(weight) > 1e-6}


def name_of(nodes: NodeIndex, node: int) -> tuple[Any, ...]:
    kind = NodeKind(int(nodes.kinds[node]))
    inside = node - nodes.span(kind).start
    latent = int(nodes.features[node, 2]) if kind == NodeKind.FEATURE else inside if kind == NodeKind.LOGIT else 0
    return (kind, int(nodes.layers[node]), int(nodes.positions[node]), latent)


@pytest.mark.parametrize("seed", range(4))
def test_the_last_token_is_a_target_and_once(seed: int) -> None:
    rm = model("llama", seed=seed)
    state = rm.build(IDS)
    computer = AttributionComputer(rm, target="last-token", logits=LogitsSpec(max=3))
    order = state.head.probabilities(5).argsort(descending=True)
    for rank in (0, 1, 2, 3, 50):
        token = int(order[rank])
        edges = computer.compute_full_graph(state, last_token=token)
        logits = edges.nodes.logits.tolist()
        assert logits.count(token) == 1 and len(set(logits)) == len(logits) == (3 if rank < 3 else 4)
        assert logits[:3] == order[:3].tolist()
        assert edges.residual <= RESIDUAL
        torch.testing.assert_close(edges.probabilities, state.head.probabilities(5)[logits])
    assert traced(rm, IDS, logits=LogitsSpec(max=3))[1].nodes.logits.tolist() == order[:3].tolist()


def test_features_do_not_come_from_above_or_after_the_target() -> None:
    rm = model("llama")
    target = FeaturesTarget(features=(FeaturePlace(at="layers.1.mlp", latent=2),), position=INNER)
    _, edges = traced(rm, IDS, target=target, max_features=200)
    row = dense(edges)[edges.nodes.span(NodeKind.LOGIT)][0]
    sources = row.nonzero().flatten()
    written = sources[~edges.nodes.mask(NodeKind.READOUT)[sources]]
    assert int(edges.nodes.positions[written].max()) <= INNER
    assert int(edges.nodes.layers[written].max()) == 1  # the biases of the attention that it reads
    features = written[edges.nodes.mask(NodeKind.FEATURE)[written]]
    assert set(edges.nodes.layers[features].tolist()) == {0}


def test_a_graph_of_any_target_comes_back_from_its_document(tmp_path: Path, directions: Callable[[int], str]) -> None:
    rm = model("llama")
    places = tuple(FeaturePlace(at="layers.2.mlp", latent=latent) for latent in (5, 3))
    targets: list[TargetSpec] = [
        TokensTarget(tokens=(7, 9), position=INNER),
        DifferenceTarget(difference=(7, 9), position=INNER),
        DirectionTarget(direction=directions(32), position=-1),
        FeaturesTarget(features=places, position=INNER),
    ]
    for target in targets:
        graph = AttributionGraph.from_edges(traced(rm, IDS, target=target)[1])
        for kept in (graph, graph.prune(0.8, 0.98)):
            kept.save(tmp_path / "graph.json")
            back = AttributionGraph.load(tmp_path / "graph.json")
            assert back.to_bytes() == kept.to_bytes()
            assert torch.equal(back.nodes.logits, kept.nodes.logits) and back.nodes.logit_pos == kept.nodes.logit_pos
            assert back.logit_tokens == kept.logit_tokens and back.settings["target"] == target.model_dump(mode="json")
            torch.testing.assert_close(back.adjacency().to_dense(), kept.adjacency().to_dense())
            document = kept.to_json()
            ids = [row["node_id"] for row in document["nodes"]]
            assert len(set(ids)) == len(ids)
            ends = [row for row in document["nodes"] if row["feature_type"] == "logit"]
            assert len(ends) == len(kept.logit_tokens) and {row["ctx_idx"] for row in ends} == {kept.nodes.logit_pos}
            assert all(label in row["clerp"] for label, row in zip(kept.logit_tokens, ends, strict=True))
