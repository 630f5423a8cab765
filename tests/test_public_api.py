"""The names and the sequence that the README shows, on the model that ships with the package."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HEAVY = ("torch", "ray", "transformers", "nnsight", "datasets", "kubernetes")


def loaded_by(code: str) -> set[str]:
    """Which heavy packages a fresh interpreter has loaded after running `code`."""
    script = f"import sys\n{code}\nprint('HEAVY', *[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.rsplit("HEAVY", 1)[1].split())


def test_importing_interp_loads_nothing_heavy() -> None:
    assert loaded_by("import interp") == set()


def test_the_lazy_names_are_the_classes() -> None:
    import interp
    from interp.dictionaries import CrossLayerTranscoder, SparseAutoencoder, Transcoder
    from interp.wrapper import HookedModel, HookedSplitLlama

    assert interp.HookedModel is HookedModel
    assert interp.HookedSplitLlama is HookedSplitLlama
    assert interp.SparseAutoencoder is SparseAutoencoder
    assert interp.Transcoder is Transcoder
    assert interp.CrossLayerTranscoder is CrossLayerTranscoder
    with pytest.raises(AttributeError, match="Nonsense"):
        _ = interp.Nonsense


def test_from_a_model_to_a_pruned_graph(tmp_path: Path) -> None:
    """Config -> model -> hooks -> activations -> replacement model -> graph -> file, as the README has it."""
    from interp import HookedSplitLlama, Transcoder
    from interp.circuits.attribution import AttributionComputer
    from interp.circuits.graph import AttributionGraph
    from interp.circuits.replacement_model import ReplacementModel
    from interp.dictionaries import DictionaryConfig
    from interp.models import SplitLlama, SplitLlamaConfig
    from interp.sources.builtin import builtin_model_path
    from interp.spec.dictionary import TopK

    torch.manual_seed(0)
    path = str(builtin_model_path("tiny-split-llama"))
    hooked = HookedSplitLlama(SplitLlama(SplitLlamaConfig(model_path=path)).float(), device="cpu")
    topology = hooked.topology
    assert topology.d_model_first < topology.d_model_last
    assert "layers_first.0.resid_post" in topology.all_resid_hooks

    ids = torch.arange(5, 17)[None]
    acts = hooked.run_with_cache(ids, hook_names=["layers_first.0.resid_post"])
    assert acts["layers_first.0.resid_post"].shape == (1, 12, topology.d_model_first)

    transcoders = []
    for hook_in in topology.all_mlp_in_hooks:
        width = topology.width(hook_in)
        config = DictionaryConfig(
            kind="skip-transcoder",
            hook_in=hook_in,
            hook_out=hook_in.replace("mlp_in", "mlp_out"),
            d_in=width,
            d_out=width,
            n_latents=64,
            activation=TopK(type="topk", k=4),
            model={"source": path, "fingerprint": hooked.fingerprint, "family": hooked.family.name},
        )
        transcoder = Transcoder(config)
        for parameter in transcoder.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
        transcoders.append(transcoder)

    model = ReplacementModel(hooked, transcoders)
    state = model.build(ids)
    edges = AttributionComputer(model).compute_full_graph(state, ids)
    graph = AttributionGraph.from_edges(edges)
    assert graph.residual <= 1e-4
    pruned = graph.prune(node_threshold=0.8, edge_threshold=0.98)
    pruned.save(tmp_path / "graph.json")
    document = json.loads((tmp_path / "graph.json").read_text())
    assert 0 < len(document["nodes"]) <= len(edges.nodes)
    assert {"metadata", "qParams", "nodes", "links"} <= document.keys()
