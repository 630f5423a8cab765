"""Tiny random models of every family, with nothing accidentally zero or one: biases and norm weights are drawn too.

Each takes milliseconds to make. `make(name, seed)` is a float32 transformers model in evaluation mode.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

VOCAB = 101
CONTEXT = 64

_SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
    "tie_word_embeddings": False,
    "attn_implementation": "eager",
}
_GROUPED: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def llama(**changes: Any) -> LlamaConfig:
    """Grouped-query attention, biases on attention and MLP."""
    return LlamaConfig(**{**_SMALL, **_GROUPED, "attention_bias": True, "mlp_bias": True, **changes})


def mistral(**changes: Any) -> MistralConfig:
    """A sliding window shorter than the tests' prompts."""
    return MistralConfig(**{**_SMALL, **_GROUPED, "sliding_window": 4, "head_dim": 12, **changes})


def qwen2(**changes: Any) -> Qwen2Config:
    """Biases on query, key and value, none on the output."""
    return Qwen2Config(**{**_SMALL, **_GROUPED, **changes})


def qwen3(**changes: Any) -> Qwen3Config:
    """Norms on query and key, and heads that are not d_model / n_heads wide."""
    return Qwen3Config(**{**_SMALL, **_GROUPED, "head_dim": 12, **changes})


def gemma2(**changes: Any) -> Gemma2Config:
    """Post-norms, 1 + w norms, soft caps on attention and logits, alternating windows."""
    sizes = {"head_dim": 12, "sliding_window": 4, "query_pre_attn_scalar": 10, "attention_bias": True}
    caps = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}
    return Gemma2Config(**{**_SMALL, **_GROUPED, **sizes, **caps, **changes})


def gemma3(**changes: Any) -> Gemma3TextConfig:
    """Local and global layers with rotary bases of their own."""
    layers = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
    return Gemma3TextConfig(**{**_SMALL, **_GROUPED, "head_dim": 12, "sliding_window": 4, **layers, **changes})


def gpt2(**changes: Any) -> GPT2Config:
    """Learned positions, fused Conv1D projections, LayerNorm."""
    small = {k: v for k, v in _SMALL.items() if k != "max_position_embeddings"}
    return GPT2Config(**{**small, "n_positions": CONTEXT, "n_embd": 32, "n_layer": 3, "n_head": 4, **changes})


def gpt_neox(**changes: Any) -> GPTNeoXConfig:
    """Attention and MLP in parallel, interleaved query-key-value."""
    sizes = {k: v for k, v in _GROUPED.items() if k != "num_key_value_heads"}
    return GPTNeoXConfig(**{**_SMALL, **sizes, "use_parallel_residual": True, **changes})


def gpt_neox_sequential(**changes: Any) -> GPTNeoXConfig:
    """The same family with attention before the MLP."""
    return gpt_neox(**{"use_parallel_residual": False, **changes})


def split_llama(**changes: Any) -> Any:
    """Two widths, two head geometries, a linear adapter."""
    from interp.models import SplitLlamaConfig

    first = LlamaConfig(**{**_SMALL, **_GROUPED})
    last = LlamaConfig(
        **{**_SMALL, **_GROUPED, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 4},
        rope_theta=5000.0,
        attention_bias=True,
    )
    return SplitLlamaConfig(
        **{"first": first, "last": last, "n_first": 2, "n_last": 2, "attn_implementation": "eager", **changes}
    )


def split_llama_mlp(**changes: Any) -> Any:
    """The same with two linear maps and a ReLU as its adapter."""
    return split_llama(**{"adapter_mlp": True, "adapter_hidden_size": 40, **changes})


CONFIGS: dict[str, Callable[..., Any]] = {
    maker.__name__: maker
    for maker in (
        llama,
        mistral,
        qwen2,
        qwen3,
        gemma2,
        gemma3,
        gpt2,
        gpt_neox,
        gpt_neox_sequential,
        split_llama,
        split_llama_mlp,
    )
}
"""What tests parametrise over: every family, and every variant that computes differently."""

ALL = tuple(CONFIGS)


def make(name: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random model of that name; `changes` override its configuration."""
    config = CONFIGS[name](**changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        randomise(model)
    return model.float().eval()


def randomise(model: torch.nn.Module) -> None:
    """Draw every parameter anew, so that no bias is zero and no norm weight is one."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=0.8 * parameter.shape[-1] ** -0.5)
            elif "norm" in name or ".ln_" in name:
                is_bias = name.endswith("bias")
                parameter.normal_(std=0.3).add_(0.0 if is_bias else 0.8)
            else:
                parameter.normal_(std=0.3)


def token_ids(batch: int = 2, positions: int = 9, seed: int = 1) -> torch.Tensor:
    """Random token ids [batch, positions]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, VOCAB, (batch, positions), generator=generator)
