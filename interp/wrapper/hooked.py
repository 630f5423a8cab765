"""Read and edit a model's activations by hook point, on nnsight.

A run is one trace: nnsight executes the body in step with the forward pass, with real values, and the body here walks
the hook points that are needed in execution order. After the last one it stops the forward pass, so later blocks,
the final norm and the head cost nothing when nobody asks for them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, overload

import torch
from jaxtyping import Float, Int
from nnsight import NNsight
from nnsight.intervention.interleaver import EarlyStopException
from torch import Tensor, nn

from interp.errors import HookError, ModelError, PromptError
from interp.models.families import Family, family_named, family_of
from interp.models.loading import LoadedModel, load_model
from interp.models.products import fast_linears
from interp.spec.hookpoints import select
from interp.spec.study import ModelSpec
from interp.wrapper.activations import ActivationCache
from interp.wrapper.frozen import FrozenView, frozen_view
from interp.wrapper.locking import run_lock
from interp.wrapper.paths import check_paths
from interp.wrapper.probe import probe
from interp.wrapper.taps import PatternTap, taps_of
from interp.wrapper.topology import Topology, topology_of

HookNames = str | Sequence[str] | Callable[[str], bool]
"""What selects hook points: a name, a glob, several of these, or a test on names."""

Hook = Callable[[Tensor, str], Tensor | None]
"""Gets the value and the hook point's name; what it returns, if anything, replaces the value."""


