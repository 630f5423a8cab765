"""The frozen linear map of a model, written down from the families table: what attribution needs and no more.

With attention patterns P and norm denominators held at their values on a prompt, everything between the MLPs is linear:

    x     = attn_norm(h)                                          frozen denominators
    v_k   = W_V,h x_k + b_V,h                                     values of head h at position k
    out_q = sum_h W_O,h sum_k P_h[q, k] v_k + b_O                 `attention_out`
    h'    = h + attn_post_norm(out)

The transposed maps carry gradients the other way. Both work in value space: head by head a [q, k] by [k, d_head]
product, never a d_model by d_model matrix; with grouped queries the heads that share values share one product.

Weights are views of the model's own parameters wherever the layout allows, so that a view costs no memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from interp.errors import ModelError, ProbeFailed
from interp.models.families import BlockLayout, Family
from interp.wrapper.mlp import FrozenMlp, MlpView
from interp.wrapper.norms import NormView


@dataclass(frozen=True)
class BlockView:
    """One block as attribution sees it.

    Attributes:
        layer: index over the whole model, 0 .. n_layers - 1.
        name: prefix of its hook points, such as `layers_first.0`.
        parallel: attention and MLP both read the block's input.
        mlp: the parts of the MLP, where the family's row knows them.
        w_v: [n_kv_heads, d_head, d_model], as stored.
        b_v: [n_kv_heads, d_head], if there is one.
        w_o: [n_heads, d_head, d_model].
        b_o: [d_model], if there is one.
    """

    layer: int
    name: str
    parallel: bool
    attn_norm: NormView
    mlp_norm: NormView
    attn_post_norm: NormView | None
    mlp_post_norm: NormView | None
    mlp: MlpView | None
    w_v: Float[Tensor, "n_kv_heads d_head d_model"]
    b_v: Float[Tensor, "n_kv_heads d_head"] | None
    w_o: Float[Tensor, "n_heads d_head d_model"]
    b_o: Float[Tensor, "d_model"] | None

    @property
    def known_mlp(self) -> MlpView:
        """The parts of the MLP.

        Raises:
            ModelError: the family's row does not know them.
        """
        if self.mlp is None:
            raise ModelError(
                "MLPs of this family cannot be kept and made linear: its row does not know their parts",
                value=self.name,
                expected="block.mlp_parts in the row of interp/models/families.py",
                remedy="replace MLPs by transcoders (mlp: replaced)",
            )
        return self.mlp

    def freeze_mlp(self, x: Float[Tensor, "pos d_model"]) -> FrozenMlp:
        """The MLP with its post-norm, made linear at what it read."""
        return self.known_mlp.freeze(x, self.mlp_post_norm)

    @property
    def n_heads(self) -> int:
        return self.w_o.shape[0]

    @property
    def n_kv_heads(self) -> int:
        return self.w_v.shape[0]

    @property
    def d_head(self) -> int:
        return self.w_v.shape[1]

    @property
    def d_model(self) -> int:
        return self.w_v.shape[2]

    @property
    def W_V(self) -> Float[Tensor, "n_heads d_model d_head"]:  # noqa: N802 - the field's name for it
        """Value weights head by head; heads of one group repeat theirs."""
        return self.w_v.transpose(1, 2).repeat_interleave(self.n_heads // self.n_kv_heads, dim=0)

    @property
    def b_V(self) -> Float[Tensor, "n_heads d_head"] | None:  # noqa: N802
        """Value biases head by head."""
        return None if self.b_v is None else self.b_v.repeat_interleave(self.n_heads // self.n_kv_heads, dim=0)

    @property
    def W_O(self) -> Float[Tensor, "n_heads d_head d_model"]:  # noqa: N802
        """Output weights head by head."""
        return self.w_o

    @property
    def b_O(self) -> Float[Tensor, "d_model"] | None:  # noqa: N802
        """Output bias."""
        return self.b_o


@dataclass(frozen=True)
class AdapterView:
    """The map between two groups: one matrix, or two with a ReLU between them, frozen at its mask.

    Attributes:
        weights: [d_out, d_in] each, in the order in which they apply.
    """

    weights: tuple[Float[Tensor, "d_out d_in"], ...]

    @property
    def has_mask(self) -> bool:
        """Whether there is a ReLU, and so a mask to freeze."""
        return len(self.weights) == 2

    def mask(self, x: Float[Tensor, "*batch d_in"]) -> Bool[Tensor, "*batch d_hidden"] | None:
        """Which hidden units the ReLU lets through on this input; None where there is no ReLU."""
        return x @ self.weights[0].T.to(x.dtype) > 0 if self.has_mask else None

    def linear(
        self, x: Float[Tensor, "*batch d_in"], mask: Bool[Tensor, "*batch d_hidden"] | None
    ) -> Float[Tensor, "*batch d_out"]:
        """The adapter with its mask frozen."""
        y = x @ self.weights[0].T.to(x.dtype)
        return y if mask is None else (y * mask) @ self.weights[1].T.to(x.dtype)

    def transpose(
        self, gradient: Float[Tensor, "*batch d_out"], mask: Bool[Tensor, "*batch d_hidden"] | None
    ) -> Float[Tensor, "*batch d_in"]:
        """Pull a gradient back to the adapter's input."""
        if mask is not None:
            gradient = (gradient @ self.weights[1].to(gradient.dtype)) * mask
        return gradient @ self.weights[0].to(gradient.dtype)


