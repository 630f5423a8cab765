"""trace: the attribution graph of every prompt of a study, by a pool of actors.

    graphs/<slug>.json          the pruned graph, as circuit-tracer's page and Neuronpedia read it
    graphs/<slug>.safetensors   its edges, or those of the whole graph (`trace.adjacency`): AttributionGraph.load
    faithfulness/<slug>.json    predicted and measured effects, when the study asks
    graph-metadata.json         {"graphs": [metadata, ...]}: what the page lists
    index.parquet, .jsonl       one row a prompt, in the order of the prompts; of one that failed, with its reason
    failed.jsonl                the prompts that failed, and which of them could be tried again
    features.parquet            features over all graphs, before pruning: influence, prompts, activations, top prompts
    layers.json                 mean influence of each layer's features and errors, and of the tokens
    summary.json                how many, their means, and the features of the greatest influence

An actor leaves each graph in the scratch as soon as it is finished (`interp.stages.trace_worker`), so a run that was
killed does no prompt twice. A prompt that cannot be traced becomes a row and stops no other. Only when not one prompt
could be traced, and for reasons that are not the prompts' own, is the stage a failure: such a result must not count as
done. Where some failed for such reasons, the artifact can be made anew with all the rest taken over
(`interp.stages.trace_earlier`). Graphs pass through the driver one file at a time, however many there are.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from interp.errors import EngineError, InterpError, PromptError, SpecError, StoreError
from interp.plan.versions import VERSIONS
from interp.sources.prompts import Prompt
from interp.stages.context import StageContext
from interp.stages.dictionary_sets import dictionary_set
from interp.stages.trace_earlier import Finished, can_be_retried
from interp.stages.trace_index import COLUMNS, write_index
from interp.stages.trace_memory import Smaller, smaller
from interp.stages.trace_worker import (
    TraceWorker,
    faithfulness_name,
    graph_name,
    row_name,
    shown,
    sums_name,
    tensors_name,
)
from interp.version import __version__

if TYPE_CHECKING:
    from interp.circuits.aggregate import FeatureSums
    from interp.spec.trace import TraceSpec
    from interp.store import Artifact, Scratch, Writer

VERSION = VERSIONS["trace"]

logger = logging.getLogger(__name__)

_WINDOW_S = 60.0
_AT_ONCE = 8
"""Files that are copied side by side: object storage takes its time for each."""


def run(context: StageContext, inputs: Mapping[str, Artifact], out: Writer) -> None:
    """Write the graphs and what is said of them.

    Raises:
        ModelMismatch, DictionaryError: the transcoders are not this model's.
        EngineError: every prompt failed, and not because of what it says.
    """
    prompts = [Prompt(index, **said) for index, said in enumerate(context.stage.spec["prompts"])]
    finished = Finished(out.scratch, context.earlier)
    rows = _Rows(prompts, finished)
    worker = _worker(context, inputs, out.scratch)
    todo = [prompt for prompt in prompts if prompt.id not in rows.done]
    _trace_all(context, worker, todo, rows)
    _require_some(rows)
    fine = [row for row in rows.in_order() if row["status"] == "ok"]
    slugs = [row["slug"] for row in fine]
    _keep_all(slugs, worker.spec, finished, out, any(row.get("retry") for row in rows.in_order()))
    out.write_json("graph-metadata.json", {"graphs": [row["metadata"] for row in fine]})
    write_index(rows.in_order(), _sums(slugs, finished), out)


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
    return TraceWorker(study.model, transcoders, study.trace, scratch, provenance, study.fit.device)


class _Rows:
    """The row of every prompt that has its fate, by id; those that were finished before are read back."""

    def __init__(self, prompts: Sequence[Prompt], finished: Finished):
        self.prompts, scratch = prompts, finished.scratch
        self.done: dict[str, dict[str, Any]] = {}
        self.errors: dict[str, InterpError] = {}
        there, earlier = set(scratch.list("rows/")), finished.earlier_rows()
        self.done |= {prompt.id: earlier[prompt.id] for prompt in prompts if prompt.id in earlier}
        fine = [prompt for prompt in prompts if prompt.error is None and row_name(prompt.id) in there]
        with ThreadPoolExecutor(_AT_ONCE) as side_by_side:
            found = side_by_side.map(lambda prompt: scratch.json(row_name(prompt.id)), fine)
            self.done |= {prompt.id: row for prompt, row in zip(fine, found, strict=True) if row is not None}
        for prompt in prompts:
            if prompt.error is not None:
                self.failed(prompt, PromptError(prompt.error, value=shown(prompt.text)))

    def failed(self, prompt: Prompt, error: InterpError) -> None:
        self.errors[prompt.id] = error
        unknown = dict.fromkeys(COLUMNS)
        self.done[prompt.id] = {
            **unknown,
            "slug": prompt.id,
            "prompt": shown(prompt.text),
            "status": "failed",
            "reason": str(error),
            "retry": can_be_retried(error),
        }

    @property
    def n_failed(self) -> int:
        return sum(row["status"] == "failed" for row in self.done.values())

    def in_order(self) -> list[dict[str, Any]]:
        return [self.done[prompt.id] for prompt in self.prompts]


def _trace_all(context: StageContext, worker: TraceWorker, todo: Sequence[Prompt], rows: _Rows) -> None:
    if not todo:
        return
    actors = worker.spec.actors
    most = min(actors.max, len(todo))
    items: Sequence[Prompt | Smaller] = todo
    outcomes = context.engine.pool(
        worker, items, min_actors=min(actors.min, most), max_actors=most, device=context.study.fit.device, again=smaller
    )
    rate = RecentRate()
    figures: dict[str, Any] = {"total": len(rows.prompts), "unit": "prompts"}
    context.progress("trace", done=len(rows.done), failed=rows.n_failed, **figures)
    with closing(outcomes):
        for outcome in outcomes:
            prompt = todo[outcome.index]
            if outcome.error is not None or outcome.value is None:
                rows.failed(prompt, outcome.error or EngineError("a worker gave no result"))
                logger.warning("prompt %s failed: %s", prompt.id, rows.errors[prompt.id].what)
            else:
                rows.done[prompt.id] = outcome.value
            figures |= {"rate": rate.at(len(rows.done)), "actors": outcome.actors}
            context.progress("trace", done=len(rows.done), failed=rows.n_failed, **figures)


class RecentRate:
    """Items a second over the last minute: neither what was there before nor the start of the first actor counts."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._seen: deque[tuple[float, int]] = deque()

    def at(self, done: int) -> float | None:
        """The rate, now that so many are done; None at the first."""
        now = self._clock()
        self._seen.append((now, done))
        while len(self._seen) > 2 and self._seen[1][0] <= now - _WINDOW_S:
            self._seen.popleft()
        since, before = self._seen[0]
        return (done - before) / (now - since) if now > since else None


