"""circuit-tracer on a case. Runs in its own environment, and imports nothing of `interp`.

    python -m benchmarks.peers.circuit_tracer_side CASE.json REQUEST.json OUT

`attribute` is called as its documentation has it, with its nnsight backend on the model's directory. Transcoders are
read by its own loaders, held in memory as ours are; a TopK set gets its TopK class, which its loader never chooses.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.graph import Graph
from circuit_tracer.replacement_model.replacement_model_nnsight import NNSightReplacementModel
from circuit_tracer.transcoder.activation_functions import TopK
from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder, load_clt
from circuit_tracer.transcoder.single_layer_transcoder import TranscoderSet, load_relu_transcoder
from circuit_tracer.utils.create_graph_files import create_graph_files
from safetensors.torch import save_file

from benchmarks.peers.usage import Measured

PACKAGES = ("circuit-tracer", "torch", "transformers", "nnsight", "transformer-lens")
_HOOKS = {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "hook_mlp_out"}
_CPU = torch.device("cpu")


def transcoders(case: dict[str, Any], folder: Path) -> TranscoderSet | CrossLayerTranscoder:
    """As its loaders read them."""
    if case["cross_layer"]:
        return load_clt(str(folder), **_HOOKS, scan="none", device=_CPU, dtype=torch.float32, lazy_decoder=False)
    made = {}
    for layer in range(case["shape"]["layers"]):
        path = str(folder / f"layer_{layer}.safetensors")
        made[layer] = load_relu_transcoder(path, layer, device=_CPU, lazy_encoder=False, lazy_decoder=False)
        if case["activation"] == "topk":
            made[layer].activation_function = TopK(case["k"])
    return TranscoderSet(made, **_HOOKS, scan="none")


def rows(graph: Graph) -> dict[str, torch.Tensor]:
    """Features, errors and tokens as columns, features and logits as rows: what both sides write down."""
    n_features, n_logits = len(graph.selected_features), len(graph.logit_probabilities)
    adjacency = graph.adjacency_matrix[:, : graph.adjacency_matrix.shape[1] - n_logits]
    return {
        "features": graph.active_features[graph.selected_features].int(),
        "activations": graph.activation_values[graph.selected_features],
        "logits": graph.logit_token_ids.int(),
        "probabilities": graph.logit_probabilities,
        "n_pos": torch.tensor(graph.n_pos),
        "rows": torch.cat([adjacency[:n_features], adjacency[len(adjacency) - n_logits :]]),
    }


def main(case_path: Path, request_path: Path, out: Path) -> None:
    case, request = (json.loads(path.read_bytes()) for path in (case_path, request_path))
    torch.set_num_threads(request["threads"])
    loaded = transcoders(case, case_path.parent / "transcoders")
    model = NNSightReplacementModel.from_pretrained_and_transcoders(
        str(case_path.parent / "model"), loaded, device=_CPU, dtype=torch.float32
    )
    ids, measured = torch.tensor(case["ids"]), Measured()
    asked = {"batch_size": request["batch"], "max_feature_nodes": request["max_features"]}
    graph = measured.attribute(lambda: attribute(ids, model, **asked), request["calls"])
    if request["graph_file"]:
        measured.graph_file(lambda: create_graph_files(graph, "case", out))
    versions = {name: version(name) for name in PACKAGES}
    figures = measured.finish(n_active=len(graph.active_features), versions=versions)
    save_file({name: part.detach().contiguous() for name, part in rows(graph).items()}, out / "graph.safetensors")
    (out / "figures.json").write_text(json.dumps(figures), "utf-8")


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:4]))
