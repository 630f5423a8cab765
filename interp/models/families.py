"""The families table: where the parts of each architecture are, as data.

Every family here is a pre-norm decoder of the form

    h_0     = embed(tokens)                                    hook `embed`, `<group>.0.resid_pre`
    a_l     = attn_post_norm( Attention( attn_norm(h_l) ) )    hook `attn_out`; no post-norm: the identity
    m_l     = mlp_post_norm( MLP( mlp_norm(h_l + a_l) ) )      hook `mlp_out`; a parallel block reads h_l, without a_l
    h_{l+1} = h_l + a_l + m_l                                  hook `resid_post`
    logits  = softcap( head( final_norm(h_L) ) )               hook `logits` is before the softcap

and a row says which module is which. No algorithm looks at a family's name: what differs between families is a value
of a field. A new family is a new row; `interp.wrapper.probe` proves a row on the model itself whenever one is wrapped.

Paths are dotted attribute names: of `Family` from the model, of `BlockLayout` from a block, and of `value` and `out`
from the block's attention module. Attributes of a configuration are named by their common transformers name
(`num_attention_heads`), which `attribute_map` translates where a family has another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from interp.errors import ModelError

NormKind = Literal["rms", "rms_offset", "layer"]
"""`rms`: w * x / rms(x). `rms_offset`: (1 + w) * x / rms(x). `layer`: w * (x - mean) / std(x) + b."""

ValueLayout = Literal["separate", "gpt2_fused", "neox_fused"]
"""`separate`: a projection of the values alone, [n_kv_heads * d_head, d_model]. `gpt2_fused`: one Conv1D, stored
[in, out], with queries, keys and values side by side. `neox_fused`: one projection whose outputs are query, key and
value of head 0, then those of head 1, and so on."""


@dataclass(frozen=True)
class Norm:
    """A family's normalisation: its formula, and the attribute of the module that holds its epsilon."""

    kind: NormKind
    eps: str


@dataclass(frozen=True)
class ValueProjection:
    """Where a head's value vectors come from."""

    layout: ValueLayout
    module: str


@dataclass(frozen=True)
class MlpLayout:
    """The parts of an MLP, below its module: down(act(up(x))), or down(act(gate(x)) * up(x)) where there is a gate.

    Attributes:
        act: the module of the activation function.
        transposed: projections are stored [in, out], as a Conv1D is.
    """

    up: str
    down: str
    act: str
    gate: str | None = None
    transposed: bool = False


@dataclass(frozen=True)
class BlockLayout:
    """The modules of one block.

    Attributes:
        attn_norm: the norm before attention; its output is what attention reads (`attn_in`).
        attn: the attention module; it returns (output, pattern).
        mlp_norm: the norm before the MLP; its output is what the MLP reads (`mlp_in`).
        mlp: the MLP block.
        mlp_parts: what is in it; None in a family whose MLPs are of another form: they can be replaced, but not kept
            and made linear.
        value, out: value and output projection, below `attn`.
        out_transposed: the output projection is stored [in, out], as a Conv1D is.
        attn_post_norm, mlp_post_norm: norms between attention or MLP and the residual stream, where there are any.
        parallel: attention and MLP read the same residual stream; a string names the configuration's flag for it.
    """

    attn_norm: str
    attn: str
    mlp_norm: str
    mlp: str
    value: ValueProjection
    out: str
    mlp_parts: MlpLayout | None = None
    out_transposed: bool = False
    attn_post_norm: str | None = None
    mlp_post_norm: str | None = None
    parallel: bool | str = False


@dataclass(frozen=True)
class Group:
    """A stack of blocks of one width: the name in hook points, and the path of its module list."""

    name: str
    path: str


@dataclass(frozen=True)
class Family:
    """One row: an architecture.

    Attributes:
        name: what a study calls it.
        model_types: the configurations' `model_type` that this row describes.
        embed: the token embedding; its output is already scaled where a family scales embeddings.
        positions: learned position embeddings that are added to it, where there are any.
        groups: the stacks of blocks, in execution order.
        adapter: the map between the first group and the second, where there are two.
        final_norm: the norm before the head.
        head: the unembedding; its raw output is the hook `logits`.
        block, norm: the layout of a block, and the kind of every norm above.
        logit_softcap: the configuration's attribute with c of c * tanh(logits / c), applied after the head.
    """

    name: str
    model_types: tuple[str, ...]
    embed: str
    groups: tuple[Group, ...]
    final_norm: str
    head: str
    block: BlockLayout
    norm: Norm
    positions: str | None = None
    adapter: str | None = None
    logit_softcap: str | None = None


_GATED_MLP = MlpLayout(gate="gate_proj", up="up_proj", down="down_proj", act="act_fn")

