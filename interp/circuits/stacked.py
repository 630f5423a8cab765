"""Sweeps over several prompts at once: the steps of `interp.circuits.descent` for targets of all of them together.

A small sweep costs what its calls cost, however few targets it has. So where prompts are short and the targets of each
are few, one pass for the targets of several prompts costs little more than one for those of one. Targets lie one after
another as in an ordinary descent, the highest first, whatever their prompt: weights act on all of them alike. What is a
prompt's own is gathered for each target (patterns, denominators), or targets are put side by side by prompt, padded to
the most that one has, for one product with what all sources of all prompts write.

    G_b [pos, target, d] @ written_b [pos, d, features + error + bos + bias]       for all prompts b at once

Prompts never mix: no number of one prompt is ever added to one of another's, and what is not finite stays where it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from interp.circuits.descent import DenseRows, Descent
from interp.circuits.joined import Columns, join, join_targets, rows_of_prompt
from interp.circuits.nodes import NodeIndex, NodeKind
from interp.circuits.pull import AttentionPull, Shares, by_head
from interp.circuits.state import FrozenLayer, ReplacementState
from interp.circuits.targets import Targets

_MOST_TOKEN_PATHS = 2**22
"""Numbers, for all prompts of a stack."""


class Stack:
    """Prompts that are swept together.

    Args:
        nodes: of each prompt: all that its rows have columns for.
    """

    def __init__(self, states: Sequence[ReplacementState], nodes: Sequence[NodeIndex]):
        self.states, self.nodes, self.n_pos = states, nodes, max(state.n_pos for state in states)
        self.state = join(states)
        self.columns = Columns.of(self.state.features, nodes, self.n_pos)
        self._written: dict[tuple[int, int], Tensor] = {}
        self._pulls: dict[int, StackedPull] = {}

    @torch.no_grad()
    def rows(self, parts: Sequence[Targets | None]) -> list[DenseRows | None]:
        """The rows of each prompt's targets, by one pass; None where a prompt has none."""
        targets = join_targets(self.state, parts, self.n_pos)
        heights = targets.heights
        order = torch.argsort(-heights, stable=True)
        descent = StackedDescent(self, targets, order, heights[order])
        found = descent.run()
        split, first = list[DenseRows | None](), 0
        for place, part in enumerate(parts):
            if part is None:
                split.append(None)
                continue
            mine = (descent.prompts == place).nonzero().flatten()
            weights = rows_of_prompt(found.weights[mine.cpu()], self.columns.to_nodes[place], len(self.nodes[place]))
            split.append(DenseRows(found.which[mine.cpu()] - first, weights, found.values[mine.cpu()]))
            first += len(mine)
        return split

    def written(self, source: int, layer: int) -> Float[Tensor, "prompt pos written d_out"]:
        """What is written to the MLP output of a layer: by the features of `source`; in its own layer by all else."""
        if (source, layer) not in self._written:
            self._written[source, layer] = self._make_written(source, layer)
        return self._written[source, layer]

    def _make_written(self, source: int, layer: int) -> Tensor:
        features, frozen, count = self.state.features, self.state.layers[layer], self.columns.counts[source]
        n_cells, d_out = self.state.n_pos, frozen.error.shape[1]
        written = frozen.error.new_zeros(n_cells, count + (3 if source == layer else 0), d_out)
        starts = torch.tensor(features.starts[source * n_cells : (source + 1) * n_cells + 1])
        here = slice(int(starts[0]), int(starts[-1]))
        if here.stop > here.start:
            cells = features.index[here, 1].long()
            rank = torch.arange(here.start, here.stop) - starts[cells]
            device = written.device
            decoder = self.state.replacement.decoder(source, layer)
            vectors = decoder[features.latents[here].to(device)].float()
            written[cells.to(device), rank.to(device)] = vectors * features.activations[here, None].to(device)
        if source == layer:
            written[:, count] = frozen.error
            if frozen.bos is not None:
                written[:, count + 1] = frozen.bos
            if frozen.mlp_bias is not None:
                written[:, count + 2] = frozen.mlp_bias * ~self.state.constant[:, None]
        return written.view(-1, self.n_pos, *written.shape[1:])

    def pull(self, layer: int) -> StackedPull:
        """The attention of a layer, transposed."""
        if layer not in self._pulls:
            self._pulls[layer] = StackedPull.of_prompts(self.state.layers[layer], self.n_pos)
        return self._pulls[layer]

    @cached_property
    def token_paths(self) -> Float[Tensor, "prompt_query d_model key"] | None:
        """What the embedding at each key writes at each query, as in `Sweeper.token_paths`."""
        lowest, embeddings = self.state.layers[0], self.state.embeddings
        beside = lowest.block.parallel and lowest.skip is not None
        if beside or self.n_pos * embeddings.numel() > _MOST_TOKEN_PATHS:
            return None
        paths = self.pull(0).paths_of(embeddings)
        own = embeddings.view(-1, self.n_pos, embeddings.shape[1])
        along = torch.arange(self.n_pos, device=paths.device)
        # Two indices with a slice between them: the indexed dimension comes first.
        paths.view(-1, self.n_pos, *paths.shape[1:])[:, along, :, along] += own.transpose(0, 1)
        return paths


