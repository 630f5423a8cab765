"""The nodes and edges that carry most of a graph's influence.

    1. nodes: the smallest set whose influence adds up to `node_threshold` of the total; tokens and logits always stay
    2. edges between them: shares and influence anew on what is left, then the smallest set that adds up to
       `edge_threshold` of A'[t, s] (I[t] + w[t])
    3. until nothing changes: features, errors and rest without an outgoing edge go, features without an incoming one go

(The procedure of circuit-tracer, on sparse rows.) Of nodes or edges with the same influence the first in node order
stays. Constants are not weighed unless they are counted: every edge from a constant to a node that is kept stays.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.circuits.edges import EdgeTable
from interp.circuits.influence import counted_sources, flow_of, influence_of
from interp.circuits.nodes import NodeIndex, NodeKind
from interp.errors import SpecError


@dataclass(frozen=True, eq=False)
class Pruned:
    """What is kept of a graph.

    Attributes:
        nodes: which nodes.
        edges: which edges.
        cumulative: for each node the share of all influence that it and the nodes before it in rank add up to.
    """

    nodes: Bool[Tensor, "nodes"]
    edges: Bool[Tensor, "edges"]
    cumulative: Float[Tensor, "nodes"]


def prune(
    nodes: NodeIndex,
    edges: EdgeTable,
    probabilities: Float[Tensor, "logits"],
    *,
    node_threshold: float,
    edge_threshold: float,
    constants: bool = False,
) -> Pruned:
    """Choose nodes and edges; rows must be in node order."""
    for name, threshold in (("node_threshold", node_threshold), ("edge_threshold", edge_threshold)):
        if not 0.0 <= threshold <= 1.0:
            raise SpecError(f"{name} is a share of the total influence", value=threshold, expected="0 .. 1")
    counted = counted_sources(nodes, constants)
    influence = flow_of(nodes, edges, probabilities, constants).influence
    kept = top_share(influence, node_threshold)
    kept |= nodes.mask(NodeKind.TOKEN, NodeKind.LOGIT) | ~counted

    # Of most rows nothing is left: the rest is done with the few that are.
    rows = kept[edges.targets.long()].nonzero().flatten()
    few = edges.rows(rows)
    targets, sources = few.target_of_edge.long(), few.sources.long()
    inside = kept[sources]
    left = few.where(inside)
    shares, _, reach = influence_of(nodes, left, probabilities, constants)
    strong = torch.zeros(few.n_edges, dtype=torch.bool)
    strong[inside] = top_share(shares * reach[targets[inside]], edge_threshold)

    kept, strong = _drop_dangling(nodes, kept, strong, targets, sources, counted)
    constant = ~counted[sources] & kept[targets]
    used = torch.zeros(len(nodes), dtype=torch.bool).index_fill_(0, sources[constant], True)
    chosen = torch.zeros(edges.n_edges, dtype=torch.bool)
    chosen[edges_of(edges, rows)] = strong | constant
    return Pruned((kept & counted) | used, chosen, cumulative_share(influence))


def edges_of(edges: EdgeTable, rows: Int[Tensor, "some"]) -> Int[Tensor, "edges"]:
    """Where the edges of these rows are, in the order of `edges.rows(rows)`."""
    counts = edges.counts[rows]
    ends = counts.cumsum(0)
    return torch.arange(int(counts.sum())) + torch.repeat_interleave(edges.starts[rows] - ends + counts, counts)


def _drop_dangling(
    nodes: NodeIndex, kept: Tensor, strong: Tensor, targets: Tensor, sources: Tensor, counted: Tensor
) -> tuple[Bool[Tensor, "nodes"], Bool[Tensor, "edges"]]:
    """Features must be caused by something, and features and errors must lead somewhere: at most once a layer."""
    needs_outgoing = counted & ~nodes.mask(NodeKind.TOKEN, NodeKind.LOGIT)
    needs_incoming = nodes.mask(NodeKind.FEATURE)
    while True:
        has_outgoing = torch.zeros_like(kept).index_fill_(0, sources[strong], True)
        has_incoming = torch.zeros_like(kept).index_fill_(0, targets[strong], True)
        after = kept & (has_outgoing | ~needs_outgoing) & (has_incoming | ~needs_incoming)
        if torch.equal(after, kept):
            return kept, strong
        kept, strong = after, strong & after[targets] & after[sources]


def top_share(scores: Float[Tensor, "n"], threshold: float) -> Bool[Tensor, "n"]:
    """The smallest set of scores that adds up to `threshold` of their sum; of equal scores the first ones.

    At threshold 1 that is every score above 0, however small.
    """
    if threshold >= 1.0:
        return scores > 0
    kept = torch.zeros(len(scores), dtype=torch.bool)
    order = scores.argsort(descending=True, stable=True)
    cumulative = scores[order].double().cumsum(0)
    if threshold > 0 and len(scores) and cumulative[-1] > 0:
        enough = int(torch.searchsorted(cumulative / cumulative[-1], threshold))
        kept[order[: enough + 1]] = True
    return kept


def cumulative_share(scores: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """For each score the share of the sum that it and all that rank before it make up: lower is more important."""
    order = scores.argsort(descending=True, stable=True)
    cumulative = scores[order].double().cumsum(0)
    total = cumulative[-1].clamp(min=torch.finfo(torch.float64).tiny) if len(scores) else cumulative.new_ones(())
    return torch.empty_like(cumulative).index_copy_(0, order, cumulative / total)
