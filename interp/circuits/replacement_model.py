"""The replacement model: MLPs written as their transcoders, everything else as it was.

`ReplacementModel(hooked, transcoders).build(ids)` runs the model once, on the unchanged model, and freezes what it saw
(see `interp.circuits.state`). Errors make up for what the transcoders miss, so the frozen model computes exactly what
the model computes on this prompt. Where MLPs are kept, it is the model with its adapters that is run: their output is
added to what MLPs write.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.circuits.freeze import Active, BlockReader, PatternKeeper, collect, freeze_block
from interp.circuits.memory import DEFAULT_MEMORY, PromptSize, batches_of, spills_patterns
from interp.circuits.replacements import (
    MlpRule,
    Replacement,
    Transcoders,
    fingerprint_of,
    layer_named,
    replacement_of,
    uncovered,
)
from interp.circuits.spill import Spill
from interp.circuits.state import FrozenAdapter, FrozenHead, ReplacementState
from interp.errors import DictionaryError, InterpError, PromptError, SpecError
from interp.wrapper import HookedModel
from interp.wrapper.activations import ActivationCache
from interp.wrapper.hooked import Hook

logger = logging.getLogger(__name__)

BosRule = Literal["auto", "keep", "never"]


class ReplacementModel:
    """A hooked model with transcoders for its MLPs.

    Args:
        transcoders: by MLP (`layers.3.mlp`, or its `mlp_in` or `mlp_out` hook point), one for each layer in order, or
            one cross-layer transcoder. An MLP without features is a source that is not explained: its whole output is
            an error. They are moved to the model's device.
        mlp: `replaced`: they stand for their MLPs; `kept`: they are adapters, whose output is added to the MLP's, and
            MLPs are made linear by the RelP rules (`interp.wrapper.mlp`).
        bos: `auto`: a BOS token at position 0 has one constant source a layer in place of features and error, since its
            activations are of another size than all others; `keep`, `never`: it is a position like any other.
        max_tokens: a longer prompt is refused; None: only the model's own limit holds.

    Raises:
        ModelMismatch: a transcoder that was trained on another model.
        DictionaryError: something that cannot stand for an MLP of this model.
        ModelError: MLPs that are to be kept and that RelP cannot make linear.
    """

    def __init__(
        self,
        hooked: HookedModel,
        transcoders: Transcoders,
        *,
        mlp: MlpRule = "replaced",
        bos: BosRule = "auto",
        max_tokens: int | None = None,
    ):
        if bos not in ("auto", "keep", "never"):
            raise SpecError("there is no such rule for BOS", value=bos, expected="auto, keep or never")
        self.hooked, self.bos, self.max_tokens = hooked, bos, max_tokens
        self.replacement = replacement_of(hooked, transcoders, mlp)
        if missing := uncovered(hooked, self.replacement):
            logger.info("MLPs without features are left as they are: %s", ", ".join(missing))

    @cached_property
    def fingerprint(self) -> str:
        """Identity of the dictionaries (`interp.circuits.replacements.fingerprint_of`)."""
        return fingerprint_of(self.replacement)

    @torch.no_grad()
    def build(
        self, ids: Int[Tensor, "pos"] | Int[Tensor, "1 pos"] | Sequence[int], *, memory: int = DEFAULT_MEMORY
    ) -> ReplacementState:
        """Run the model on a prompt and freeze it there.

        Args:
            memory: bytes that the prompt may use; patterns go to disk if they are a large part of it.

        Raises:
            PromptError: an empty or too long prompt, or a token that the model does not know.
            EngineError: one that does not fit into `memory`.
        """
        prompt = self.checked(torch.as_tensor(ids))
        patterns = PatternKeeper(Spill() if spills_patterns(self._size(len(prompt)), memory) else None)
        return self._freeze(prompt, self._run(prompt[None], patterns), patterns)

    @torch.no_grad()
    def build_many(
        self,
        prompts: Sequence[Int[Tensor, "pos"] | Int[Tensor, "1 pos"] | Sequence[int]],
        *,
        memory: int = DEFAULT_MEMORY,
    ) -> list[ReplacementState | InterpError]:
        """Each prompt's state, or why there is none; short ones of like length go through the model together.

        They are padded on the right, where a causal model does not look: each state is what `build` makes, but for
        rounding.

        Args:
            memory: bytes that the prompts may use together.
        """
        found: dict[int, ReplacementState | InterpError] = {}
        checked: dict[int, Tensor] = {}
        for place, ids in enumerate(prompts):
            try:
                checked[place] = self.checked(torch.as_tensor(ids))
            except InterpError as error:
                found[place] = error
        for group in self.batches({place: len(prompt) for place, prompt in checked.items()}, memory):
            found |= zip(group, self._build_group([checked[place] for place in group], memory), strict=True)
        return [found[place] for place in range(len(prompts))]

    def batches(self, lengths: Mapping[int, int], memory: int = DEFAULT_MEMORY) -> list[list[int]]:
        """The prompts that `build_many` runs together: of each its place and how many tokens it has."""
        limit = self.hooked.topology.max_positions
        # The model refuses what is longer than its learned positions: alone, so that no other is refused with it.
        fine = {place: n for place, n in lengths.items() if limit is None or n <= limit}
        sizes = {place: self._size(n) for place, n in fine.items() if n}
        return [[place] for place in lengths if place not in sizes] + batches_of(sizes, memory)

    def _build_group(self, prompts: Sequence[Tensor], memory: int) -> list[ReplacementState | InterpError]:
        if len(prompts) == 1:
            try:
                return [self.build(prompts[0], memory=memory)]
            except InterpError as error:
                return [error]
        ids = torch.nn.utils.rnn.pad_sequence(list(prompts), batch_first=True)
        patterns = PatternKeeper(None)
        cache = self._run(ids, patterns)
        states = list[ReplacementState | InterpError]()
        for place, prompt in enumerate(prompts):
            own = {name: values[place : place + 1, : len(prompt)].clone() for name, values in cache.items()}
            try:
                states.append(self._freeze(prompt, ActivationCache(own), patterns.of(place, len(prompt))))
            except InterpError as error:
                states.append(error)
        return states

    def _run(self, ids: Int[Tensor, "prompt pos"], patterns: PatternKeeper) -> ActivationCache:
        """What freezing needs of one forward pass."""
        with self.hooked.eager_attention():
            seen = {f"{block.name}.attn_pattern": patterns.keep for block in self.hooked.frozen.blocks}
            hooks = {**self._adapters(), **seen}
            return self.hooked.run_with_cache(ids.to(self.hooked.device), self._hook_points(), hooks=hooks)

    def _freeze(self, prompt: Int[Tensor, "pos"], cache: ActivationCache, patterns: PatternKeeper) -> ReplacementState:
        topology, view = self.hooked.topology, self.hooked.frozen
        constant = self.constant_positions(prompt).to(self.hooked.device)
        active: dict[int, Active] = {}
        layers = tuple(
            freeze_block(
                block, BlockReader(cache, block.name, patterns[block.name]), self.replacement, constant, active
            )
            for block in view.blocks
        )
        return ReplacementState(
            ids=prompt,
            embeddings=cache[f"{topology.block_name(0)}.resid_pre"][0].float(),
            layers=layers,
            adapter=self._freeze_adapter(cache),
            head=self._freeze_head(cache),
            replacement=self.replacement,
            features=collect(active, len(layers), len(prompt)),
            constant=constant,
        )

    def layer_of(self, at: str) -> int:
        """The layer of an MLP that has features, such as `layers.3.mlp`.

        Raises:
            DictionaryError: there is no such MLP, or it has no features.
        """
        layer = layer_named(self.hooked, at)
        if not self.replacement.has_features(layer):
            raise DictionaryError("this MLP has no features", value=at, expected="an MLP with a transcoder")
        return layer

    def stream(self, ids: Int[Tensor, "pos"], hook: str) -> Float[Tensor, "pos d_model"]:
        """An activation of the model, with its adapters if it has any, in float32."""
        # Attention as `build` had it: other implementations round in another way.
        with self.hooked.eager_attention():
            cache = self.hooked.run_with_cache(ids[None].to(self.hooked.device), [hook], hooks=self._adapters())
        return cache[hook][0].float()

    def checked(self, ids: Tensor) -> Int[Tensor, "pos"]:
        """A prompt as `build` takes it, on the CPU.

        Raises:
            PromptError: as `build`.
        """
        if ids.ndim == 2 and ids.shape[0] == 1:
            ids = ids[0]
        if ids.ndim != 1:
            raise PromptError("one prompt at a time", value=tuple(ids.shape), expected="token ids [pos] or [1, pos]")
        if len(ids) == 0:
            raise PromptError("the prompt is empty", expected="at least one token")
        if ids.is_floating_point() or ids.dtype == torch.bool:
            raise PromptError("these are no token ids", value=str(ids.dtype), expected="integers")
        if self.max_tokens is not None and len(ids) > self.max_tokens:
            raise PromptError(
                "the prompt is too long",
                value=f"{len(ids)} tokens",
                expected=f"at most {self.max_tokens}",
                remedy="shorten it, or raise trace.max_tokens",
            )
        n_tokens = self.hooked.model.get_submodule(self.hooked.family.embed).weight.shape[0]
        if int(ids.min()) < 0 or int(ids.max()) >= n_tokens:
            wrong = ids[(ids < 0) | (ids >= n_tokens)]
            raise PromptError(
                "the prompt has a token that the model does not know",
                value=int(wrong[0]),
                expected=f"0 .. {n_tokens - 1}",
                remedy="use the model's own tokenizer",
            )
        return ids.long().cpu()

    def constant_positions(self, ids: Tensor) -> Bool[Tensor, "pos"]:
        """Where MLPs are held constant."""
        constant = torch.zeros(len(ids), dtype=torch.bool)
        bos = self.hooked.bos_token_id
        if bos is None:
            bos = getattr(self.hooked.model.config, "bos_token_id", None)
        constant[0] = self.bos == "auto" and bos is not None and int(ids[0]) == bos
        return constant

    def _size(self, n_pos: int) -> PromptSize:
        blocks, replacement = self.hooked.frozen.blocks, self.replacement
        with_features = [layer for layer in range(replacement.n_layers) if replacement.has_features(layer)]
        return PromptSize(
            n_layers=len(blocks),
            n_pos=n_pos,
            d_model=max(block.d_model for block in blocks),
            n_heads=max(block.n_heads for block in blocks),
            d_ff=max(block.known_mlp.up.weight.shape[0] for block in blocks) if replacement.keeps_mlp else 0,
            itemsize=self.hooked.dtype.itemsize,
            n_latents=max(map(replacement.n_latents, with_features)),
        )

    def _hook_points(self) -> list[str]:
        topology = self.hooked.topology
        sites = ["resid_pre", "mlp_in", "mlp_out"] + ([] if topology.parallel else ["resid_mid"])
        blocks = [topology.block_name(layer) for layer in range(topology.n_layers)]
        names = [f"{block}.{site}" for block in blocks for site in sites]
        names += [f"{block}.resid_post" for block in {blocks[-1], *self._before_adapter()}]
        return [*names, "final_norm"]

    def _before_adapter(self) -> list[str]:
        before = self.hooked.frozen.adapter_before
        return [] if before is None else [self.hooked.topology.block_name(before - 1)]

    def _freeze_adapter(self, cache: ActivationCache) -> FrozenAdapter | None:
        view = self.hooked.frozen
        if view.adapter is None or view.adapter_before is None:
            return None
        # In the model's own dtype, so that the mask is the one that the model used.
        read = cache[f"{self._before_adapter()[0]}.resid_post"][0]
        return FrozenAdapter(view.adapter, view.adapter_before, view.adapter.mask(read))

    def _freeze_head(self, cache: ActivationCache) -> FrozenHead:
        view, topology = self.hooked.frozen, self.hooked.topology
        stream = cache[f"{topology.block_name(topology.n_layers - 1)}.resid_post"][0].float()
        return FrozenHead(
            norm=view.final_norm,
            denominator=view.final_norm.denominator(stream),
            normed=cache["final_norm"][0],
            W_U=view.unembed.W_U,
            W_U_mean=view.unembed.mean,
            bias=view.unembed.bias,
            softcap=topology.logit_softcap,
        )

    def _adapters(self) -> dict[str, Hook]:
        """Where MLPs are kept: what adds the features' output to theirs."""
        if not self.replacement.keeps_mlp:
            return {}
        adapters = RunningAdapters(self.replacement)
        hooks: dict[str, Hook] = {}
        for layer in range(self.hooked.topology.n_layers):
            if self.replacement.has_features(layer):
                block = self.hooked.topology.block_name(layer)
                hooks[f"{block}.mlp_in"] = partial(adapters.read, layer)
                hooks[f"{block}.mlp_out"] = partial(adapters.write, layer)
        return hooks


