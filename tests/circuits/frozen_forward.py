"""A second implementation of the frozen model, for tests: forwards only, in float64, on the model's own modules.

Nothing of `interp.circuits` or of the frozen views is used. The transformers model itself runs, with

    attention   its interface replaced by `pattern @ values`: projections, biases and head layout are the module's own
    norms       (x - mean) / std * weight + bias, the denominator from a first run
    MLPs        what the first run wrote, and the answer to a change of what the MLP reads: that of the skip path, and
                where MLPs are kept that of the module itself, its Jacobian by autograd with the RelP rules as detaches
    ReLU        of an adapter between groups: the mask of the first run

so that an edge can be measured: add one more copy of what a source writes, and see by how much every target moves.
Where MLPs are kept, the first run adds what the dictionaries give to what they write.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from relp_rules import relp_jacobian
from substitutes import Substitutes
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from interp.models.families import Family

_INTERFACE = "test_frozen_attention"


@dataclass(frozen=True)
class Observed:
    """What one run has shown, [batch, pos, ..] each.

    Attributes:
        mlp_in: what each MLP reads.
        streams: the residual stream, by (layer, site).
        normed: what the head reads; head: its output.
    """

    mlp_in: Mapping[int, Tensor]
    streams: Mapping[tuple[int, str], Tensor]
    normed: Tensor
    head: Tensor


class FrozenForward:
    """The frozen model of one prompt.

    Args:
        substitutes: what stands for the MLPs, or is added to them.
        constant: positions where the MLP's output is a constant.
        kept: MLPs stay, linear by the RelP rules.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        family: Family,
        substitutes: Substitutes,
        ids: Tensor,
        constant: Tensor,
        kept: bool = False,
    ):
        self.model, self.family, self.ids, self.constant = copy.deepcopy(model).double().eval(), family, ids, constant
        self.substitutes, self.kept = substitutes, kept
        self.blocks = [b for group in family.groups for b in self.model.get_submodule(group.path).children()]
        self.injections: Mapping[Any, Tensor] = {}
        self.mlp_in: dict[int, Tensor] = {}
        self.mlp_out: dict[int, Tensor] = {}
        self.mlp_alone: dict[int, Tensor] = {}
        self.clean_in: dict[int, Tensor] = {}
        self.streams: dict[tuple[int, str], Tensor] = {}
        self.patterns: dict[int, Tensor] = {}
        with torch.no_grad():
            self._first_run()
            self.jacobians = {layer: self._jacobian(layer) for layer in range(len(self.blocks)) if kept}
            self._freeze()
            self.run({})
        self.clean_in = {layer: read[0] for layer, read in self.mlp_in.items()}

    def _first_run(self) -> None:
        handles = []
        for layer, block in enumerate(self.blocks):
            handles.append(self._part(block, "mlp_norm").register_forward_hook(self._keep(self.clean_in, layer)))
            handles.append(self._part(block, "attn").register_forward_hook(self._keep(self.patterns, layer, element=1)))
            writer = self._part(block, self._mlp_writer)
            handles.append(writer.register_forward_hook(self._keep(self.mlp_alone, layer)))
            if self.kept:
                handles.append(
                    writer.register_forward_hook(lambda m, a, out, layer=layer: self._with_added(layer, out))
                )
            handles.append(writer.register_forward_hook(self._keep(self.mlp_out, layer)))
        self.denominators: dict[int, Tensor] = {}
        for norm in self._norms():
            handles.append(norm.register_forward_pre_hook(self._keep_denominator))
        self.masks: dict[int, Tensor] = {}
        for relu in self._relus():
            handles.append(relu.register_forward_hook(lambda m, args, out: self.masks.update({id(m): args[0] > 0})))
        handles.append(self.blocks[0].register_forward_pre_hook(self._keep_embeddings))
        self.real_logits = self._head_output()
        for handle in handles:
            handle.remove()

    def _with_added(self, layer: int, out: Tensor) -> Tensor:
        added = self.substitutes.written(layer, self.clean_in)
        return out if added is None else out + added

    def _head_output(self) -> Tensor:
        found: list[Tensor] = []
        head = self.model.get_submodule(self.family.head)
        handle = head.register_forward_hook(lambda m, args, out: found.append(out))
        self.model(self.ids[None], use_cache=False)
        handle.remove()
        return found[0][0]

    def _keep(self, into: dict[int, Tensor], layer: int, element: int | None = None) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            into[layer] = (output if element is None else output[element]).detach()[0]

        return hook

    def _keep_embeddings(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.embeddings = args[0][0].detach()

    def _keep_denominator(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0].double()
        if self.family.norm.kind == "layer":
            x = x - x.mean(-1, keepdim=True)
        eps = getattr(module, self.family.norm.eps)
        self.denominators[id(module)] = (x.square().mean(-1, keepdim=True) + eps).sqrt()[0]

    @property
    def _mlp_writer(self) -> str:
        return "mlp" if self.family.block.mlp_post_norm is None else "mlp_post_norm"

    @property
    def _attn_writer(self) -> str:
        return "attn" if self.family.block.attn_post_norm is None else "attn_post_norm"

    def _part(self, block: nn.Module, name: str) -> nn.Module:
        return block.get_submodule(getattr(self.family.block, name))

    def _norms(self) -> list[nn.Module]:
        layout = self.family.block
        names = [n for n in ("attn_norm", "mlp_norm", "attn_post_norm", "mlp_post_norm") if getattr(layout, n)]
        norms = [self._part(block, name) for block in self.blocks for name in names]
        return [*norms, self.model.get_submodule(self.family.final_norm)]

    def _relus(self) -> list[nn.Module]:
        if self.family.adapter is None:
            return []
        return [m for m in self.model.get_submodule(self.family.adapter).modules() if isinstance(m, nn.ReLU)]

    def _jacobian(self, layer: int) -> Tensor:
        """[pos, d_out, d_in]: the MLP with its post-norm, linear where it was."""
        block, after = self.blocks[layer], None
        if self.family.block.mlp_post_norm is not None:
            after = self._frozen_norm(self._part(block, "mlp_post_norm"))
        parts = self.family.block.mlp_parts
        return relp_jacobian(
            self._part(block, "mlp"), parts.act, parts.gate and parts.down, self.clean_in[layer], after
        )

    def _freeze(self) -> None:
        for norm in self._norms():
            norm.forward = self._frozen_norm(norm)
        for relu in self._relus():
            mask = self.masks[id(relu)]
            relu.forward = lambda x, mask=mask: x * mask
        ALL_ATTENTION_FUNCTIONS.register(_INTERFACE, _frozen_attention)
        for layer, block in enumerate(self.blocks):
            attention = self._part(block, "attn")
            attention.config._attn_implementation = _INTERFACE
            attention.frozen_pattern = self.patterns[layer]
            self._watch(layer, block)
            if self.family.block.mlp_post_norm is not None:
                self._part(block, "mlp").forward = lambda x: x
            self._part(block, self._mlp_writer).forward = lambda x, layer=layer: self._write_mlp(layer)
            self._part(block, self._attn_writer).register_forward_hook(
                lambda m, args, out, layer=layer: self._inject(("attn", layer), out)
            )
        self.model.get_submodule(self.family.embed).register_forward_hook(
            lambda m, args, out: self._inject("embed", out)
        )

    def _watch(self, layer: int, block: nn.Module) -> None:
        """Look at the stream before, in and after a block, and at what its MLP reads."""

        def see(site: str) -> Any:
            return lambda module, args: self.streams.update({(layer, site): args[0]})

        block.register_forward_pre_hook(see("resid_pre"))
        self._part(block, "mlp_norm").register_forward_pre_hook(see("resid_mid"))
        block.register_forward_hook(lambda m, args, out: self.streams.update({(layer, "resid_post"): out}))
        self._part(block, "mlp_norm").register_forward_hook(lambda m, args, out: self.mlp_in.update({layer: out}))

    def _frozen_norm(self, norm: nn.Module) -> Any:
        denominator, kind = self.denominators[id(norm)], self.family.norm.kind
        weight = norm.weight + 1 if kind == "rms_offset" else norm.weight

        def forward(x: Tensor) -> Tensor:
            x = x - x.mean(-1, keepdim=True) if kind == "layer" else x
            y = x * (weight / denominator)
            return y + norm.bias if kind == "layer" else y

        return forward

    def _inject(self, place: Any, output: Any) -> Any:
        if place not in self.injections:
            return output
        if isinstance(output, tuple):
            return (output[0] + self.injections[place], *output[1:])
        return output + self.injections[place]

    def _write_mlp(self, layer: int) -> Tensor:
        change = self.mlp_in[layer] - self.clean_in[layer]
        out = self.mlp_out[layer].expand(len(change), -1, -1)
        if (skip := self.substitutes.skip(layer)) is not None:
            out = out + (change @ skip.T) * ~self.constant[:, None]
        if self.kept:
            out = out + torch.einsum("poi,bpi->bpo", self.jacobians[layer], change) * ~self.constant[:, None]
        return self._inject(("mlp", layer), out)

    @torch.no_grad()
    def run(self, injections: Mapping[Any, Tensor]) -> Observed:
        """A run with something added at some places, [batch, pos, d_model] each."""
        self.injections = injections
        batch = next(iter(injections.values())).shape[0] if injections else 1
        head = self.model.get_submodule(self.family.head)
        found: list[tuple[Tensor, Tensor]] = []
        handle = head.register_forward_hook(lambda m, args, out: found.append((args[0], out)))
        self.model(self.ids[None].expand(batch, -1), use_cache=False)
        handle.remove()
        self.injections = {}
        return Observed(dict(self.mlp_in), dict(self.streams), *found[0])

    @torch.no_grad()
    def of_nothing(self) -> Observed:
        """What everything reads when the residual stream is 0."""
        norm = self.model.get_submodule(self.family.final_norm)
        normed = norm(torch.zeros(1, len(self.ids), norm.weight.shape[0], dtype=torch.float64))
        return Observed(
            {layer: self.mlp_reads_nothing(layer)[None] for layer in range(len(self.blocks))},
            {place: torch.zeros_like(stream[:1]) for place, stream in self.streams.items()},
            normed,
            self.model.get_submodule(self.family.head)(normed),
        )

    @torch.no_grad()
    def attention_of_nothing(self, layer: int) -> Tensor:
        """What attention writes [pos, d_model] when the residual stream is 0: its biases and its norms' biases."""
        block = self.blocks[layer]
        attention = self._part(block, "attn")
        arguments: dict[str, Any] = {"hidden_states": self._norm_of_nothing(layer, "attn_norm"), "attention_mask": None}
        if self.family.positions is None:
            # The rotation turns queries and keys only, and the pattern is frozen.
            d_head = getattr(attention, "head_dim", None) or attention.head_size
            ones = torch.ones(1, len(self.ids), d_head, dtype=torch.float64)
            arguments["position_embeddings"] = (ones, torch.zeros_like(ones))
        out = attention(**arguments)[0]
        if self.family.block.attn_post_norm is not None:
            out = self._part(block, "attn_post_norm")(out)
        return out[0]

    @torch.no_grad()
    def mlp_reads_nothing(self, layer: int) -> Tensor:
        """What the MLP reads [pos, d_model] when the residual stream is 0."""
        return self._norm_of_nothing(layer, "mlp_norm")[0]

    @torch.no_grad()
    def mlp_of_nothing(self, layer: int) -> Tensor:
        """What is written [pos, d_model] when the residual stream is 0, without features and errors."""
        nothing = self.mlp_reads_nothing(layer)
        out = torch.zeros_like(nothing)
        if (bias := self.substitutes.bias(layer)) is not None:
            out = out + bias
        if (skip := self.substitutes.skip(layer)) is not None:
            out = out + nothing @ skip.T
        if self.kept:
            change = nothing - self.clean_in[layer]
            out = out + self.mlp_alone[layer] + torch.einsum("poi,pi->po", self.jacobians[layer], change)
        return out

    @torch.no_grad()
    def mlp_error(self, layer: int) -> Tensor:
        """What is written [pos, d_model] and neither features nor linear paths account for."""
        found, added = self.mlp_out[layer], self.substitutes.written(layer, self.clean_in)
        found = found - self.mlp_alone[layer] if self.kept else found
        return found if added is None else found - added

    def _norm_of_nothing(self, layer: int, name: str) -> Tensor:
        norm = self._part(self.blocks[layer], name)
        return norm.forward(torch.zeros(1, len(self.ids), norm.weight.shape[0], dtype=torch.float64))


def _frozen_attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
    pattern = module.frozen_pattern
    value = value.repeat_interleave(pattern.shape[0] // value.shape[1], dim=1)
    return (pattern @ value).transpose(1, 2).contiguous(), None
