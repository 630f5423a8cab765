"""The sizes of a model, from its configuration alone: what hook points it has, how wide they are, what they cost.

Every family calls its sizes by other names, and a config.json may leave out what its family takes by default; the
table below holds both. FLOPs count a multiplication and an addition as two; parameters are matrices only, since norms
and biases are less than a thousandth.

Per layer, with d = d_model, h heads and g key-value heads of d_h dimensions, m = d_mlp:
    attention parameters  d h d_h (queries) + 2 d g d_h (keys, values) + h d_h d (output)
    MLP parameters        3 d m if gated, else 2 d m
    forward FLOPs/token   2 (attention + MLP parameters) + 4 c h d_h  for patterns over a context of c, uncached
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from interp.errors import ModelError
from interp.spec.hookpoints import MLP, all_hook_points, mlps, parse

_LLAMA = {
    "layers": "num_hidden_layers",
    "d_model": "hidden_size",
    "d_mlp": "intermediate_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "d_head": "head_dim",
    "vocab": "vocab_size",
}
_GPT2 = {
    "layers": "n_layer",
    "d_model": "n_embd",
    "d_mlp": "n_inner",
    "heads": "n_head",
    "kv_heads": "",
    "d_head": "",
    "vocab": "vocab_size",
}
_NEOX = {**_LLAMA, "kv_heads": "", "d_head": ""}
_GEMMA_DEFAULTS = {
    "num_hidden_layers": 26,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class _Row:
    """How a family's configuration is read: names of its sizes, and what it takes by default."""

    names: Mapping[str, str]
    gated: bool = True
    defaults: Mapping[str, Any] | None = None


_ROWS: dict[str, _Row] = {
    "llama": _Row(_LLAMA),
    "mistral": _Row(_LLAMA),
    "qwen2": _Row(_LLAMA),
    "qwen3": _Row(_LLAMA, defaults={"head_dim": 128}),
    "gemma2": _Row(_LLAMA, defaults={**_GEMMA_DEFAULTS, "vocab_size": 256_000}),
    "gemma3": _Row(_LLAMA, defaults={**_GEMMA_DEFAULTS, "vocab_size": 262_208}),
    "gpt2": _Row(_GPT2, gated=False, defaults={"vocab_size": 50257, "tie_word_embeddings": True}),
    "gpt_neox": _Row(_NEOX, gated=False, defaults={"use_parallel_residual": True}),
}
SPLIT = "split-llama"

_MODEL_TYPES = {("gemma3_text" if name == "gemma3" else name): name for name in (*_ROWS, SPLIT)}


@dataclass(frozen=True)
class GroupShape:
    """A stack of equal blocks."""

    name: str
    layers: int
    d_model: int
    d_mlp: int
    heads: int
    kv_heads: int
    d_head: int
    gated: bool

    @property
    def attention_parameters(self) -> int:
        return 2 * self.d_model * self.d_head * (self.heads + self.kv_heads)

    @property
    def mlp_parameters(self) -> int:
        return (3 if self.gated else 2) * self.d_model * self.d_mlp

    @property
    def block_parameters(self) -> int:
        return self.attention_parameters + self.mlp_parameters

    def block_flops(self, context: int) -> int:
        """Forward FLOPs of one token."""
        return 2 * self.block_parameters + 4 * context * self.heads * self.d_head