class HookedModel:
    """A transformer with hook points.

    Args:
        model: a module, what `load_model` gave, or a source for it: a directory, `builtin://`, `hf://`, a GGUF file.
        family: the row of the families table; by default the one of the configuration's `model_type`.
        device: where to move the model; by default it stays where it is.
        fingerprint: identity of the weights, which dictionaries are tied to; by default the content revision of what
            was loaded, and for a module in memory a hash of its parameters.
        prove: run the probe: two forward passes of a few tokens that show that the family's row describes the model.

    The model is put in evaluation mode. Threads may share it: runs wait for one another.
    """

    requires_family: ClassVar[str | None] = None

    def __init__(
        self,
        model: nn.Module | LoadedModel | ModelSpec | str | Path,
        *,
        family: Family | str | None = None,
        tokenizer: Any = None,
        device: str | torch.device | None = None,
        fingerprint: str | None = None,
        prove: bool = True,
    ):
        if isinstance(model, (ModelSpec, str, Path)):
            model = load_model(model, device=device or "cpu", family=family)
        if isinstance(model, LoadedModel):
            family, tokenizer = family or model.family, tokenizer or model.tokenizer
            fingerprint, model = fingerprint or model.fingerprint, model.model
        self.model: Any = model.eval()
        self.family = _family(model, family)
        self.tokenizer = tokenizer
        if self.requires_family not in (None, self.family.name):
            raise ModelError(
                f"{type(self).__name__} needs a {self.requires_family} model",
                value=self.family.name,
                expected=str(self.requires_family),
                remedy="use HookedModel, which takes any family",
            )
        check_paths(self.model, self.family)
        if device is not None:
            self.model.to(device)
        self._fingerprint = fingerprint
        self._lock = run_lock(model)
        self._taps = taps_of(model, self.family, self.topology.hook_names)
        self._root = NNsight(model)
        self._envoys: dict[str, Any] = {}
        self._frozen: FrozenView | None = None
        self._selections: dict[tuple[str, ...], tuple[str, ...]] = {}
        if prove:
            probe(self)

    @cached_property
    def topology(self) -> Topology:
        """Groups, widths and hook points."""
        return topology_of(self.model, self.family)

    @property
    def frozen(self) -> FrozenView:
        """The linear map that is left when attention patterns and norm denominators are frozen."""
        head = self.model.get_submodule(self.family.head).weight
        # Its weights are views of the model's: they are others once the model is cast or moved.
        if self._frozen is None or self._frozen.unembed.W_U.data_ptr() != head.data_ptr():
            self._frozen = frozen_view(self.model, self.family)
        return self._frozen

    @cached_property
    def fingerprint(self) -> str:
        """Identity of the weights."""
        return self._fingerprint or parameter_fingerprint(self.model)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    @property
    def computes_patterns(self) -> bool:
        """Whether `attn_pattern` can be read: only eager attention computes patterns."""
        return bool(getattr(self.model.config, "_attn_implementation", None) == "eager")

    @contextmanager
    def eager_attention(self) -> Iterator[None]:
        """Inside, attention patterns are computed; what the model used before is put back after."""
        implementation = self.model.config._attn_implementation
        if self.computes_patterns:
            yield
            return
        self.model.set_attn_implementation("eager")
        try:
            yield
        finally:
            self.model.set_attn_implementation(implementation)

    def run_with_cache(
        self,
        ids: Int[Tensor, "batch pos"],
        hook_names: HookNames,
        *,
        logits: bool = False,
        hooks: Mapping[str, Hook] | None = None,
    ) -> ActivationCache:
        """Activations at the hook points, without gradients. Nothing after the last of them is computed.

        Args:
            hooks: edits on the way, as in `run_with_hooks`; activations are returned as they are after them.

        Raises:
            HookError: a hook point that the model does not have.
            PromptError: token ids that it cannot read.
        """
        names = self.select(hook_names)
        with torch.no_grad():
            values = self._run(ids, names if not logits else (*names, "logits"), self._edits(hooks or {}))
        return ActivationCache({name: values[name] for name in names}, values.get("logits"))

    @overload
    def run_with_hooks(
        self, ids: Int[Tensor, "batch pos"], hooks: Mapping[str, Hook], *, return_cache: None = None
    ) -> Float[Tensor, "batch pos d_vocab"]: ...

    @overload
    def run_with_hooks(
        self, ids: Int[Tensor, "batch pos"], hooks: Mapping[str, Hook], *, return_cache: HookNames
    ) -> tuple[Float[Tensor, "batch pos d_vocab"], ActivationCache]: ...

    def run_with_hooks(
        self, ids: Int[Tensor, "batch pos"], hooks: Mapping[str, Hook], *, return_cache: HookNames | None = None
    ) -> Tensor | tuple[Tensor, ActivationCache]:
        """The head's raw output, with edits on the way; gradients flow unless under `torch.no_grad`.

        Args:
            hooks: by hook point; a hook that returns None has only looked.
            return_cache: hook points to return as well, as a second value, as they are after the edits.
        """
        names = () if return_cache is None else self.select(return_cache)
        values = self._run(ids, (*names, "logits"), self._edits(hooks))
        if return_cache is None:
            return values["logits"]
        return values["logits"], ActivationCache({name: values[name] for name in names}, values["logits"])

    def softcapped(self, logits: Float[Tensor, "*batch d_vocab"]) -> Float[Tensor, "*batch d_vocab"]:
        """What the model makes of the head's raw output: the logits whose softmax is its prediction."""
        cap = self.topology.logit_softcap
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def select(self, hook_names: HookNames) -> tuple[str, ...]:
        """The hook points that a name, a glob, several of these or a test select, in execution order.

        Globs and tests leave out `attn_pattern` where the attention implementation computes no patterns.
        """
        if callable(hook_names):
            return tuple(name for name in self._readable if hook_names(name))
        wanted = (hook_names,) if isinstance(hook_names, str) else tuple(hook_names)
        if wanted not in self._selections:
            # Who names the pattern gets it, or the reason why not.
            patterns = any("pattern" in name for name in wanted)
            self._selections[wanted] = select(wanted, self.topology.hook_names if patterns else self._readable)
        return self._selections[wanted]

    @property
    def _readable(self) -> tuple[str, ...]:
        names = self.topology.hook_names
        return names if self.computes_patterns else tuple(n for n in names if not n.endswith(".attn_pattern"))

    @property
    def bos_token_id(self) -> int | None:
        """The token that begins a text, if the tokenizer has one."""
        return None if self.tokenizer is None else self.tokenizer.bos_token_id

    def tokenize(self, text: str, bos: bool) -> Int[Tensor, "1 pos"]:
        """Token ids of a text, with the tokenizer's BOS before them if `bos`."""
        if self.tokenizer is None:
            raise ModelError(
                "the model has no tokenizer", expected="one beside its weights", remedy="give one: tokenizer="
            )
        if bos and self.bos_token_id is None:
            raise ModelError("the tokenizer has no BOS token", expected="bos_token_id", remedy="use bos=False")
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return torch.tensor([[self.bos_token_id, *ids] if bos else ids], dtype=torch.long)

    def _edits(self, hooks: Mapping[str, Hook]) -> dict[str, Hook]:
        return {self.topology.point(name).name: hook for name, hook in hooks.items()}

    def _run(self, ids: Tensor, keep: Sequence[str], edits: Mapping[str, Hook]) -> dict[str, Tensor]:
        """One forward pass, up to the last hook point that is kept."""
        self._check_ids(ids)
        kept: dict[str, Tensor] = {}
        if not keep:
            return kept
        visited, stops = self._visited(keep, edits), list[EarlyStopException]()
        linears = fast_linears(next(self.model.parameters()), ids.numel())
        # The trace compiles this body from its source: it must start on a line of its own and not with `try`.
        with self._lock.held(), linears, self._root.trace(ids.long(), use_cache=False) as tracer:
            self._walk(visited, frozenset(keep), edits, kept)
            _stop(tracer, stops)
        # The exception that stopped the run and the frames it passed hold one another, and with them activations:
        # without this they would stay until the next collection of cyclic garbage.
        for stop in stops:
            stop.__traceback__ = stop.__context__ = None
            vars(stop).clear()
        return kept

    def _visited(self, keep: Sequence[str], edits: Mapping[str, Hook]) -> list[str]:
        """What to stop at, in execution order; edits after the last hook point that is kept have no effect on it."""
        order = self.topology.order
        last = max(order[name] for name in keep)
        names = set(keep) | {name for name in edits if order[name] <= last}
        # A replaced resid_mid is made good at the end of its block.
        names |= {name.removesuffix("resid_mid") + "resid_post" for name in edits if name.endswith(".resid_mid")}
        return sorted((name for name in names if order[name] <= last), key=order.__getitem__)

    def _walk(
        self, names: Sequence[str], keep: frozenset[str], edits: Mapping[str, Hook], kept: dict[str, Tensor]
    ) -> None:
        """Runs inside the trace: every read waits until the forward pass gets there."""
        shifts: dict[int | None, Tensor] = {}
        for name in names:
            tap = self._taps[name]
            envoy = self._envoy(tap.path)
            read_by_attention = envoy.input if isinstance(tap, PatternTap) and name in edits else None
            value = tap.read(envoy)
            if name.endswith(".resid_post") and tap.layer in shifts:
                value = value + shifts.pop(tap.layer)
                tap.write(envoy, value)
            edited = edits[name](value, name) if name in edits else None
            if edited is not None:
                _check_edit(name, value, edited)
                if read_by_attention is not None and isinstance(tap, PatternTap) and tap.layer is not None:
                    tap.write_pattern(envoy, self.frozen.blocks[tap.layer], read_by_attention, edited)
                else:
                    tap.write(envoy, edited)
                if name.endswith(".resid_mid"):
                    shifts[tap.layer] = edited - value
                value = edited
            if name in keep:
                kept[name] = value

    def _envoy(self, path: str) -> Any:
        if path not in self._envoys:
            envoy = self._root
            for part in path.split("."):
                envoy = getattr(envoy, part)
            self._envoys[path] = envoy
        return self._envoys[path]

    def _check_ids(self, ids: Tensor) -> None:
        if ids.ndim != 2 or ids.is_floating_point() or ids.dtype == torch.bool:
            raise PromptError(
                "these are no token ids",
                value=f"{ids.dtype} {tuple(ids.shape)}",
                expected="integers [batch, pos]",
                remedy="add a batch dimension: ids[None]" if ids.ndim == 1 else None,
            )
        if 0 in ids.shape:
            raise PromptError("the prompt is empty", value=f"ids {tuple(ids.shape)}", expected="at least one token")
        limit = self.topology.max_positions
        if limit is not None and ids.shape[1] > limit:
            raise PromptError(
                "the prompt is longer than the model's learned positions",
                value=f"{ids.shape[1]} tokens",
                expected=f"at most {limit}",
            )
        # On an accelerator the comparison would wait for the device; there the caller's ids are trusted.
        if ids.device.type == "cpu" and (int(ids.min()) < 0 or int(ids.max()) >= self._n_embeddings):
            raise PromptError(
                "the prompt has a token that the model does not know",
                value=f"ids from {int(ids.min())} to {int(ids.max())}",
                expected=f"0 to {self._n_embeddings - 1}",
                remedy="use the model's own tokenizer",
            )

    @cached_property
    def _n_embeddings(self) -> int:
        return int(self.model.get_submodule(self.family.embed).weight.shape[0])


class HookedSplitLlama(HookedModel):
    """A SplitLlama with hook points: groups `layers_first` and `layers_last`, `adapter_out` between them."""

    requires_family = "split-llama"


def parameter_fingerprint(model: nn.Module) -> str:
    """sha256 over the names, shapes, dtypes and bytes of a module's parameters and persistent buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return f"parameters-{digest.hexdigest()}"


def _family(model: nn.Module, family: Family | str | None) -> Family:
    if isinstance(family, Family):
        return family
    if family is not None:
        return family_named(family)
    return family_of(getattr(getattr(model, "config", None), "model_type", None))


def _stop(tracer: Any, stops: list[EarlyStopException]) -> None:
    try:
        tracer.stop()
    except EarlyStopException as stop:
        stops.append(stop)
        raise


def _check_edit(name: str, value: Tensor, edited: Tensor) -> None:
    if not isinstance(edited, Tensor) or edited.shape != value.shape or edited.dtype != value.dtype:
        found = f"{edited.dtype} {tuple(edited.shape)}" if isinstance(edited, Tensor) else type(edited).__name__
        raise HookError(
            f"the hook at {name} returned something of another form",
            value=found,
            expected=f"{value.dtype} {tuple(value.shape)}, or None to leave the value as it is",
        )
