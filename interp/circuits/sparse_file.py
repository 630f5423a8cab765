"""A graph as one safetensors file: edges bit for bit, several times smaller than the document, read without parsing.

    edges.targets [rows]         node of each row               edges.starts [rows + 1]   where its edges begin
    edges.sources [edges]        node of each edge's source     edges.weights [edges]     float32
    features [features, 3]       layer, position, latent        activations [features]
    logits [logits]              vocabulary index of targets    probabilities [logits]
    ids [pos]                    the prompt                     influence [nodes]         as in `GraphRecord`
    nodes.kind, .layer, .position [nodes]                       what each node is, for other programs

Rows are compressed (CSR): row r has the edges starts[r] .. starts[r + 1] - 1. Everything that is no tensor stands in
the header, as JSON under `interp`; it names the kinds of nodes in the order of their numbers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from interp.circuits.edges import EdgeTable
from interp.circuits.influence import Scores
from interp.circuits.nodes import NodeIndex, NodeKind
from interp.circuits.record import GraphRecord
from interp.errors import SourceError

FORMAT = "interp/graph-tensors/v1"
_TOLD = (
    *("tokens", "logit_tokens", "prompt", "slug", "scan", "residual", "n_active"),
    *("settings", "pruning", "model", "provenance", "created_ms"),
)
_KEY = "interp"
_DTYPES = {
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float32: "F32",
    torch.float64: "F64",
}
_PIECE = 2**20


def write_tensors(graph: GraphRecord, path: str | Path) -> None:
    """Write the file of a graph, without a second copy of its edges in memory."""
    with Path(path).open("wb") as file:
        file.writelines(tensor_chunks(graph)[1])


def tensor_chunks(graph: GraphRecord) -> tuple[int, Iterator[bytes]]:
    """The file of a graph as its length and its bytes, piece by piece: nobody needs to hold it whole.

    safetensors has no writer but into a file of its own. The format: length of the header, the header, the numbers.
    """
    tensors, told = _parts(graph)
    # Wide numbers first, so that each begins at a multiple of its size.
    order = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    # One key of our own: the order of several would differ from file to file.
    header: dict[str, Any] = {
        "__metadata__": {_KEY: json.dumps(told, ensure_ascii=False, allow_nan=False, default=dict)}
    }
    end = 0
    for name in order:
        start, end = end, end + tensors[name].nbytes
        shape, dtype = list(tensors[name].shape), _DTYPES[tensors[name].dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    first = len(text).to_bytes(8, "little") + text
    return len(first) + end, chain([first], *(_pieces(tensors[name]) for name in order))


def _pieces(tensor: Tensor) -> Iterator[bytes]:
    numbers = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return (numbers[start : start + _PIECE].tobytes() for start in range(0, len(numbers), _PIECE))


def _parts(graph: GraphRecord) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Its tensors, and all that is none."""
    nodes, edges = graph.nodes, graph.edges
    tensors = {
        "edges.targets": edges.targets.int(),
        "edges.starts": edges.starts.long(),
        "edges.sources": edges.sources.int(),
        "edges.weights": edges.weights.float(),
        "features": nodes.features.int(),
        "activations": graph.activations.float(),
        "logits": nodes.logits.long(),
        "probabilities": graph.probabilities.float(),
        "influence": graph.influence.double(),
        "ids": graph.ids.long(),
        "nodes.kind": nodes.kinds.to(torch.int8),
        "nodes.layer": nodes.layers.to(torch.int16),
        "nodes.position": nodes.positions.int(),
    }
    told = {
        "format": FORMAT,
        "n_layers": nodes.n_layers,
        "n_pos": nodes.n_pos,
        "logit_pos": nodes.logit_pos,
        "kinds": [kind.name.lower() for kind in NodeKind],
        "scores": asdict(graph.scores),
        **{name: getattr(graph, name) for name in _TOLD},
    }
    return tensors, told


def record_of_tensors(path: str | Path) -> GraphRecord:
    """The graph of a file that `write_tensors` made.

    Raises:
        SourceError: there is no such file, it is damaged, or it is another program's.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            told = json.loads((file.metadata() or {}).get(_KEY, "{}"))
            if told.get("format") != FORMAT:
                raise SourceError(
                    "this is no graph of interp",
                    value=f"{path}: {told.get('format')}",
                    expected=f"a header that says {FORMAT}",
                )
            return _rebuild({name: file.get_tensor(name) for name in file.keys()}, told)  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise SourceError(
            "the graph cannot be read", value=f"{path}: {error!r}", expected="a file that `save` wrote"
        ) from error


def _rebuild(tensors: Mapping[str, Tensor], told: Mapping[str, Any]) -> GraphRecord:
    nodes = NodeIndex(told["n_layers"], told["n_pos"], tensors["features"], tensors["logits"], told["logit_pos"])
    if len(tensors["influence"]) != len(nodes) or len(tensors["edges.starts"]) != len(tensors["edges.targets"]) + 1:
        raise ValueError("sizes of its tensors do not fit together")
    parts = (tensors[f"edges.{name}"] for name in ("starts", "sources", "weights"))
    texts = {name: tuple(told[name]) for name in ("tokens", "logit_tokens")}
    return GraphRecord(
        nodes=nodes,
        edges=EdgeTable(tensors["edges.targets"].long(), *parts),
        activations=tensors["activations"],
        probabilities=tensors["probabilities"],
        influence=tensors["influence"],
        ids=tensors["ids"],
        scores=Scores(**told["scores"]),
        **{**{name: told[name] for name in _TOLD}, **texts},
    )
