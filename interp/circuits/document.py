"""The graph document: the JSON that circuit-tracer's page and Neuronpedia read, written and read back.

    metadata   slug, scan, prompt and how the graph was made
    qParams    an empty view: nothing pinned
    nodes      features, errors, tokens, logits
    links      weighted edges between them
    constants  nodes and links of biases and bos, in the same form; readers of the other four keys do not look here

| nodes         | feature     | error               | rest                | embedding       | logit               |
|---------------|-------------|---------------------|---------------------|-----------------|---------------------|
| node_id       | l_f_p       | error_l_p           | rest_l_p            | E_token_p       | {L+1}_token_p       |
| feature       | cantor(l,f) | -1                  | -2                  | p               | token               |
| layer         | l           | l                   | l                   | "E"             | L+1                 |
| feature_type  | cross layer transcoder (per-layer ones too) | mlp reconstruction error (both) | embedding | logit |

Readers know four types of nodes; one that they do not know breaks their scores, and they take every error for what is
not explained. So `rest` (features below the cap) is an error of its own number, and constants, which are neither
explained nor an error, stand apart: scores that a reader computes from nodes and links are then ours. Ids are only
compared, never taken apart; these cannot collide, where `0_l_p` for an error can be a feature's.

Weights have 9 significant digits: a float32 survives the round trip.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from interp.circuits.edges import EdgeTable
from interp.circuits.influence import Scores
from interp.circuits.nodes import CONSTANTS, NodeIndex, NodeKind, cantor, cantor_inverse
from interp.circuits.record import GraphRecord
from interp.errors import SourceError
from interp.version import __version__

FORMAT = "interp/graph/v1"
_FEATURE, _ERROR, _TOKEN, _LOGIT = "cross layer transcoder", "mlp reconstruction error", "embedding", "logit"
_PREFIX = {
    NodeKind.ERROR: "error",
    NodeKind.REST: "rest",
    NodeKind.BOS: "bos",
    NodeKind.ATTN_BIAS: "attn_bias",
    NodeKind.MLP_BIAS: "mlp_bias",
    NodeKind.READOUT: "readout",
}


def document_of(graph: GraphRecord) -> dict[str, Any]:
    """The document of a graph."""
    nodes = _Nodes(graph)
    drawn = graph.drawn().nonzero().flatten().tolist()
    constant = graph.nodes.mask(*CONSTANTS)
    targets, sources = graph.edges.target_of_edge, graph.edges.sources.long()
    apart = constant[sources]
    return {
        "metadata": metadata_of(graph),
        "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""},
        "nodes": [nodes.row(node) for node in drawn if not constant[node]],
        "links": _links(nodes.ids, targets[~apart], sources[~apart], graph.edges.weights[~apart]),
        "constants": {
            "nodes": [nodes.row(node) for node in drawn if constant[node]],
            "links": _links(nodes.ids, targets[apart], sources[apart], graph.edges.weights[apart]),
        },
    }


class _Nodes:
    """Rows of the document, node by node."""

    def __init__(self, graph: GraphRecord):
        self.graph, self.index = graph, graph.nodes
        self.kinds = [NodeKind(kind) for kind in self.index.kinds.tolist()]
        self.layers, self.positions = self.index.layers.tolist(), self.index.positions.tolist()
        self.features = self.index.features.tolist()
        self.influence = graph.influence.tolist()
        self.activations = graph.activations.tolist()
        self.ids = [self._id(node) for node in range(len(self.index))]

    def _rank(self, node: int) -> int:
        """Place of a node among those of its kind."""
        return node - self.index.span(self.kinds[node]).start

    def _id(self, node: int) -> str:
        kind, layer, pos = self.kinds[node], self.layers[node], self.positions[node]
        match kind:
            case NodeKind.FEATURE:
                return f"{layer}_{self.features[node][2]}_{pos}"
            case NodeKind.TOKEN:
                return f"E_{int(self.graph.ids[pos])}_{pos}"
            case NodeKind.LOGIT:
                return f"{self.index.n_layers + 1}_{int(self.index.logits[self._rank(node)])}_{pos}"
            case NodeKind.ERROR | NodeKind.REST:
                return f"{_PREFIX[kind]}_{layer}_{pos}"
            case NodeKind.READOUT:
                return _PREFIX[kind]
        return f"{_PREFIX[kind]}_{layer}"

    def row(self, node: int) -> dict[str, Any]:
        kind, layer, pos = self.kinds[node], self.layers[node], self.positions[node]
        row: dict[str, Any] = {
            "node_id": self.ids[node],
            "feature": -1,
            "layer": str(layer),
            "ctx_idx": pos,
            "feature_type": _ERROR,
            "token_prob": 0.0,
            "is_target_logit": False,
            "run_idx": 0,
            "reverse_ctx_idx": 0,
            "jsNodeId": f"{self.ids[node]}-0",
            "clerp": "",
            "influence": _rounded(self.influence[node]),
            "activation": None,
        }
        match kind:
            case NodeKind.FEATURE:
                latent = self.features[node][2]
                row |= {"feature": cantor(layer, latent), "feature_type": _FEATURE, "jsNodeId": f"{layer}_{latent}-0"}
                row["activation"] = _rounded(self.activations[node])
            case NodeKind.REST:
                row |= {"feature": -2, "clerp": "features below the cap"}
            case NodeKind.TOKEN:
                token = int(self.graph.ids[pos])
                row |= {"feature": pos, "layer": "E", "feature_type": _TOKEN, "jsNodeId": f"E_{token}-{pos}"}
            case NodeKind.LOGIT:
                row |= self._logit(self._rank(node), pos)
            case kind if kind in CONSTANTS:
                row |= {"feature": -2 - self.kinds[node], "clerp": kind.name.lower(), "influence": None}
        return row

    def _logit(self, rank: int, pos: int) -> dict[str, Any]:
        token, probability = int(self.index.logits[rank]), float(self.graph.probabilities[rank])
        return {
            "feature": token,
            "layer": str(self.index.n_layers + 1),
            "feature_type": _LOGIT,
            "jsNodeId": f"L_{token}-{pos}",
            "clerp": f'Output "{_quotable(self.graph.logit_tokens[rank])}" (p={probability:.3f})',
            "token_prob": _rounded(probability),
            "is_target_logit": rank == 0,
            "influence": None,
        }


def _quotable(token: str) -> str:
    """A token as readers can show it: they cut its label at the first quote and at `(p=`."""
    return token.replace('"', "”").replace("(p=", "(p =").replace("\n", "⏎").replace("\t", "→")


def _links(ids: list[str], targets: Tensor, sources: Tensor, weights: Tensor) -> list[dict[str, Any]]:
    ends = zip(sources.tolist(), targets.tolist(), weights.tolist(), strict=True)
    return [
        {"source": ids[source], "target": ids[target], "weight": _rounded(weight)} for source, target, weight in ends
    ]


def _rounded(value: float) -> float:
    return float(f"{value:.9g}")


def metadata_of(graph: GraphRecord) -> dict[str, Any]:
    """The document's first part."""
    metadata: dict[str, Any] = {
        "slug": graph.slug,
        "scan": graph.scan,
        "transcoder_list": [],
        "prompt_tokens": list(graph.tokens),
        "prompt": graph.prompt,
        "schema_version": 1,
        "info": {"generator": {"name": "interp", "version": __version__}, "create_time_ms": graph.created_ms},
        "generation_settings": dict(graph.settings),
        "exactness": {"residual": graph.residual},
        "scores": {"replacement": graph.scores.replacement, "completeness": graph.scores.completeness},
        "graph": {
            "format": FORMAT,
            "n_layers": graph.nodes.n_layers,
            "token_ids": graph.ids.tolist(),
            "logit_tokens": list(graph.logit_tokens),
            "active_features": graph.n_active,
        },
        "model": dict(graph.model),
        "provenance": dict(graph.provenance),
    }
    if graph.pruning is not None:
        metadata |= {"pruning_settings": dict(graph.pruning), "node_threshold": graph.pruning["node_threshold"]}
    return metadata


