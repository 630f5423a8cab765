"""How much of the target logits a node or an edge accounts for, and the scores of a whole graph.

    A'[t, s] = |A[t, s]| / max(sum_s |A[t, s]|, 1e-10)       the share of source s in target t
    I        = sum over k >= 1 of w A'^k                     w: probabilities of the target logits, 0 elsewhere
    edge     = A'[t, s] (I[t] + w[t])
    replacement score  = I(tokens) / (I(tokens) + I(errors))
    completeness score = sum_t (1 - err[t]) (I[t] + w[t]) / sum_t (I[t] + w[t]),   err[t] = sum over errors of A'[t, s]

(Ameisen et al. 2025, "Circuit Tracing", transformer-circuits.pub; the definitions of circuit-tracer.) The series is
summed exactly: edges lead from lower layers to higher ones, so the influence of a node is known once all rows above it
have been read, and one pass over the edges from the top layer down is the whole sum.

Constants (biases, `bos`) are left out of the shares unless they are asked for: they are part of every exact sum, but
no token causes them, and definitions without them are the ones in use elsewhere. `rest` nodes (features below the cap)
count as errors: they are not explained by this graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.circuits.edges import EdgeTable
from interp.circuits.nodes import CONSTANTS, UNEXPLAINED, NodeIndex, NodeKind

LEAST_ROW_SUM = 1e-10
"""Shares of a row without edges are 0."""

_EDGES_AT_ONCE = 1 << 17


@dataclass(frozen=True)
class Scores:
    """How much of a graph is explained by its features (0 .. 1)."""

    replacement: float
    completeness: float


def counted_sources(nodes: NodeIndex, constants: bool) -> Bool[Tensor, "nodes"]:
    """Which sources take a share in their targets."""
    return torch.ones(len(nodes), dtype=torch.bool) if constants else ~nodes.mask(*CONSTANTS)


def edge_shares(edges: EdgeTable, counted: Bool[Tensor, "nodes"]) -> Float[Tensor, "edges"]:
    """A': the share of each edge in its target; 0 for sources that do not count."""
    sizes = edges.weights.double().abs() * counted[edges.sources.long()]
    sums = edges.row_sums(sizes).clamp(min=LEAST_ROW_SUM)
    return sizes / torch.repeat_interleave(sums, edges.counts)


class Rows(NamedTuple):
    """Some rows of a graph with the shares of their edges, rows of one level together.

    Attributes:
        levels: layer of each row's target. No edge leads from a node to another of its level, or to a lower one.
    """

    edges: EdgeTable
    shares: Float[Tensor, "edges"]
    levels: Int[Tensor, "rows"]

    @classmethod
    def of(cls, nodes: NodeIndex, edges: EdgeTable, constants: bool = False) -> Rows:
        """Rows in node order, as shares."""
        return cls(edges, edge_shares(edges, counted_sources(nodes, constants)), nodes.layers[edges.targets.long()])

    def at(self, level: int) -> tuple[int, int]:
        """First row of a level, and the one after its last."""
        rows = (self.levels == level).nonzero().flatten()
        if not len(rows):
            return 0, 0
        first, last = int(rows[0]), int(rows[-1]) + 1
        if last - first != len(rows):
            raise ValueError("rows of one level must stand together")
        return first, last


def node_influence(parts: Sequence[Rows], weights: Float[Tensor, "nodes"]) -> Float[Tensor, "nodes"]:
    """I: total influence of each node on the logits, by one pass over all rows from the top level down.

    Args:
        weights: w, the starting weight of each node.
    """
    influence = torch.zeros(len(weights), dtype=torch.float64)
    levels = torch.cat([part.levels for part in parts]).unique().flip(0).tolist()
    for level in levels:
        for part in parts:
            first, last = part.at(level)
            if first == last:
                continue
            targets, starts = part.edges.targets[first:last].long(), part.edges.starts
            span = slice(int(starts[first]), int(starts[last]))
            reach = torch.repeat_interleave(influence[targets] + weights[targets], part.edges.counts[first:last])
            influence.index_add_(0, part.edges.sources[span], part.shares[span] * reach)
    return influence


