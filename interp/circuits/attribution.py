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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.circuits.edges import EdgeTable
from interp.circuits.nodes import NodeIndex, NodeKind
from interp.circuits.replacement_model import ReplacementModel
from interp.circuits.selection import choose_features
from interp.circuits.state import ReplacementState
from interp.circuits.sweep import all_nodes, sweep
from interp.circuits.targets import FeatureTargets, LogitTargets, Targets, salient_logits
from interp.errors import ModelError, PromptError, SpecError
from interp.spec.study import LogitsSpec


@dataclass(frozen=True, eq=False)
class AttributionEdges:
    """The graph of one prompt, as computed.

    Attributes:
        nodes: the nodes; features are those with a row.
        edges: rows in node order: features, then logits.
        activations: of each feature.
        pre_activations: of each row's target, on the unchanged model.
        residual: how far the edges into a target are from adding up to that, at worst (see the module).
        probabilities: of each target logit.
        n_active: active features, including those left out.
        ids: the prompt; tokens: its text, token by token; logit_tokens: text of each target logit.
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
    settings: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)


class AttributionComputer:
    """Computes attribution graphs with one replacement model.

    Args:
        max_features: features with a row of their own, at most; None: all active ones.
        logits: which logits are targets: the most probable ones.
        batch: targets in one sweep. It bounds memory and changes nothing in the result.
    """

    def __init__(
        self,
        rm: ReplacementModel,
        *,
        max_features: int | None = 8192,
        logits: LogitsSpec | None = None,
        batch: int = 256,
    ):
        for name, value in (("max_features", max_features), ("batch", batch)):
            if value is not None and value < 1:
                raise SpecError(f"{name} must be at least 1", value=value, expected="a positive number")
        self.rm, self.max_features, self.batch = rm, max_features, batch
        self.logits = LogitsSpec() if logits is None else logits

    def compute_full_graph(
        self, state: ReplacementState, ids: Int[Tensor, "pos"] | Sequence[int] | None = None
    ) -> AttributionEdges:
        """Edges into the target logits and into the features, from everything below them.

        Args:
            ids: the prompt again, if given: it must be the one that the state was built on.
        """
        if ids is not None and not torch.equal(torch.as_tensor(ids).flatten().cpu().long(), state.ids):
            raise PromptError("the state was built on another prompt", remedy="build a state with these ids")
        tokens = salient_logits(state.probabilities, self.logits)
        nodes = all_nodes(state, tokens)
        probabilities = state.probabilities[tokens.to(state.device)].cpu()
        rows = _Rows(state, nodes, self.batch)
        logit_rows = rows.of(LogitTargets(state, tokens), torch.arange(len(nodes))[nodes.span(NodeKind.LOGIT)])

        if self.max_features is None or nodes.n_features <= self.max_features:
            chosen = torch.ones(nodes.n_features, dtype=torch.bool)
            edges = EdgeTable.cat([rows.of_features(torch.arange(nodes.n_features)), logit_rows])
        else:
            chosen, edges = choose_features(nodes, logit_rows, probabilities, self.max_features, rows.of_features)
        kept, kept_edges = leave_out(nodes, edges, chosen)
        return AttributionEdges(
            nodes=kept,
            edges=kept_edges,
            activations=state.features.activations[chosen],
            pre_activations=rows.values[edges.targets],
            residual=rows.residual,
            probabilities=probabilities,
            n_active=nodes.n_features,
            ids=state.ids,
            tokens=tuple(_text(self.rm.hooked.tokenizer, int(i)) for i in state.ids),
            logit_tokens=tuple(_text(self.rm.hooked.tokenizer, int(i)) for i in tokens),
            prompt=_prompt(self.rm.hooked.tokenizer, state.ids),
            settings=self._settings(),
            model=self._model(),
        )

    def _settings(self) -> dict[str, Any]:
        settings = {
            "max_n_logits": self.logits.max,
            "desired_logit_prob": self.logits.mass,
            "batch_size": self.batch,
            "bos": self.rm.bos,
        }
        # Readers want a number or nothing.
        return settings if self.max_features is None else {**settings, "max_feature_nodes": self.max_features}

    def _model(self) -> dict[str, Any]:
        hooked = self.rm.hooked
        without = [hooked.topology.block_name(layer) for layer, t in enumerate(self.rm.transcoders) if t is None]
        return {
            "family": hooked.family.name,
            "fingerprint": hooked.fingerprint,
            "n_layers": hooked.topology.n_layers,
            "layers": [hooked.topology.block_name(layer) for layer in range(hooked.topology.n_layers)],
            "without_transcoder": without,
        }


class _Rows:
    """Computes rows, and keeps what their targets are on the unchanged model."""

    def __init__(self, state: ReplacementState, nodes: NodeIndex, batch: int):
        self.state, self.nodes, self.batch = state, nodes, batch
        self.values = torch.zeros(len(nodes))
        self.residual = 0.0

    def of(self, targets: Targets, target_nodes: Int[Tensor, "targets"]) -> EdgeTable:
        """The rows of these targets, in node order."""
        tables = [EdgeTable.empty()]
        for rows in sweep(self.state, self.nodes, targets, self.batch):
            table = EdgeTable.from_dense(target_nodes[rows.which], rows.weights)
            self.values[table.targets] = rows.values
            gap = (table.row_sums() - rows.values.double()).abs() / rows.values.double().abs().clamp(min=1.0)
            self.residual = max(self.residual, _finite(float(gap.max())))
            tables.append(table)
        return EdgeTable.cat(tables).sorted()

    def of_features(self, features: Int[Tensor, "features"]) -> EdgeTable:
        """The rows of these features, in node order."""
        return self.of(FeatureTargets(self.state, features), features)


def _finite(residual: float) -> float:
    if not isfinite(residual):
        raise ModelError(
            "the model computes numbers that are not finite on this prompt",
            value=residual,
            remedy="load it in float32 or bfloat16; float16 overflows in many models",
        )
    return residual


def leave_out(nodes: NodeIndex, edges: EdgeTable, chosen: Bool[Tensor, "features"]) -> tuple[NodeIndex, EdgeTable]:
    """Only the chosen features as nodes; edges from the others are added up in `rest`."""
    if bool(chosen.all()):
        return nodes, edges
    kept, new_index = nodes.keeping(chosen)
    return kept, edges.relabelled(new_index, len(kept))


def _text(tokenizer: Any, token: int) -> str:
    """A token as text; a part of a character has no text of its own, and is shown as the tokenizer writes it."""
    if tokenizer is None:
        return f"<{token}>"
    text = tokenizer.decode([token])
    return text if "\ufffd" not in text else str(tokenizer.convert_ids_to_tokens(token))


def _prompt(tokenizer: Any, ids: Int[Tensor, "pos"]) -> str:
    return " ".join(f"<{int(i)}>" for i in ids) if tokenizer is None else str(tokenizer.decode(ids.tolist()))
