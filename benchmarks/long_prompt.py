"""Long prompt: a graph of 2,048 tokens within a budget of memory, and what it took.

By hand, for it takes about a minute:  python -m benchmarks.run long_prompt --threads 1

Model and transcoders are random. `over_start_gb` is the peak of resident memory over what the process had when model
and dictionaries were there: it must stay below the budget. What lies on disk is not in it.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import psutil
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from interp.circuits.attribution import AttributionComputer
from interp.circuits.graph import AttributionGraph
from interp.circuits.replacement_model import ReplacementModel
from interp.dictionaries import Transcoder
from interp.dictionaries.config import DictionaryConfig, ModelIdentity
from interp.spec.dictionary import TopK
from interp.wrapper import HookedModel

LAYERS, WIDTH, HEADS, LATENTS, K = 6, 256, 8, 4096, 32
TOKENS, FEATURES, MEMORY = 2048, 2000, 2_000_000_000


class Peak:
    """The most resident memory of this process while it is open, by samples."""

    def __enter__(self) -> Peak:
        self._process, self._stop = psutil.Process(), threading.Event()
        self.start = self.most = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self.most = max(self.most, self._process.memory_info().rss)


def replacement_model() -> ReplacementModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=TOKENS,
        attn_implementation="eager",
        bos_token_id=None,
        # Attention that looks somewhere, and MLPs that matter, as those of trained models.
        initializer_range=0.1,
    )
    hooked = HookedModel(LlamaForCausalLM(config))
    return ReplacementModel(hooked, [transcoder(hooked, layer) for layer in range(LAYERS)])


def transcoder(hooked: HookedModel, layer: int) -> Transcoder:
    config = DictionaryConfig(
        kind="transcoder",
        hook_in=f"layers.{layer}.mlp_in",
        hook_out=f"layers.{layer}.mlp_out",
        d_in=WIDTH,
        d_out=WIDTH,
        n_latents=LATENTS,
        activation=TopK(type="topk", k=K),
        model=ModelIdentity(source="benchmark", fingerprint=hooked.fingerprint, family=hooked.family.name),
    )
    made, generator = Transcoder(config, seed=layer), torch.Generator().manual_seed(layer)
    made.W_dec.data.normal_(generator=generator, std=WIDTH**-0.5)
    return made.requires_grad_(False)


def run() -> dict[str, Any]:
    rm = replacement_model()
    computer = AttributionComputer(rm, max_features=FEATURES, memory=MEMORY)
    ids = torch.randint(0, 1000, (TOKENS,), generator=torch.Generator().manual_seed(1))
    with Peak() as peak:
        cpu, started = time.process_time(), time.perf_counter()
        edges = computer.compute_full_graph(rm.build(ids, memory=MEMORY))
        computed = time.process_time() - cpu
        pruned = AttributionGraph.from_edges(edges).prune(0.8, 0.98)
        seconds = time.perf_counter() - started
    layers = torch.bincount(edges.nodes.features[:, 0].long(), minlength=LAYERS)
    return {
        f"{TOKENS} tokens, {LAYERS} layers, d {WIDTH}, {LATENTS} latents, {FEATURES} features": {
            "budget_gb": MEMORY / 1e9,
            "over_start_gb": round((peak.most - peak.start) / 1e9, 2),
            "cpu_s_per_graph": round(computed, 1),
            "seconds_with_pruning": round(seconds, 1),
            "active_features": edges.n_active,
            "features_by_layer": layers.tolist(),
            "edges": edges.edges.n_edges,
            "pruned_edges": pruned.edges.n_edges,
            "residual": float(f"{edges.residual:.2e}"),
        }
    }
