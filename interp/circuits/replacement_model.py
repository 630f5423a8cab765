"""The replacement model: MLPs written as their transcoders, everything else as it was.

`ReplacementModel(hooked, transcoders).build(ids)` runs the model once, on the unchanged model, and freezes what it saw
(see `interp.circuits.state`). Errors make up for what the transcoders miss, so the frozen model computes exactly what
the model computes on this prompt.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.circuits.freeze import BlockReader, collect, freeze_block
from interp.circuits.state import FrozenAdapter, FrozenHead, ReplacementState
from interp.dictionaries.transcoder import Transcoder
from interp.errors import DictionaryError, HookError, PromptError, SpecError
from interp.spec.hookpoints import mlp_pair
from interp.wrapper import HookedModel
from interp.wrapper.activations import ActivationCache

logger = logging.getLogger(__name__)

BosRule = Literal["auto", "keep", "never"]


class ReplacementModel:
    """A hooked model with transcoders for its MLPs.

    Args:
        transcoders: by MLP (`layers.3.mlp`, or its `mlp_in` or `mlp_out` hook point), or one for each layer in order.
            An MLP without one is a source that is not explained: its whole output is an error. They are moved to the
            model's device.
        bos: `auto`: a BOS token at position 0 has one constant source a layer in place of features and error, since its
            activations are of another size than all others; `keep`, `never`: it is a position like any other.
        max_tokens: a longer prompt is refused; None: only the model's own limit holds.

    Raises:
        ModelMismatch: a transcoder that was trained on another model.
        DictionaryError: something that cannot stand for an MLP of this model.
    """

    def __init__(
        self,
        hooked: HookedModel,
        transcoders: Mapping[str, Transcoder] | Sequence[Transcoder],
        *,
        bos: BosRule = "auto",
        max_tokens: int | None = None,
    ):
        if bos not in ("auto", "keep", "never"):
            raise SpecError("there is no such rule for BOS", value=bos, expected="auto, keep or never")
        self.hooked, self.bos, self.max_tokens = hooked, bos, max_tokens
        self.transcoders = _by_layer(hooked, transcoders)

    @torch.no_grad()
    def build(self, ids: Int[Tensor, "pos"] | Int[Tensor, "1 pos"] | Sequence[int]) -> ReplacementState:
        """Run the model on a prompt and freeze it there.

        Raises:
            PromptError: an empty or too long prompt, or a token that the model does not know.
        """
        prompt = self._checked(torch.as_tensor(ids))
        topology, view = self.hooked.topology, self.hooked.frozen
        with self.hooked.eager_attention():
            cache = self.hooked.run_with_cache(prompt[None].to(self.hooked.device), self._hook_points())
        constant = self._constant_positions(prompt).to(self.hooked.device)
        layers, found = [], []
        for block, transcoder in zip(view.blocks, self.transcoders, strict=True):
            layer, features = freeze_block(block, BlockReader(cache, block.name), transcoder, constant)
            layers.append(layer)
            found.append(features)
        logits = self._last_logits(cache["final_norm"])
        return ReplacementState(
            ids=prompt,
            embeddings=cache[f"{topology.block_name(0)}.resid_pre"][0].float(),
            layers=tuple(layers),
            adapter=self._freeze_adapter(cache),
            head=self._freeze_head(cache),
            features=collect(found, len(prompt)),
            constant=constant,
            logits=logits,
            probabilities=self.hooked.softcapped(logits).softmax(-1),
        )

    def _checked(self, ids: Tensor) -> Int[Tensor, "pos"]:
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

    def _constant_positions(self, ids: Tensor) -> Bool[Tensor, "pos"]:
        constant = torch.zeros(len(ids), dtype=torch.bool)
        bos = self.hooked.bos_token_id
        if bos is None:
            bos = getattr(self.hooked.model.config, "bos_token_id", None)
        constant[0] = self.bos == "auto" and bos is not None and int(ids[0]) == bos
        return constant

    def _hook_points(self) -> list[str]:
        topology = self.hooked.topology
        sites = ["resid_pre", "attn_pattern", "mlp_in", "mlp_out"] + ([] if topology.parallel else ["resid_mid"])
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
        stream = cache[f"{topology.block_name(topology.n_layers - 1)}.resid_post"][0, -1].float()
        return FrozenHead(view.final_norm, view.final_norm.denominator(stream), view.unembed.W_U, view.unembed.bias)

    def _last_logits(self, normed: Float[Tensor, "1 pos d_model"]) -> Float[Tensor, "d_vocab"]:
        # The model's own head, at the last position only: the others would cost n_pos * d_vocab numbers.
        return self.hooked.model.get_submodule(self.hooked.family.head)(normed[:, -1])[0].float()


def _by_layer(
    hooked: HookedModel, transcoders: Mapping[str, Transcoder] | Sequence[Transcoder]
) -> tuple[Transcoder | None, ...]:
    topology = hooked.topology
    if not isinstance(transcoders, Mapping):
        if len(transcoders) != topology.n_layers:
            raise DictionaryError(
                "a list of transcoders must have one for each layer",
                value=len(transcoders),
                expected=str(topology.n_layers),
                remedy="give a mapping from MLP to transcoder to leave some out",
            )
        transcoders = {f"{topology.block_name(layer)}.mlp": each for layer, each in enumerate(transcoders)}
    placed: dict[int, Transcoder] = {}
    for name, transcoder in transcoders.items():
        layer = _layer_named(hooked, name)
        if layer in placed:
            raise DictionaryError("two transcoders stand for one MLP", value=name, expected="one for each MLP")
        _check_fits(hooked, f"{topology.block_name(layer)}.mlp", transcoder)
        placed[layer] = transcoder.to(hooked.device)
    if not placed:
        raise DictionaryError("there are no transcoders", expected="at least one MLP with a transcoder")
    missing = [topology.block_name(layer) for layer in range(topology.n_layers) if layer not in placed]
    if missing:
        logger.info("MLPs without a transcoder are left as errors: %s", ", ".join(missing))
    return tuple(placed.get(layer) for layer in range(topology.n_layers))


def _layer_named(hooked: HookedModel, name: str) -> int:
    site = name.rsplit(".", 1)[-1]
    try:
        return hooked.topology.layer_of(mlp_pair(name)[1] if site == "mlp" else name)
    except HookError as error:
        raise DictionaryError(
            "a transcoder stands for an MLP that the model does not have",
            value=name,
            expected=f"<group>.<layer>.mlp, such as {hooked.topology.block_name(0)}.mlp",
        ) from error


def _check_fits(hooked: HookedModel, name: str, transcoder: Transcoder) -> None:
    config = transcoder.config
    mlp_in, mlp_out = mlp_pair(name)
    transcoder.check_model(hooked)
    if (config.hook_in, config.hook_out) != (mlp_in, mlp_out):
        raise DictionaryError(
            f"this dictionary does not stand for {name}",
            value=f"{config.kind}: {config.hook_in} -> {config.hook_out}",
            expected=f"a transcoder: {mlp_in} -> {mlp_out}",
        )
    width = hooked.topology.width(mlp_out)
    if (config.d_in, config.d_out) != (width, width):
        raise DictionaryError(
            f"the transcoder for {name} has another width than the model",
            value=f"{config.d_in} -> {config.d_out}",
            expected=f"{width} -> {width}",
        )
