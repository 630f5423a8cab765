"""What a graph's targets read in other runs of the prompt: in the frozen model, and in the model itself.

A target is a row of the adjacency (`interp.circuits.targets`); its value here is measured, not attributed.

    frozen model   gradient . change of the stream, at the target's height
    the model      its value: a vector on what the head, the MLP or nobody reads there, through the norms of that run;
                   and its read-out: gradient . change of the stream, as in the frozen model
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from interp.circuits.edits import Edits, MlpResponse
from interp.circuits.replacement_model import ReplacementModel
from interp.circuits.replay import Replay
from interp.circuits.rerun import Rerun
from interp.circuits.state import ReplacementState
from interp.circuits.targets import FeatureTargets, HeadTargets, StreamTarget, Targets
from interp.wrapper.topology import Topology

_NUMBERS_AT_ONCE = 2**27
"""Of the activations that several rows hold at a time: 512 MiB in float32."""


@torch.no_grad()
def frozen_changes(
    state: ReplacementState, edits: Edits, targets: Targets, mlps: MlpResponse = "replacement"
) -> Float[Tensor, "row targets"]:
    """By how much targets move in the frozen model."""
    heights, positions = targets.heights, targets.positions
    moved = torch.zeros(edits.n_rows, len(heights))
    d_model = max(layer.block.d_model for layer in state.layers)
    for rows in _few(edits, 4 * state.n_pos * d_model):
        changes = Replay(state, edits.rows(*rows), mlps).run(set(heights.tolist())).changes
        for height in heights.unique().tolist():
            which = (heights == height).nonzero().flatten()
            stream = changes[height][:, positions[which]]
            moved[slice(*rows), which] = torch.einsum("rtd,td->rt", stream, targets.read(which).gradient).cpu()
    return moved


class Moved(NamedTuple):
    """By how much targets move in the model: their values, and their read-outs with norms as they were."""

    values: Float[Tensor, "row targets"]
    readouts: Float[Tensor, "row targets"]


@torch.no_grad()
def model_changes(
    rm: ReplacementModel, state: ReplacementState, edits: Edits, targets: Targets, mlps: MlpResponse = "model"
) -> Moved:
    """By how much targets move in the model, attention and norms computed anew."""
    values, streams = _hook_points(targets, rm.hooked.topology), _stream_points(targets, rm.hooked.topology)
    names = sorted({*values, *streams})
    moved = Moved(torch.zeros(edits.n_rows, len(values)), torch.zeros(edits.n_rows, len(values)))
    n_heads = max(block.n_heads for block in rm.hooked.frozen.blocks)
    for rows in _few(edits, n_heads * state.n_pos**2 + 16 * state.n_pos * rm.hooked.topology.d_model):
        found = Rerun(rm, state.ids, state.constant, edits.rows(*rows), mlps).run(names).activations
        for name, which in _by_place(values):
            read = found[name][:, targets.positions[which]].float()
            # Differences before products: what does not move cancels exactly.
            change = torch.einsum("rtd,td->rt", read[1:] - read[:1], _vectors(targets, which))
            moved.values[slice(*rows), which] = change.cpu()
        for name, which in _by_place(streams):
            read = found[name][:, targets.positions[which]].float()
            change = torch.einsum("rtd,td->rt", read[1:] - read[:1], targets.read(which).gradient)
            moved.readouts[slice(*rows), which] = change.cpu()
    return moved


def _by_place(places: list[str]) -> Iterator[tuple[str, Tensor]]:
    """Each hook point and the targets that are read there."""
    for name in sorted(set(places)):
        yield name, torch.tensor([i for i, place in enumerate(places) if place == name])


def _few(edits: Edits, numbers: int) -> list[tuple[int, int]]:
    """Rows as many at a time as their activations allow."""
    at_once = max(1, _NUMBERS_AT_ONCE // numbers)
    return [(first, min(first + at_once, edits.n_rows)) for first in range(0, edits.n_rows, at_once)]


def _hook_points(targets: Targets, topology: Topology) -> list[str]:
    """Where each target is read."""
    if isinstance(targets, HeadTargets):
        return ["final_norm"] * len(targets.heights)
    if isinstance(targets, FeatureTargets):
        return [f"{topology.block_name(layer)}.mlp_in" for layer in targets.index[:, 0].tolist()]
    return _stream_points(targets, topology)


def _stream_points(targets: Targets, topology: Topology) -> list[str]:
    """The residual stream at each target's height."""
    places = []
    for height in targets.heights.tolist():
        layer, above = divmod(height, 2)
        if layer == topology.n_layers:
            places.append(f"{topology.block_name(layer - 1)}.resid_post")
        else:
            places.append(f"{topology.block_name(layer)}.{'resid_mid' if above else 'resid_pre'}")
    return places


def _vectors(targets: Targets, which: Tensor) -> Float[Tensor, "some d_model"]:
    """What some targets multiply what they read with."""
    if isinstance(targets, HeadTargets):
        return targets.directions[which.to(targets.state.device)]
    if isinstance(targets, FeatureTargets):
        index = targets.index[which].long()
        weights, _ = targets.state.replacement.linear_encoder(int(index[0, 0]), index[:, 2].to(targets.state.device))
        return weights.float()
    if isinstance(targets, StreamTarget):
        return targets.vector.to(targets.state.device).float().expand(len(which), -1)
    raise TypeError(f"{type(targets).__name__} cannot be read in a run of the model")
