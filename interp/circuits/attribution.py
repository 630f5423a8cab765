"""Attribution: from a frozen prompt to the edges of its graph.

    1. rows of the target logits
    2. rows of the active features: all, or those with the greatest influence (`interp.circuits.selection`)
    3. with features left out, their columns are added up in the `rest` node of their layer and position

so that in every graph, capped or not, the edges into a target add up to its pre-activation. How well they do, measured
on the unchanged model, is the graph's certificate:

    residual = max over targets of |sum of its edges - pre-activation| / max(1, |pre-activation|)

A feature's pre-activation is its encoder row on what the MLP read; a logit's is the logit less the mean logit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.circuits.edges import EdgeTable
from interp.circuits.explained import Explained, Question, explain
from interp.circuits.lockstep import Wanted, Work, alone, stacks_of, together
from interp.circuits.memory import DEFAULT_MEMORY, SweepPlan, plan_sweep
from interp.circuits.nodes import NodeIndex, NodeKind
from interp.circuits.replacement_model import ReplacementModel
from interp.circuits.replacements import uncovered
from interp.circuits.rows import Keeping, RowComputer, RowStore
from interp.circuits.selection import choose_features
from interp.circuits.state import ReplacementState
from interp.circuits.targets import Targets
from interp.errors import InterpError, PromptError, SpecError
from interp.spec.trace import LogitsSpec, TargetSpec


@dataclass(frozen=True, eq=False)
class AttributionEdges:
    """The graph of one prompt, as computed.

    Attributes:
        nodes: the nodes; features are those with a row.
        edges: rows in node order: features, then logits.
        activations: of each feature.
        pre_activations: of each row's target, on the unchanged model.
        residual: how far the edges into a target are from adding up to that, at worst (see the module).
        probabilities: of each target logit; of targets that are no token's, equal shares.
        n_active: active features, including those left out.
        ids: the prompt; tokens: its text, token by token; logit_tokens: text of each target logit.
        targets: what the target logits read.
        settings: how the graph was made.
        model: which model and dictionaries it is about.
    """

    nodes: NodeIndex
    edges: EdgeTable
    activations: Float[Tensor, "features"]
    pre_activations: Float[Tensor, "rows"]
    residual: float
    probabilities: Float[Tensor, "logits"]
    n_active: int
    ids: Int[Tensor, "pos"]
    tokens: tuple[str, ...]
    logit_tokens: tuple[str, ...]
    prompt: str
    targets: Targets
    settings: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)


class AttributionComputer:
    """Computes attribution graphs with one replacement model.

    Args:
        target: what a graph explains (`interp.circuits.explained`).
        max_features: features with a row of their own, at most; None: all active ones.
        logits: how many of the most probable tokens are targets, where these are.
        batch: targets in one sweep, at most; fewer where memory is short. It changes nothing in the result.
        memory: bytes that one prompt may use beside the model and the dictionaries (`interp.circuits.memory`).
    """

    def __init__(
        self,
        rm: ReplacementModel,
        *,
        target: TargetSpec = "salient",
        max_features: int | None = 8192,
        logits: LogitsSpec | None = None,
        batch: int = 256,
        memory: int = DEFAULT_MEMORY,
    ):
        for name, value in (("max_features", max_features), ("batch", batch), ("memory", memory)):
            if value is not None and value < 1:
                raise SpecError(f"{name} must be at least 1", value=value, expected="a positive number")
        self.rm, self.target, self.max_features, self.batch = rm, target, max_features, batch
        self.logits, self.memory = LogitsSpec() if logits is None else logits, memory

    def compute_full_graph(
        self,
        state: ReplacementState,
        ids: Int[Tensor, "pos"] | Sequence[int] | None = None,
        *,
        last_token: int | None = None,
        row: Mapping[str, Any] | None = None,
    ) -> AttributionEdges:
        """Edges into the targets and into the features, from everything below them.

        Args:
            ids: the prompt again, if given: it must be the one that the state was built on.
            last_token: for `last-token`: the token that was cut off the prompt.
            row: what the prompt's row says in other columns, where targets are named there.
        """
        if ids is not None and not torch.equal(torch.as_tensor(ids).flatten().cpu().long(), state.ids):
            raise PromptError("the state was built on another prompt", remedy="build a state with these ids")
        return alone(self._work(state, last_token, row, self.memory))

    def compute_graphs(
        self,
        states: Sequence[ReplacementState],
        *,
        last_tokens: Sequence[int | None] | None = None,
        rows: Sequence[Mapping[str, Any] | None] | None = None,
    ) -> list[AttributionEdges | InterpError]:
        """The graph of each prompt, or why there is none; like ones are swept together (`interp.circuits.lockstep`).

        Each is the one that `compute_full_graph` makes, but for rounding. They share the memory of one prompt.
        """
        last_tokens = [None] * len(states) if last_tokens is None else last_tokens
        rows = [None] * len(states) if rows is None else rows
        found: dict[int, AttributionEdges | InterpError] = {}
        held = [state.nbytes for state in states]
        for group in stacks_of(states, self.max_features, self.memory):
            beside = sum(held) - sum(held[place] for place in group)
            share = (self.memory - beside) // len(group)
            works = [self._work(states[place], last_tokens[place], rows[place], share) for place in group]
            found |= zip(group, together(works), strict=True)
        return [found[place] for place in range(len(states))]

    def _work(
        self, state: ReplacementState, last_token: int | None, row: Mapping[str, Any] | None, memory: int
    ) -> Work[AttributionEdges]:
        """All that is to be done for one prompt, but for computing rows: it asks for them."""
        tokenizer = self.rm.hooked.tokenizer
        question = Question(self.rm, state, self.logits, last_token, row or {}, partial(_text, tokenizer))
        explained = explain(self.target, question)
        nodes = all_nodes(state, explained)
        plan = self._plan(state, len(nodes), memory)
        rows = RowComputer(state, nodes, plan)
        chosen, kept, edges = yield from self._edges(nodes, explained, rows, plan)
        with_rows = torch.cat([chosen, nodes.mask(NodeKind.LOGIT)[nodes.n_features :]])
        return AttributionEdges(
            nodes=kept,
            edges=edges,
            activations=state.features.activations[chosen],
            pre_activations=rows.values[with_rows],
            residual=rows.residual,
            probabilities=explained.weights,
            n_active=nodes.n_features,
            ids=state.ids,
            tokens=tuple(_text(tokenizer, int(i)) for i in state.ids),
            logit_tokens=explained.labels,
            prompt=_prompt(tokenizer, state.ids),
            targets=explained.targets,
            settings=self._settings(),
            model=self._model(),
        )

    def _plan(self, state: ReplacementState, n_nodes: int, memory: int) -> SweepPlan:
        blocks = [layer.block for layer in state.layers]
        pattern = 4 * max(block.n_heads for block in blocks) * state.n_pos**2
        hidden = max(0 if layer.kept is None else layer.kept.d_hidden for layer in state.layers)
        widest = max(max(block.d_model, block.n_heads * block.d_head, hidden) for block in blocks)
        held = state.nbytes + pattern + 16 * state.n_pos * hidden
        return plan_sweep(held, state.n_pos, widest, n_nodes, self.batch, memory)

    def _edges(
        self, nodes: NodeIndex, explained: Explained, rows: RowComputer, plan: SweepPlan
    ) -> Work[tuple[Bool[Tensor, "features"], NodeIndex, EdgeTable]]:
        """Which features have a row, the nodes of the graph, and its edges in node order."""
        # What comes after the targets' position cannot matter to them.
        before = nodes.features[:, 1] <= explained.position
        logits = torch.arange(len(nodes))[nodes.span(NodeKind.LOGIT)]
        ends = yield Wanted(rows, explained.targets, logits)
        if self.max_features is None or int(before.sum()) <= self.max_features:
            keeping = Keeping(nodes, before)
            found = yield Wanted.features(rows, before.nonzero().flatten())
            return before, keeping.nodes, _collect((keeping.table(*each) for each in chain(found, ends)), plan)
        store = RowStore(nodes, plan.rows)
        for each in ends:
            store.add(*each)
        choice = choose_features(store, explained.weights, before, self.max_features)
        while True:
            try:
                best = next(choice)
            except StopIteration as stop:
                chosen = stop.value
                break
            for each in (yield Wanted.features(rows, best)):
                store.add(*each)
        keeping = Keeping(nodes, chosen)
        tables = (keeping.table(*each) for each in store.drain())
        return chosen, keeping.nodes, _collect(tables, plan)

    def _settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "target": self.target if isinstance(self.target, str) else self.target.model_dump(mode="json"),
            "max_n_logits": self.logits.max,
            "desired_logit_prob": self.logits.mass,
            "batch_size": self.batch,
            "bos": self.rm.bos,
        }
        # Readers want a number or nothing.
        return settings if self.max_features is None else {**settings, "max_feature_nodes": self.max_features}

    def _model(self) -> dict[str, Any]:
        hooked = self.rm.hooked
        return {
            "family": hooked.family.name,
            "fingerprint": hooked.fingerprint,
            "dictionaries": self.rm.fingerprint,
            "n_layers": hooked.topology.n_layers,
            "layers": [hooked.topology.block_name(layer) for layer in range(hooked.topology.n_layers)],
            "without_transcoder": uncovered(hooked, self.rm.replacement),
            "mlp": "kept" if self.rm.replacement.keeps_mlp else "replaced",
        }


def all_nodes(state: ReplacementState, explained: Explained) -> NodeIndex:
    """Every node of a prompt: all active features, none left out."""
    return NodeIndex(state.n_layers, state.n_pos, state.features.index, explained.tokens, explained.position)


def _collect(tables: Iterable[EdgeTable], plan: SweepPlan) -> EdgeTable:
    """All rows in node order, if they fit."""
    collected, size = [], 0
    for table in tables:
        collected.append(table)
        size += table.nbytes
        plan.check_edges(size)
    return EdgeTable.in_node_order(collected)


def _text(tokenizer: Any, token: int) -> str:
    """A token as text; a part of a character has no text of its own, and is shown as the tokenizer writes it."""
    if tokenizer is None:
        return f"<{token}>"
    text = tokenizer.decode([token])
    return text if "\ufffd" not in text else str(tokenizer.convert_ids_to_tokens(token))


def _prompt(tokenizer: Any, ids: Int[Tensor, "pos"]) -> str:
    return " ".join(f"<{int(i)}>" for i in ids) if tokenizer is None else str(tokenizer.decode(ids.tolist()))
