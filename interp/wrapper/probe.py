"""Prove that a row of the families table describes a model.

Two short forward passes on a random prompt. The first is bare. The second runs the prompt twice, side by side: row 0
is spliced with its own values, row 1 with random vectors of the residual stream's size in place of every attention and
MLP output. Then, for both rows and every block,

    capture   h + attn_out + mlp_out is the block's output and the next one's input; the embedding starts and the head
              ends the residual stream
    splice    row 0 predicts what the bare pass predicted; row 1 does not, and what was put in is what was added
    freeze    the frozen norms give what attention and MLP read; the frozen pattern gives what attention wrote, and the
              parts of the MLP, where the row knows them, what the MLP wrote

An error is the largest relative length of the difference over positions. A check that fails names the row's fields
that are likely wrong.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import InterpError, ProbeFailed
from interp.wrapper.activations import ActivationCache
from interp.wrapper.frozen import BlockView, attention_out
from interp.wrapper.mlp import MlpView

if TYPE_CHECKING:
    from interp.wrapper.hooked import HookedModel

_LOG = logging.getLogger(__name__)

POSITIONS = 8
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 2e-2}
"""Largest relative error by dtype: rounding stays a factor of ten below, a wrong row is at 0.1 or more."""


@dataclass(frozen=True)
class ProbeReport:
    """What the probe found.

    Attributes:
        tolerance: what was allowed.
        errors: the largest relative error of each check.
        splice_effect: relative change of the logits when every attention and MLP output is replaced.
        seconds: what it cost.
    """

    family: str
    tolerance: float
    errors: dict[str, float]
    splice_effect: float
    seconds: float


def probe(hooked: HookedModel) -> ProbeReport:
    """Prove the row of this model's family.

    Raises:
        ProbeFailed: a check failed; the message names fields of the row.
    """
    started = time.perf_counter()
    ids = _prompt(hooked)
    with torch.no_grad(), hooked.eager_attention():
        bare = hooked.model(ids, use_cache=False).logits
        logits, cache = _spliced(hooked, ids.expand(2, -1))
        checks = _Checks(hooked, cache)
        checks.ends(ids, bare)
        for block in hooked.frozen.blocks:
            checks.block(block)
    effect = _relative(hooked.softcapped(logits)[1:], bare)
    if not effect > checks.tolerance:
        checks.fail("replacing what attention and MLP add does not change the logits", effect, "block.attn, block.mlp")
    report = ProbeReport(
        hooked.family.name, checks.tolerance, checks.errors, effect, round(time.perf_counter() - started, 4)
    )
    _LOG.debug("probe: %s", report)
    return report


class _Checks:
    """Compares what the row predicts with what the model did, and keeps the largest error of each kind."""

    def __init__(self, hooked: HookedModel, cache: ActivationCache):
        self.hooked = hooked
        self.cache = cache
        self.tolerance = TOLERANCE.get(hooked.dtype, TOLERANCE[torch.float32])
        self.errors: dict[str, float] = {}

    def ends(self, ids: Int[Tensor, "1 pos"], bare: Float[Tensor, "1 pos d_vocab"]) -> None:
        """Embedding, adapter, final norm, head, soft cap."""
        hooked, family = self.hooked, self.hooked.family
        start = hooked.model.get_submodule(family.embed)(ids)
        if family.positions is not None:
            positions = torch.arange(ids.shape[1], device=ids.device)
            start = start + hooked.model.get_submodule(family.positions)(positions)
        self.equal("embedding", "", start, self.cache["embed"][:1], "embed, positions")
        frozen, stream = hooked.frozen, [self.cache[name] for name in hooked.topology.all_resid_hooks]
        if frozen.adapter is not None and frozen.adapter_before is not None:
            before = _wide(stream[frozen.adapter_before - 1])
            adapted = frozen.adapter.linear(before, frozen.adapter.mask(before))
            self.equal("adapter", "", adapted, self.cache["adapter_out"], "adapter, groups")
        normed = frozen.final_norm.apply(_wide(stream[-1]))
        self.equal("final norm", "", normed, self.cache["final_norm"], "final_norm, norm.kind, norm.eps")
        logits = _wide(self.cache["final_norm"]) @ _wide(frozen.unembed.W_U).T
        logits = logits if frozen.unembed.bias is None else logits + frozen.unembed.bias
        self.equal("head", "", logits, self.cache["logits"], "head")
        self.equal("prediction", "", hooked.softcapped(self.cache["logits"][:1]), bare, "head, logit_softcap")

    def block(self, block: BlockView) -> None:
        """One block: norms, attention, and what is added to the residual stream."""
        at = {site: _wide(self.cache[f"{block.name}.{site}"]) for site in _SITES}
        before, middle = at["resid_pre"], at["resid_pre"] + at["attn_out"]
        self.equal("block's input", block.name, self._handed_on(block.layer), before, "groups, adapter")
        normed = block.attn_norm.apply(before)
        self.equal("norm before attention", block.name, normed, at["attn_in"], "norm.kind, norm.eps, block.attn_norm")
        mlp_reads = block.mlp_norm.apply(before if block.parallel else middle)
        fields = "block.parallel, block.attn_post_norm, block.mlp_norm, norm.kind"
        self.equal("norm before the MLP", block.name, mlp_reads, at["mlp_in"], fields)
        fields = "block.mlp_post_norm, block.attn_post_norm, block.mlp, block.attn"
        self.equal("residual stream", block.name, middle + at["mlp_out"], at["resid_post"], fields)
        # Row 1 has had its attention output replaced; what attention itself wrote is in row 0 alone.
        wrote = attention_out(block, at["attn_in"][:1], at["attn_pattern"][:1])
        if block.attn_post_norm is not None:
            wrote = block.attn_post_norm.apply(wrote)
        self.equal("attention", block.name, wrote, at["attn_out"][:1], "block.value, block.out, block.attn_post_norm")
        if block.mlp is not None:
            self.equal("MLP", block.name, self._mlp(block, block.mlp), at["mlp_out"][:1], _MLP_FIELDS)

    def _mlp(self, block: BlockView, mlp: MlpView) -> Tensor:
        """What an MLP writes, by its parts."""
        try:
            # In the model's own dtype: nothing as large as an MLP's weights is copied.
            wrote = _wide(mlp(self.cache[f"{block.name}.mlp_in"][:1]))
        except RuntimeError as error:
            self.fail(f"the parts of the MLP of {block.name} do not fit together", str(error), _MLP_FIELDS)
        return wrote if block.mlp_post_norm is None else block.mlp_post_norm.apply(wrote)

    def _handed_on(self, layer: int) -> Tensor:
        """What the residual stream is before a block: the end of the one before, or what the adapter made of it."""
        if layer == 0:
            return self.cache["embed"]
        adapted = layer == self.hooked.frozen.adapter_before
        return self.cache["adapter_out" if adapted else self.hooked.topology.all_resid_hooks[layer - 1]]

    def equal(self, check: str, where: str, predicted: Tensor, found: Tensor, fields: str) -> None:
        if predicted.shape != found.shape:
            shapes = f"{tuple(predicted.shape)} and {tuple(found.shape)}"
            self.fail(f"{check}: predicted and found differ in shape {where}", shapes, fields)
        error = _relative(predicted, found)
        self.errors[check] = max(error, self.errors.get(check, 0.0))
        if not error <= self.tolerance:
            self.fail(f"{check} {where}: what the row predicts is not what the model did", error, fields)

    def fail(self, what: str, found: float | str, fields: str) -> NoReturn:
        raise ProbeFailed(
            f"the families table's row {self.hooked.family.name!r} does not describe this model: {what}",
            value=found if isinstance(found, str) else f"relative error {found:.3g}",
            expected=f"at most {self.tolerance:g} in {self.hooked.dtype}",
            remedy=f"look at {fields} of the row in interp/models/families.py, or name another family",
        )


_MLP_FIELDS = "block.mlp_parts (None if it cannot describe such an MLP)"
_SITES = ("resid_pre", "attn_in", "attn_pattern", "attn_out", "mlp_in", "mlp_out", "resid_post")


def _prompt(hooked: HookedModel) -> Int[Tensor, "1 pos"]:
    """Random tokens, the same every time."""
    embeddings = hooked.model.get_submodule(hooked.family.embed).weight
    ids = torch.randint(embeddings.shape[0], (1, POSITIONS), generator=torch.Generator().manual_seed(0))
    return ids.to(embeddings.device)


def _spliced(hooked: HookedModel, ids: Int[Tensor, "2 pos"]) -> tuple[Tensor, ActivationCache]:
    """The pass with edits: row 0 gets its own values back, row 1 random ones as long as row 0's residual stream."""
    generator = torch.Generator().manual_seed(1)
    scale: dict[str, Tensor] = {}

    def look(value: Tensor, name: str) -> None:
        scale["now"] = value[0].float().pow(2).mean(dim=-1, keepdim=True).sqrt()

    def splice(value: Tensor, name: str) -> Tensor:
        drawn = torch.randn(value[1].shape, generator=generator).to(value.device) * scale["now"]
        return torch.stack([value[0], drawn.to(value.dtype)])

    topology = hooked.topology
    hooks: dict[str, Callable[[Tensor, str], Tensor | None]] = dict.fromkeys(topology.all_hooks("resid_pre"), look)
    hooks |= dict.fromkeys((*topology.all_attn_out_hooks, *topology.all_mlp_out_hooks), splice)
    keep = [name for name in topology.hook_names if name.rpartition(".")[2] in (*_SITES, *_SINGLES)]
    try:
        return hooked.run_with_hooks(ids, hooks, return_cache=keep)
    except InterpError:
        raise
    except Exception as error:
        # A module that does not run where the row says surfaces as whatever the tracer or torch make of it.
        raise ProbeFailed(
            f"the families table's row {hooked.family.name!r} does not describe this model: "
            "its modules do not run, or not in this order",
            value=f"{type(error).__name__}: {error}",
            expected="norm, attention, norm, MLP in every block",
            remedy="look at the paths of the row's block in interp/models/families.py, or name another family",
        ) from error


_SINGLES = ("embed", "adapter_out", "final_norm", "logits")


def _wide(value: Tensor) -> Tensor:
    """In float32 or better."""
    return value if value.dtype == torch.float64 else value.float()


def _relative(a: Tensor, b: Tensor) -> float:
    """Largest relative length of the difference over positions; not-a-number counts as infinite."""
    a, b = a.double(), b.double()
    error = (a - b).norm(dim=-1) / b.norm(dim=-1).clamp_min(1e-9)
    return float(error.nan_to_num(nan=float("inf")).max())