def record_of(document: Mapping[str, Any]) -> GraphRecord:
    """The graph of a document that `document_of` wrote.

    Raises:
        SourceError: the document is not one of these.
    """
    if not isinstance(document, Mapping) or document.get("metadata", {}).get("graph", {}).get("format") != FORMAT:
        raise SourceError(
            "this is no graph document of interp",
            value=sorted(document) if isinstance(document, Mapping) else type(document).__name__,
            expected=f"metadata.graph.format: {FORMAT}",
            remedy="documents of other programs lack the constants and sizes that a graph is rebuilt from",
        )
    try:
        return _rebuild(document)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise SourceError("the graph document is damaged", value=repr(error), expected="what `save` wrote") from error


def _rebuild(document: Mapping[str, Any]) -> GraphRecord:
    metadata, rows = document["metadata"], [*document["nodes"], *document["constants"]["nodes"]]
    features = sorted((row for row in rows if row["feature_type"] == _FEATURE), key=_feature_of)
    logits = [row for row in rows if row["feature_type"] == _LOGIT]
    ids = torch.tensor(metadata["graph"]["token_ids"], dtype=torch.long)
    index = torch.tensor([_feature_of(row) for row in features], dtype=torch.int32).reshape(-1, 3)
    vocabulary = torch.tensor([row["feature"] for row in logits], dtype=torch.long)
    nodes = NodeIndex(metadata["graph"]["n_layers"], len(ids), index, vocabulary, logits[0]["ctx_idx"])
    graph = GraphRecord(
        nodes=nodes,
        edges=EdgeTable.empty(),
        activations=torch.tensor([row["activation"] for row in features], dtype=torch.float32),
        probabilities=torch.tensor([row["token_prob"] for row in logits], dtype=torch.float32),
        influence=torch.ones(len(nodes), dtype=torch.float64),
        ids=ids,
        tokens=tuple(metadata["prompt_tokens"]),
        logit_tokens=tuple(metadata["graph"]["logit_tokens"]),
        prompt=metadata["prompt"],
        slug=metadata["slug"],
        scan=metadata["scan"],
        residual=metadata["exactness"]["residual"],
        scores=Scores(**metadata["scores"]),
        n_active=metadata["graph"]["active_features"],
        settings=metadata["generation_settings"],
        pruning=metadata.get("pruning_settings"),
        model=metadata["model"],
        provenance=metadata["provenance"],
        created_ms=metadata["info"]["create_time_ms"],
    )
    return _with_links(graph, rows, [*document["links"], *document["constants"]["links"]])


