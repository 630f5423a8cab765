"""A study with every part, and revisions that are the same on every machine."""

from __future__ import annotations

from typing import Any

from interp.plan import Borrowed, Revisions
from interp.sources.prompts import Prompt
from interp.sources.resolve import ResolvedModel
from interp.spec.study import Study

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
}

STUDY: dict[str, Any] = {
    "apiVersion": "interp/v1",
    "kind": "Study",
    "metadata": {"name": "golden", "description": "words"},
    "model": {"source": "/models/llama"},
    "corpus": {"source": "/corpus", "context": 128, "tokens": "100K", "holdout": "8K"},
    "dictionaries": [
        {
            "name": "mlp",
            "kind": "skip-transcoder",
            "at": "layers.*.mlp",
            "activation": {"type": "topk", "k": 8},
            "expansion": 4,
        },
        {
            "name": "resid",
            "kind": "sae",
            "at": ["layers.1.resid_post"],
            "activation": {"type": "jumprelu"},
            "latents": 512,
        },
        {
            "name": "wide",
            "kind": "transcoder",
            "at": "layers.[0-1].mlp",
            "activation": {"type": "batchtopk", "k": 8},
            "latents": 300,
        },
    ],
    "fit": {"batch_tokens": 2048, "lr": 0.001, "clip_norm": 1.0},
    "evaluate": {"tokens": 4096},
    "trace": {"prompts": ["one", "two"], "dictionaries": "mlp"},
    "store": "/store",
}


def study(**changes: Any) -> Study:
    return Study.model_validate({**STUDY, **changes})


def revisions(**changes: Any) -> Revisions:
    model = ResolvedModel("/models/llama", "directory", "1" * 64, LLAMA)
    prompts = tuple(Prompt.of(i, text) for i, text in enumerate(("one", "two", "")))
    fixed = Revisions(model=model, tokenizer="2" * 64, corpus="3" * 64, prompts=prompts)
    return Revisions(**{**vars(fixed), **changes})


def borrowed(**changes: Any) -> Borrowed:
    return Borrowed(**{"name": "mlp", "kind": "artifact", "key": "4" * 64, **changes})