class RunningAdapters:
    """Adapters in a forward pass of the model: features are encoded as MLPs read, and written as MLPs write."""

    def __init__(self, replacement: Replacement):
        self.replacement = replacement
        self.activations: dict[int, Tensor] = {}
        self.mlp_in: dict[int, Tensor] = {}
        self._last_reader = {s: layer for layer in range(replacement.n_layers) for s in replacement.writers(layer)}

    def read(self, layer: int, mlp_in: Tensor, name: str) -> None:
        self.mlp_in[layer] = mlp_in
        if self.replacement.has_features(layer):
            self.activations[layer] = self.replacement.encode(layer, mlp_in)

    def write(self, layer: int, mlp_out: Tensor, name: str) -> Tensor:
        mlp_in = self.mlp_in.pop(layer)
        total = mlp_out.to(torch.promote_types(mlp_out.dtype, torch.float32))
        for source in self.replacement.writers(layer):
            decoder = self.replacement.decoder(source, layer)
            # A number for each latent and position: no longer held than it takes.
            held = self.activations.pop(source) if self._last_reader[source] == layer else self.activations[source]
            total = total + (held.to(decoder.dtype) @ decoder).to(total.dtype)
        if (bias := self.replacement.bias(layer)) is not None:
            total = total + bias.to(total.dtype)
        if (skip := self.replacement.skip(layer)) is not None:
            total = total + mlp_in.to(total.dtype) @ skip.T.to(total.dtype)
        return total.to(mlp_out.dtype)
