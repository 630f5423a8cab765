"""`interp` on a case, written down as the peer's side does.

python -m benchmarks.peers.own_side CASE.json REQUEST.json OUT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.peers.usage import Measured
from interp.circuits.attribution import AttributionComputer, AttributionEdges
from interp.circuits.graph import AttributionGraph
from interp.circuits.nodes import NodeKind
from interp.circuits.replacement_model import ReplacementModel
from interp.dictionaries.foreign import Claim, read_dictionaries
from interp.wrapper import HookedModel


def rows(edges: AttributionEdges) -> dict[str, torch.Tensor]:
    """Features, errors and tokens as columns, features and logits as rows: what both sides write down."""
    nodes, table = edges.nodes, edges.edges
    dense = torch.zeros(len(nodes), len(nodes))
    dense[table.target_of_edge.long(), table.sources.long()] = table.weights
    columns = [dense[:, nodes.span(kind)] for kind in (NodeKind.FEATURE, NodeKind.ERROR, NodeKind.TOKEN)]
    dense = torch.cat(columns, dim=1)
    return {
        "features": nodes.features.int(),
        "activations": edges.activations,
        "logits": nodes.logits.int(),
        "probabilities": edges.probabilities,
        "n_pos": torch.tensor(nodes.n_pos),
        "rows": torch.cat([dense[nodes.span(NodeKind.FEATURE)], dense[nodes.span(NodeKind.LOGIT)]]),
    }


def main(case_path: Path, request_path: Path, out: Path) -> None:
    case, request = (json.loads(path.read_bytes()) for path in (case_path, request_path))
    torch.set_num_threads(request["threads"])
    hooked = HookedModel(str(case_path.parent / "model"))
    transcoders = read_dictionaries(case_path.parent / "transcoders", Claim(hooked, source="benchmark"))
    replacement = ReplacementModel(hooked, transcoders, bos=request["bos"])
    computer = AttributionComputer(replacement, max_features=request["max_features"], batch=request["batch"])
    ids, measured = torch.tensor(case["ids"]), Measured()
    edges = measured.attribute(lambda: computer.compute_full_graph(replacement.build(ids)), request["calls"])
    if request["graph_file"]:
        measured.graph_file(lambda: AttributionGraph.from_edges(edges).prune(0.8, 0.98).save(out / "case.json"))
    figures = measured.finish(n_active=edges.n_active, residual=edges.residual)
    save_file({name: part.detach().contiguous() for name, part in rows(edges).items()}, out / "graph.safetensors")
    (out / "figures.json").write_text(json.dumps(figures), "utf-8")


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:4]))
