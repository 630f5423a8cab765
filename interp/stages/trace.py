"""trace: the attribution graph of every prompt of a study, by a pool of actors.

    graphs/<slug>.json      the pruned graph, as circuit-tracer's page and Neuronpedia read it
    graph-metadata.json     {"graphs": [metadata, ...]}: what the page lists
    index.parquet, .jsonl   one row a prompt, in the order of the prompts; of a prompt that failed, with its reason
    failed.jsonl            the prompts that failed
    summary.json            how many, and their means

An actor leaves each graph in the scratch as soon as it is finished, so a run that was killed does no prompt twice. A
prompt that cannot be traced becomes a row and stops no other. Only when not one prompt could be traced, and for reasons
that are not the prompts' own, is the stage a failure: such a result must not count as done.
"""

from __future__ import annotations

import io
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from statistics import fmean
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from interp import __version__
from interp.errors import DictionaryError, EngineError, InterpError, ModelError, PromptError, SpecError, StoreError
from interp.plan.versions import VERSIONS
from interp.sources.prompts import Prompt
from interp.stages.context import StageContext
from interp.stages.dictionary_sets import DictionarySet, dictionary_set

if TYPE_CHECKING:
    from interp.circuits.attribution import AttributionComputer
    from interp.dictionaries import SparseDictionary, Transcoder
    from interp.spec.study import ModelSpec, TraceSpec
    from interp.store import Artifact, Scratch, Writer
    from interp.wrapper import HookedModel

VERSION = VERSIONS["trace"]

logger = logging.getLogger(__name__)

COLUMNS: Mapping[str, pa.DataType] = {
    "slug": pa.string(),
    "prompt": pa.string(),
    "n_tokens": pa.int64(),
    "n_nodes": pa.int64(),
    "n_edges": pa.int64(),
    "n_features": pa.int64(),
    "n_active": pa.int64(),
    "residual": pa.float64(),
    "replacement_score": pa.float64(),
    "completeness_score": pa.float64(),
    "seconds": pa.float64(),
    "status": pa.string(),
    "reason": pa.string(),
}
"""Of the index. Nodes, edges and features are those of the pruned graph; `n_active` counts the features before the cap
and the pruning, and the scores and the residual are of the graph before pruning."""


@dataclass(frozen=True)
class TraceWorker:
    """What an actor needs to trace prompts; it leaves what it finishes in the scratch."""

    model: ModelSpec
    transcoders: DictionarySet
    spec: TraceSpec
    scratch: Scratch
    provenance: Mapping[str, str]

    def start(self) -> Callable[[Prompt], dict[str, Any]]:
        import torch

        from interp.circuits.attribution import AttributionComputer
        from interp.circuits.replacement_model import ReplacementModel
        from interp.models.loading import load_model
        from interp.wrapper import HookedModel

        spec, device = self.spec, "cuda" if torch.cuda.is_available() else "cpu"
        hooked = HookedModel(load_model(self.model, device=device, attention="eager"))
        _check_tokenizer(hooked, spec)
        transcoders = _only_transcoders(self.transcoders.load(hooked), self.transcoders.name)
        replacement = ReplacementModel(hooked, transcoders, bos=spec.bos, max_tokens=spec.max_tokens)
        computer = AttributionComputer(
            replacement, max_features=spec.max_features, logits=spec.logits, batch=spec.batch
        )
        provenance = {**self.provenance, "model_fingerprint": hooked.fingerprint}
        return lambda prompt: self._trace(prompt, computer, provenance)

    def _trace(self, prompt: Prompt, computer: AttributionComputer, provenance: Mapping[str, str]) -> dict[str, Any]:
        from interp.circuits.graph import AttributionGraph

        started = time.perf_counter()
        ids = token_ids(computer.rm.hooked, prompt.text, self.spec)
        edges = computer.compute_full_graph(computer.rm.build(ids))
        whole = AttributionGraph.from_edges(edges, slug=prompt.id, prompt=prompt.text, provenance=provenance)
        graph = whole.prune(self.spec.prune.nodes, self.spec.prune.edges)
        self.scratch.write(graph_name(prompt.id), graph.to_bytes())
        row = {
            "slug": prompt.id,
            "prompt": prompt.text,
            "n_tokens": len(ids),
            "n_nodes": int(graph.drawn().sum()),
            "n_edges": len(graph.edges.weights),
            "n_features": graph.nodes.n_features,
            "n_active": graph.n_active,
            "residual": graph.residual,
            "replacement_score": graph.scores.replacement,
            "completeness_score": graph.scores.completeness,
            "seconds": time.perf_counter() - started,
            "status": "ok",
            "reason": None,
        }
        # After the graph: a prompt with a row is finished.
        self.scratch.write_json(_row_name(prompt.id), row)
        return row


