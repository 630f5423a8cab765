"""Which active features get a row of their own when there are more of them than rows to compute.

Wanted are the features with the greatest influence on the target logits. A feature's influence is a sum over paths, and
a path can be seen only when every feature on it has its row; computing all rows to find out which to compute would
defeat the purpose. So rows are added in rounds: the influence that is known after a round comes only from paths through
rows that are there, and can only grow. Each round takes the features that have the greatest known influence, a fixed
number of them. What is missed is a feature whose influence comes mostly through features too weak to be chosen; on
small random models the choice has over 99 % of the influence that the best choice of its size has (a test).

The number of rounds depends on `max_features` alone. The choice therefore does not depend on how rows are batched:
influences are compared to 14 bits, so that the rounding of a sum does not decide between equal features, and of equal
ones the first in node order is taken.
"""

from __future__ import annotations

from collections.abc import Generator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.circuits.influence import logit_weights
from interp.circuits.rows import RowStore

ROUNDS = 16
_LEAST_ROUND = 8
_MANTISSA_BITS = 14


def choose_features(
    store: RowStore,
    probabilities: Float[Tensor, "logits"],
    candidates: Bool[Tensor, "features"],
    max_features: int,
) -> Generator[Int[Tensor, "best"], None, Bool[Tensor, "features"]]:
    """Gives the features of each round, whose rows must be in the store when it goes on; returns all chosen ones.

    Fewer than `max_features` are chosen if no other feature has any influence.

    Args:
        store: over all active features, with the rows of the targets.
        candidates: features that may be chosen.
    """
    nodes = store.nodes
    chosen = torch.zeros(nodes.n_features, dtype=torch.bool)
    weights, quota = logit_weights(nodes, probabilities), round_size(max_features)
    while (room := max_features - int(chosen.sum())) > 0:
        influence = store.influence(weights)[: nodes.n_features]
        best = most_influential(influence * (candidates & ~chosen), min(quota, room))
        if not len(best):
            break
        chosen[best] = True
        yield best
    return chosen


def round_size(max_features: int) -> int:
    """How many features a round takes."""
    return max(_LEAST_ROUND, -(-max_features // ROUNDS))


def most_influential(influence: Float[Tensor, "features"], count: int) -> Int[Tensor, "best"]:
    """Up to `count` features with the greatest influence above 0, in node order; of equal ones the first."""
    mantissa, exponent = torch.frexp(influence.double())
    rounded = torch.ldexp((mantissa * 2**_MANTISSA_BITS).round(), exponent)
    best = rounded.argsort(descending=True, stable=True)[:count]
    return best[rounded[best] > 0].sort().values