def _require_some(rows: _Rows) -> None:
    """A result without a single graph is kept only if the prompts themselves are to blame."""
    others = [error for error in rows.errors.values() if not isinstance(error, PromptError)]
    if others and len(rows.errors) == len(rows.prompts):
        raise others[0]


def _keep_all(slugs: Sequence[str], spec: TraceSpec, finished: Finished, out: Writer, sums: bool) -> None:
    """Copy what there is of the prompts into the artifact; `sums` too where it may be made anew."""
    folder = out.path_hint  # made here, once

    def keep(slug: str) -> None:
        names = [graph_name(slug)]
        names += [tensors_name(slug)] if spec.adjacency != "none" else []
        names += [faithfulness_name(slug)] if spec.faithfulness is not None else []
        names += [sums_name(slug)] if sums else []
        for name in names:
            if not finished.fetch(name, folder / name):
                raise _torn(slug, out.scratch)
            out.put(folder / name, name, move=True)

    with ThreadPoolExecutor(_AT_ONCE) as side_by_side:
        deque(side_by_side.map(keep, slugs), maxlen=0)


def _sums(slugs: Sequence[str], finished: Finished) -> FeatureSums | None:
    """What all graphs say together, read one at a time; None when there is no graph."""
    from interp.circuits.aggregate import FeatureSums, merged

    def parts() -> Iterator[FeatureSums]:
        for slug in slugs:
            data = finished.read(sums_name(slug))
            if data is None:
                raise _torn(slug, finished.scratch)
            yield FeatureSums.from_bytes(data)

    return merged(parts()) if slugs else None


def _torn(slug: str, scratch: Scratch) -> StoreError:
    """Forget that a prompt was finished."""
    scratch.delete(row_name(slug))
    return StoreError("what was finished of a prompt is torn", value=slug, remedy="run again: it is made anew")
