"""A forward pass of the real model with edits of features: attention patterns and norms are computed anew.

The rows of the edits run beside the unchanged prompt, which is row 0 of the batch. By the rule for MLPs
(`interp.circuits.edits`), with x what the MLP reads, and `[0]` for its value in row 0,

    replacement, frozen   m = m[0] + sum over s of W_dec[s->l]^T (a'_s - a_s) + W_skip (x - x[0])
                          (and a kept MLP's linear map, held at row 0, of x - x[0])
    model                 m = MLP(x) + sum over s of W_dec[s->l]^T (value - encode(x_s)), at edited features only

so that errors are constant by construction, and rows without edits are the model's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.circuits.edits import Edits, MlpResponse, Response
from interp.circuits.freeze import Active
from interp.circuits.replacement_model import ReplacementModel, RunningAdapters
from interp.wrapper.hooked import Hook


class Rerun:
    """One batch of runs of a prompt.

    Attributes:
        response: what features did.
        activations: [1 + row, pos, width] at each hook point that was asked for; row 0 is the unchanged prompt.
    """

    def __init__(
        self,
        rm: ReplacementModel,
        ids: Int[Tensor, "pos"],
        constant: Bool[Tensor, "pos"],
        edits: Edits,
        mlps: MlpResponse = "replacement",
    ):
        self.rm, self.ids, self.edits, self.mlps = rm, ids, edits, mlps
        self.constant = constant.to(rm.hooked.device)
        self.response = Response(rm.replacement, edits, self.constant, mlps)
        self.activations: Mapping[str, Tensor] = {}
        self._adapters = RunningAdapters(rm.replacement) if rm.replacement.keeps_mlp else None
        self._mlp_in: dict[int, Tensor] = {}

    @torch.no_grad()
    def run(self, hook_names: Sequence[str]) -> Rerun:
        """Run the model up to the last of these hook points."""
        hooked = self.rm.hooked
        ids = self.ids.to(hooked.device)[None].expand(1 + self.edits.n_rows, -1)
        self.activations = hooked.run_with_cache(ids, hook_names, hooks=self._hooks())
        return self

    def _hooks(self) -> dict[str, Hook]:
        topology, first = self.rm.hooked.topology, self.edits.first_layer
        hooks: dict[str, Hook] = {}
        for layer in range(topology.n_layers):
            edited = first is not None and layer >= first and (self.mlps != "model" or self.response.writes(layer))
            if edited or self._adapters is not None:
                block = topology.block_name(layer)
                hooks[f"{block}.mlp_in"] = partial(self._read, layer, edited)
                hooks[f"{block}.mlp_out"] = partial(self._write, layer, edited)
        return hooks

    def _read(self, layer: int, edited: bool, mlp_in: Tensor, name: str) -> None:
        if self._adapters is not None:
            self._adapters.read(layer, mlp_in, name)
        if not edited:
            return
        if self.mlps != "model":
            self._mlp_in[layer] = mlp_in
        if self.response.reads(layer):
            clean = Active.of(self.rm.replacement, layer, mlp_in[0], self.constant)
            self.response.read(layer, mlp_in[1:], clean, (mlp_in[1:] != mlp_in[0]).any(dim=-1))

    def _write(self, layer: int, edited: bool, mlp_out: Tensor, name: str) -> Tensor:
        if self._adapters is not None:
            mlp_out = self._adapters.write(layer, mlp_out, name)
        if not edited:
            return mlp_out
        own = mlp_out[1:].float() if self.mlps == "model" else mlp_out[0].float() + self._beside(layer)
        rows = own + self.response.written(layer, mlp_out[1:])
        return torch.cat([mlp_out[:1], rows.to(mlp_out.dtype)])

    def _beside(self, layer: int) -> Float[Tensor, "row pos d_out"] | float:
        """By what the paths beside the features change; they are held where MLPs are constant."""
        mlp_in, view = self._mlp_in.pop(layer).float(), self.rm.hooked.frozen.blocks[layer]
        moved = (mlp_in[1:] - mlp_in[0]) * ~self.constant[:, None]
        beside: Tensor | float = 0.0
        if self._adapters is not None:
            beside = view.freeze_mlp(mlp_in[0]).linear(moved)
        skip = self.rm.replacement.skip(layer)
        return beside if skip is None else beside + moved @ skip.float().T