def logit_weights(nodes: NodeIndex, probabilities: Float[Tensor, "logits"]) -> Float[Tensor, "nodes"]:
    """w: the probability of each target logit, 0 for every other node."""
    weights = torch.zeros(len(nodes), dtype=torch.float64)
    weights[nodes.span(NodeKind.LOGIT)] = probabilities.double()
    return weights


def influence_of(
    nodes: NodeIndex, edges: EdgeTable, probabilities: Float[Tensor, "logits"], constants: bool = False
) -> tuple[Float[Tensor, "edges"], Float[Tensor, "nodes"], Float[Tensor, "nodes"]]:
    """(A' of each edge, I of each node, I + w of each node) of a graph whose rows are in node order."""
    rows = Rows.of(nodes, edges, constants)
    weights = logit_weights(nodes, probabilities)
    influence = node_influence([rows], weights)
    return rows.shares, influence, influence + weights


class Flow(NamedTuple):
    """What one pass over a graph gives of every node.

    Attributes:
        influence: I.
        unexplained: err, the share of errors in what flows into it.
    """

    influence: Float[Tensor, "nodes"]
    unexplained: Float[Tensor, "nodes"]


def flow_of(
    nodes: NodeIndex, edges: EdgeTable, probabilities: Float[Tensor, "logits"], constants: bool = False
) -> Flow:
    """I and err of each node of a graph whose rows are in node order.

    The same as `influence_of` without the shares of edges: some rows at a time, which stay in the processor's cache,
    and nothing as large as the graph is made.
    """
    counted, errors = counted_sources(nodes, constants).double(), nodes.mask(*UNEXPLAINED).double()
    reach, unexplained = logit_weights(nodes, probabilities), torch.zeros(len(nodes), dtype=torch.float64)
    weights = reach.clone()
    for first, last in _from_the_top(nodes, edges):
        targets, counts = edges.targets[first:last].long(), edges.counts[first:last]
        span = slice(int(edges.starts[first]), int(edges.starts[last]))
        sources, sizes = edges.sources[span], edges.weights[span].double().abs_()
        sizes.mul_(counted.index_select(0, sources))
        sums = _sums(sizes, counts).clamp_(min=LEAST_ROW_SUM)
        unexplained[targets] = _sums(sizes * errors.index_select(0, sources), counts) / sums
        reach.index_add_(0, sources, sizes.mul_(torch.repeat_interleave(reach[targets] / sums, counts)))
    return Flow(reach - weights, unexplained)


def _from_the_top(nodes: NodeIndex, edges: EdgeTable) -> Iterator[tuple[int, int]]:
    """Groups of rows of one level and of some `_EDGES_AT_ONCE` edges, the highest level first."""
    levels = nodes.layers[edges.targets.long()]
    for level in levels.unique().flip(0).tolist():
        first, end = Rows(edges, edges.weights, levels).at(level)
        while first < end:
            enough = torch.tensor(int(edges.starts[first]) + _EDGES_AT_ONCE)
            last = min(end, max(first + 1, int(torch.searchsorted(edges.starts, enough, right=True)) - 1))
            yield first, last
            first = last


def _sums(values: Float[Tensor, "edges"], counts: Int[Tensor, "rows"]) -> Float[Tensor, "rows"]:
    return torch.segment_reduce(values, "sum", lengths=counts, initial=0.0)


def scores_of(nodes: NodeIndex, flow: Flow, probabilities: Float[Tensor, "logits"]) -> Scores:
    """Replacement and completeness score; 1 where there is nothing to explain."""
    influence, reach = flow.influence, flow.influence + logit_weights(nodes, probabilities)
    by_tokens = float(influence[nodes.span(NodeKind.TOKEN)].sum())
    by_errors = float(influence[nodes.mask(*UNEXPLAINED)].sum())
    total = float(reach.sum())
    return Scores(
        replacement=by_tokens / (by_tokens + by_errors) if by_tokens + by_errors > 0 else 1.0,
        completeness=float(((1 - flow.unexplained) * reach).sum()) / total if total > 0 else 1.0,
    )


def graph_scores(
    nodes: NodeIndex, edges: EdgeTable, probabilities: Float[Tensor, "logits"], constants: bool = False
) -> Scores:
    """`scores_of` a graph whose rows are in node order."""
    return scores_of(nodes, flow_of(nodes, edges, probabilities, constants), probabilities)
