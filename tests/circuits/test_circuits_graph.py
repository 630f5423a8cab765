"""The graph: pruning, the document that others read, and the way back."""

from __future__ import annotations

import json
import re
from pathlib import Path

import circuit_cases as cases
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from interp.circuits.attribution import AttributionComputer
from interp.circuits.graph import AttributionGraph
from interp.circuits.nodes import CONSTANTS, NodeKind, cantor
from interp.errors import SourceError, SpecError

READERS_KNOW = {"cross layer transcoder", "mlp reconstruction error", "embedding", "logit"}


class Words:
    """A tokenizer with text that is awkward to show."""

    bos_token_id = 0
    texts = ('"', "(p=", "\n", "\ufffd", "word")

    def decode(self, ids: list[int]) -> str:
        return "".join(self.texts[i % len(self.texts)] for i in ids)

    def convert_ids_to_tokens(self, token: int) -> str:
        return f"<0x{token:02X}>"


def graph(
    name: str = "llama", *, max_features: int | None = None, tokenizer: object = None, **options: object
) -> AttributionGraph:
    rm = cases.replacement_model(name, "relu", skip=True)
    rm.hooked.tokenizer = tokenizer
    edges = AttributionComputer(rm, max_features=max_features).compute_full_graph(rm.build(cases.prompt(6)))
    return AttributionGraph.from_edges(edges, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def full() -> AttributionGraph:
    return graph(max_features=60, tokenizer=Words(), provenance={"study": "test"})


@pytest.fixture(scope="module")
def pruned(full: AttributionGraph) -> AttributionGraph:
    return full.prune(node_threshold=0.6, edge_threshold=0.9)


def test_pruning_keeps_weights_influences_and_scores(full: AttributionGraph, pruned: AttributionGraph) -> None:
    assert 0 < pruned.nodes.n_features < full.nodes.n_features
    assert pruned.edges.n_edges < full.edges.n_edges
    assert (pruned.scores, pruned.residual) == (full.scores, full.residual)
    before, after = names(full), names(pruned)
    assert set(after) <= set(before)
    for node_id, influence in after.items():
        assert influence == before[node_id]
    before_links, after_links = links(full), links(pruned)
    assert after_links.items() <= before_links.items()
    assert len(pruned.activations) == pruned.nodes.n_features


def names(of: AttributionGraph) -> dict[str, float | None]:
    document = of.to_json()
    return {row["node_id"]: row["influence"] for row in [*document["nodes"], *document["constants"]["nodes"]]}


def links(of: AttributionGraph) -> dict[tuple[str, str], float]:
    document = of.to_json()
    rows = [*document["links"], *document["constants"]["links"]]
    return {(row["source"], row["target"]): row["weight"] for row in rows}


def test_pruning_at_one_keeps_every_cause_of_the_logits(full: AttributionGraph) -> None:
    everything = full.prune(1.0, 1.0)
    assert everything.adjacency()._nnz() == everything.edges.n_edges
    assert full.edges.n_edges - everything.edges.n_edges < 0.1 * full.edges.n_edges


@pytest.mark.parametrize("which", ["full", "pruned"])
def test_the_document_keeps_the_readers_rules(which: str, request: pytest.FixtureRequest) -> None:
    of: AttributionGraph = request.getfixturevalue(which)
    document = json.loads(of.to_bytes())
    metadata, nodes, edges = document["metadata"], document["nodes"], document["links"]
    assert {"metadata", "qParams", "nodes", "links"} <= document.keys()
    assert re.fullmatch(r"[a-zA-Z0-9_.-]+", metadata["slug"]) and re.fullmatch(r"[a-zA-Z0-9_.-]+", metadata["scan"])
    assert metadata["schema_version"] == 1 and metadata["info"]["generator"]["name"] == "interp"
    assert len(metadata["prompt_tokens"]) == of.nodes.n_pos and metadata["prompt"]
    assert metadata["exactness"]["residual"] < 1e-4
    assert document["qParams"].keys() == {"pinnedIds", "supernodes", "linkType", "clickedId", "sg_pos"}
    assert {row["feature_type"] for row in nodes} <= READERS_KNOW
    ids = [row["node_id"] for row in nodes]
    apart = [row["node_id"] for row in document["constants"]["nodes"]]
    assert len(set(ids + apart)) == len(ids + apart)
    # The first reader tells nodes apart by these three, and not by their ids.
    assert len({(row["layer"], row["feature"], row["ctx_idx"]) for row in nodes}) == len(nodes)
    assert all(edge["source"] in set(ids) and edge["target"] in set(ids) for edge in edges)
    assert any(row["feature_type"] != "logit" and row["layer"] not in ("E", "0") for row in nodes)
    assert all(isinstance(row["feature"], int) and isinstance(row["clerp"], str) for row in nodes)


def test_nodes_of_the_document_follow_the_table(pruned: AttributionGraph) -> None:
    rows = pruned.to_json()["nodes"]
    features = [row for row in rows if row["feature_type"] == "cross layer transcoder"]
    for row, (layer, pos, latent), activation in zip(
        features, pruned.nodes.features.tolist(), pruned.activations.tolist(), strict=True
    ):
        assert row["node_id"] == f"{layer}_{latent}_{pos}" and row["jsNodeId"] == f"{layer}_{latent}-0"
        assert (row["feature"], row["layer"], row["ctx_idx"]) == (cantor(layer, latent), str(layer), pos)
        assert row["activation"] == pytest.approx(activation) and 0 < row["influence"] <= 1
    logits = [row for row in rows if row["feature_type"] == "logit"]
    assert [row["is_target_logit"] for row in logits] == [True] + [False] * (len(logits) - 1)
    for row, token, probability in zip(
        logits, pruned.nodes.logits.tolist(), pruned.probabilities.tolist(), strict=True
    ):
        assert row["node_id"] == f"{pruned.nodes.n_layers + 1}_{token}_{pruned.nodes.n_pos - 1}"
        assert row["token_prob"] == pytest.approx(probability) and row["influence"] is None
        # As the readers take a label apart.
        assert float(row["clerp"].split("(p=")[1].split(")")[0]) == pytest.approx(probability, abs=5e-4)
        assert row["clerp"].count('"') == 2 and "\n" not in row["clerp"]
    tokens = [row for row in rows if row["feature_type"] == "embedding"]
    assert [row["node_id"] for row in tokens] == [f"E_{t}_{p}" for p, t in enumerate(pruned.ids.tolist())]
    assert all(row["layer"] == "E" for row in tokens)


def test_a_readers_scores_on_nodes_and_links_are_ours(full: AttributionGraph) -> None:
    """Computed the way a page does it: from the document alone, errors by their type."""
    document = full.to_json()
    place = {row["node_id"]: i for i, row in enumerate(document["nodes"])}
    adjacency = torch.zeros(len(place), len(place), dtype=torch.float64)
    for edge in document["links"]:
        adjacency[place[edge["target"]], place[edge["source"]]] = edge["weight"]
    kinds = [row["feature_type"] for row in document["nodes"]]
    error = torch.tensor([kind == "mlp reconstruction error" for kind in kinds])
    token = torch.tensor([kind == "embedding" for kind in kinds])
    weights = torch.tensor([row["token_prob"] for row in document["nodes"]], dtype=torch.float64)
    shares = adjacency.abs() / adjacency.abs().sum(1, keepdim=True).clamp(min=1e-10)
    influence = torch.linalg.solve(torch.eye(len(place), dtype=torch.float64) - shares.T, weights) - weights
    replacement = influence[token].sum() / (influence[token].sum() + influence[error].sum())
    assert full.scores.replacement == pytest.approx(float(replacement), abs=1e-6)
    reach = influence + weights
    completeness = ((1 - shares[:, error].sum(1)) * reach).sum() / reach.sum()
    assert full.scores.completeness == pytest.approx(float(completeness), abs=1e-6)


def test_constants_are_apart_and_complete_the_sums(full: AttributionGraph) -> None:
    document = full.to_json()
    sums = {row["node_id"]: 0.0 for row in document["nodes"]}
    for edge in [*document["links"], *document["constants"]["links"]]:
        sums[edge["target"]] += edge["weight"]
    for row in document["nodes"]:
        if row["feature_type"] == "cross layer transcoder":
            assert sums[row["node_id"]] == pytest.approx(row["activation"], abs=1e-4)
    constant = full.nodes.mask(*CONSTANTS)
    assert len(document["nodes"]) == int((full.drawn() & ~constant).sum())


@pytest.mark.parametrize("which", ["full", "pruned"])
def test_a_saved_graph_comes_back_as_it_was(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    of: AttributionGraph = request.getfixturevalue(which)
    of.save(tmp_path / "graph.json")
    assert [path.name for path in tmp_path.iterdir()] == ["graph.json"]
    back = AttributionGraph.load(tmp_path / "graph.json")
    assert back.to_bytes() == of.to_bytes()
    assert torch.equal(back.adjacency().to_dense(), of.adjacency().to_dense())
    assert torch.equal(back.nodes.features, of.nodes.features) and torch.equal(back.nodes.logits, of.nodes.logits)
    assert torch.equal(back.activations, of.activations)
    assert torch.equal(back.edges.targets, of.edges.targets) and torch.equal(back.edges.starts, of.edges.starts)
    counted = of.drawn() & ~of.nodes.mask(*CONSTANTS, NodeKind.LOGIT)
    torch.testing.assert_close(back.influence[counted], of.influence[counted])
    again = back.prune(0.5, 0.8), of.prune(0.5, 0.8)
    assert torch.equal(again[0].adjacency().to_dense(), again[1].adjacency().to_dense())


@pytest.mark.parametrize("which", ["full", "pruned"])
def test_tensors_come_back_bit_for_bit(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    of: AttributionGraph = request.getfixturevalue(which)
    of.save(tmp_path / "graph.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["graph.safetensors"]
    back = AttributionGraph.load(tmp_path / "graph.safetensors")
    for part in ("targets", "starts", "sources", "weights"):
        assert torch.equal(getattr(back.edges, part), getattr(of.edges, part)), part
    for name in ("activations", "probabilities", "influence", "ids"):
        assert torch.equal(getattr(back, name), getattr(of, name)), name
    assert torch.equal(back.nodes.kinds, of.nodes.kinds) and torch.equal(back.nodes.positions, of.nodes.positions)
    assert back.to_bytes() == of.to_bytes()
    back.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "graph.safetensors").read_bytes()
    of.save(tmp_path / "graph.json")
    by_json = AttributionGraph.load(tmp_path / "graph.json")
    assert torch.equal(back.adjacency().to_dense(), by_json.adjacency().to_dense())


def test_tensors_say_what_each_node_is(full: AttributionGraph, tmp_path: Path) -> None:
    """To a program that knows nothing of us: rows, columns, and the kind of each by its name."""
    full.save(tmp_path / "graph.safetensors")
    with safe_open(tmp_path / "graph.safetensors", framework="pt") as file:
        header = json.loads(file.metadata()["interp"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    n = len(tensors["nodes.kind"])
    adjacency = torch.zeros(n, n)
    counts = tensors["edges.starts"].diff()
    adjacency[tensors["edges.targets"].repeat_interleave(counts), tensors["edges.sources"]] = tensors["edges.weights"]
    assert torch.equal(adjacency, full.adjacency().to_dense())
    features = tensors["nodes.kind"] == header["kinds"].index("feature")
    assert torch.equal(tensors["nodes.layer"][features].int(), tensors["features"][:, 0])
    assert torch.equal(tensors["nodes.position"][features], tensors["features"][:, 1])
    assert header["slug"] == full.slug and header["tokens"] == list(full.tokens)


def test_other_or_damaged_tensors_are_refused(full: AttributionGraph, tmp_path: Path) -> None:
    path = tmp_path / "graph.safetensors"
    with pytest.raises(SourceError, match="cannot be read"):
        AttributionGraph.load(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(SourceError, match="no graph of interp"):
        AttributionGraph.load(path)
    full.save(path)
    data = path.read_bytes()
    for damaged in (data[: len(data) // 2], data[:100], b""):
        path.write_bytes(damaged)
        with pytest.raises(SourceError, match="cannot be read"):
            AttributionGraph.load(path)
    with pytest.raises(SpecError, match=r"\.json or \.safetensors"):
        full.save(tmp_path / "graph.pt")


def test_the_same_graph_is_the_same_file() -> None:
    one, two = (graph("qwen2", created_ms=1) for _ in "ab")
    assert one.to_bytes() == two.to_bytes()


def test_names_and_texts() -> None:
    named = graph(slug="a.b-c_1", scan="tiny-model", prompt="the text", tokens=("a", "b", "c", "d", "e", "f"))
    metadata = named.to_json()["metadata"]
    assert (metadata["slug"], metadata["scan"], metadata["prompt"]) == ("a.b-c_1", "tiny-model", "the text")
    assert metadata["prompt_tokens"] == ["a", "b", "c", "d", "e", "f"]
    assert re.fullmatch(r"[a-z0-9-]+", graph(tokenizer=Words()).slug)
    for wrong in ({"slug": "a b"}, {"scan": "org/model"}, {"slug": "é"}):
        with pytest.raises(SpecError, match="cannot name"):
            graph(**wrong)
    with pytest.raises(SpecError, match="one text for each token"):
        graph(tokens=("a",))


def test_what_is_no_graph_is_refused(full: AttributionGraph, tmp_path: Path) -> None:
    path = tmp_path / "graph.json"
    with pytest.raises(SourceError, match="cannot be read"):
        AttributionGraph.load(path)
    for text in ("{", "[]", "{}", '{"metadata": {}}'):
        path.write_text(text)
        with pytest.raises(SourceError):
            AttributionGraph.load(path)
    document = full.to_json()
    document["links"].append({"source": "nobody", "target": "nowhere", "weight": 1.0})
    path.write_text(json.dumps(document))
    with pytest.raises(SourceError, match="damaged"):
        AttributionGraph.load(path)
