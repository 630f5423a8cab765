"""Where in a module tree each hook point is, and how it is read and replaced there.

A tap is a module and a side of it. While a trace runs, the envoy of that module gives the live value when the forward
pass reaches it; reading waits for that moment, so taps must be visited in execution order.

| hook point   | module, side                         | what a replacement does                               |
|--------------|--------------------------------------|-------------------------------------------------------|
| embed        | first block, input                   | the residual stream starts with it                    |
| resid_pre    | block, input                         | both paths of the block read it                       |
| attn_in      | norm before attention, output        | attention reads it                                    |
| attn_pattern | attention, output[1]                 | attention's output is computed again with this pattern|
| attn_out     | attention or its post-norm, output   | it is what is added to the residual stream            |
| resid_mid    | norm before the MLP, input           | the MLP and everything later read it                  |
| mlp_in       | norm before the MLP, output          | the MLP reads it                                      |
| mlp_out      | MLP or its post-norm, output         | it is what is added to the residual stream            |
| resid_post   | block, output                        | everything later reads it                             |
| adapter_out  | adapter, output                      | everything later reads it                             |
| final_norm   | norm before the head, output         | the head reads it                                     |
| logits       | head, output                         | before the model's own soft cap, if it has one        |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from interp.errors import HookError
from interp.models.families import BlockLayout, Family
from interp.spec.hookpoints import parse
from interp.wrapper.frozen import BlockView, attention_out


@dataclass(frozen=True)
class Tap:
    """One hook point in the module tree.

    Attributes:
        path: the module, from the model.
        element: which element of the module's output, where that is a tuple.
        layer: index of the block over the whole model; None outside of blocks.
    """

    name: str
    path: str
    side: Literal["input", "output"]
    element: int | None = None
    layer: int | None = None

    def read(self, envoy: Any) -> Tensor:
        """Wait for the forward pass to get here, and take the value."""
        value = envoy.input if self.side == "input" else envoy.output
        value = value if self.element is None else value[self.element]
        if value is None:
            raise HookError(
                "this attention implementation computes no pattern",
                value=self.name,
                expected='attention="eager"',
                remedy='load the model with attention="eager", or leave attn_pattern out',
            )
        return value

    def write(self, envoy: Any, value: Tensor) -> None:
        """Replace the value that was just read."""
        if self.side == "input":
            envoy.input = value
        elif self.element is None:
            envoy.output = value
        else:
            whole = envoy.output
            envoy.output = (*whole[: self.element], value, *whole[self.element + 1 :])


@dataclass(frozen=True)
class PatternTap(Tap):
    """The attention pattern. When it can be seen the module has used it: a replacement is applied by hand."""

    def write_pattern(self, envoy: Any, block: BlockView, read: Tensor, pattern: Tensor) -> None:
        """Give attention the output that it has with this pattern.

        Args:
            block: the frozen view of the block.
            read: what the attention module read in this forward pass.
        """
        _, _, *rest = envoy.output
        envoy.output = (attention_out(block, read, pattern).to(read.dtype), pattern, *rest)


def taps_of(model: nn.Module, family: Family, hook_names: Sequence[str]) -> dict[str, Tap]:
    """The tap of every hook point."""
    paths = [(group.name, f"{group.path}.{i}") for group in family.groups for i in _indices(model, group.path)]
    layers = {path: layer for layer, (_, path) in enumerate(paths)}
    group_paths = {group.name: group.path for group in family.groups}
    singles = {
        "embed": Tap("embed", paths[0][1], "input"),
        "adapter_out": Tap("adapter_out", family.adapter or "", "output"),
        "final_norm": Tap("final_norm", family.final_norm, "output"),
        "logits": Tap("logits", family.head, "output"),
    }
    taps: dict[str, Tap] = {}
    for name in hook_names:
        point = parse(name)
        if point.group is None:
            taps[name] = singles[point.site]
        else:
            block = f"{group_paths[point.group]}.{point.layer}"
            taps[name] = _in_block(name, point.site, block, layers[block], family.block)
    return taps


def _indices(model: nn.Module, path: str) -> range:
    return range(len(list(model.get_submodule(path).children())))


def _in_block(name: str, site: str, block: str, layer: int, layout: BlockLayout) -> Tap:
    attn, mlp = f"{block}.{layout.attn}", f"{block}.{layout.mlp}"
    match site:
        case "resid_pre":
            return Tap(name, block, "input", layer=layer)
        case "attn_in":
            return Tap(name, f"{block}.{layout.attn_norm}", "output", layer=layer)
        case "attn_pattern":
            return PatternTap(name, attn, "output", element=1, layer=layer)
        case "attn_out" if layout.attn_post_norm is None:
            return Tap(name, attn, "output", element=0, layer=layer)
        case "attn_out":
            return Tap(name, f"{block}.{layout.attn_post_norm}", "output", layer=layer)
        case "resid_mid":
            return Tap(name, f"{block}.{layout.mlp_norm}", "input", layer=layer)
        case "mlp_in":
            return Tap(name, f"{block}.{layout.mlp_norm}", "output", layer=layer)
        case "mlp_out" if layout.mlp_post_norm is None:
            return Tap(name, mlp, "output", layer=layer)
        case "mlp_out":
            return Tap(name, f"{block}.{layout.mlp_post_norm}", "output", layer=layer)
        case "resid_post":
            return Tap(name, block, "output", layer=layer)
    raise HookError("no module is known for this hook point", value=name)
