"""Whether a graph says what the model does: predicted against measured effects of ablating its features.

Predicted, from the graph alone. A[t, s] is what node s adds to the pre-activation of t, and a_u the activation of
feature u. Ablating s takes A[t, s] from a target directly, and lowers every feature u on the way, of which t loses the
same share. The total effect is the signed sum over all paths,

    T[t, s] = A[t, s] + sum over features u of T[t, u] A[u, s] / a_u            predicted = -T[t, s]

exact, by one pass over the rows from the top layer down (no series). Thresholds are frozen: no feature of the prompt
switches off, and no other one on. Of features without a row the graph knows no paths.

Measured, as the change of the target's own value (a logit less the mean logit, a difference, a projection, a
pre-activation), when the feature is ablated in

    frozen    the frozen replacement model, whose features are encoded anew: they switch, attention and norms do not
    measured  the underlying model: attention, norms and the model's own MLPs all respond
    readout   the same run, but the target is read as the graph reads it: its own norm keeps the prompt's denominator.
              To take a large feature away makes the stream shorter and so all logits larger, which no edge can say

Over all pairs of feature and target, for the line through the origin:

    slope = sum(p m) / sum(p^2)          R2 = 1 - sum (m - slope p)^2 / sum (m - mean m)^2

The curve: the features of the graph with the greatest influence are kept, as many as the share says, and all other
features, whether the graph has them or not, are ablated at all positions up to the target's:

    recovered = (kept - none) / (all - none)        of the targets' values, weighted as the graph weighs them

`none` has every feature ablated, errors and biases stay. (Marks et al. 2024, arXiv:2403.19647, call it faithfulness.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.circuits.attribution import AttributionEdges
from interp.circuits.edges import EdgeTable
from interp.circuits.edits import Edits
from interp.circuits.influence import influence_of
from interp.circuits.nodes import NodeIndex, NodeKind
from interp.circuits.readings import frozen_changes, model_changes
from interp.circuits.replacement_model import ReplacementModel
from interp.circuits.selection import most_influential
from interp.circuits.state import ReplacementState
from interp.errors import PromptError
from interp.spec.trace import FaithfulnessSpec

_EDGES_AT_ONCE = 2**20


@dataclass(frozen=True)
class Effect:
    """What ablating one feature does to one target: by how much its value moves.

    Attributes:
        target: its label.
    """

    layer: int
    pos: int
    latent: int
    target: str
    predicted: float
    frozen: float
    measured: float
    readout: float


@dataclass(frozen=True)
class CurvePoint:
    """A part of the features, and the part of the targets that it recovers.

    Attributes:
        recovered: in the underlying model; None where ablating every feature changes nothing.
        recovered_frozen: in the frozen replacement model.
    """

    share: float
    features: int
    recovered: float | None
    recovered_frozen: float | None


@dataclass(frozen=True)
class Faithfulness:
    """How faithful one graph is.

    Attributes:
        slope, r2: measured against predicted, in the underlying model; None where nothing is predicted or varies.
        slope_frozen, r2_frozen: in the frozen replacement model.
        slope_readout, r2_readout: in the underlying model, by the graph's own read-outs.
    """

    slope: float | None
    r2: float | None
    slope_frozen: float | None
    r2_frozen: float | None
    slope_readout: float | None
    r2_readout: float | None
    rows: tuple[Effect, ...]
    curve: tuple[CurvePoint, ...]

    def to_json(self) -> dict[str, Any]:
        """As a file has it."""
        said = asdict(self)
        return {**said, "rows": list(said["rows"]), "curve": list(said["curve"])}


@torch.no_grad()
def faithfulness(
    rm: ReplacementModel, state: ReplacementState, edges: AttributionEdges, spec: FaithfulnessSpec
) -> Faithfulness:
    """How faithful a graph is to the model (see the module).

    Args:
        state: what the graph was computed on.
    """
    if not torch.equal(edges.ids, state.ids):
        raise PromptError("the state was built on another prompt", remedy="build a state with the graph's ids")
    _, influence, _ = influence_of(edges.nodes, edges.edges, edges.probabilities)
    influence = influence[edges.nodes.span(NodeKind.FEATURE)]
    effects = _effects(rm, state, edges, most_influential(influence, spec.features))
    predicted = [effect.predicted for effect in effects]
    slope, r2 = through_origin(predicted, [effect.measured for effect in effects])
    slope_frozen, r2_frozen = through_origin(predicted, [effect.frozen for effect in effects])
    slope_readout, r2_readout = through_origin(predicted, [effect.readout for effect in effects])
    curve = _curve(rm, state, edges, influence, spec.curve)
    return Faithfulness(slope, r2, slope_frozen, r2_frozen, slope_readout, r2_readout, effects, curve)


def total_effects(
    nodes: NodeIndex, edges: EdgeTable, activations: Float[Tensor, "features"]
) -> Float[Tensor, "targets nodes"]:
    """T: what each target of the graph would lose with each node, through all paths (see the module).

    Args:
        edges: rows in node order.
        activations: of each feature.
    """
    total = torch.zeros(len(nodes), nodes.n_logits, dtype=torch.float64)
    rows, levels = edges.targets.long(), nodes.layers[edges.targets.long()]
    first = nodes.span(NodeKind.LOGIT).start
    own = torch.zeros(len(nodes), nodes.n_logits, dtype=torch.float64)
    own[first:] = torch.eye(nodes.n_logits, dtype=torch.float64)
    size = torch.ones(len(nodes), dtype=torch.float64)
    size[nodes.span(NodeKind.FEATURE)] = activations.double()
    for level in levels.unique().flip(0).tolist():
        # All rows above this level have been read: the totals of its nodes are complete.
        for some in (levels == level).nonzero().flatten().split(_rows_at_once(edges, nodes)):
            part = edges.rows(some)
            reach = (total + own)[rows[some]] / size[rows[some], None]
            total.index_add_(0, part.sources.long(), part.weights.double()[:, None] * reach[part.row_of_edge])
    return total.T


def through_origin(predicted: Sequence[float], measured: Sequence[float]) -> tuple[float | None, float | None]:
    """(slope, R2) of the line through the origin; None where they do not exist."""
    p, m = torch.tensor(predicted, dtype=torch.float64), torch.tensor(measured, dtype=torch.float64)
    if not float((p * p).sum()) > 0:
        return None, None
    slope = float((p * m).sum() / (p * p).sum())
    spread = float((m - m.mean()).square().sum())
    return slope, 1.0 - float((m - slope * p).square().sum()) / spread if spread > 0 else None


def _rows_at_once(edges: EdgeTable, nodes: NodeIndex) -> int:
    longest = int(edges.counts.max()) if len(edges.counts) else 1
    return max(1, _EDGES_AT_ONCE // max(1, longest * nodes.n_logits))


def _effects(
    rm: ReplacementModel, state: ReplacementState, edges: AttributionEdges, features: Int[Tensor, "best"]
) -> tuple[Effect, ...]:
    if not len(features):
        return ()
    predicted = -total_effects(edges.nodes, edges.edges, edges.activations)[:, features].T
    places = edges.nodes.features[features]
    ablations = Edits.ablate_each(places)
    frozen = frozen_changes(state, ablations, edges.targets)
    measured, readout = model_changes(rm, state, ablations, edges.targets)
    rows = []
    for i, (layer, pos, latent) in enumerate(places.tolist()):
        for j, target in enumerate(edges.logit_tokens):
            values = (float(table[i, j]) for table in (predicted, frozen, measured, readout))
            rows.append(Effect(layer, pos, latent, target, *values))
    return tuple(rows)


def _curve(
    rm: ReplacementModel,
    state: ReplacementState,
    edges: AttributionEdges,
    influence: Float[Tensor, "features"],
    shares: Sequence[float],
) -> tuple[CurvePoint, ...]:
    order = influence.argsort(descending=True, stable=True)
    counts = [max(1, round(share * len(order))) if len(order) else 0 for share in shares]
    sets = [edges.nodes.features[order[:count]] for count in (0, *counts)]
    edits = Edits.keep_only(sets, until=int(edges.targets.positions.max()))
    weights = edges.probabilities.double() / edges.probabilities.double().sum()
    in_model = _recovered(model_changes(rm, state, edits, edges.targets).values.double() @ weights)
    frozen = _recovered(frozen_changes(state, edits, edges.targets).double() @ weights)
    return tuple(CurvePoint(*point) for point in zip(shares, counts, in_model, frozen, strict=True))


def _recovered(changes: Float[Tensor, "sets"]) -> list[float | None]:
    """Changes are from `all`; the first set is `none`."""
    none, *kept = changes.tolist()
    return [(change - none) / -none if none != 0 else None for change in kept]
