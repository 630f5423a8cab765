"""Trace: graphs a minute on the model that ships, against the floor of the sweep's matrix products.

Transcoders are random (as many active latents as trained ones have), so that no training is needed. The floor is
the FLOPs of the sweeps' matrix products, at the rate of a float32 product of the model's size.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.timing import matmul_rate, side_by_side
from interp.circuits.attribution import AttributionComputer, AttributionEdges
from interp.circuits.graph import AttributionGraph
from interp.circuits.replacement_model import ReplacementModel
from interp.dictionaries import Transcoder
from interp.dictionaries.config import DictionaryConfig, ModelIdentity
from interp.spec.dictionary import TopK
from interp.wrapper import HookedModel

CASES = {
    "tiny-split-llama, one prompt": (1024, 16, None),
    "tiny-split-llama, 8,192 latents, 1,000 features": (8192, 32, 1000),
}
"""Latents, active ones at a position, features with a row."""

PROMPT = "def __init__(self, path, mode, encoding):\n        self.path = path\n        self.mode ="


def transcoders(hooked: HookedModel, n_latents: int = 1024, k: int = 16) -> list[Transcoder]:
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
            n_latents=n_latents,
            activation=TopK(type="topk", k=k),
            model=identity,
        )
        transcoder = Transcoder(config, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        for weight in (transcoder.W_dec, transcoder.W_skip):
            if weight is not None:
                weight.data.normal_(generator=generator, std=d**-0.5)
        made.append(transcoder.requires_grad_(False))
    return made


def sweep_flops(edges: AttributionEdges, widths: Sequence[int], k: int) -> float:
    """FLOPs of the downward sweeps: of each target, from its own layer and position.

    Per layer and position: the skip path (2 d^2), the output and value projections (4 d^2), the pattern's product over
    positions (2 d pos), and reading off the k active latents (2 d k). The first and the last attention of a target are
    not counted: they need none of the projections over positions.
    """
    pos, total = torch.arange(1, len(edges.ids) + 1), 0.0
    targets = edges.edges.targets
    layers, positions = edges.nodes.layers[targets], edges.nodes.positions[targets]
    for layer, d in enumerate(widths):
        beside = 2 * d * d + 2 * d * k
        attention = 4 * d * d + 2 * d * pos if layer > 0 else 0 * pos
        total += float((pos * beside)[positions[layers > layer]].sum())
        total += float((pos * attention)[positions[layers > layer]].sum())
    return total


def run() -> dict[str, Any]:
    hooked = HookedModel("builtin://tiny-split-llama")
    return {name: trace(hooked, *case) for name, case in CASES.items()}


def trace(hooked: HookedModel, n_latents: int, k: int, max_features: int | None) -> dict[str, Any]:
    replacement = ReplacementModel(hooked, transcoders(hooked, n_latents, k))
    computer = AttributionComputer(replacement, max_features=max_features)
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
    widths = [d for _, n_layers, d in hooked.topology.groups for _ in range(n_layers)]
    floor = sweep_flops(edges, widths, k) / matmul_rate(256, 256, 256)
    return {
        "tokens": len(edges.ids),
        "targets": rows,
        "edges": edges.edges.n_edges,
        "residual": float(f"{graph.residual:.2e}"),
        "graphs_per_minute": round(60 / seconds, 1),
        "cpu_s_per_graph": round(cpu, 2),
        "ms_per_row": round(1000 * cpu / rows, 2),
        "floor_s": round(floor, 3),
        "ratio_to_floor": round(floor / seconds, 3),
    }
