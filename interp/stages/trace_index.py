"""What a trace says of all its prompts: index, failures, means, and the features that matter over all graphs."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from interp.circuits.aggregate import FeatureSums
    from interp.store import Writer

COLUMNS: Mapping[str, pa.DataType] = {
    "slug": pa.string(),
    "prompt": pa.string(),
    "target": pa.string(),
    "target_probability": pa.float64(),
    "n_tokens": pa.int64(),
    "n_nodes": pa.int64(),
    "n_edges": pa.int64(),
    "n_features": pa.int64(),
    "n_active": pa.int64(),
    "residual": pa.float64(),
    "replacement_score": pa.float64(),
    "completeness_score": pa.float64(),
    "faithfulness_slope": pa.float64(),
    "faithfulness_r2": pa.float64(),
    "faithfulness_slope_readout": pa.float64(),
    "faithfulness_r2_readout": pa.float64(),
    "faithfulness_slope_frozen": pa.float64(),
    "faithfulness_r2_frozen": pa.float64(),
    "seconds": pa.float64(),
    "status": pa.string(),
    "reason": pa.string(),
    "retry": pa.bool_(),
}
"""Of the index. `target` is the token that was cut off, or the first of the targets; only tokens have a probability.
Nodes, edges and features are those of the pruned graph; `n_active` counts the features before the cap and the pruning,
and the scores, the residual and faithfulness (in the model, by the graph's own read-outs and in the frozen replacement
model: `interp.circuits.faithfulness`) are of the graph before pruning. `retry` says of a prompt that failed that it was
not its own fault (`interp.stages.trace_earlier`)."""

FEATURE_COLUMNS: Mapping[str, pa.DataType] = {
    "layer": pa.int64(),
    "at": pa.string(),
    "latent": pa.int64(),
    "influence": pa.float64(),
    "prompts": pa.int64(),
    "positions": pa.int64(),
    "mean_activation": pa.float64(),
    "max_activation": pa.float64(),
    "top_prompts": pa.list_(pa.string()),
    "top_influences": pa.list_(pa.float64()),
}
"""Of features.parquet (see `interp.circuits.aggregate`), the greatest influence first."""

TOP_FEATURES = 10
"""Features that the summary names."""

_FAILED = ("slug", "prompt", "reason", "retry")
_MEANS = ("n_nodes", "n_edges", "replacement_score", "completeness_score", "seconds")
_MEANS_IF_ANY = ("target_probability", *(name for name in COLUMNS if name.startswith("faithfulness_")))


def write_index(rows: Sequence[Mapping[str, Any]], sums: FeatureSums | None, out: Writer) -> None:
    """Write everything that is about all prompts.

    Args:
        rows: of every prompt, in order.
        sums: of all graphs; None if there is none.
    """
    told = [{**{name: row.get(name) for name in COLUMNS}, "retry": bool(row.get("retry"))} for row in rows]
    out.write("index.parquet", _parquet({name: [row[name] for row in told] for name in COLUMNS}, COLUMNS))
    out.write("index.jsonl", _json_lines(told))
    failed = [row for row in told if row["status"] == "failed"]
    out.write("failed.jsonl", _json_lines([{name: row[name] for name in _FAILED} for row in failed]))
    summary = summary_of(told)
    if sums is not None:
        out.write("features.parquet", _parquet(sums.columns(), FEATURE_COLUMNS))
        out.write_json("layers.json", {"layers": sums.layer_rows(), "tokens": float(sums.tokens) / len(sums.slugs)})
        summary["top_features"] = sums.rows(TOP_FEATURES)
    out.write_json("summary.json", summary)


def summary_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How many prompts became graphs, which of the others could be tried again, the worst residual, and means."""
    fine = [row for row in rows if row["status"] == "ok"]
    summary: dict[str, Any] = {"prompts": len(rows), "graphs": len(fine), "failed": len(rows) - len(fine)}
    summary["retry"] = sum(row["retry"] for row in rows)
    if fine:
        summary |= {"residual": max(row["residual"] for row in fine)}
        summary |= {name: fmean(row[name] for row in fine) for name in _MEANS}
    for name in _MEANS_IF_ANY:
        if values := [row[name] for row in fine if row[name] is not None]:
            summary[name] = fmean(values)
    return summary


def _parquet(columns: Mapping[str, Sequence[Any]], kinds: Mapping[str, pa.DataType]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({name: pa.array(columns[name], kind) for name, kind in kinds.items()}), buffer)
    return buffer.getvalue()


def _json_lines(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