def run(context: StageContext, inputs: Mapping[str, Artifact], out: Writer) -> None:
    """Write the graphs and what is said of them.

    Raises:
        ModelMismatch, DictionaryError: the transcoders are not this model's.
        EngineError: every prompt failed, and not because of what it says.
    """
    prompts = [Prompt(index, **said) for index, said in enumerate(context.stage.spec["prompts"])]
    rows = _Rows(prompts, out.scratch)
    worker = _worker(context, inputs, out.scratch)
    todo = [prompt for prompt in prompts if prompt.id not in rows.done]
    _trace_all(context, worker, todo, rows)
    _require_some(rows)
    metadata = [_keep_graph(row["slug"], out) for row in rows.in_order() if row["status"] == "ok"]
    out.write_json("graph-metadata.json", {"graphs": metadata})
    _write_index(rows.in_order(), out)


def _worker(context: StageContext, inputs: Mapping[str, Artifact], scratch: Scratch) -> TraceWorker:
    study = context.study
    if study.trace is None or study.traced is None:
        raise SpecError("the study traces nothing", value=study.metadata.name, expected="a part `trace`")
    transcoders = dictionary_set(study, study.traced.name, inputs)
    provenance = {
        "generator": "interp",
        "interp": __version__,
        "torch": version("torch"),
        "transformers": version("transformers"),
        "key": context.stage.key,
        "model": study.model.source,
        "dictionaries": transcoders.folder if transcoders.artifact is None else transcoders.artifact.key,
    }
    return TraceWorker(study.model, transcoders, study.trace, scratch, provenance)


class _Rows:
    """The row of every prompt that has its fate, by id; those of graphs that were finished before are read back."""

    def __init__(self, prompts: Sequence[Prompt], scratch: Scratch):
        self.prompts = prompts
        self.done: dict[str, dict[str, Any]] = {}
        self.errors: dict[str, InterpError] = {}
        graphs = set(scratch.list("graphs/"))
        for prompt in prompts:
            if prompt.error is not None:
                self.failed(prompt, PromptError(prompt.error, value=_shown(prompt.text)))
            elif graph_name(prompt.id) in graphs and (row := scratch.json(_row_name(prompt.id))) is not None:
                self.done[prompt.id] = row

    def failed(self, prompt: Prompt, error: InterpError) -> None:
        self.errors[prompt.id] = error
        unknown = dict.fromkeys(COLUMNS)
        self.done[prompt.id] = {
            **unknown,
            "slug": prompt.id,
            "prompt": _shown(prompt.text),
            "status": "failed",
            "reason": str(error),
        }

    def in_order(self) -> list[dict[str, Any]]:
        return [self.done[prompt.id] for prompt in self.prompts]


def _trace_all(context: StageContext, worker: TraceWorker, todo: Sequence[Prompt], rows: _Rows) -> None:
    if not todo:
        return
    actors = worker.spec.actors
    most = min(actors.max, len(todo))
    outcomes = context.engine.pool(
        worker, todo, min_actors=min(actors.min, most), max_actors=most, device=context.study.fit.device
    )
    with closing(outcomes):
        for outcome in outcomes:
            prompt = todo[outcome.index]
            if outcome.error is not None or outcome.value is None:
                rows.failed(prompt, outcome.error or EngineError("a worker gave no result"))
                logger.warning("prompt %s failed: %s", prompt.id, rows.errors[prompt.id].what)
            else:
                rows.done[prompt.id] = outcome.value
            context.progress(
                "trace", done=len(rows.done), total=len(rows.prompts), unit="prompts", failed=len(rows.errors)
            )


