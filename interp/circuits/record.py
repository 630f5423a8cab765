"""What a graph is made of, as plain data. `graph` adds what one does with it, `document` how it is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.circuits.edges import EdgeTable
from interp.circuits.influence import Scores
from interp.circuits.nodes import NodeIndex, NodeKind


@dataclass(frozen=True, eq=False)
class GraphRecord:
    """Nodes, edges and everything that a reader wants to know of them.

    Attributes:
        nodes: all nodes; features are those that are kept. Of the others those count that have an edge.
        edges: rows in node order.
        influence: of each node, the share of all influence that it and the nodes ranked before it add up to.
        slug: name of the graph, `[A-Za-z0-9_.-]+`; scan: name of the model for readers, of the same form.
        residual: how far the edges into a target are from adding up to its pre-activation, before pruning.
        n_active: active features on the prompt, including those without a row.
        pruning: the thresholds, if the graph was pruned.
        provenance: where it comes from, as the caller says.
        created_ms: when it was made, in milliseconds since 1970.
    """

    nodes: NodeIndex
    edges: EdgeTable
    activations: Float[Tensor, "features"]
    probabilities: Float[Tensor, "logits"]
    influence: Float[Tensor, "nodes"]
    ids: Int[Tensor, "pos"]
    tokens: tuple[str, ...]
    logit_tokens: tuple[str, ...]
    prompt: str
    slug: str
    scan: str
    residual: float
    scores: Scores
    n_active: int
    settings: Mapping[str, Any]
    pruning: Mapping[str, float] | None
    model: Mapping[str, Any]
    provenance: Mapping[str, Any]
    created_ms: int

    def drawn(self) -> Bool[Tensor, "nodes"]:
        """Nodes that are part of the graph: features, tokens, logits, and whatever else has an edge."""
        drawn = self.nodes.mask(NodeKind.FEATURE, NodeKind.TOKEN, NodeKind.LOGIT)
        return drawn.index_fill_(0, self.edges.sources.long(), True)
