"""What many graphs say together: which features matter, and on how many prompts.

    influence of a feature in a graph   sum over its positions of I (`interp.circuits.influence`) / sum of the weights
                                        of the targets: the share of the targets' explanation that passes through it
    over graphs                         that, summed; a graph counts the same however probable its targets are

Features are counted that have a row in the graph; those below the cap of `max_features` are part of `rest`. All
figures are sums (or maxima), so graphs are taken one at a time: `merged` of the parts is what all graphs together give,
whatever the parts are. A graph that was pruned has lost features: aggregate graphs as they were computed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors.torch import load, save
from torch import Tensor

from interp.circuits.influence import flow_of
from interp.circuits.nodes import NodeKind
from interp.circuits.record import GraphRecord
from interp.errors import SpecError

TOP = 5
"""Prompts that are remembered for each feature: those in which it has the greatest influence."""

_AT_ONCE = 1 << 20
_LATENTS = 1 << 40
_PARTS = (NodeKind.FEATURE, NodeKind.ERROR, NodeKind.REST)


@dataclass(frozen=True, eq=False)
class FeatureSums:
    """Sums over graphs of one model and one set of transcoders.

    Attributes:
        model: fingerprints of it and of its dictionaries; layers: names of its blocks; slugs: of the graphs, in order.
        features: (layer, latent), sorted.
        influence: summed over graphs; prompts: in how many the feature has a row.
        positions: at how many positions; activation: summed over them; largest: the greatest.
        by_layer: influence of features, errors and rest; tokens: that of the embeddings.
        tops: (row of `features`, graph) of the best prompts of each feature, best first; top_influence: of each.
    """

    model: str
    layers: tuple[str, ...]
    slugs: tuple[str, ...]
    features: Int[Tensor, "features 2"]
    influence: Float[Tensor, "features"]
    prompts: Int[Tensor, "features"]
    positions: Int[Tensor, "features"]
    activation: Float[Tensor, "features"]
    largest: Float[Tensor, "features"]
    by_layer: Float[Tensor, "layers 3"]
    tokens: Float[Tensor, ""]
    tops: Int[Tensor, "tops 2"]
    top_influence: Float[Tensor, "tops"]

    @classmethod
    def of(cls, graph: GraphRecord) -> FeatureSums:
        """The sums of one graph, which should be whole."""
        nodes = graph.nodes
        influence = flow_of(nodes, graph.edges, graph.probabilities).influence
        influence = influence / graph.probabilities.double().sum().clamp(min=torch.finfo(torch.float64).tiny)
        layer, _, latent = nodes.features.long().T
        keys, row = torch.unique(layer * _LATENTS + latent, return_inverse=True)
        summed, n = influence.new_zeros(len(keys)), len(keys)
        of_features = summed.index_add(0, row, influence[nodes.span(NodeKind.FEATURE)])
        parts = torch.zeros(nodes.n_layers, len(_PARTS), dtype=torch.float64)
        for column, kind in enumerate(_PARTS):
            span = nodes.span(kind)
            parts[:, column].index_add_(0, nodes.layers[span], influence[span])
        return cls(
            model=_identity(graph),
            layers=tuple(graph.model["layers"]),
            slugs=(graph.slug,),
            features=_pairs(keys),
            influence=of_features,
            prompts=torch.ones(n, dtype=torch.long),
            positions=torch.bincount(row, minlength=n),
            activation=summed.index_add(0, row, graph.activations.double()),
            largest=_largest(n, row, graph.activations.float()),
            by_layer=parts,
            tokens=influence[nodes.span(NodeKind.TOKEN)].sum(),
            tops=torch.stack([torch.arange(n), torch.zeros(n, dtype=torch.long)], 1),
            top_influence=of_features,
        )

    @classmethod
    def sum(cls, parts: Sequence[FeatureSums]) -> FeatureSums:
        """The sums of all parts.

        Raises:
            SpecError: they are of different models.
        """
        if len(models := {part.model for part in parts}) != 1:
            what = "graphs of different models or transcoders cannot be added up"
            raise SpecError(what, value=sorted(models), expected="one model and one set of transcoders")
        if len(parts) == 1:
            return parts[0]
        keys, row = torch.unique(torch.cat([_keys(part.features) for part in parts]), return_inverse=True)
        rows = row.split([len(part.features) for part in parts])
        first = torch.tensor([0, *(len(part.slugs) for part in parts)]).cumsum(0).tolist()
        tops = [
            torch.stack([mine[part.tops[:, 0].long()], part.tops[:, 1].long() + offset], 1)
            for part, mine, offset in zip(parts, rows, first, strict=False)
        ]
        best = _best(torch.cat(tops), torch.cat([part.top_influence for part in parts]))

        def added(name: str) -> Tensor:
            values = torch.cat([getattr(part, name) for part in parts])
            return values.new_zeros(len(keys)).index_add(0, row, values)

        return cls(
            model=parts[0].model,
            layers=parts[0].layers,
            slugs=tuple(slug for part in parts for slug in part.slugs),
            features=_pairs(keys),
            **{name: added(name) for name in ("influence", "prompts", "positions", "activation")},
            largest=_largest(len(keys), row, torch.cat([part.largest for part in parts])),
            by_layer=torch.stack([part.by_layer for part in parts]).sum(0),
            tokens=torch.stack([part.tokens for part in parts]).sum(),
            tops=best[0],
            top_influence=best[1],
        )

    def order(self) -> Int[Tensor, "features"]:
        """Features by influence, the greatest first; ties by layer and latent."""
        return self.influence.argsort(descending=True, stable=True)

    def columns(self, n: int | None = None) -> dict[str, list[Any]]:
        """The `n` features of the greatest influence, or all: what is known of them, by name."""
        order = self.order()[:n]
        layers, latents = self.features[order].T.tolist()
        best = self._best_prompts(order)
        return {
            "layer": layers,
            "at": [f"{self.layers[layer]}.mlp" for layer in layers],
            "latent": latents,
            "influence": self.influence[order].tolist(),
            "prompts": self.prompts[order].tolist(),
            "positions": self.positions[order].tolist(),
            "mean_activation": (self.activation / self.positions)[order].tolist(),
            "max_activation": self.largest[order].tolist(),
            "top_prompts": [[self.slugs[graph] for graph, _ in found] for found in best],
            "top_influences": [[influence for _, influence in found] for found in best],
        }

    def rows(self, n: int | None = None) -> list[dict[str, Any]]:
        """`columns`, feature by feature."""
        columns = self.columns(n)
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    def layer_rows(self) -> list[dict[str, Any]]:
        """Mean influence of each layer's features, errors and rest over the graphs."""
        means = (self.by_layer / len(self.slugs)).tolist()
        names = [kind.name.lower() for kind in _PARTS]
        return [
            {"layer": i, "at": f"{at}.mlp", **dict(zip(names, values, strict=True))}
            for i, (at, values) in enumerate(zip(self.layers, means, strict=True))
        ]

    def _best_prompts(self, order: Tensor) -> list[list[tuple[int, float]]]:
        """(graph, influence) of the best prompts of these features."""
        starts = torch.searchsorted(self.tops[:, 0].contiguous(), torch.stack([order, order + 1])).T.tolist()
        graphs, influences = self.tops[:, 1].tolist(), self.top_influence.tolist()
        return [list(zip(graphs[a:b], influences[a:b], strict=True)) for a, b in starts]

    def to_bytes(self) -> bytes:
        """As a file; texts are a tensor of bytes."""
        texts = json.dumps({"model": self.model, "layers": self.layers, "slugs": self.slugs})
        # Clones: a file holds no two tensors that share memory.
        tensors = {name: value.clone() for name, value in vars(self).items() if isinstance(value, Tensor)}
        return save({**tensors, _TEXTS: torch.tensor(list(texts.encode()), dtype=torch.uint8)})

    @classmethod
    def from_bytes(cls, data: bytes) -> FeatureSums:
        """What `to_bytes` wrote."""
        tensors = load(data)
        texts = json.loads(bytes(tensors.pop(_TEXTS).tolist()))
        names = {name: tuple(texts[name]) for name in ("layers", "slugs")}
        return cls(model=texts["model"], layers=names["layers"], slugs=names["slugs"], **tensors)