_LLAMA_BLOCK = BlockLayout(
    attn_norm="input_layernorm",
    attn="self_attn",
    mlp_norm="post_attention_layernorm",
    mlp="mlp",
    mlp_parts=_GATED_MLP,
    value=ValueProjection("separate", "v_proj"),
    out="o_proj",
)

# Norms on both sides of attention and MLP: what is added to the residual stream is the post-norm's output.
_SANDWICH_BLOCK = BlockLayout(
    attn_norm="input_layernorm",
    attn="self_attn",
    attn_post_norm="post_attention_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    mlp="mlp",
    mlp_parts=_GATED_MLP,
    mlp_post_norm="post_feedforward_layernorm",
    value=ValueProjection("separate", "v_proj"),
    out="o_proj",
)

_RMS = Norm("rms", eps="variance_epsilon")
_RMS_OFFSET = Norm("rms_offset", eps="eps")
_LAYER_NORM = Norm("layer", eps="eps")


def _llama_like(name: str, *model_types: str) -> Family:
    return Family(
        name=name,
        model_types=model_types or (name,),
        embed="model.embed_tokens",
        groups=(Group("layers", "model.layers"),),
        final_norm="model.norm",
        head="lm_head",
        block=_LLAMA_BLOCK,
        norm=_RMS,
    )


def _gemma(name: str, model_type: str) -> Family:
    # The embedding module itself multiplies by sqrt(d_model).
    return Family(
        name=name,
        model_types=(model_type,),
        embed="model.embed_tokens",
        groups=(Group("layers", "model.layers"),),
        final_norm="model.norm",
        head="lm_head",
        block=_SANDWICH_BLOCK,
        norm=_RMS_OFFSET,
        logit_softcap="final_logit_softcapping",
    )


_ROWS = (
    _llama_like("llama"),
    _llama_like("mistral"),  # sliding window: a matter of the pattern alone
    _llama_like("qwen2"),  # biases on query, key and value
    _llama_like("qwen3"),  # norms on query and key: a matter of the pattern alone
    _gemma("gemma2", "gemma2"),
    _gemma("gemma3", "gemma3_text"),
    Family(
        name="gpt2",
        model_types=("gpt2",),
        embed="transformer.wte",
        positions="transformer.wpe",
        groups=(Group("layers", "transformer.h"),),
        final_norm="transformer.ln_f",
        head="lm_head",
        block=BlockLayout(
            attn_norm="ln_1",
            attn="attn",
            mlp_norm="ln_2",
            mlp="mlp",
            mlp_parts=MlpLayout(up="c_fc", down="c_proj", act="act", transposed=True),
            value=ValueProjection("gpt2_fused", "c_attn"),
            out="c_proj",
            out_transposed=True,
        ),
        norm=_LAYER_NORM,
    ),
    Family(
        name="gpt_neox",
        model_types=("gpt_neox",),
        embed="gpt_neox.embed_in",
        groups=(Group("layers", "gpt_neox.layers"),),
        final_norm="gpt_neox.final_layer_norm",
        head="lm_head",
        block=BlockLayout(
            attn_norm="input_layernorm",
            attn="attention",
            mlp_norm="post_attention_layernorm",
            mlp="mlp",
            mlp_parts=MlpLayout(up="dense_h_to_4h", down="dense_4h_to_h", act="act"),
            value=ValueProjection("neox_fused", "query_key_value"),
            out="dense",
            parallel="use_parallel_residual",
        ),
        norm=_LAYER_NORM,
    ),
    Family(
        name="split-llama",
        model_types=("split-llama",),
        embed="embed_tokens",
        groups=(Group("layers_first", "layers_first"), Group("layers_last", "layers_last")),
        adapter="adapter",
        final_norm="norm",
        head="lm_head",
        block=_LLAMA_BLOCK,
        norm=_RMS,
    ),
)

FAMILIES: dict[str, Family] = {family.name: family for family in _ROWS}
"""The table, by family name."""

_BY_MODEL_TYPE = {model_type: family for family in _ROWS for model_type in family.model_types}


def family_named(name: str) -> Family:
    """The row that a study names."""
    if name not in FAMILIES:
        raise ModelError(
            "there is no model family of that name",
            value=name,
            expected=f"one of {', '.join(FAMILIES)}",
            remedy="name one of these, or leave the family out and let the checkpoint say",
        )
    return FAMILIES[name]


def family_of(model_type: str | None) -> Family:
    """The row that describes configurations of this `model_type`."""
    if model_type not in _BY_MODEL_TYPE:
        raise ModelError(
            "no row of the families table describes this model",
            value=f"model_type {model_type!r}",
            expected=f"a model_type of one of {', '.join(_BY_MODEL_TYPE)}",
            remedy="if the architecture is that of a listed family, name it (`family:` in the study, `family=` in "
            "Python); otherwise the table in interp/models/families.py needs a row",
        )
    return _BY_MODEL_TYPE[model_type]