_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class UnembedView:
    """The head: W_U [d_vocab, d_model] and its bias, if it has one."""

    W_U: Float[Tensor, "d_vocab d_model"]
    bias: Float[Tensor, "d_vocab"] | None

    @cached_property
    def mean(self) -> Float[Tensor, "d_model"]:
        """The mean row of W_U, in float32; a few rows at a time, for a float32 copy can be gigabytes."""
        sums = [rows.float().sum(0, dtype=torch.float64) for rows in self.W_U.split(_ROWS_AT_ONCE)]
        return (torch.stack(sums).sum(0) / len(self.W_U)).float()


@dataclass(frozen=True)
class FrozenView:
    """A whole model: its blocks in order, what stands between two groups, and its end.

    Attributes:
        adapter: stands before block `adapter_before`; both are None in a model of one group.
    """

    blocks: tuple[BlockView, ...]
    adapter: AdapterView | None
    adapter_before: int | None
    final_norm: NormView
    unembed: UnembedView


def attention_out(
    block: BlockView,
    x: Float[Tensor, "*batch k d_model"],
    pattern: Float[Tensor, "*prompt head q k"],
    *,
    bias: bool = True,
) -> Float[Tensor, "*batch q d_model"]:
    """What attention writes when it reads `x` (after its norm) with its pattern frozen.

    A pattern [head, q, k] serves any leading dimensions of x. A pattern [prompt, head, q, k] goes with
    x [prompt, ..., k, d_model]. `bias=False` leaves out both biases: the linear part alone.
    """
    w_v = block.w_v.flatten(0, 1).to(x.dtype)
    values = nn.functional.linear(x, w_v, block.b_v.flatten().to(x.dtype) if bias and block.b_v is not None else None)
    mixed = _mix(values, pattern.to(x.dtype), block.n_kv_heads)
    b_o = block.b_o.to(x.dtype) if bias and block.b_o is not None else None
    out = mixed @ block.w_o.flatten(0, 1).to(x.dtype)
    return out if b_o is None else out + b_o


def attention_transpose(
    block: BlockView, gradient: Float[Tensor, "*batch q d_model"], pattern: Float[Tensor, "*prompt head q k"]
) -> Float[Tensor, "*batch k d_model"]:
    """Pull gradients with respect to attention's output back to what it reads: the transpose of `attention_out`.

    Leading dimensions as there: a pattern [head, q, k] serves any number of targets at once.
    """
    mixed = nn.functional.linear(gradient, block.w_o.flatten(0, 1).to(gradient.dtype))
    values = _unmix(mixed, pattern.to(gradient.dtype), block.n_kv_heads)
    return values @ block.w_v.flatten(0, 1).to(gradient.dtype)


