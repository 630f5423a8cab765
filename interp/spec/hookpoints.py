"""The grammar of hook points, in the order in which a forward pass reaches them.

    embed
    layers.{i}.resid_pre · attn_in · attn_pattern · attn_out · resid_mid · mlp_in · mlp_out · resid_post
    final_norm · logits

A SplitLlama has two groups instead of `layers`: `layers_first` and `layers_last`, with `adapter_out` between them.
`mlp_in` is what the MLP reads (after its norm), `mlp_out` what it adds to the residual stream. `layers.{i}.mlp` is no
hook point but the pair of both: the place of a transcoder. A block whose attention and MLP run in parallel has no
`resid_mid`; which hook points a model has is therefore always passed in.

Patterns are globs per dotted segment: `layers.*.resid_post`, `layers_*.[0-2].mlp_in`. The names of TransformerLens
(`blocks.3.hook_resid_post`) are accepted wherever a name or a pattern is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import total_ordering

from interp.errors import HookError

SITES = ("resid_pre", "attn_in", "attn_pattern", "attn_out", "resid_mid", "mlp_in", "mlp_out", "resid_post")
"""The hook points of a block, in execution order."""

GROUPS = ("layers", "layers_first", "layers_last")
MLP = "mlp"
"""The site that stands for the pair (mlp_in, mlp_out)."""

_ORDER = {"embed": 0, "layers": 1, "layers_first": 1, "adapter_out": 2, "layers_last": 3, "final_norm": 4, "logits": 5}
_SINGLES = ("embed", "adapter_out", "final_norm", "logits")
_EXPECTED = f"{', '.join(_SINGLES)}, or <{'|'.join(GROUPS)}>.<layer>.<{'|'.join(SITES)}>"

_ALIASES = {"hook_embed": "embed"}
_BLOCK_ALIASES = {
    "hook_resid_pre": "resid_pre",
    "attn.hook_pattern": "attn_pattern",
    "hook_attn_out": "attn_out",
    "hook_resid_mid": "resid_mid",
    "mlp.hook_in": "mlp_in",
    "hook_mlp_out": "mlp_out",
    "hook_resid_post": "resid_post",
}
_NO_ALIASES = {
    "hook_attn_in": "it stands before the norm; attn_in is what attention reads",
    "hook_mlp_in": "it stands before the norm; mlp_in is what the MLP reads",
    "ln1.hook_normalized": "it stands before the norm's gain; attn_in is what attention reads",
    "ln2.hook_normalized": "it stands before the norm's gain; mlp_in is what the MLP reads",
    "ln_final.hook_normalized": "it stands before the norm's gain; final_norm is what the head reads",
    "mlp.hook_out": "it stands before a post-norm, where there is one; mlp_out is what is added to the residual stream",
}
"""Names of TransformerLens that are other places than ours, though they look alike."""
_BLOCK_NAME = re.compile(rf"({'|'.join(GROUPS)})\.(0|[1-9]\d*)\.({'|'.join((*SITES, MLP))})")


@total_ordering
@dataclass(frozen=True)
class HookPoint:
    """One place in a forward pass; compares by execution order."""

    group: str | None
    layer: int | None
    site: str

    @property
    def name(self) -> str:
        return self.site if self.group is None else f"{self.group}.{self.layer}.{self.site}"

    def __lt__(self, other: HookPoint) -> bool:
        return self._rank < other._rank

    @property
    def _rank(self) -> tuple[int, int, int]:
        site = SITES.index(self.site) if self.site in SITES else 0
        return _ORDER[self.group or self.site], self.layer or 0, site


def parse(name: str) -> HookPoint:
    """The hook point that `name` or its TransformerLens alias means.

    Raises:
        HookError: it is none.
    """
    known = canonical(name)
    if known in _SINGLES:
        return HookPoint(None, None, known)
    match = _BLOCK_NAME.fullmatch(known)
    if not match or match[3] == MLP:
        remedy = _NO_ALIASES.get(re.sub(r"^blocks\.\d+\.", "", name))
        if match is not None:
            remedy = f"name {known}_in or {known}_out; the pair of both is a transcoder's place"
        raise HookError("this is no hook point", value=name, expected=_EXPECTED, remedy=remedy)
    return HookPoint(match[1], int(match[2]), match[3])


def canonical(name: str) -> str:
    """The name in this grammar of a name or pattern that may be TransformerLens'; other text comes back as it is."""
    if name in _ALIASES:
        return _ALIASES[name]
    block, _, rest = name.partition(".")
    layer, _, site = rest.partition(".")
    return f"layers.{layer}.{_BLOCK_ALIASES[site]}" if block == "blocks" and site in _BLOCK_ALIASES else name


