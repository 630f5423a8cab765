"""The adjacency of an attribution graph as sparse rows: for each target its sources and their weights.

Compressed sparse rows with 32-bit indices and weights: 8 bytes an edge. A target at layer l and position p has edges
from lower layers and from positions up to p only, so about a quarter of a dense matrix is ever filled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_ROWS_AT_ONCE = 128


@dataclass(frozen=True, eq=False)
class EdgeTable:
    """Rows of the adjacency.

    Attributes:
        targets: node of each row.
        starts: edges of row r are starts[r] .. starts[r + 1] - 1.
        sources: node of each edge's source, ascending within a row.
        weights: what the source adds to the target's pre-activation.
    """

    targets: Int[Tensor, "rows"]
    starts: Int[Tensor, "rows+1"]
    sources: Int[Tensor, "edges"]
    weights: Float[Tensor, "edges"]

    @classmethod
    def from_dense(cls, targets: Int[Tensor, "rows"], rows: Float[Tensor, "rows nodes"]) -> EdgeTable:
        """The nonzero entries of dense rows."""
        row, column = rows.nonzero(as_tuple=True)
        counts = torch.bincount(row, minlength=len(rows))
        return cls(targets.cpu(), _starts(counts.cpu()), column.int().cpu(), rows[row, column].float().cpu())

    @classmethod
    def empty(cls) -> EdgeTable:
        """No rows."""
        none = torch.zeros(0, dtype=torch.long)
        return cls(none, torch.zeros(1, dtype=torch.long), none.int(), torch.zeros(0))

    @classmethod
    def cat(cls, tables: Sequence[EdgeTable]) -> EdgeTable:
        """The rows of all tables, one after the other."""
        if len(tables) == 1:
            return tables[0]
        counts = torch.cat([table.counts for table in tables])
        return cls(
            torch.cat([table.targets for table in tables]),
            _starts(counts),
            torch.cat([table.sources for table in tables]),
            torch.cat([table.weights for table in tables]),
        )

    @property
    def n_edges(self) -> int:
        return len(self.sources)

    @cached_property
    def counts(self) -> Int[Tensor, "rows"]:
        """Number of edges of each row."""
        return self.starts.diff()

    @cached_property
    def row_of_edge(self) -> Int[Tensor, "edges"]:
        """Row of each edge."""
        return torch.repeat_interleave(torch.arange(len(self.targets)), self.counts)

    @property
    def target_of_edge(self) -> Int[Tensor, "edges"]:
        """Target node of each edge."""
        return self.targets[self.row_of_edge]

    def row_sums(self, values: Float[Tensor, "edges"] | None = None) -> Float[Tensor, "rows"]:
        """Sum of the weights, or of one value for each edge, by row, in float64."""
        values = (self.weights if values is None else values).double()
        return torch.segment_reduce(values, "sum", lengths=self.counts, initial=0.0)

    def rows(self, order: Int[Tensor, "some"]) -> EdgeTable:
        """These rows, in this order."""
        counts = self.counts[order]
        starts = _starts(counts)
        edges = torch.arange(int(starts[-1])) + torch.repeat_interleave(self.starts[order] - starts[:-1], counts)
        return EdgeTable(self.targets[order], starts, self.sources[edges], self.weights[edges])

    def sorted(self) -> EdgeTable:
        """Rows in node order."""
        return self.rows(self.targets.argsort(stable=True))

    def where(self, kept: Bool[Tensor, "edges"]) -> EdgeTable:
        """These edges only; every row stays, if only as an empty one."""
        counts = torch.segment_reduce(kept.double(), "sum", lengths=self.counts, initial=0.0).long()
        return EdgeTable(self.targets, _starts(counts), self.sources[kept], self.weights[kept])

    def relabelled(self, new_index: Int[Tensor, "nodes"], n_nodes: int) -> EdgeTable:
        """Rename all nodes; edges of a row that now share a source are added up."""
        targets = new_index[self.targets]
        tables = [EdgeTable.empty()]
        # Densely, some rows at a time: sorting millions of renamed edges costs several times as much.
        for first in range(0, len(targets), _ROWS_AT_ONCE):
            last = min(first + _ROWS_AT_ONCE, len(targets))
            span = slice(int(self.starts[first]), int(self.starts[last]))
            row = torch.repeat_interleave(torch.arange(last - first), self.counts[first:last])
            rows = torch.zeros(last - first, n_nodes, dtype=torch.float64)
            place = row * n_nodes + new_index[self.sources[span].long()]
            rows.view(-1).index_add_(0, place, self.weights[span].double())
            tables.append(EdgeTable.from_dense(targets[first:last], rows))
        return EdgeTable.cat(tables)

    def to_sparse(self, n_nodes: int) -> Tensor:
        """A sparse COO matrix [n_nodes, n_nodes], row = target, column = source."""
        ends = torch.stack([self.target_of_edge.long(), self.sources.long()])
        return torch.sparse_coo_tensor(ends, self.weights, (n_nodes, n_nodes), check_invariants=False).coalesce()


def _starts(counts: Int[Tensor, "rows"]) -> Int[Tensor, "rows+1"]:
    return torch.cat([torch.zeros(1, dtype=torch.long), counts.long().cumsum(0)])