def _require_some(rows: _Rows) -> None:
    """A result without a single graph is kept only if the prompts themselves are to blame."""
    others = [error for error in rows.errors.values() if not isinstance(error, PromptError)]
    if others and len(rows.errors) == len(rows.prompts):
        raise others[0]


def _keep_graph(slug: str, out: Writer) -> dict[str, Any]:
    """Move a graph from the scratch into the artifact; its metadata."""
    data = out.scratch.read(graph_name(slug))
    if data is None:
        out.scratch.delete(_row_name(slug), graph_name(slug))
        raise StoreError("a finished graph is torn", value=slug, remedy="run again: it is made anew")
    out.write(graph_name(slug), data)
    metadata: dict[str, Any] = json.loads(data)["metadata"]
    return metadata


def _write_index(rows: Sequence[Mapping[str, Any]], out: Writer) -> None:
    columns = {name: pa.array([row.get(name) for row in rows], kind) for name, kind in COLUMNS.items()}
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    out.write("index.parquet", buffer.getvalue())
    out.write("index.jsonl", _json_lines([{name: row.get(name) for name in COLUMNS} for row in rows]))
    failed = [row for row in rows if row["status"] == "failed"]
    out.write(
        "failed.jsonl", _json_lines([{name: row[name] for name in ("slug", "prompt", "reason")} for row in failed])
    )
    fine = [row for row in rows if row["status"] == "ok"]
    means = ("n_nodes", "n_edges", "replacement_score", "completeness_score", "seconds")
    summary: dict[str, Any] = {"prompts": len(rows), "graphs": len(fine), "failed": len(failed)}
    if fine:
        summary |= {"residual": max(row["residual"] for row in fine)}
        summary |= {name: fmean(row[name] for row in fine) for name in means}
    out.write_json("summary.json", summary)


def token_ids(hooked: HookedModel, text: str, spec: TraceSpec) -> list[int]:
    """A prompt as tokens, with BOS by the rule of the study.

    Raises:
        PromptError: there is nothing in it, or something that the tokenizer has no token for.
    """
    bos = spec.bos != "never" and hooked.bos_token_id is not None
    ids: list[int] = hooked.tokenize(text, bos=bos)[0].tolist()
    if len(ids) == int(bos):
        raise PromptError("the prompt is empty", value=_shown(text), expected="at least one token")
    unknown = getattr(hooked.tokenizer, "unk_token_id", None)
    if unknown is not None and unknown in ids and unknown not in (hooked.bos_token_id, hooked.tokenizer.eos_token_id):
        raise PromptError(
            "the tokenizer has no token for a part of the prompt",
            value=_shown(text),
            expected="text of the model's vocabulary",
            remedy="change the prompt, or use the tokenizer that the model was trained with",
        )
    return ids


def _only_transcoders(loaded: Mapping[str, SparseDictionary], name: str) -> dict[str, Transcoder]:
    from interp.dictionaries import Transcoder

    for at, dictionary in loaded.items():
        if not isinstance(dictionary, Transcoder):
            raise DictionaryError(
                f"a replacement model is made of transcoders, and {name!r} has another dictionary at {at}",
                value=dictionary.config.kind,
                expected="transcoder or skip-transcoder",
                remedy="name transcoders in trace.dictionaries",
            )
    return {at: found for at, found in loaded.items() if isinstance(found, Transcoder)}


def _check_tokenizer(hooked: HookedModel, spec: TraceSpec) -> None:
    if spec.bos == "keep" and hooked.bos_token_id is None:
        raise ModelError(
            "the tokenizer has no BOS token", value="trace.bos: keep", remedy="set trace.bos to auto or never"
        )


def graph_name(slug: str) -> str:
    return f"graphs/{slug}.json"


def _row_name(slug: str) -> str:
    return f"rows/{slug}.json"


def _json_lines(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _shown(text: str) -> str:
    """A prompt as a report can hold it: half a surrogate pair cannot be written as UTF-8."""
    return text.encode("utf-8", "replace").decode()
