"""What other programs call hook points, and what we call theirs.

TransformerLens     `blocks.3.hook_resid_post`, blocks counted over all groups; our own names are accepted too.
                    `ln1.hook_normalized`, `ln2.hook_normalized` and `ln_final.hook_normalized` are our `attn_in`,
                    `mlp_in` and `final_norm` but for the norm's gain and bias; of a LayerNorm that depends on the
                    version of TransformerLens (`Claim.require_before_gain`). `mlp.hook_out` is our `mlp_out` where
                    no norm stands behind the MLP.
Hugging Face        a module by its path, from the model or from its `base_model`: `layers.3` is a whole block,
                    `layers.3.mlp` its MLP. What is meant is the module's output (of a block: `resid_post`), and
                    for a transcoder its input too. Which module is what, the row of the families table says; a
                    module whose output is normed once more before the residual stream gets it is no hook point.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from interp.dictionaries.foreign.claim import Claim
from interp.errors import DictionaryError, HookError
from interp.spec.hookpoints import SITES, parse

if TYPE_CHECKING:
    from interp.models.families import Family

_BLOCK = re.compile(r"(?:blocks|layers)\.(0|[1-9]\d*)\.(.+)")
_BEFORE_GAIN = {
    "ln1.hook_normalized": "attn_in",
    "ln2.hook_normalized": "mlp_in",
    "ln_final.hook_normalized": "final_norm",
}
_TRANSFORMER_LENS = {
    "resid_pre": "hook_resid_pre",
    "attn_out": "hook_attn_out",
    "resid_mid": "hook_resid_mid",
    "mlp_in": "mlp.hook_in",
    "mlp_out": "hook_mlp_out",
    "resid_post": "hook_resid_post",
}
_OURS = {theirs: ours for ours, theirs in _TRANSFORMER_LENS.items()}


@dataclass(frozen=True)
class Found:
    """One of our hook points, by another program's name.

    Attributes:
        before_gain: what is meant stands before the gain and bias of the norm that gives it.
    """

    hook: str
    before_gain: bool = False


def hook_named(name: str, claim: Claim, where: str, *, folded: bool = False) -> Found:
    """The hook point of the model that a name of TransformerLens, of a module or of ours means.

    Args:
        folded: the model had gains and biases of its norms folded into the weights behind them.

    Raises:
        DictionaryError: the model has no such hook point, or it has no vectors, or the name means one of two things.
    """
    topology, family = claim.model.topology, claim.model.family
    match = _BLOCK.fullmatch(name)
    theirs = match[2] if match else name
    site = _BEFORE_GAIN.get(theirs) or _OURS.get(theirs, theirs)
    if theirs == "mlp.hook_out" and family.block.mlp_post_norm is None:
        site = "mlp_out"
    try:
        if _module(name, family) is not None:
            plain = module_hooks(name, family, where)[1]
        elif match is not None and site in SITES:
            plain = f"{topology.block_name(int(match[1]))}.{site}"
        else:
            plain = site if theirs in _BEFORE_GAIN else name
        hook = topology.point(plain).name
        topology.width(hook)
    except HookError as error:
        raise DictionaryError(
            f"the dictionaries are for a place that this model has no hook point for: {where}",
            value=name,
            expected=f"a hook point with vectors, such as blocks.3.hook_resid_post ({error.what})",
            remedy=error.remedy or "check that the dictionaries are for this model",
        ) from error
    if theirs in _BEFORE_GAIN:
        claim.require_before_gain(name, where, folded=folded)
    return Found(hook, theirs in _BEFORE_GAIN)


def transformer_lens_name(hook: str, mlps: Sequence[str]) -> str | None:
    """TransformerLens' name of a hook point; None where it has none.

    Args:
        mlps: all MLPs of the model, `layers.0.mlp` and so on, in execution order: they count the blocks.
    """
    point = parse(hook)
    if point.group is None:
        return {"embed": "hook_embed"}.get(point.site)
    site = _TRANSFORMER_LENS.get(point.site)
    block = f"{point.group}.{point.layer}.mlp"
    if block not in mlps:
        raise DictionaryError("the model has no such block", value=hook, expected=f"a block of {', '.join(mlps)}")
    return None if site is None else f"blocks.{list(mlps).index(block)}.{site}"


# --- modules of Hugging Face


def module_hooks(name: str, family: Family, where: str) -> tuple[str | None, str]:
    """(what the module reads, what it gives) as our hook points; what it reads is None where it is none of them.

    Raises:
        DictionaryError: it is no module of this family that gives a hook point.
    """
    found = _module(name, family)
    if found is None:
        raise _no_module(name, family, where)
    prefix, below = found
    if prefix is None:
        return None, "final_norm"
    given, read = _given(family), {"": "resid_pre", family.block.mlp: "mlp_in"}
    return (f"{prefix}.{read[below]}" if below in read else None), f"{prefix}.{given[below]}"


def module_of(hook: str, family: Family) -> str | None:
    """The path, from `base_model` on, of the module whose output a hook point is; None where there is none."""
    point = parse(hook)
    if point.site == "final_norm":
        return family.final_norm.rpartition(".")[2]
    below = {site: module for module, site in _given(family).items()}.get(point.site)
    if below is None or point.group is None:
        return None
    leaf = next(group.path for group in family.groups if group.name == point.group).rpartition(".")[2]
    return f"{leaf}.{point.layer}{f'.{below}' if below else ''}"


def _given(family: Family) -> dict[str, str]:
    """What the modules of a block give: their paths below the block, and our sites."""
    block = family.block
    return {
        "": "resid_post",
        block.attn_norm: "attn_in",
        block.mlp_norm: "mlp_in",
        block.attn_post_norm or block.attn: "attn_out",
        block.mlp_post_norm or block.mlp: "mlp_out",
    }


def _module(name: str, family: Family) -> tuple[str | None, str] | None:
    """(`layers.3`, path below the block); the first is None for the final norm. None if it is no such module."""
    if name in (family.final_norm, family.final_norm.rpartition(".")[2]):
        return None, name
    for group in family.groups:
        parent, _, leaf = group.path.rpartition(".")
        above = rf"(?:{re.escape(parent)}\.)?" if parent else ""
        match = re.fullmatch(rf"{above}{re.escape(leaf)}\.(0|[1-9]\d*)(?:\.(.+))?", name)
        if match is not None and (match[2] or "") in _given(family):
            return f"{group.name}.{match[1]}", match[2] or ""
    return None


def _no_module(name: str, family: Family, where: str) -> DictionaryError:
    leaf = family.groups[0].path.rpartition(".")[2]
    modules = ", ".join(f"{leaf}.<i>{f'.{below}' if below else ''}" for below in _given(family))
    return DictionaryError(
        f"the dictionaries are for a module whose output is no hook point of this model: {where}",
        value=name,
        expected=f"one of {modules}, for models of the family {family.name}",
        remedy="check that the dictionaries are for this model, and that their folders keep their names",
    )