_TEXTS = "texts"


def aggregate(graphs: Iterable[GraphRecord]) -> FeatureSums:
    """The sums of many graphs, read one at a time.

    Raises:
        SpecError: there is none, or they are of different models.
    """
    return merged(FeatureSums.of(graph) for graph in graphs)


def merged(parts: Iterable[FeatureSums]) -> FeatureSums:
    """The sums of all parts; memory is that of the result and of some parts."""
    held: list[FeatureSums] = []
    waiting = 0
    for part in parts:
        held.append(part)
        waiting += len(part.features)
        if waiting > max(_AT_ONCE, len(held[0].features)):
            held, waiting = [FeatureSums.sum(held)], 0
    if not held:
        raise SpecError("there is no graph to aggregate", expected="at least one")
    return FeatureSums.sum(held)


def _keys(features: Int[Tensor, "features 2"]) -> Int[Tensor, "features"]:
    return features[:, 0].long() * _LATENTS + features[:, 1].long()


def _identity(graph: GraphRecord) -> str:
    """Model and dictionaries: a feature's layer and latent mean something in these alone."""
    return f"{graph.model['fingerprint']}/{graph.model['dictionaries']}"


def _pairs(keys: Int[Tensor, "features"]) -> Int[Tensor, "features 2"]:
    return torch.stack([keys // _LATENTS, keys % _LATENTS], 1).int()


def _largest(n: int, row: Tensor, values: Tensor) -> Float[Tensor, "features"]:
    return torch.full((n,), -torch.inf).scatter_reduce(0, row, values, "amax")


def _best(tops: Int[Tensor, "all 2"], influence: Float[Tensor, "all"]) -> tuple[Tensor, Tensor]:
    """The `TOP` best of each feature, best first, features in order; of equal ones the first graph."""
    order = influence.argsort(descending=True, stable=True)
    order = order[tops[order, 0].argsort(stable=True)]
    tops, influence = tops[order], influence[order]
    of_feature = tops[:, 0].contiguous()
    rank = torch.arange(len(tops)) - torch.searchsorted(of_feature, of_feature)
    return tops[rank < TOP], influence[rank < TOP]
