"""What hook points a model has, how wide they are, and in which order they run."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from interp.errors import HookError
from interp.models.families import Family
from interp.spec.hookpoints import HookPoint, all_hook_points, parse, select
from interp.wrapper.frozen import is_parallel


class GroupShape(NamedTuple):
    """A stack of blocks of one width."""

    name: str
    n_layers: int
    d_model: int


@dataclass(frozen=True)
class Topology:
    """The shape of a model.

    Attributes:
        groups: its stacks of blocks, in execution order.
        d_vocab: width of the logits.
        adapter: whether a map stands between the first group and the second.
        parallel: attention and MLP of a block read the same residual stream: there is no `resid_mid`.
        logit_softcap: c of c * tanh(logits / c), which the model applies after the hook `logits`; None: it does not.
        max_positions: longest prompt that a model with learned positions can read; None: no such limit.
    """

    groups: tuple[GroupShape, ...]
    d_vocab: int
    adapter: bool
    parallel: bool
    logit_softcap: float | None
    max_positions: int | None

    @property
    def n_layers(self) -> int:
        """Blocks over all groups."""
        return sum(group.n_layers for group in self.groups)

    @property
    def d_model(self) -> int:
        """Width of the residual stream that the head reads."""
        return self.groups[-1].d_model

    @property
    def d_model_first(self) -> int:
        """Width of the first group."""
        return self.groups[0].d_model

    @property
    def d_model_last(self) -> int:
        """Width of the last group."""
        return self.groups[-1].d_model

    @cached_property
    def hook_names(self) -> tuple[str, ...]:
        """Every hook point, in execution order."""
        shapes = [(group.name, group.n_layers) for group in self.groups]
        return all_hook_points(shapes, self.adapter, parallel=self.parallel)

    @cached_property
    def order(self) -> dict[str, int]:
        """Position of each hook point in the order of execution."""
        return {name: position for position, name in enumerate(self.hook_names)}

    @property
    def all_resid_hooks(self) -> tuple[str, ...]:
        """`resid_post` of every block."""
        return self.all_hooks("resid_post")

    @property
    def all_mlp_in_hooks(self) -> tuple[str, ...]:
        return self.all_hooks("mlp_in")

    @property
    def all_mlp_out_hooks(self) -> tuple[str, ...]:
        return self.all_hooks("mlp_out")

    @property
    def all_attn_in_hooks(self) -> tuple[str, ...]:
        return self.all_hooks("attn_in")

    @property
    def all_attn_out_hooks(self) -> tuple[str, ...]:
        return self.all_hooks("attn_out")

    @property
    def all_attn_pattern_hooks(self) -> tuple[str, ...]:
        return self.all_hooks("attn_pattern")

    def all_hooks(self, site: str) -> tuple[str, ...]:
        """The hook points of one site over all blocks, in order of the blocks."""
        return tuple(name for name in self.hook_names if name.endswith(f".{site}"))

    def width(self, hook_name: str) -> int:
        """Size of the last dimension of what a hook point gives."""
        point = self.point(hook_name)
        if point.site == "attn_pattern":
            raise HookError(
                "an attention pattern has no width",
                value=hook_name,
                expected="a hook point with vectors",
                remedy="its shape is [batch, head, query, key]",
            )
        if point.group is not None:
            return next(group.d_model for group in self.groups if group.name == point.group)
        return {"embed": self.d_model_first, "logits": self.d_vocab}.get(point.site, self.d_model_last)

    def layer_of(self, hook_name: str) -> int:
        """Index of the hook point's block over all groups, 0 .. n_layers - 1."""
        point = self.point(hook_name)
        if point.group is None or point.layer is None:
            raise HookError(
                "this hook point belongs to no block", value=hook_name, expected=f"one of {self.groups[0].name}.0.*"
            )
        before = 0
        for group in self.groups:
            if group.name == point.group:
                break
            before += group.n_layers
        return before + point.layer

    def block_name(self, layer: int) -> str:
        """Prefix of the hook points of a block, by its index over all groups."""
        for group in self.groups:
            if layer < group.n_layers:
                return f"{group.name}.{layer}"
            layer -= group.n_layers
        raise HookError("there is no such layer", value=layer, expected=f"0 to {self.n_layers - 1}")

    def point(self, hook_name: str) -> HookPoint:
        """The hook point of that name (or alias), checked to be one that this model has."""
        point = parse(hook_name)
        if point.name in self.order:
            return point
        if self.parallel and point.site == "resid_mid":
            raise HookError(
                "a parallel block has no resid_mid",
                value=hook_name,
                expected="resid_pre, which attention and MLP both read",
            )
        select(point.name, self.hook_names)  # raises, and names what is near
        return point


def topology_of(model: Any, family: Family) -> Topology:
    """The shape of a model, read off its family's row and its modules."""
    config = model.config
    groups = []
    for group in family.groups:
        blocks = list(model.get_submodule(group.path).children())
        attention = blocks[0].get_submodule(family.block.attn)
        groups.append(GroupShape(group.name, len(blocks), attention.config.hidden_size))
    softcap = getattr(config, family.logit_softcap, None) if family.logit_softcap else None
    return Topology(
        groups=tuple(groups),
        d_vocab=model.get_submodule(family.head).weight.shape[0],
        adapter=family.adapter is not None,
        parallel=is_parallel(family.block, config),
        logit_softcap=None if softcap is None else float(softcap),
        max_positions=None if family.positions is None else model.get_submodule(family.positions).weight.shape[0],
    )