@dataclass(frozen=True, eq=False)
class StackedPull(AttentionPull):
    """The same for several prompts.

    Attributes:
        scaled: every prompt's pattern, with the denominators in it.
    """

    scaled: Float[Tensor, "prompt head query key"]

    @classmethod
    def of_prompts(cls, layer: FrozenLayer, n_pos: int) -> StackedPull:
        """The attention of a block of joined prompts."""
        pull = AttentionPull.of(layer, layer.mlp_in.shape[0])
        scaled = layer.pattern.float() / pull.denominator.view(-1, 1, 1, n_pos)
        if pull.post_denominator is not None:
            scaled = scaled / pull.post_denominator.view(-1, 1, n_pos, 1)
        return cls(**vars(pull), scaled=scaled)

    @property
    def _heads(self) -> tuple[int, int, int]:
        n_heads = self.scaled.shape[1]
        return self.n_kv_heads, n_heads // self.n_kv_heads, len(self.w_o) // n_heads

    def add_for(
        self, prompts: Int[Tensor, "target"], gradient: Float[Tensor, "target pos d_model"], made_of: Shares | None
    ) -> None:
        """`add_to`, each target by its own prompt's pattern."""
        n_targets, n_pos, d_model = gradient.shape
        n_kv, shared, d_head = self._heads
        heads = by_head(gradient, made_of, self.w_o).view(n_targets, n_pos, n_kv, shared, d_head).permute(0, 2, 3, 1, 4)
        pattern = self.scaled[:, :, :n_pos, :n_pos].transpose(2, 3)[prompts]
        pattern = pattern.view(n_targets, n_kv, shared, n_pos, n_pos).transpose(2, 3)
        mixed = torch.bmm(
            pattern.reshape(n_targets * n_kv, n_pos, -1), heads.reshape(n_targets * n_kv, shared * n_pos, d_head)
        )
        values = mixed.view(n_targets, n_kv, n_pos, d_head).transpose(1, 2)
        gradient.view(-1, d_model).addmm_(values.reshape(-1, n_kv * d_head), self.w_v)

    def spread_to(self, n_pos: int, fresh: Tensor, at: Int[Tensor, "target"], stays: Tensor) -> Shares:
        """`spread` over the first positions of each target's own prompt."""
        own = at % self.scaled.shape[-1]
        prompts = at // self.scaled.shape[-1]
        shares = torch.cat([self.scaled[prompts, :, own, :n_pos], F.one_hot(own, n_pos).float()[:, None]], dim=1)
        return Shares(shares.transpose(1, 2), torch.cat([self._head_by_head(fresh), stays[:, None]], dim=1))

    def paths_of(self, written: Float[Tensor, "pos d_model"]) -> Float[Tensor, "query d_model key"]:
        """What attention writes at each query because of what is written to the stream at each key of its prompt."""
        n_prompts, n_pos = len(self.scaled), self.scaled.shape[-1]
        n_kv, shared, d_head = self._heads
        values = (written @ self.w_v.T).view(n_prompts, n_pos, n_kv, 1, d_head).expand(-1, -1, -1, shared, -1)
        mixed = torch.einsum("bhqk,bkhe->bqkhe", self.scaled, values.flatten(2, 3))
        return (mixed.flatten(3) @ self.w_o).flatten(0, 1).transpose(1, 2).contiguous()


