"""A second implementation of the frozen model, for tests: forwards only, in float64, on the model's own modules.

Nothing of `interp.circuits` or of the frozen views is used. The transformers model itself runs, with

    attention   its interface replaced by `pattern @ values`: projections, biases and head layout are the module's own
    norms       (x - mean) / std * weight + bias, the denominator from a first run
    MLPs        what the first run wrote, plus the skip path's answer to a change of what the MLP reads
    ReLU        of an adapter: the mask of the first run

so that an edge can be measured: add one more copy of what a source writes, and see by how much every target moves.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from interp.models.families import Family

_INTERFACE = "test_frozen_attention"


class FrozenForward:
    """The frozen model of one prompt.

    Args:
        transcoders: by layer; None where an MLP has none.
        constant: positions where the MLP's output is a constant.
    """

    def __init__(self, model: PreTrainedModel, family: Family, transcoders: list[Any], ids: Tensor, constant: Tensor):
        self.model, self.family, self.ids, self.constant = copy.deepcopy(model).double().eval(), family, ids, constant
        self.transcoders = [None if t is None else copy.deepcopy(t).double() for t in transcoders]
        self.blocks = [b for group in family.groups for b in self.model.get_submodule(group.path).children()]
        self.injections: dict[Any, Tensor] = {}
        self.mlp_in: dict[int, Tensor] = {}
        self.mlp_out: dict[int, Tensor] = {}
        self.clean_in: dict[int, Tensor] = {}
        self.head_out = torch.zeros(0)
        self.patterns: dict[int, Tensor] = {}
        with torch.no_grad():
            self._first_run()
            self._freeze()
            self.run({})
        self.clean_in = {layer: read[0] for layer, read in self.mlp_in.items()}

    def _first_run(self) -> None:
        handles = [
            self._part(block, self._mlp_writer).register_forward_hook(self._keep(self.mlp_out, layer))
            for layer, block in enumerate(self.blocks)
        ]
        for layer, block in enumerate(self.blocks):
            handles.append(self._part(block, "mlp_norm").register_forward_hook(self._keep(self.clean_in, layer)))
            handles.append(self._part(block, "attn").register_forward_hook(self._keep(self.patterns, layer, element=1)))
        norms = self._norms()
        self.denominators: dict[int, Tensor] = {}
        for norm in norms:
            handles.append(norm.register_forward_pre_hook(self._keep_denominator))
        self.masks: dict[int, Tensor] = {}
        for relu in self._relus():
            handles.append(relu.register_forward_hook(lambda m, args, out: self.masks.update({id(m): args[0] > 0})))
        handles.append(self.blocks[0].register_forward_pre_hook(self._keep_embeddings))
        self.real_logits = self._head_output()
        for handle in handles:
            handle.remove()

    def _head_output(self) -> Tensor:
        found: list[Tensor] = []
        head = self.model.get_submodule(self.family.head)
        handle = head.register_forward_hook(lambda m, args, out: found.append(out))
        self.model(self.ids[None], use_cache=False)
        handle.remove()
        return found[0][0, -1]

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
        names = ["attn_norm", "mlp_norm"] + (["attn_post_norm"] if self.family.block.attn_post_norm else [])
        norms = [self._part(block, name) for block in self.blocks for name in names]
        return [*norms, self.model.get_submodule(self.family.final_norm)]

    def _relus(self) -> list[nn.Module]:
        if self.family.adapter is None:
            return []
        return [m for m in self.model.get_submodule(self.family.adapter).modules() if isinstance(m, nn.ReLU)]

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
            self._part(block, "mlp_norm").register_forward_hook(
                lambda m, args, out, layer=layer: self.mlp_in.update({layer: out})
            )
            if self.family.block.mlp_post_norm is not None:
                self._part(block, "mlp").forward = lambda x: x
            self._part(block, self._mlp_writer).forward = lambda x, layer=layer: self._write_mlp(layer)
            self._part(block, self._attn_writer).register_forward_hook(
                lambda m, args, out, layer=layer: self._inject(("attn", layer), out)
            )
        self.model.get_submodule(self.family.embed).register_forward_hook(
            lambda m, args, out: self._inject("embed", out)
        )

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
        x, transcoder = self.mlp_in[layer], self.transcoders[layer]
        out = self.mlp_out[layer].expand(len(x), -1, -1)
        if transcoder is not None and transcoder.W_skip is not None:
            change = (x - self.clean_in[layer]) @ transcoder.W_skip.T
            out = out + change * ~self.constant[:, None]
        return self._inject(("mlp", layer), out)

    @torch.no_grad()
    def run(self, injections: dict[Any, Tensor]) -> tuple[dict[int, Tensor], Tensor]:
        """(what each MLP reads, head's output at the last position), batched over injections [batch, pos, d_model]."""
        self.injections = injections
        batch = next(iter(injections.values())).shape[0] if injections else 1
        head = self.model.get_submodule(self.family.head)
        found: list[Tensor] = []
        handle = head.register_forward_hook(lambda m, args, out: found.append(out))
        self.model(self.ids[None].expand(batch, -1), use_cache=False)
        handle.remove()
        self.injections = {}
        return dict(self.mlp_in), found[0][:, -1]

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

    def _norm_of_nothing(self, layer: int, name: str) -> Tensor:
        norm = self._part(self.blocks[layer], name)
        return norm.forward(torch.zeros(1, len(self.ids), norm.weight.shape[0], dtype=torch.float64))

    @torch.no_grad()
    def head_of_nothing(self) -> Tensor:
        """The head's output [d_vocab] when the residual stream is 0."""
        norm = self.model.get_submodule(self.family.final_norm)
        nothing = norm(torch.zeros(1, len(self.ids), norm.weight.shape[0], dtype=torch.float64))
        return self.model.get_submodule(self.family.head)(nothing)[0, -1]


def _frozen_attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
    pattern = module.frozen_pattern
    value = value.repeat_interleave(pattern.shape[0] // value.shape[1], dim=1)
    return (pattern @ value).transpose(1, 2).contiguous(), None
