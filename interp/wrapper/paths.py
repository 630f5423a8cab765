"""Check that the modules which a row of the families table names are there, before anything else relies on them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from interp.errors import ProbeFailed
from interp.models.families import Family


def check_paths(model: Any, family: Family) -> None:
    """Every path of the row leads to a module, and every norm has its epsilon.

    Raises:
        ProbeFailed: one does not; the message names the field.
    """
    for field, path in (
        ("embed", family.embed),
        ("positions", family.positions),
        ("adapter", family.adapter),
        ("final_norm", family.final_norm),
        ("head", family.head),
        *(("groups", group.path) for group in family.groups),
    ):
        _module(model, path, field, family)
    _check_epsilon(model, family.final_norm, "final_norm", family)
    for group in family.groups:
        for index, block in enumerate(model.get_submodule(group.path).children()):
            for field, path in _block_paths(family):
                _module(block, path, f"block.{field}", family, where=f"{group.path}.{index}")
                if path is not None and field.endswith("norm"):
                    _check_epsilon(block, path, f"block.{field}", family)


def _block_paths(family: Family) -> Iterator[tuple[str, str | None]]:
    layout = family.block
    for field in ("attn_norm", "attn", "attn_post_norm", "mlp_norm", "mlp", "mlp_post_norm"):
        yield field, getattr(layout, field)
    yield "value", f"{layout.attn}.{layout.value.module}"
    yield "out", f"{layout.attn}.{layout.out}"
    if (parts := layout.mlp_parts) is not None:
        for part in (parts.gate, parts.up, parts.down, parts.act):
            yield "mlp_parts", None if part is None else f"{layout.mlp}.{part}"


def _module(parent: nn.Module, path: str | None, field: str, family: Family, where: str = "the model") -> None:
    if path is None:
        return
    try:
        parent.get_submodule(path)
    except AttributeError as error:
        raise ProbeFailed(
            f"the families table's row {family.name!r} does not describe this model: {where} has no {path}",
            value=str(error),
            expected=f"the module that the row's field {field} names",
            remedy=f"look at {field} of the row in interp/models/families.py, or name another family",
        ) from error


def _check_epsilon(parent: nn.Module, path: str, field: str, family: Family) -> None:
    norm = parent.get_submodule(path)
    if not isinstance(getattr(norm, family.norm.eps, None), float):
        raise ProbeFailed(
            f"the families table's row {family.name!r} does not describe this model: "
            f"{type(norm).__name__} has no {family.norm.eps}",
            value=repr(norm),
            expected="a norm whose epsilon is where the row's field norm.eps says",
            remedy=f"look at norm.eps and {field} of the row in interp/models/families.py, or name another family",
        )
