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

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer, LlamaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding as Rotary
from transformers.utils.output_capturing import capture_outputs

from interp.errors import ModelError, UnsafeFormat

LlamaSource: TypeAlias = Mapping[str, Any] | LlamaConfig | str | Path
"""What names a Llama configuration: the values, the object, a config.json, or a directory that holds one."""


class SplitLlamaConfig(PreTrainedConfig):
    """The two Llamas, how many layers each gives, and the adapter between them.

    Args:
        first: the small Llama; a path is read at construction and its content kept.
        last: the large Llama, likewise.
        n_first: how many of the small model's layers are kept, from its first.
        n_last: how many of the large model's layers are kept, up to its last.
        adapter_mlp: two linear maps with a ReLU between them, where False means one linear map.
        adapter_hidden_size: width between the two maps; None stands for the width of the large model.
        vocab_size: None stands for the vocabulary of the two Llamas, which must agree.
        model_path: a saved SplitLlama. Its config.json is read, and `SplitLlama(config)` loads its weights.
    """

    model_type = "split-llama"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    first: Any = None
    last: Any = None
    n_first: int = 0
    n_last: int = 0
    adapter_mlp: bool = False
    adapter_hidden_size: int | None = None
    vocab_size: int | None = None
    initializer_range: float = 0.02
    use_cache: bool = True
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    model_path: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.model_path is not None:
            kwargs = self._fill_from(self.model_path, kwargs)
        self.first = _inlined(self.first, "first")
        self.last = _inlined(self.last, "last")
        super().__post_init__(**kwargs)
        self._complete_from_llamas()
        self._check()

    @classmethod
    def from_llamas(
        cls, first: LlamaSource, last: LlamaSource, n_first: int, n_last: int, adapter_mlp: bool = False, **kwargs: Any
    ) -> SplitLlamaConfig:
        """The configuration that joins two Llamas; further arguments are fields of the configuration."""
        return cls(first=first, last=last, n_first=n_first, n_last=n_last, adapter_mlp=adapter_mlp, **kwargs)

    def use_attention(self, implementation: str | None) -> None:
        """Give both groups one implementation: attention and mask must be of one kind."""
        self.first._attn_implementation = self.last._attn_implementation = implementation

    @property
    def last_layer_indices(self) -> range:
        """Checkpoint indices of the second group: the last layers of the large Llama."""
        return range(self.last.num_hidden_layers - self.n_last, self.last.num_hidden_layers)

    @property
    def num_hidden_layers(self) -> int:
        return self.n_first + self.n_last

    @property
    def hidden_size(self) -> int:
        """The width of the residual stream that the head reads."""
        return self.last.hidden_size

    @property
    def max_position_embeddings(self) -> int:
        return min(self.first.max_position_embeddings, self.last.max_position_embeddings)

    def to_dict(self) -> dict[str, Any]:
        values = super().to_dict()
        # Where a model was read from is no property of the model.
        values.pop("model_path", None)
        return values

    def _fill_from(self, model_path: str | Path, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Take from the saved config.json everything that the caller left at its default."""
        self.model_path = str(model_path)
        saved = _read_json(_config_file(model_path))
        if saved.get("model_type") != self.model_type:
            raise ModelError(
                f"{model_path} holds another kind of model",
                value=saved.get("model_type"),
                expected=f'"model_type": "{self.model_type}"',
                remedy="give the directory of a saved SplitLlama; two Llamas are joined by `from_llamas`",
            )
        fields = type(self).__dataclass_fields__
        for name, value in saved.items():
            if name in ("model_type", "model_path", "transformers_version"):
                continue
            if name not in fields:
                kwargs.setdefault(name, value)
            elif getattr(self, name) == fields[name].default:
                setattr(self, name, value)
        return kwargs

    def _complete_from_llamas(self) -> None:
        if self.first.vocab_size != self.last.vocab_size and self.vocab_size is None:
            raise ModelError(
                "the vocabulary sizes of the two Llamas differ",
                value=f"first {self.first.vocab_size}, last {self.last.vocab_size}",
                expected="equal sizes",
                remedy="pair two models of one tokenizer, or give vocab_size where the weights are trained afresh",
            )
        self.vocab_size = self.first.vocab_size if self.vocab_size is None else self.vocab_size
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if getattr(self, name) is None:
                setattr(self, name, getattr(self.last, name))

    def _check(self) -> None:
        allowed = {
            "n_first": range(1, self.first.num_hidden_layers + 1),
            "n_last": range(1, self.last.num_hidden_layers + 1),
            # The embedding and the head have different widths.
            "tie_word_embeddings": [False],
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ModelError(
                    f"{name} does not fit the two Llamas",
                    value=getattr(self, name),
                    expected=f"{values[0]} to {values[-1]}" if len(values) > 1 else str(values[0]),
                    remedy=f"correct {name}; a group has at least one layer and at most those of its Llama",
                )


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
        _refuse(problems, source=str(pretrained_model_name_or_path))
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
        first, last = _inlined(first_dir, "first"), _inlined(last_dir, "last")
        _check_same_vocabulary(Path(first_dir), Path(last_dir))
        dtype = last.dtype or first.dtype or torch.float32
        config = SplitLlamaConfig.from_llamas(first, last, n_first, n_last, adapter_mlp, dtype=dtype)
        with torch.device("meta"):
            model = cls(config)
        # Buffers are no part of a checkpoint: the rotary embeddings need storage of their own.
        model.rotary_first = Rotary(config=config.first)
        model.rotary_last = Rotary(config=config.last)
        kept_first, kept_last = _kept_names(config)
        state = _read_tensors(first_dir, kept_first) | _read_tensors(last_dir, kept_last)
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in model.adapter.named_parameters(prefix="adapter"):
            weight = torch.empty(parameter.shape, dtype=torch.float32)
            state[name] = weight.normal_(std=parameter.shape[1] ** -0.5, generator=generator)
        state = {name: tensor.to(config.dtype) for name, tensor in state.items()}
        _assign(model, state, source=f"{first_dir}, {last_dir}")
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
        _assign(self, state, source=str(model_path))
        self.eval()


AutoConfig.register(SplitLlamaConfig.model_type, SplitLlamaConfig, exist_ok=True)
AutoModelForCausalLM.register(SplitLlamaConfig, SplitLlama, exist_ok=True)


def weight_files(directory: str | Path) -> list[Path]:
    """The safetensors files of a checkpoint directory: the one file, or the shards that its index names."""
    directory = Path(directory)
    index = directory / "model.safetensors.index.json"
    names = set(_read_json(index).get("weight_map", {}).values()) if index.is_file() else {"model.safetensors"}
    missing = sorted(name for name in names if not (directory / name).is_file())
    if not missing:
        return sorted(directory / name for name in names)
    present = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else ["no such directory"]
    pickled = [name for name in present if name.endswith((".bin", ".pt", ".pth"))]
    raise (UnsafeFormat if pickled else ModelError)(
        f"{directory} lacks safetensors weights",
        value=f"missing {', '.join(missing[:4])}; present {', '.join(pickled or present[:8]) or 'nothing'}",
        expected="model.safetensors, or every shard that model.safetensors.index.json names",
        remedy="convert a checkpoint of another format to safetensors where its origin is trusted"
        if pickled
        else "give the directory that `save_pretrained` wrote, complete",
    )


def _adapter(config: SplitLlamaConfig) -> nn.Module:
    d_first, d_last = config.first.hidden_size, config.last.hidden_size
    if not config.adapter_mlp:
        return nn.Linear(d_first, d_last, bias=False)
    d_hidden = config.adapter_hidden_size or d_last
    return nn.Sequential(nn.Linear(d_first, d_hidden, bias=False), nn.ReLU(), nn.Linear(d_hidden, d_last, bias=False))


def _inlined(source: LlamaSource | None, role: str) -> LlamaConfig:
    """The Llama configuration that `source` names, as an object of its own."""
    if isinstance(source, (str, Path)):
        source = _read_json(_config_file(source))
    values = source.to_dict() if isinstance(source, LlamaConfig) else source
    kind = values.get("model_type", "llama") if isinstance(values, Mapping) else values
    if not isinstance(values, Mapping) or kind != "llama":
        raise ModelError(
            f"`{role}` does not name a Llama",
            value="nothing" if kind is None else kind,
            expected="the values of a Llama config, a config.json or a directory that holds one",
            remedy=f"give `{role}` one of these, with model_type llama",
        )
    return LlamaConfig(**{k: v for k, v in values.items() if k not in ("model_type", "transformers_version")})


def _config_file(source: str | Path) -> Path:
    path = Path(source)
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise ModelError(
            "there is no model configuration at this path",
            value=str(source),
            expected="a config.json, or a directory that holds one",
            remedy="check the path; a hub model must be downloaded first",
        )
    return path


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ModelError(
            f"{path} is not usable", value=str(error), expected="a JSON object", remedy="copy the file again"
        ) from error


def _kept_names(config: SplitLlamaConfig) -> tuple[dict[str, str], dict[str, str]]:
    """What is kept of the small and of the large checkpoint: name prefixes there, by the prefix that they get here."""
    head = "model.embed_tokens." if config.last.tie_word_embeddings else "lm_head."
    first = {"embed_tokens.": "model.embed_tokens."}
    first |= {f"layers_first.{i}.": f"model.layers.{i}." for i in range(config.n_first)}
    last = {"norm.": "model.norm.", "lm_head.": head}
    last |= {f"layers_last.{j}.": f"model.layers.{index}." for j, index in enumerate(config.last_layer_indices)}
    return first, last


def _read_tensors(directory: str | Path, prefixes: dict[str, str]) -> dict[str, Tensor]:
    """Read the tensors below each source prefix and name them by its new one."""
    state: dict[str, Tensor] = {}
    for path in weight_files(directory):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (a safetensors file is no mapping)
                for new, old in prefixes.items():
                    if name.startswith(old):
                        state[new + name.removeprefix(old)] = file.get_tensor(name)
    return state


def _assign(model: SplitLlama, state: dict[str, Tensor], source: str) -> None:
    """Give the model exactly these tensors; anything missing, unexpected or of another shape is an error."""
    wanted = model.state_dict()
    state = {name: tensor for name, tensor in state.items() if not name.endswith("rotary_emb.inv_freq")}
    problems = [f"missing {name}" for name in wanted.keys() - state.keys()]
    problems += [f"unexpected {name}" for name in state.keys() - wanted.keys()]
    problems += [
        f"{name} is {tuple(state[name].shape)}, not {tuple(wanted[name].shape)}"
        for name in wanted.keys() & state.keys()
        if state[name].shape != wanted[name].shape
    ]
    _refuse(problems, source)
    model.load_state_dict(state, assign=True)


def _refuse(problems: list[str], source: str) -> None:
    if problems:
        raise ModelError(
            "the weights do not fit the configuration",
            value=f"{len(problems)} tensors: {'; '.join(sorted(problems)[:6])}",
            expected="exactly the tensors that the configuration describes",
            remedy=f"check that config.json and the weights belong together ({source})",
        )


def _check_same_vocabulary(first_dir: Path, last_dir: Path) -> None:
    """The configuration compares the sizes; here the tokens are compared, where both checkpoints name theirs."""
    files = [directory / "tokenizer.json" for directory in (first_dir, last_dir)]
    if not all(file.is_file() for file in files):
        return
    first, last = (_tokens(_read_json(file)) for file in files)
    if first != last:
        different = sorted(map(str, first ^ last))
        raise ModelError(
            "the vocabularies of the two checkpoints differ",
            value=f"{len(different)} entries, such as {', '.join(different[:4])}",
            expected="the same token for every id",
            remedy="pair two models of one tokenizer",
        )


def _tokens(tokenizer: dict[str, Any]) -> set[tuple[str, int]]:
    added = {(token["content"], token["id"]) for token in tokenizer.get("added_tokens") or []}
    vocabulary = tokenizer.get("model", {}).get("vocab", {})
    return added | (set(vocabulary.items()) if isinstance(vocabulary, dict) else set())
