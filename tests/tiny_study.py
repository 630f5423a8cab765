"""A study that takes seconds: a random two-layer model, a byte tokenizer, a corpus of generated text, three
dictionaries, a few prompts. Run as a program, it is the driver that tests kill:

    python tiny_study.py FOLDER ENGINE [CHANGES as JSON]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from interp.spec.study import Study

PROMPTS = ("def f(x):\n    return x", "import os", "the cat sat on the mat", "a = 1", "while True: pass")


def make_inputs(folder: Path) -> None:
    """Write the model and the corpus into `folder`, once."""
    if (folder / "corpus.jsonl").exists():
        return
    import torch
    from tiny_models import make

    model = make("llama", vocab_size=258, num_hidden_layers=2, bos_token_id=256, eos_token_id=257)
    model.save_pretrained(folder / "model")
    _byte_tokenizer().save_pretrained(folder / "model")
    generator = torch.Generator().manual_seed(0)
    words = ["def", "return", "self", "cat", "mat", "over", "x", "=", "1", "the", "import", "os"]
    lines = []
    for _ in range(400):
        chosen = torch.randint(len(words), (12,), generator=generator).tolist()
        lines.append(json.dumps({"text": " ".join(words[i] for i in chosen)}))
    # Last: what is complete has a corpus.
    (folder / "corpus.jsonl").write_text("\n".join(lines))


def _byte_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab={**vocabulary, "<s>": 256, "</s>": 257}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def make_study(folder: Path, **changes: Any) -> Study:
    """A study over what `make_inputs` wrote; `changes` replace or, for dicts, extend its parts."""
    make_inputs(folder)
    parts: dict[str, Any] = {
        "apiVersion": "interp/v1",
        "kind": "Study",
        "metadata": {"name": "tiny"},
        "model": {"source": str(folder / "model")},
        "corpus": {"source": str(folder / "corpus.jsonl"), "context": 16, "tokens": 4000, "holdout": 320},
        "dictionaries": [
            {"name": "mlp", "kind": "skip-transcoder", "at": "layers.*.mlp", "latents": 48, **_topk(6)},
            {"name": "resid", "kind": "sae", "at": "layers.0.resid_post", "latents": 64, **_topk(4)},
        ],
        "fit": {"batch_tokens": 128, "micro_tokens": 32, "checkpoint_every": 512, "dead_after": 1000, "device": "cpu"},
        "trace": {"prompts": list(PROMPTS), "dictionaries": "mlp", "actors": {"min": 1, "max": 1}},
        "store": str(folder / "store"),
    }
    for name, change in changes.items():
        parts[name] = {**parts[name], **change} if isinstance(change, dict) and name in parts else change
    return Study.model_validate({name: part for name, part in parts.items() if part is not None})


def _topk(k: int) -> dict[str, Any]:
    return {"activation": {"type": "topk", "k": k}}


def make_transcoders(folder: Path) -> Path:
    """Untrained transcoders of the model, for a study that only traces."""
    import torch

    from interp.dictionaries import build_dictionary
    from interp.dictionaries.config import DictionaryConfig, ModelIdentity
    from interp.sources.resolve import resolve_model
    from interp.spec.study import ModelSpec

    make_inputs(folder)
    identity = ModelIdentity(
        source="tiny", fingerprint=resolve_model(ModelSpec(source=str(folder / "model"))).revision, family="llama"
    )
    for layer in range(2):
        at = f"layers.{layer}.mlp"
        hooks = {"hook_in": f"{at}_in", "hook_out": f"{at}_out", "d_in": 32, "d_out": 32}
        config = DictionaryConfig(kind="transcoder", n_latents=48, **_topk(6), **hooks, model=identity)
        dictionary = build_dictionary(config, seed=layer)
        # A transcoder begins with a decoder of zeros, whose features would have no effect.
        dictionary.W_dec.data.normal_(generator=torch.Generator().manual_seed(layer), std=0.1)
        dictionary.save(folder / "transcoders" / at)
    return folder / "transcoders"


def run(study: Study, engine: str = "inprocess", **options: Any) -> Any:
    """Plan and run a study; its summary."""
    from interp.engine import open_engine
    from interp.plan import make_plan
    from interp.stages.runner import run_plan
    from interp.store import Store

    store = Store.open(study.store)
    return run_plan(make_plan(study, store), store, lambda: open_engine(engine, **options))


def artifact(study: Study, stage: str) -> Any:
    """A finished artifact of a study."""
    from interp.plan import make_plan
    from interp.store import Store

    store = Store.open(study.store)
    planned = make_plan(study, store).stage(stage)
    assert planned is not None
    return store.get(stage, planned.key)


if __name__ == "__main__":
    run(make_study(Path(sys.argv[1]), **json.loads((sys.argv[3:] or ["{}"])[0])), sys.argv[2])
