"""The few numbers that tell how a stage went, read from its finished artifact: the same whether it was just made or
was there before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import fmean
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interp.store import Artifact


def headline(artifact: Artifact) -> dict[str, Any]:
    """Headline numbers of an artifact, by name; none for a stage that has no summary of its own."""
    reader = _READERS.get(artifact.stage)
    return {} if reader is None else reader(artifact)


def _corpus(artifact: Artifact) -> dict[str, Any]:
    summary = artifact.json("corpus.json")
    return {"tokens": summary["train_tokens"], "holdout": summary["holdout_tokens"]}


def _activations(artifact: Artifact) -> dict[str, Any]:
    spec = artifact.manifest.spec
    return {"hooks": len(spec["hooks"]), "tokens": spec["tokens"], "bytes": artifact.manifest.size}


def _fit(artifact: Artifact) -> dict[str, Any]:
    summary = artifact.json("summary.json")
    found = list(summary["dictionaries"].values())
    return {"dictionaries": len(found), "tokens": summary["tokens"], **_means(found, ("fvu", "l0", "dead"))}


def _evaluate(artifact: Artifact) -> dict[str, Any]:
    rows = artifact.json("evaluation.json")
    each = [row for row in rows if row["at"] != "all"]
    together = _means([row for row in rows if row["at"] == "all"], ("ce_recovered", "kl"))
    return {
        "places": len(each),
        **_means(each, ("fvu", "l0", "dead", "cosine", "ce_recovered", "kl")),
        **{f"{name}_together": value for name, value in together.items()},
    }


def _trace(artifact: Artifact) -> dict[str, Any]:
    summary = artifact.json("summary.json")
    return {name: summary[name] for name in sorted(summary, key=_place_in_trace)}


def _place_in_trace(name: str) -> tuple[bool, int]:
    """What one looks for first, first."""
    first = ("prompts", "graphs", "failed", "retry", "residual", "replacement_score", "completeness_score")
    return (name not in first, first.index(name) if name in first else 0)


def _means(rows: list[Mapping[str, Any]], names: tuple[str, ...]) -> dict[str, float]:
    """Means over the rows that have the number."""
    found = {name: [row[name] for row in rows if row.get(name) is not None] for name in names}
    return {name: fmean(values) for name, values in found.items() if values}


_READERS: dict[str, Callable[[Artifact], dict[str, Any]]] = {
    "corpus": _corpus,
    "activations": _activations,
    "fit": _fit,
    "evaluate": _evaluate,
    "trace": _trace,
}