def _with_links(graph: GraphRecord, rows: list[dict[str, Any]], links: list[dict[str, Any]]) -> GraphRecord:
    node_of = {name: node for node, name in enumerate(_Nodes(graph).ids)}
    influence = graph.influence.clone()
    for row in rows:
        if row["influence"] is not None:
            influence[node_of[row["node_id"]]] = row["influence"]
    ends = sorted((node_of[link["target"]], node_of[link["source"]], link["weight"]) for link in links)
    with_rows = [*range(graph.nodes.n_features), *range(*graph.nodes.span(NodeKind.LOGIT).indices(len(graph.nodes)))]
    targets = torch.tensor(with_rows, dtype=torch.long)
    counts = torch.bincount(torch.tensor([end[0] for end in ends], dtype=torch.long), minlength=len(graph.nodes))
    starts = torch.cat([torch.zeros(1, dtype=torch.long), counts[targets].cumsum(0)])
    sources = torch.tensor([end[1] for end in ends], dtype=torch.int32)
    weights = torch.tensor([end[2] for end in ends], dtype=torch.float32)
    return replace(graph, edges=EdgeTable(targets, starts, sources, weights), influence=influence)


def _feature_of(row: Mapping[str, Any]) -> tuple[int, int, int]:
    layer, latent = cantor_inverse(row["feature"])
    return layer, row["ctx_idx"], latent
