"""The attribution graph of one prompt: what is kept, published and read.

    graph = AttributionGraph.from_edges(edges)
    graph.prune(node_threshold=0.8, edge_threshold=0.98).save("graph.json")
    graph.save("graph.safetensors")                         # every edge; AttributionGraph.load reads both

Scores and influences are those of the graph as it was computed; pruning leaves them as they are.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from interp.circuits.attribution import AttributionEdges
from interp.circuits.document import document_of, metadata_of, record_of
from interp.circuits.influence import flow_of, scores_of
from interp.circuits.nodes import NodeKind
from interp.circuits.prune import cumulative_share, edges_of, prune
from interp.circuits.record import GraphRecord
from interp.circuits.sparse_file import record_of_tensors, write_tensors
from interp.errors import SourceError, SpecError

_NAME = re.compile(r"^[A-Za-z0-9_.-]+$")
_DEFAULT_SCAN = "interp"
_AS_COMPUTED = (
    *("nodes", "edges", "activations", "probabilities", "ids", "logit_tokens"),
    *("residual", "n_active", "settings", "model"),
)


class AttributionGraph(GraphRecord):
    """An attribution graph: made of edges, pruned, saved and loaded (fields: `interp.circuits.record`)."""

    @classmethod
    def from_edges(
        cls,
        edges: AttributionEdges,
        *,
        slug: str | None = None,
        scan: str | None = None,
        prompt: str | None = None,
        tokens: tuple[str, ...] | None = None,
        provenance: Mapping[str, Any] | None = None,
        created_ms: int | None = None,
    ) -> AttributionGraph:
        """A graph of all edges.

        Args:
            slug: by default made of the prompt.
            scan: what readers file the graph under: a model id of the Neuronpedia that it is for.
            prompt, tokens: how the prompt is shown; by default as the tokenizer writes it.
        """
        tokens = edges.tokens if tokens is None else tuple(tokens)
        if len(tokens) != edges.nodes.n_pos:
            raise SpecError("a graph shows one text for each token", value=len(tokens), expected=str(edges.nodes.n_pos))
        prompt = edges.prompt if prompt is None else prompt
        flow = flow_of(edges.nodes, edges.edges, edges.probabilities)
        return cls(
            **{name: getattr(edges, name) for name in _AS_COMPUTED},
            influence=cumulative_share(flow.influence),
            tokens=tokens,
            prompt=prompt,
            slug=_checked_name("slug", slug or default_slug(prompt, edges.ids)),
            scan=_checked_name("scan", scan or _DEFAULT_SCAN),
            scores=scores_of(edges.nodes, flow, edges.probabilities),
            pruning=None,
            provenance=dict(provenance or {}),
            created_ms=time.time_ns() // 1_000_000 if created_ms is None else created_ms,
        )

    def prune(
        self, node_threshold: float = 0.8, edge_threshold: float = 0.98, *, constants: bool = False
    ) -> AttributionGraph:
        """The nodes and edges that carry these shares of the influence (`interp.circuits.prune`).

        Args:
            constants: weigh biases and bos like any other source; by default they stay with the nodes they lead to.
        """
        thresholds = {"node_threshold": node_threshold, "edge_threshold": edge_threshold}
        chosen = prune(self.nodes, self.edges, self.probabilities, constants=constants, **thresholds)
        kept = chosen.nodes[self.nodes.span(NodeKind.FEATURE)]
        nodes, new_index = self.nodes.keeping(kept)
        rows = chosen.nodes[self.edges.targets].nonzero().flatten()
        edges = self.edges.rows(rows).where(chosen.edges[edges_of(self.edges, rows)])
        still_there = torch.ones(len(self.nodes), dtype=torch.bool)
        still_there[self.nodes.span(NodeKind.FEATURE)] = kept
        return replace(
            self,
            nodes=nodes,
            edges=edges.relabelled(new_index, len(nodes)),
            activations=self.activations[kept],
            influence=self.influence[still_there],
            pruning=thresholds,
        )

    def adjacency(self) -> Tensor:
        """Sparse COO matrix [nodes, nodes]: row = target, column = source, in node order."""
        return self.edges.to_sparse(len(self.nodes))

    def to_json(self) -> dict[str, Any]:
        """The graph document that circuit-tracer's page and Neuronpedia read (`interp.circuits.document`)."""
        return document_of(self)

    def metadata(self) -> dict[str, Any]:
        """What the document says of the graph as a whole: a page lists graphs by it."""
        return metadata_of(self)

    def to_bytes(self) -> bytes:
        """The graph document as a file has it."""
        return json.dumps(self.to_json(), separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()

    def save(self, path: str | Path) -> None:
        """Write the graph document, or tensors if the name ends in .safetensors; a reader never sees half of it.

        Raises:
            SpecError: the name ends in something else.
        """
        path = Path(path)
        if path.suffix not in (".json", ".safetensors"):
            raise SpecError("a graph is saved as JSON or as tensors", value=str(path), expected=".json or .safetensors")
        partial = path.with_name(f".{path.name}.partial")
        if path.suffix == ".safetensors":
            write_tensors(self, partial)
        else:
            partial.write_bytes(self.to_bytes())
        partial.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> AttributionGraph:
        """Read what `save` wrote.

        Raises:
            SourceError: there is no such file, or it is no graph of `interp`.
        """
        if Path(path).suffix == ".safetensors":
            return cls(**vars(record_of_tensors(path)))
        try:
            document = json.loads(Path(path).read_bytes())
        except (OSError, ValueError) as error:
            raise SourceError(
                "the graph cannot be read", value=f"{path}: {error}", expected="a graph document"
            ) from error
        return cls(**vars(record_of(document)))


def default_slug(prompt: str, ids: Int[Tensor, "pos"]) -> str:
    """A name for the graph of a prompt: its first words, and a hash that tells it from prompts that begin alike."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40].strip("-")
    digest = hashlib.sha256(json.dumps(ids.tolist()).encode()).hexdigest()[:8]
    return f"{words}-{digest}" if words else digest


def _checked_name(what: str, name: str) -> str:
    if not _NAME.match(name):
        raise SpecError(
            f"this {what} cannot name a graph", value=name, expected="letters, digits, '_', '.' and '-' only"
        )
    return name
