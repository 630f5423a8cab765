"""Trace: graphs a minute on the model that ships, against the floor of the sweep's matrix products.

Transcoders are random (as many active latents as trained ones have), so that no training is needed. The floor is
the plan's count of FLOPs for a trace, at the rate of a float32 product of the model's size.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from benchmarks.timing import matmul_rate, side_by_side
from interp.circuits.attribution import AttributionComputer
from interp.circuits.graph import AttributionGraph
from interp.circuits.replacement_model import ReplacementModel
from interp.dictionaries import Transcoder
from interp.dictionaries.config import DictionaryConfig, ModelIdentity
from interp.spec.dictionary import TopK
from interp.wrapper import HookedModel

LATENTS, K = 1024, 16
PROMPT = "def __init__(self, path, mode, encoding):\n        self.path = path\n        self.mode ="


def transcoders(hooked: HookedModel) -> list[Transcoder]:
    made = []
    identity = ModelIdentity(source="benchmark", fingerprint=hooked.fingerprint, family=hooked.family.name)
    for seed, hook_in in enumerate(hooked.topology.all_mlp_in_hooks):
        d = hooked.topology.width(hook_in)
        config = DictionaryConfig(
            kind="skip-transcoder",
            hook_in=hook_in,
            hook_out=hook_in.replace("mlp_in", "mlp_out"),
            d_in=d,
            d_out=d,
            n_latents=LATENTS,
            activation=TopK(type="topk", k=K),
            model=identity,
        )
        transcoder = Transcoder(config, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        for weight in (transcoder.W_dec, transcoder.W_skip):
            if weight is not None:
                weight.data.normal_(generator=generator, std=d**-0.5)
        made.append(transcoder.requires_grad_(False))
    return made


def sweep_flops(hooked: HookedModel, pos: int, targets: int) -> float:
    """FLOPs of the downward sweep, on average over targets: half the layers, half the positions.

    Per layer, position and target: the skip path (2 d^2), the output and value projections (4 d^2), and the pattern's
    product over positions (2 d pos); reading off the k active latents of a position costs 2 d k.
    """
    total = 0.0
    for _, n_layers, d in hooked.topology.groups:
        total += n_layers * (6 * d * d + 2 * d * pos + 2 * d * K)
    return total * pos * targets / 4


def run() -> dict[str, Any]:
    hooked = HookedModel("builtin://tiny-split-llama")
    replacement = ReplacementModel(hooked, transcoders(hooked))
    computer = AttributionComputer(replacement, max_features=None)
    ids = hooked.tokenize(PROMPT, bos=True)
    edges = computer.compute_full_graph(replacement.build(ids))
    graph = AttributionGraph.from_edges(edges)

    def one() -> None:
        made = AttributionGraph.from_edges(computer.compute_full_graph(replacement.build(ids)))
        made.prune(0.8, 0.98).to_bytes()

    cpu = time.process_time()
    rounds = 5
    seconds = side_by_side({"graph": one}, rounds=rounds)["graph"]
    cpu = (time.process_time() - cpu) / (rounds + 1)
    rows = edges.nodes.n_features + edges.nodes.n_logits
    floor = sweep_flops(hooked, len(edges.ids), rows) / matmul_rate(256, 256, 256)
    return {
        "tiny-split-llama, one prompt": {
            "tokens": len(edges.ids),
            "targets": rows,
            "edges": edges.edges.n_edges,
            "residual": float(f"{graph.residual:.2e}"),
            "graphs_per_minute": round(60 / seconds, 1),
            "cpu_s_per_graph": round(cpu, 2),
            "floor_s": round(floor, 3),
            "ratio_to_floor": round(floor / seconds, 3),
        }
    }