@dataclass(frozen=True)
class ModelShape:
    """A model's sizes.

    Attributes:
        adapter: the widths that an adapter maps through, from the first group's to the last's; empty without one.
        tied: whether embedding and head are one matrix.
        parallel: whether attention and MLP of a block read the same residual stream.
    """

    family: str
    groups: tuple[GroupShape, ...]
    vocab: int
    adapter: tuple[int, ...]
    tied: bool
    parallel: bool

    @property
    def hook_names(self) -> tuple[str, ...]:
        """Every hook point, in execution order."""
        groups = [(group.name, group.layers) for group in self.groups]
        return all_hook_points(groups, bool(self.adapter), parallel=self.parallel)

    @property
    def mlp_names(self) -> tuple[str, ...]:
        """Every place of a transcoder, in execution order."""
        return mlps(self.hook_names)

    def width(self, name: str) -> int:
        """Size of the vector at a hook point or the place of a transcoder; a pattern has none."""
        site = parse(f"{name}_in" if name.endswith(f".{MLP}") else name)
        if site.site == "logits":
            return self.vocab
        if site.group is not None:
            return next(group for group in self.groups if group.name == site.group).d_model
        return self.groups[0 if site.site == "embed" else -1].d_model

    @property
    def adapter_parameters(self) -> int:
        return sum(a * b for a, b in zip(self.adapter, self.adapter[1:], strict=False))

    @property
    def parameters(self) -> int:
        """All weights."""
        return self.parameters_to("logits")

    def parameters_to(self, name: str) -> int:
        """Weights of a model that is cut off after the block in which `name` is."""
        blocks = sum(self.blocks_to(name)[i] * group.block_parameters for i, group in enumerate(self.groups))
        adapter = self.adapter_parameters if parse(name) >= parse("adapter_out") else 0
        head = self.vocab * self.groups[-1].d_model if name == "logits" and not self.tied else 0
        return self.vocab * self.groups[0].d_model + blocks + adapter + head

    def flops_to(self, name: str, context: int) -> int:
        """FLOPs of one token through the blocks that a forward pass to `name` needs (embedding is a look-up)."""
        blocks = sum(self.blocks_to(name)[i] * group.block_flops(context) for i, group in enumerate(self.groups))
        adapter = 2 * self.adapter_parameters if parse(name) >= parse("adapter_out") else 0
        head = 2 * self.vocab * self.groups[-1].d_model if name == "logits" else 0
        return blocks + adapter + head

    def blocks_to(self, name: str) -> tuple[int, ...]:
        """How many blocks of each group a forward pass to `name` enters."""
        last = parse(name)
        entered = []
        for group in self.groups:
            if last.group == group.name:
                entered.append((last.layer or 0) + 1)
            else:
                entered.append(group.layers if parse(f"{group.name}.0.resid_pre") < last else 0)
        return tuple(entered)


def family_of(config: Mapping[str, Any]) -> str:
    """The family that a configuration's `model_type` names.

    Raises:
        ModelError: none is known.
    """
    model_type = config.get("model_type")
    if model_type not in _MODEL_TYPES:
        raise ModelError(
            "no family describes this model",
            value=f"model_type {model_type!r}",
            expected=f"one of {', '.join(_MODEL_TYPES)}",
            remedy="if its architecture is a known one's, set model.family",
        )
    return _MODEL_TYPES[model_type]


def shape_of(config: Mapping[str, Any], family: str | None = None) -> ModelShape:
    """The sizes of the model with this configuration.

    Args:
        family: reads the configuration as this family's, whatever its `model_type` is.

    Raises:
        ModelError: the family is not known, or a size is missing.
    """
    family = family or family_of(config)
    if family == SPLIT:
        return _split_shape(config)
    if family not in _ROWS:
        raise ModelError("there is no model family of that name", value=family, expected=", ".join([*_ROWS, SPLIT]))
    row = _ROWS[family]
    config = {**(row.defaults or {}), **config, **config.get("text_config", {})}
    group = _group("layers", config, row)
    tied, parallel = bool(config.get("tie_word_embeddings")), bool(config.get("use_parallel_residual"))
    return ModelShape(family, (group,), _size(config, row, "vocab"), (), tied, parallel)


def _split_shape(config: Mapping[str, Any]) -> ModelShape:
    row = _ROWS["llama"]
    first, last = config.get("first"), config.get("last")
    if not isinstance(first, Mapping) or not isinstance(last, Mapping):
        raise ModelError("the configuration of a SplitLlama has no first and last Llama", expected="two inline configs")
    groups = (
        _group("layers_first", {**first, row.names["layers"]: config.get("n_first")}, row),
        _group("layers_last", {**last, row.names["layers"]: config.get("n_last")}, row),
    )
    d_first, d_last = (group.d_model for group in groups)
    inner = (config.get("adapter_hidden_size") or d_last,) if config.get("adapter_mlp") else ()
    vocab = config.get("vocab_size") or _size(first, row, "vocab")
    return ModelShape(SPLIT, groups, vocab, (d_first, *inner, d_last), tied=False, parallel=False)


def _group(name: str, config: Mapping[str, Any], row: _Row) -> GroupShape:
    d_model, heads = _size(config, row, "d_model"), _size(config, row, "heads")
    return GroupShape(
        name=name,
        layers=_size(config, row, "layers"),
        d_model=d_model,
        d_mlp=_size(config, row, "d_mlp", 4 * d_model),
        heads=heads,
        kv_heads=_size(config, row, "kv_heads", heads),
        d_head=_size(config, row, "d_head", d_model // heads),
        gated=row.gated,
    )


def _size(config: Mapping[str, Any], row: _Row, what: str, default: int | None = None) -> int:
    value = config.get(row.names[what])
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelError(
            f"the model's configuration has no {row.names[what]}",
            value=value,
            expected="a positive number",
            remedy="check config.json, or set model.family if it was read as another family's",
        )
    return value