def mlp_pair(name: str) -> tuple[str, str]:
    """`layers.3.mlp` -> (`layers.3.mlp_in`, `layers.3.mlp_out`).

    Raises:
        HookError: it is not the place of a transcoder.
    """
    match = _BLOCK_NAME.fullmatch(name)
    if not match or match[3] != MLP:
        raise HookError(
            "this is not the place of a transcoder", value=name, expected=f"<{'|'.join(GROUPS)}>.<layer>.mlp"
        )
    return f"{name}_in", f"{name}_out"


def mlps(available_names: Iterable[str]) -> tuple[str, ...]:
    """The places of transcoders: every block of which both mlp_in and mlp_out are available, in execution order."""
    names = set(available_names)
    inputs = sorted(parse(name) for name in names if name.endswith(".mlp_in"))
    found = (point.name.removesuffix("_in") for point in inputs)
    return tuple(name for name in found if f"{name}_out" in names)


def all_hook_points(groups: Sequence[tuple[str, int]], adapter: bool, *, parallel: bool = False) -> tuple[str, ...]:
    """Every hook point of a model, in execution order.

    Args:
        groups: (name, number of layers) of each stack of blocks.
        adapter: whether an adapter stands between the first group and the second.
        parallel: whether attention and MLP of a block read the same residual stream.
    """
    sites = [site for site in SITES if not (parallel and site == "resid_mid")]
    points = [HookPoint(group, layer, site) for group, count in groups for layer in range(count) for site in sites]
    singles = [single for single in _SINGLES if adapter or single != "adapter_out"]
    return tuple(point.name for point in sorted([*points, *(HookPoint(None, None, single) for single in singles)]))


def select(patterns: str | Sequence[str], available_names: Sequence[str]) -> tuple[str, ...]:
    """The available names that at least one pattern matches, once each, in execution order.

    `available_names` may be hook points or places of transcoders (`mlps`).

    Raises:
        HookError: a pattern matches nothing.
    """
    chosen: set[str] = set()
    for pattern in (patterns,) if isinstance(patterns, str) else patterns:
        wanted = canonical(pattern)
        matched = [name for name in available_names if _matches(wanted, name)]
        if not matched:
            raise _no_match(pattern, wanted, available_names)
        chosen.update(matched)
    return tuple(sorted(chosen, key=_execution))


def _matches(pattern: str, name: str) -> bool:
    wanted, found = pattern.split("."), name.split(".")
    return len(wanted) == len(found) and all(map(fnmatchcase, found, wanted))


def _execution(name: str) -> HookPoint:
    return parse(f"{name}_in" if name.endswith(f".{MLP}") else name)


def _no_match(pattern: str, wanted: str, available: Sequence[str]) -> HookError:
    mended = _mended(wanted, available)
    near = [mended] if mended else get_close_matches(wanted, available, n=3, cutoff=0.6)
    remedy = f"did you mean {' or '.join(near)}?" if near else "choose among the names above; globs are per segment"
    group, _, rest = wanted.partition(".")
    layers = [int(name.split(".")[1]) for name in available if name.startswith(f"{group}.")]
    if layers and rest.split(".")[0].isdigit() and int(rest.split(".")[0]) not in layers:
        remedy = f"{group} has layers {min(layers)} to {max(layers)}"
    return HookError("no hook point of the model matches", value=pattern, expected=_summary(available), remedy=remedy)


def _mended(pattern: str, available: Sequence[str]) -> str | None:
    """The pattern with each segment that matches nothing replaced by the nearest that there is, if it then matches."""
    parts = pattern.split(".")
    alike = [name.split(".") for name in available if name.count(".") == len(parts) - 1]
    for place, part in enumerate(parts):
        there = list(dict.fromkeys(name[place] for name in alike))
        if not any(fnmatchcase(segment, part) for segment in there):
            parts[place] = next(iter(get_close_matches(part, there, n=1, cutoff=0.6)), part)
    mended = ".".join(parts)
    return mended if any(_matches(mended, name) for name in available) else None


def _summary(available: Sequence[str]) -> str:
    """`layers.{0..11} with resid_pre, ...; embed, final_norm`: what there is, in one line."""
    layers: dict[str, list[int]] = {}
    sites: dict[str, dict[str, None]] = {}
    for name in available:
        if "." in name:
            group, layer, site = name.split(".")
            layers.setdefault(group, []).append(int(layer))
            sites.setdefault(group, {})[site] = None
    alike: dict[tuple[str, ...], list[str]] = {}
    for group, numbers in layers.items():
        alike.setdefault(tuple(sites[group]), []).append(f"{group}.{{{min(numbers)}..{max(numbers)}}}")
    blocks = [f"{' and '.join(groups)} with {', '.join(names)}" for names, groups in alike.items()]
    singles = ", ".join(name for name in available if "." not in name)
    return "; ".join([*blocks, singles] if singles else blocks) or "this model has none"
