"""The file of a graph's tensors, piece by piece: what any reader of safetensors expects."""

from __future__ import annotations

import json
from pathlib import Path

import circuit_cases as cases
import pytest
import torch
from safetensors.torch import load

from interp.circuits import sparse_file
from interp.circuits.attribution import AttributionComputer
from interp.circuits.graph import AttributionGraph


def test_the_file_comes_in_pieces_and_any_reader_knows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The length is known before, no piece is large, and numbers begin where their size divides."""
    monkeypatch.setattr(sparse_file, "_PIECE", 64)
    rm = cases.replacement_model("llama", "relu", skip=True)
    of = AttributionGraph.from_edges(AttributionComputer(rm).compute_full_graph(rm.build(cases.prompt(6))))
    size, chunks = sparse_file.tensor_chunks(of)
    header, *pieces = chunks
    assert len(header) + sum(map(len, pieces)) == size and max(map(len, pieces)) == 64 and len(header) % 8 == 0
    tensors, _ = sparse_file._parts(of)
    read = load(header + b"".join(pieces))
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype and torch.equal(read[name], tensor)
    said = json.loads(header[8:])
    assert all(said[name]["data_offsets"][0] % tensor.itemsize == 0 for name, tensor in tensors.items())
    of.save(tmp_path / "graph.safetensors")
    assert (tmp_path / "graph.safetensors").read_bytes() == header + b"".join(pieces)
