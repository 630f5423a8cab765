"""What interventions do to features, and what MLPs write then.

An edit holds a feature at one position at a value: with `a` its activation on the unchanged prompt,

    ablate 0        set v        scale c * a        all of them: factor * a + shift

whatever is done elsewhere. The features of a layer respond to a change of what the MLP reads by one of three rules:

    replacement   they are encoded anew, by their own nonlinear activation functions; MLPs are features + constants
    frozen        they keep their activations: what is left is the direct effect, an edge of the graph
    model         the model's own MLP responds; where a feature is edited, (value - its activation in this run) times
                  its decoder is added

Several runs of one prompt are made side by side: rows. A change of activations is kept as its nonzero entries, and
dense only for some cells (row, position) at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.circuits.freeze import Active
from interp.circuits.replacements import Replacement

MlpResponse = Literal["replacement", "frozen", "model"]

_NUMBERS_AT_ONCE = 2**24
"""Of dense activations, and of decoder rows: 64 MiB in float32."""


@dataclass(frozen=True, eq=False)
class Edits:
    """Edits of features in some rows.

    Attributes:
        index: (row, layer, pos, latent) of each; no two are alike.
        kept: (row, layer, pos, latent) of the features that stay as they are in the rows of `cleared`.
        cleared: rows in which every other feature is ablated, up to position `until`.
    """

    n_rows: int
    index: Int[Tensor, "edits 4"]
    factor: Float[Tensor, "edits"]
    shift: Float[Tensor, "edits"]
    kept: Int[Tensor, "kept 4"]
    cleared: Bool[Tensor, "rows"]
    until: int = -1

    @classmethod
    def of(cls, n_rows: int, index: Int[Tensor, "edits 4"], factor: Tensor, shift: Tensor) -> Edits:
        """Edits of single features."""
        none = torch.zeros(0, 4, dtype=torch.long)
        return cls(n_rows, index.long(), factor.float(), shift.float(), none, torch.zeros(n_rows, dtype=torch.bool))

    @classmethod
    def ablate_each(cls, features: Int[Tensor, "features 3"]) -> Edits:
        """One row for each feature (layer, pos, latent), which is ablated in it."""
        index = torch.cat([torch.arange(len(features))[:, None], features.long()], dim=1)
        return cls.of(len(features), index, torch.zeros(len(features)), torch.zeros(len(features)))

    @classmethod
    def keep_only(cls, sets: Sequence[Int[Tensor, "features 3"]], until: int) -> Edits:
        """One row for each set of features (layer, pos, latent), in which all others are ablated."""
        rows = [torch.full((len(features), 1), row) for row, features in enumerate(sets)]
        kept = [torch.cat([row, features.long()], dim=1) for row, features in zip(rows, sets, strict=True)]
        nothing = torch.zeros(0)
        return cls(
            len(sets),
            torch.zeros(0, 4, dtype=torch.long),
            nothing,
            nothing,
            torch.cat(kept),
            torch.ones(len(sets), dtype=torch.bool),
            until,
        )

    def rows(self, first: int, last: int) -> Edits:
        """The rows first .. last - 1, as rows 0, 1, .."""
        edited = (self.index[:, 0] >= first) & (self.index[:, 0] < last)
        stays = (self.kept[:, 0] >= first) & (self.kept[:, 0] < last)
        shift = torch.tensor([first, 0, 0, 0])
        return Edits(
            last - first,
            self.index[edited] - shift,
            self.factor[edited],
            self.shift[edited],
            self.kept[stays] - shift,
            self.cleared[first:last],
            self.until,
        )

    @property
    def first_layer(self) -> int | None:
        """The lowest layer with an edit; None if nothing is edited."""
        if bool(self.cleared.any()):
            return 0
        return int(self.index[:, 1].min()) if len(self.index) else None


class Change(NamedTuple):
    """A change of activations of one layer: its nonzero entries.

    Attributes:
        cells: row * n_pos + pos of each.
    """

    cells: Int[Tensor, "n"]
    latents: Int[Tensor, "n"]
    amounts: Float[Tensor, "n"]


class _InLayer(NamedTuple):
    """Entries (cell, latent) of one layer."""

    cells: Int[Tensor, "n"]
    latents: Int[Tensor, "n"]

    def within(self, row_of_cell: Int[Tensor, "cells"]) -> tuple[Tensor, Tensor, Tensor]:
        """(which, row, latent) of the entries whose cell has a row."""
        rows = row_of_cell[self.cells]
        which = (rows >= 0).nonzero().flatten()
        return which, rows[which], self.latents[which]


class Response:
    """How features respond to edits, from layer to layer upwards: `read` each, then `written` for each.

    Args:
        constant: positions where there are no features.
    """

    def __init__(self, replacement: Replacement, edits: Edits, constant: Bool[Tensor, "pos"], mlps: MlpResponse):
        self.replacement, self.edits, self.mlps = replacement, edits, mlps
        self.constant, self.n_pos = constant, len(constant)
        self.changes: dict[int, Change] = {}
        self.before = torch.zeros(len(edits.index))
        self.after = torch.zeros(len(edits.index))

    def reads(self, layer: int) -> bool:
        """Whether `read` is to be told of this layer: its features respond, or are edited."""
        if not self.replacement.has_features(layer):
            return False
        return (
            self.mlps == "replacement"
            or bool(self.edits.cleared.any())
            or bool((self.edits.index[:, 1] == layer).any())
        )

    def writes(self, layer: int) -> bool:
        """Whether features that respond or are edited write to this layer's MLP output."""
        return any(self.reads(source) for source in self.replacement.writers(layer))

    def read(
        self,
        layer: int,
        mlp_in: Float[Tensor, "row pos d_in"],
        clean: Active,
        moved: Bool[Tensor, "row pos"],
    ) -> None:
        """The features of a layer, when its MLP reads `mlp_in`.

        Args:
            clean: its features on the unchanged prompt.
            moved: where `mlp_in` is not what it was.
        """
        device, n_latents = mlp_in.device, self.replacement.n_latents(layer)
        chosen = (self.edits.index[:, 1] == layer).nonzero().flatten()
        edited = self._entries(self.edits.index[chosen], device)
        before = _looked_up(clean, edited.cells % self.n_pos, edited.latents, n_latents)
        values = self.edits.factor[chosen].to(device) * before + self.edits.shift[chosen].to(device)
        self.before[chosen], self.after[chosen] = before.cpu(), values.cpu()
        kept = self._entries(self.edits.kept[self.edits.kept[:, 1] == layer], device)
        cleared = self._cleared(device)
        touched = cleared | moved if self.mlps == "replacement" else cleared.clone()
        touched.view(-1)[edited.cells] = True
        cells = (touched & ~self.constant.to(device)).flatten().nonzero().flatten()
        parts = [_none(device)]
        for chunk in cells.split(max(1, _NUMBERS_AT_ONCE // n_latents)):
            row_of_cell = torch.full((touched.numel(),), -1, device=device)
            row_of_cell[chunk] = torch.arange(len(chunk), device=device)
            base, now = self._unedited(layer, chunk, mlp_in, clean)
            now = _without(now, cleared.flatten()[chunk], kept.within(row_of_cell))
            which, rows, latents = edited.within(row_of_cell)
            parts.append(_nonzero(now.index_put((rows, latents), values[which]) - base, chunk))
        self.changes[layer] = Change(*(torch.cat(part) for part in zip(*parts, strict=True)))

    def _unedited(
        self, layer: int, cells: Int[Tensor, "cells"], mlp_in: Tensor, clean: Active
    ) -> tuple[Tensor, Tensor]:
        """(activations that changes are counted from, activations before edits) at some cells."""
        if self.mlps == "frozen":
            base = self._on_the_prompt(cells, clean, self.replacement.n_latents(layer))
            return base, base
        now = self.replacement.encode(layer, mlp_in.flatten(0, 1)[cells]).float()
        if self.mlps == "model":
            return now, now
        return self._on_the_prompt(cells, clean, now.shape[1]), now

    def written(self, layer: int, like: Float[Tensor, "row pos d_out"]) -> Float[Tensor, "row pos d_out"]:
        """By what the output of an MLP changes through the features that write there, in float32."""
        out = torch.zeros(like.shape, device=like.device).flatten(0, 1)
        for source in self.replacement.writers(layer):
            if source not in self.changes:
                continue
            change, decoder = self.changes[source], self.replacement.decoder(source, layer)
            for some in torch.arange(len(change.cells), device=out.device).split(_NUMBERS_AT_ONCE // out.shape[1]):
                rows = decoder[change.latents[some]].float() * change.amounts[some, None]
                out.index_add_(0, change.cells[some], rows)
        return out.view(like.shape)

    def _entries(self, index: Int[Tensor, "n 4"], device: torch.device) -> _InLayer:
        return _InLayer((index[:, 0] * self.n_pos + index[:, 2]).to(device), index[:, 3].to(device))

    def _cleared(self, device: torch.device) -> Bool[Tensor, "row pos"]:
        in_reach = torch.arange(self.n_pos, device=device) <= self.edits.until
        return self.edits.cleared.to(device)[:, None] & in_reach

    def _on_the_prompt(self, cells: Int[Tensor, "cells"], clean: Active, n_latents: int) -> Tensor:
        """Activations [cells, n_latents] of the unchanged prompt at these cells' positions."""
        positions, row = (cells % self.n_pos).unique(return_inverse=True)
        row_of_pos = torch.full((self.n_pos,), -1, device=cells.device)
        row_of_pos[positions] = torch.arange(len(positions), device=cells.device)
        which, rows, latents = _InLayer(clean.pos, clean.latents).within(row_of_pos)
        dense = torch.zeros(len(positions), n_latents, device=cells.device)
        dense[rows, latents] = clean.activations[which]
        return dense[row]


def _without(
    activations: Float[Tensor, "cells n_latents"], cleared: Bool[Tensor, "cells"], kept: tuple[Tensor, Tensor, Tensor]
) -> Float[Tensor, "cells n_latents"]:
    """Activations with all but the kept ones at 0 in the cells that are cleared."""
    if not bool(cleared.any()):
        return activations
    _, rows, latents = kept
    stays = ~cleared[:, None].expand_as(activations)
    stays = stays.index_put((rows, latents), torch.ones((), dtype=torch.bool, device=stays.device))
    return activations * stays


def _looked_up(clean: Active, pos: Int[Tensor, "n"], latents: Int[Tensor, "n"], n_latents: int) -> Float[Tensor, "n"]:
    """Activations of single features; 0 where they are not active."""
    if not len(clean.pos):
        return torch.zeros(len(pos), device=pos.device)
    known, wanted = clean.pos * n_latents + clean.latents, pos * n_latents + latents
    place = torch.searchsorted(known, wanted).clamp(max=len(known) - 1)
    return clean.activations[place] * (known[place] == wanted)


def _nonzero(change: Float[Tensor, "cells n_latents"], cells: Int[Tensor, "cells"]) -> Change:
    rows, latents = change.nonzero(as_tuple=True)
    return Change(cells[rows], latents, change[rows, latents])


def _none(device: torch.device) -> Change:
    index = torch.zeros(0, dtype=torch.long, device=device)
    return Change(index, index, torch.zeros(0, device=device))