def attention_bias(block: BlockView, pattern: Float[Tensor, "*prompt head q k"]) -> Float[Tensor, "*prompt q d_model"]:
    """What the biases of value and output projection add to attention's output: a source of its own."""
    *prompt, n_heads, q, _ = pattern.shape
    out = pattern.new_zeros(*prompt, q, block.d_model)
    if block.b_v is not None:
        # A row of the pattern sums to 1 up to rounding; the sum is kept so that the parts add up exactly.
        mass = pattern.sum(dim=-1)
        per_head = block.b_v.repeat_interleave(n_heads // block.n_kv_heads, dim=0).to(pattern.dtype)
        out = out + torch.einsum("...hq,he,hed->...qd", mass, per_head, block.w_o.to(pattern.dtype))
    return out if block.b_o is None else out + block.b_o.to(pattern.dtype)


def _mix(values: Tensor, pattern: Tensor, n_kv: int) -> Tensor:
    """[.., k, n_kv * e] -> [.., q, n_heads * e]: every head averages its group's values by its pattern."""
    lead, (n_heads, q, k) = values.shape[:-2], pattern.shape[-3:]
    prompts = lead[0] if pattern.ndim == 4 else 1
    d_head = values.shape[-1] // n_kv
    # [prompt, n_kv, k, rest * e]: one product for all that share a pattern.
    v = values.reshape(prompts, -1, k, n_kv, d_head).permute(0, 3, 2, 1, 4).reshape(prompts * n_kv, k, -1)
    p = pattern.reshape(prompts * n_kv, (n_heads // n_kv) * q, k)
    z = torch.bmm(p, v).reshape(prompts, n_heads, q, -1, d_head)
    return z.permute(0, 3, 2, 1, 4).reshape(*lead, q, n_heads * d_head)


def _unmix(mixed: Tensor, pattern: Tensor, n_kv: int) -> Tensor:
    """The transpose of `_mix`: [.., q, n_heads * e] -> [.., k, n_kv * e]."""
    lead, (n_heads, q, k) = mixed.shape[:-2], pattern.shape[-3:]
    prompts = lead[0] if pattern.ndim == 4 else 1
    d_head = mixed.shape[-1] // n_heads
    g = mixed.reshape(prompts, -1, q, n_heads, d_head).permute(0, 3, 2, 1, 4)
    g = g.reshape(prompts * n_kv, (n_heads // n_kv) * q, -1)
    p = pattern.reshape(prompts * n_kv, (n_heads // n_kv) * q, k)
    v = torch.bmm(p.transpose(1, 2), g).reshape(prompts, n_kv, k, -1, d_head)
    return v.permute(0, 3, 2, 1, 4).reshape(*lead, k, n_kv * d_head)


def frozen_view(model: Any, family: Family) -> FrozenView:
    """Read the frozen map of a model off its family's row."""
    blocks: list[BlockView] = []
    first_sizes: list[int] = []
    for group in family.groups:
        for index, module in enumerate(model.get_submodule(group.path).children()):
            blocks.append(_block_view(module, family, layer=len(blocks), name=f"{group.name}.{index}"))
        first_sizes.append(len(blocks))
    head = model.get_submodule(family.head)
    return FrozenView(
        blocks=tuple(blocks),
        adapter=None if family.adapter is None else _adapter_view(model.get_submodule(family.adapter)),
        adapter_before=None if family.adapter is None else first_sizes[0],
        final_norm=NormView.of(model.get_submodule(family.final_norm), family.norm),
        unembed=UnembedView(head.weight.detach(), None if head.bias is None else head.bias.detach()),
    )


def is_parallel(layout: BlockLayout, config: Any) -> bool:
    """Whether attention and MLP read the same residual stream: the row's own word, or the configuration's flag."""
    return bool(getattr(config, layout.parallel)) if isinstance(layout.parallel, str) else layout.parallel


def _block_view(module: Any, family: Family, layer: int, name: str) -> BlockView:
    layout = family.block
    attention = module.get_submodule(layout.attn)
    config = attention.config
    n_heads = config.num_attention_heads
    n_kv_heads = getattr(config, "num_key_value_heads", None) or n_heads
    try:
        w_v, b_v = _value_weights(attention, layout, n_kv_heads)
        w_o, b_o = _out_weights(attention, layout, n_heads)
    except RuntimeError as error:
        raise _misfit(family, name, str(error)) from error
    if w_v.shape[1:] != w_o.shape[1:] or n_heads % n_kv_heads:
        raise _misfit(family, name, f"values {tuple(w_v.shape)}, output {tuple(w_o.shape)}")

    def norm(path: str | None) -> NormView | None:
        return None if path is None else NormView.of(module.get_submodule(path), family.norm)

    return BlockView(
        layer=layer,
        name=name,
        parallel=is_parallel(layout, config),
        attn_norm=NormView.of(module.get_submodule(layout.attn_norm), family.norm),
        mlp_norm=NormView.of(module.get_submodule(layout.mlp_norm), family.norm),
        attn_post_norm=norm(layout.attn_post_norm),
        mlp_post_norm=norm(layout.mlp_post_norm),
        mlp=None if layout.mlp_parts is None else MlpView.of(module.get_submodule(layout.mlp), layout.mlp_parts),
        w_v=w_v,
        b_v=b_v,
        w_o=w_o,
        b_o=b_o,
    )


def _misfit(family: Family, name: str, found: str) -> ProbeFailed:
    return ProbeFailed(
        f"the families table's row {family.name!r} does not describe this model: "
        f"the projections of values and output do not fit together in {name}",
        value=found,
        expected="[heads, d_head, d_model] each",
        remedy="look at block.value, block.out and block.out_transposed of the row in interp/models/families.py",
    )


def _out_weights(
    attention: Any, layout: BlockLayout, n_heads: int
) -> tuple[Float[Tensor, "n_heads d_head d_model"], Float[Tensor, "d_model"] | None]:
    out = attention.get_submodule(layout.out)
    # [d_model, n_heads * d_head] as a Linear stores it; a Conv1D has it the other way round already.
    weight = out.weight.detach() if layout.out_transposed else out.weight.detach().T
    return weight.unflatten(0, (n_heads, -1)), None if out.bias is None else out.bias.detach()


def _value_weights(
    attention: Any, layout: BlockLayout, n_kv_heads: int
) -> tuple[Float[Tensor, "n_kv_heads d_head d_model"], Float[Tensor, "n_kv_heads d_head"] | None]:
    projection = attention.get_submodule(layout.value.module)
    weight, bias = projection.weight.detach(), projection.bias
    bias = None if bias is None else bias.detach()
    match layout.value.layout:
        case "separate":
            pass
        case "gpt2_fused":
            # Stored [d_model, 3 * d_model]; the last third are the values.
            d_model = weight.shape[0]
            weight = weight[:, 2 * d_model :].T
            bias = None if bias is None else bias[2 * d_model :]
        case "neox_fused":
            # Outputs are [head, (query, key, value), d_head].
            weight = weight.unflatten(0, (n_kv_heads, 3, -1))[:, 2]
            return weight, None if bias is None else bias.unflatten(0, (n_kv_heads, 3, -1))[:, 2]
    return weight.unflatten(0, (n_kv_heads, -1)), None if bias is None else bias.unflatten(0, (n_kv_heads, -1))


def _adapter_view(module: nn.Module) -> AdapterView:
    linears = [part for part in module.modules() if isinstance(part, nn.Linear)]
    others = [part for part in module.modules() if not isinstance(part, (nn.Linear, nn.Sequential))]
    biased = any(linear.bias is not None for linear in linears)
    if biased or len(linears) not in (1, 2) or len(others) != len(linears) - 1:
        raise ModelError(
            "the adapter is not one that the frozen map knows",
            value=str(module),
            expected="one bias-free linear map, or two with a ReLU between them",
            remedy="attribution needs such an adapter",
        )
    return AdapterView(tuple(linear.weight.detach() for linear in linears))
