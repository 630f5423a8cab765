"""SplitLlama: the first layers of a small Llama, an adapter, the last layers of a large Llama.

    input_ids -> embed_tokens -> layers_first -> adapter -> layers_last -> norm -> lm_head
                 d_first         d_first                    d_last         d_last  d_last

The token embedding has the width of the small model. The adapter maps d_first to d_last: one bias-free linear map, or
two with a ReLU between them. Each group keeps the head geometry and the rotary embedding of the Llama that it came
from. Modules are named `embed_tokens`, `layers_first`, `adapter`, `layers_last`, `norm`, `lm_head`, and `rotary_first`
and `rotary_last` for the two rotary embeddings; a linear adapter is a `Linear`, the other a
`Sequential(Linear, ReLU, Linear)`.

Two indices belong to a layer. Its cache index (`self_attn.layer_idx`) is unique in the model, from 0 to
n_first + n_last - 1. Its checkpoint index is the one it had in its own Llama: `last_layer_indices` continues the
large model's.

Weights are read from safetensors files only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer, LlamaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding as Rotary
from transformers.utils.output_capturing import capture_outputs

from interp.errors import ModelError
from interp.models.split_config import SplitLlamaConfig, inlined
from interp.models.split_weights import assign, check_same_vocabulary, kept_names, read_tensors, refuse, weight_files

__all__ = ["SplitLlama", "SplitLlamaConfig"]


class SplitLlama(PreTrainedModel, GenerationMixin):
    """The model. With `config.model_path` its weights are read from there, otherwise they are random."""

    config_class = SplitLlamaConfig
    config: SplitLlamaConfig
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["LlamaDecoderLayer"]
    _skip_keys_device_placement: ClassVar[list[str]] = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_record_outputs: ClassVar[dict[str, Any]] = {"hidden_states": LlamaDecoderLayer, "attentions": LlamaAttention}

    def __init__(self, config: SplitLlamaConfig):
        super().__init__(config)
        config.use_attention(config._attn_implementation)
        first, last, n_first = config.first, config.last, config.n_first
        vocab_size = config.vocab_size or first.vocab_size
        self.embed_tokens = nn.Embedding(vocab_size, first.hidden_size)
        self.layers_first = nn.ModuleList([LlamaDecoderLayer(first, i) for i in range(n_first)])
        self.adapter = _adapter(config)
        self.layers_last = nn.ModuleList([LlamaDecoderLayer(last, n_first + j) for j in range(config.n_last)])
        self.norm = LlamaRMSNorm(last.hidden_size, eps=last.rms_norm_eps)
        self.lm_head = nn.Linear(last.hidden_size, vocab_size, bias=False)
        self.rotary_first = Rotary(config=first)
        self.rotary_last = Rotary(config=last)
        self.post_init()
        # Under `from_pretrained` the parameters have no storage yet and are filled there.
        if config.model_path is not None and self.lm_head.weight.device.type != "meta":
            self._load_weights(config.model_path)

    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        hidden = self._embedded(input_ids, inputs_embeds)
        use_cache = self.config.use_cache and not self.training if use_cache is None else use_cache
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            seen = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = torch.arange(seen, seen + hidden.shape[1], device=hidden.device).unsqueeze(0)
        # One mask serves both groups: they see the same positions.
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=hidden,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        kwargs |= {"attention_mask": mask, "position_ids": position_ids, "past_key_values": past_key_values}
        for layers, rotary in ((self.layers_first, self.rotary_first), (self.layers_last, self.rotary_last)):
            hidden = self.adapter(hidden) if layers is self.layers_last else hidden
            angles = rotary(hidden, position_ids=position_ids)
            for layer in layers:
                hidden = layer(hidden, position_embeddings=angles, use_cache=use_cache, **kwargs)
        hidden = self.norm(hidden)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden[:, kept, :])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)

    def _embedded(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        if (input_ids is None) == (inputs_embeds is None):
            raise ModelError(
                "SplitLlama reads token ids or embeddings",
                value="neither" if input_ids is None else "both",
                expected="exactly one of input_ids and inputs_embeds",
                remedy="leave the other one out",
            )
        return self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds

    def set_attn_implementation(self, attn_implementation: str | dict[str, str], *args: Any, **kwargs: Any) -> None:
        super().set_attn_implementation(attn_implementation, *args, **kwargs)
        self.config.use_attention(self.config._attn_implementation)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a saved model from safetensors; weights that do not fit the configuration are an error."""
        if pretrained_model_name_or_path is not None and Path(pretrained_model_name_or_path).is_dir():
            weight_files(pretrained_model_name_or_path)
        with_info = kwargs.pop("output_loading_info", False)
        kwargs |= {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        problems = [f"{kind[:-5]} {key}" for kind in ("missing_keys", "unexpected_keys") for key in info[kind]]
        problems += [f"{name} is {tuple(found)}, not {tuple(own)}" for name, found, own in info["mismatched_keys"]]
        refuse(problems, source=str(pretrained_model_name_or_path))
        return (model, info) if with_info else model

    @classmethod
    def from_llama_checkpoints(
        cls,
        first_dir: str | Path,
        last_dir: str | Path,
        n_first: int,
        n_last: int,
        adapter_mlp: bool = False,
        seed: int = 0,
    ) -> SplitLlama:
        """Join two Llama checkpoints into one model; the adapter is fresh and drawn from `seed`.

        Embedding and first layers come from the small checkpoint; last layers, norm and head from the large one. Only
        the tensors that are kept are read, so this costs the memory of the result and no more.
        """
        first, last = inlined(first_dir, "first"), inlined(last_dir, "last")
        check_same_vocabulary(Path(first_dir), Path(last_dir))
        dtype = last.dtype or first.dtype or torch.float32
        config = SplitLlamaConfig.from_llamas(first, last, n_first, n_last, adapter_mlp, dtype=dtype)
        with torch.device("meta"):
            model = cls(config)
        # Buffers are no part of a checkpoint: the rotary embeddings need storage of their own.
        model.rotary_first = Rotary(config=config.first)
        model.rotary_last = Rotary(config=config.last)
        kept_first, kept_last = kept_names(config)
        state = read_tensors(first_dir, kept_first) | read_tensors(last_dir, kept_last)
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in model.adapter.named_parameters(prefix="adapter"):
            weight = torch.empty(parameter.shape, dtype=torch.float32)
            state[name] = weight.normal_(std=parameter.shape[1] ** -0.5, generator=generator)
        state = {name: tensor.to(config.dtype) for name, tensor in state.items()}
        assign(model, state, source=f"{first_dir}, {last_dir}")
        return model.eval()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear) and any(module is part for part in self.adapter.modules()):
            # The adapter must hand on a residual stream of the scale that it was given.
            init.normal_(module.weight, std=module.in_features**-0.5)

    def _load_weights(self, model_path: str | Path) -> None:
        state = {name: tensor for path in weight_files(model_path) for name, tensor in load_file(path).items()}
        if self.config.dtype is not None:
            # Weights only: `self.to` would round the rotary frequencies too.
            state = {name: tensor.to(self.config.dtype) for name, tensor in state.items()}
        assign(self, state, source=str(model_path))
        self.eval()


AutoConfig.register(SplitLlamaConfig.model_type, SplitLlamaConfig, exist_ok=True)
AutoModelForCausalLM.register(SplitLlamaConfig, SplitLlama, exist_ok=True)


def _adapter(config: SplitLlamaConfig) -> nn.Module:
    d_first, d_last = config.first.hidden_size, config.last.hidden_size
    if not config.adapter_mlp:
        return nn.Linear(d_first, d_last, bias=False)
    d_hidden = config.adapter_hidden_size or d_last
    return nn.Sequential(nn.Linear(d_first, d_hidden, bias=False), nn.ReLU(), nn.Linear(d_hidden, d_last, bias=False))
