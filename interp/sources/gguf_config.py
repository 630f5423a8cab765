"""The configuration that a GGUF file carries, in the names of a Hugging Face config.json.

Only the sizes that hook points and costs depend on are read; the loader reads the file itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from interp.errors import ModelError
from interp.sources.memo import Memo, signature

_MODEL_TYPES = {
    "llama": "llama",
    "mistral": "mistral",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "gpt2": "gpt2",
    "gptneox": "gpt_neox",
}
_SIZES = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "use_parallel_residual": "use_parallel_residual",
    "max_position_embeddings": "context_length",
}


def gguf_config(path: Path) -> dict[str, Any]:
    """The configuration of a model in a GGUF file.

    Raises:
        ModelError: the file is no GGUF, or its architecture is not one of the families.
    """
    with Memo() as memo:
        config: dict[str, Any] = memo.recall(f"gguf:{path.resolve()}", signature(path.stat()), lambda: _read(path))
    return config


def _read(path: Path) -> dict[str, Any]:
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
    except (ValueError, OSError, IndexError) as error:
        remedy = "download the file again; it may be cut short"
        raise ModelError(f"{path} is no GGUF file: {error}", expected="GGUF, version 2 or 3", remedy=remedy) from error
    architecture = _field(reader, "general.architecture")
    if architecture not in _MODEL_TYPES:
        raise ModelError(
            "this GGUF file's architecture is not known",
            value=architecture,
            expected=f"one of {', '.join(_MODEL_TYPES)}",
            remedy="use the safetensors checkpoint of the model, and name its `family` if it is like a known one",
        )
    found = {name: _field(reader, f"{architecture}.{key}") for name, key in _SIZES.items()}
    tokens = reader.fields.get("tokenizer.ggml.tokens")
    found["vocab_size"] = _field(reader, f"{architecture}.vocab_size") or (len(tokens.data) if tokens else None)
    found["tie_word_embeddings"] = all(tensor.name != "output.weight" for tensor in reader.tensors)
    sizes = {name: value for name, value in found.items() if value is not None}
    return {"model_type": _MODEL_TYPES[architecture], **_renamed(architecture, sizes)}


def _renamed(architecture: str, sizes: dict[str, Any]) -> dict[str, Any]:
    if architecture != "gpt2":
        return sizes
    names = {"hidden_size": "n_embd", "intermediate_size": "n_inner", "num_hidden_layers": "n_layer"}
    names |= {"num_attention_heads": "n_head", "max_position_embeddings": "n_positions"}
    return {names.get(name, name): value for name, value in sizes.items()}


def _field(reader: Any, name: str) -> Any:
    field = reader.fields.get(name)
    value = None if field is None else field.contents()
    return max(value) if isinstance(value, list) else value  # per layer in some files; no known family varies it
