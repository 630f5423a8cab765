"""Actors: graphs a second of the trace stage with one actor and with two, one thread each, on the model that ships.

What an actor does is what it does in a study: prompt in, graph, tensors and sums out into a store. Both pools are
warm: counted are the prompts between the first `WARM` of each actor and the last, so loading the model is not in it.
The two take turns, because a machine that does something else at the same time does it to both. On such a machine the
ratio of the rates says little; that of the processor's time for a graph, alone and beside another actor, still says
what two actors cost each other (caches, memory): `ratio_by_cpu` is 2 where they cost each other nothing.

    python -m benchmarks.actors [ROUNDS]
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.trace import PROMPT, transcoders
from interp.engine import open_engine
from interp.engine.resources import Share
from interp.errors import InterpError
from interp.plan import make_plan
from interp.sources.prompts import Prompt
from interp.spec.study import Study
from interp.stages.dictionary_sets import dictionary_set
from interp.stages.trace_worker import TraceWorker
from interp.store import Store

PROMPTS, WARM, ROUNDS = 60, 3, 2


def study(folder: Path, prompts: list[str]) -> Study:
    """A trace of these prompts with random transcoders."""
    return Study.model_validate(
        {
            "apiVersion": "interp/v1",
            "kind": "Study",
            "metadata": {"name": "actors"},
            "model": {"source": "builtin://tiny-split-llama"},
            "dictionaries": [{"name": "mlp", "from": str(folder / "transcoders")}],
            "trace": {"prompts": prompts, "max_features": None},
            "store": str(folder / "store"),
        }
    )


def run(rounds: int = ROUNDS) -> dict[str, Any]:
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name, open_engine("ray") as engine:
        folder = Path(name)
        _make_transcoders(folder / "transcoders")
        prompts = [f"{PROMPT} {n:03d}" for n in range(PROMPTS)]
        rates: dict[int, list[float]] = {1: [], 2: []}
        cpu: dict[int, list[float]] = {1: [], 2: []}
        for turn in range(rounds):
            for actors in rates:
                rate, seconds = _rate(study(folder, prompts), actors, f"{turn}-{actors}")
                rates[actors].append(rate)
                cpu[actors].append(seconds)
        cores = engine.cores
    one, two = (statistics.median(found) for found in rates.values())
    alone, beside = (statistics.median(found) for found in cpu.values())
    return {
        f"tiny-split-llama, {PROMPTS} prompts, one thread an actor": {
            "one_actor_graphs_per_s": round(one, 2),
            "two_actors_graphs_per_s": round(two, 2),
            "ratio": round(two / one, 2),
            "ratio_of_each_round": [round(b / a, 2) for a, b in zip(*rates.values(), strict=True)],
            "cpu_s_per_graph_alone": round(alone, 3),
            "cpu_s_per_graph_beside_another": round(beside, 3),
            "ratio_by_cpu": round(2 * alone / beside, 2),
            "cores": cores,
            "load_before": round(load, 2),
        }
    }


def _make_transcoders(folder: Path) -> None:
    from interp.wrapper import HookedModel

    for made in transcoders(HookedModel("builtin://tiny-split-llama")):
        made.save(folder / made.config.at)


@dataclass(frozen=True)
class TimedWorker(TraceWorker):
    """Says what its process has used of the processor, too."""

    def start(self) -> Callable[[Sequence[Prompt]], list[dict[str, Any] | InterpError]]:
        work = super().start()

        def timed(prompts: Sequence[Prompt]) -> list[dict[str, Any] | InterpError]:
            rows = work(prompts)
            used = {"cpu": (os.getpid(), time.process_time())}
            return [row if isinstance(row, InterpError) else {**row, **used} for row in rows]

        return timed


def _rate(of: Study, actors: int, name: str) -> tuple[float, float]:
    """Graphs a second of a warm pool of so many actors, and seconds of the processor for each."""
    from interp.engine.ray.pool import Pool

    store = Store.open(of.store)
    (stage,) = make_plan(of, store).stages
    assert of.trace is not None
    # A scratch of its own: what one pool wrote is not there for the next.
    scratch = store.scratch("trace", f"{name}-{stage.key}"[: len(stage.key)])
    worker = TimedWorker(of.model, dictionary_set(of, "mlp", {}), of.trace, scratch, {})
    prompts = [(Prompt(i, **said),) for i, said in enumerate(stage.spec["prompts"])]
    share = Share(cpus=1.0, gpus=0.0, threads=1)
    pool = Pool(worker, prompts, smallest=actors, largest=actors, retries=0, share=share)
    times: list[float] = []
    cpu: dict[int, list[float]] = {}
    for outcome in pool.outcomes():
        if outcome.error is not None or outcome.value is None:
            raise outcome.error or RuntimeError("no result")
        # Before both are there, or when one has nothing left to do, it is no pool of this size.
        if outcome.actors == actors:
            times.append(time.perf_counter())
            (row,) = outcome.value
            if isinstance(row, InterpError):
                raise row
            process, seconds = row["cpu"]
            cpu.setdefault(process, []).append(seconds)
    times = times[WARM * actors :]
    each = [(used[-1] - used[WARM]) / (len(used) - 1 - WARM) for used in cpu.values()]
    return (len(times) - 1) / (times[-1] - times[0]), statistics.mean(each)


if __name__ == "__main__":
    print(json.dumps(run(int((sys.argv[1:] or [ROUNDS])[0])), indent=2))