class StackedDescent(Descent):
    """One pass for targets of several prompts."""

    def __init__(self, stack: Stack, targets: Targets, which: Tensor, heights: Tensor):
        # In place of a sweeper and its nodes there are a stack and its columns: nothing of the other's is called.
        self.stack = stack
        self.state, self.columns = stack.state, stack.columns
        self.targets, self.which, self.heights = targets, which, heights
        device, flat = self.state.device, targets.positions[which]
        self.positions = flat % stack.n_pos
        self.n_pos, self.at = int(self.positions.max()) + 1, flat.to(device)
        self.own = self.positions.to(device)
        self.prompts = self.at // stack.n_pos
        self._place_by_prompt(len(stack.states))
        self.rows = torch.zeros(len(which), len(self.columns), device=device)
        self.values = torch.zeros(len(which), device=device)
        self.gradient = torch.zeros(0, self.n_pos, 0, device=device)
        self.fresh = torch.zeros(0, 0, device=device)
        self._start()

    def _place_by_prompt(self, n_prompts: int) -> None:
        """Which targets are a prompt's first, second, .. and which of its own a target is."""
        ones = F.one_hot(self.prompts, n_prompts)
        self.slots = (ones.cumsum(0) * ones).sum(1) - 1
        self.table = torch.zeros(n_prompts, int(self.slots.max()) + 1, dtype=torch.long, device=self.at.device)
        self.table[self.prompts, self.slots] = torch.arange(len(self.at), device=self.at.device)
        self.deepest = self.slots.cummax(0).values.tolist()

    def _read_off(self, written: Float[Tensor, "prompt pos written d_out"]) -> Float[Tensor, "wide pos written"]:
        """Products of the wide gradients with what is written at each position of their own prompts."""
        stop = self.wide.stop
        table = self.table[:, : self.deepest[stop - 1] + 1].clamp(max=stop - 1)
        by_prompt = self.gradient[:stop].transpose(0, 1)[:, table].transpose(0, 1)
        found = by_prompt.flatten(0, 1) @ written[:, : self.n_pos].flatten(0, 1).transpose(1, 2)
        return found.view(len(table), self.n_pos, table.shape[1], -1)[self.prompts[:stop], :, self.slots[:stop]]

    def _mlp_sources(self, layer: int, frozen: FrozenLayer) -> None:
        for source in dict.fromkeys((layer, *self.state.replacement.writers(layer))):
            written, first = self.stack.written(source, layer), self.columns.starts[source]
            count, width = written.shape[2], self.columns.counts[source] + 3
            block = self.rows[:, first : first + width * self.stack.n_pos].unflatten(1, (-1, width))
            if self.wide.stop:
                block[self.wide, : self.n_pos, :count] += self._read_off(written)
            if len(self.fresh):
                vectors = written[self.prompts[self.new], self.own[self.new]]
                target = torch.arange(self.new.start, self.new.stop, device=self.at.device)
                block[target, self.own[self.new], :count] += torch.bmm(vectors, self.fresh[:, :, None])[:, :, 0]

    def _on_grid(self, kind: NodeKind, layer: int, source: Float[Tensor, "pos d_model"]) -> None:
        """Only tokens are left: they are read off where there are no paths from them, or nothing was below."""
        self._add_products(self.columns.tokens, source, along=True)

    def _constant(self, kind: NodeKind, layer: int, source: Float[Tensor, "pos d_model"] | None) -> None:
        """Only biases of attention are left."""
        if source is not None:
            self._add_products(self.columns.attn_bias + layer, source, along=False)

    def _add_products(self, column: int, source: Float[Tensor, "pos d_model"], along: bool) -> None:
        if self.wide.stop > self.wide.start:
            by_prompt = source.view(-1, self.stack.n_pos, source.shape[1])[self.prompts[self.wide], : self.n_pos]
            products = (self.gradient[self.wide] * by_prompt).sum(-1)
            here = slice(column, column + self.n_pos) if along else slice(column, column + 1)
            self.rows[self.wide, here] += products if along else products.sum(1, keepdim=True)
        if len(self.fresh):
            target = torch.arange(self.new.start, self.new.stop, device=self.at.device)
            place = column + self.own[self.new] if along else torch.full_like(target, column)
            self.rows[target, place] += (self.fresh * source[self.at[self.new]]).sum(-1)

    def _last_attention(self, paths: Float[Tensor, "query d_model key"]) -> None:
        n_pos = self.n_pos
        tokens = self.rows[:, self.columns.tokens : self.columns.tokens + n_pos]
        if self.wide.stop:
            stop = self.wide.stop
            table = self.table[:, : self.deepest[stop - 1] + 1].clamp(max=stop - 1)
            of_prompts = paths.view(len(table), -1, *paths.shape[1:])[:, :n_pos, :, :n_pos].flatten(1, 2)
            found = torch.bmm(self.gradient[:stop].flatten(1)[table], of_prompts)
            tokens[self.wide] = found[self.prompts[:stop], self.slots[:stop]]
        if len(self.fresh):
            mine = paths[self.at[self.new], :, :n_pos]
            tokens[self.new] = torch.bmm(self.fresh[:, None], mine)[:, 0]
        self._nothing_is_fresh(self.new.stop)

    def _token_paths(self) -> Tensor | None:
        return self.stack.token_paths

    def _pull_of(self, frozen: FrozenLayer) -> AttentionPull:
        return self.stack.pull(frozen.block.layer)

    def _pull(self, pull: AttentionPull, some: slice, made_of: Shares | None = None) -> None:
        cast(StackedPull, pull).add_for(self.prompts[some], self.gradient[some], made_of)

    def _spread(self, pull: AttentionPull, some: slice, stays: Tensor) -> Shares:
        return cast(StackedPull, pull).spread_to(self.n_pos, self.fresh[some], self.at[self.new][some], stays)

    def _everywhere(self, some: slice) -> Int[Tensor, "target pos"]:
        first = (self.prompts[some] * self.stack.n_pos)[:, None]
        return first + torch.arange(self.n_pos, device=first.device)

    def _at_once(self, width: int) -> int:
        """All: stacks are small (`interp.circuits.lockstep`)."""
        return len(self.which)

    def _readout_columns(self) -> slice:
        return slice(self.columns.readout, self.columns.readout + 1)
