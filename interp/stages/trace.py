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

Short prompts of like length go to an actor together, where that is faster. An actor leaves each graph in the scratch as
soon as it is finished (`interp.stages.trace_worker`), so a run that was killed does no prompt twice. A prompt that
cannot be traced becomes a row and stops no other; what was lost of a group is tried one prompt at a time. Only when not
one prompt could be traced, and for reasons that are not the prompts' own, is the stage a failure: such a result must
not count as done. Where some failed for such reasons, the artifact can be made anew with all the rest taken over
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

from interp.circuits.memory import MOST_PROMPTS, MOST_STRETCH
from interp.errors import EngineError, InterpError, PromptError, SpecError, StoreError
from interp.plan.versions import VERSIONS
from interp.sources.prompts import Prompt
from interp.stages.context import StageContext
from interp.stages.dictionary_sets import dictionary_set
from interp.stages.trace_earlier import Finished, can_be_retried
from interp.stages.trace_index import COLUMNS, write_index
from interp.stages.trace_memory import Group, Item, smaller
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
_GROUPS_EACH = 2
_SHORT_TEXT, _FEW_FEATURES = 1024, 2048
"""Characters, and features with a row: with more, prompts are not faster together (`interp.circuits.lockstep`)."""

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
        self.prompts, self._scratch = prompts, (scratch := finished.scratch)
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

    def finished(self, prompt: Prompt) -> bool:
        """Whether its row is there although nobody said so; if so it is taken."""
        row = self._scratch.json(row_name(prompt.id))
        if row is not None:
            self.done[prompt.id] = row
        return row is not None

    def in_order(self) -> list[dict[str, Any]]:
        return [self.done[prompt.id] for prompt in self.prompts]


def _trace_all(context: StageContext, worker: TraceWorker, todo: Sequence[Prompt], rows: _Rows) -> None:
    if not todo:
        return
    rate = RecentRate()
    groups = groups_of(todo, worker.spec.max_features, worker.spec.actors.max)
    context.progress("trace", done=len(rows.done), failed=rows.n_failed, total=len(rows.prompts), unit="prompts")
    lost = _trace_groups(context, worker, groups, rows, rate)
    if lost:
        logger.warning("%d prompts are traced one at a time: a group that they were in was lost", len(lost))
        _trace_groups(context, worker, [(prompt,) for prompt in lost], rows, rate)


def groups_of(prompts: Sequence[Prompt], max_features: int | None, actors: int) -> list[Group]:
    """What an actor gets at a time: short prompts of like length if they may be faster together, else one.

    There are some groups for each actor, so that none is idle while another has much left.
    """
    size = min(MOST_PROMPTS, -(-len(prompts) // (_GROUPS_EACH * actors)))
    if max_features is None or max_features > _FEW_FEATURES:
        size = 1
    groups = list[list[Prompt]]()
    for prompt in sorted(prompts, key=lambda prompt: len(prompt.text)):
        last = groups[-1] if groups else []
        like = last and len(prompt.text) <= min(_SHORT_TEXT, MOST_STRETCH * len(last[0].text))
        if like and len(last) < size:
            last.append(prompt)
        else:
            groups.append([prompt])
    in_order = [sorted(group, key=lambda prompt: prompt.index) for group in groups]
    return [tuple(group) for group in sorted(in_order, key=lambda group: group[0].index)]


def _trace_groups(
    context: StageContext, worker: TraceWorker, groups: Sequence[Group], rows: _Rows, rate: RecentRate
) -> list[Prompt]:
    """Trace groups of prompts; returns those whose group was lost as a whole, one of them perhaps to blame."""
    actors, lost = worker.spec.actors, list[Prompt]()
    most = min(actors.max, len(groups))
    items: Sequence[Item] = groups
    outcomes = context.engine.pool(
        worker, items, min_actors=min(actors.min, most), max_actors=most, device=context.study.fit.device, again=smaller
    )
    figures: dict[str, Any] = {"total": len(rows.prompts), "unit": "prompts"}
    with closing(outcomes):
        for outcome in outcomes:
            group = groups[outcome.index]
            error = outcome.error or EngineError("a worker gave no result")
            if outcome.value is None and len(group) > 1:
                lost += [prompt for prompt in group if not rows.finished(prompt)]
                continue
            for prompt, found in zip(group, outcome.value or [error], strict=True):
                if isinstance(found, InterpError) and len(group) > 1 and can_be_retried(found):
                    lost.append(prompt)
                elif isinstance(found, InterpError):
                    rows.failed(prompt, found)
                    logger.warning("prompt %s failed: %s", prompt.id, found.what)
                else:
                    rows.done[prompt.id] = found
            figures |= {"rate": rate.at(len(rows.done)), "actors": outcome.actors}
            context.progress("trace", done=len(rows.done), failed=rows.n_failed, **figures)
    return lost


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
