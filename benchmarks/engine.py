"""Engine: the fit of the quickstart's dictionaries in one process and on Ray in both modes, on the same tokens.

    inprocess        all cores' threads in one process
    colocated        on Ray: as many workers as there are cores, up to 2; each runs the model on its own micro-batches
    colocated_alone  one worker with all cores' threads
    streamed         as many workers as `colocated` has, and one harvester beside them, on the same cores
    streamed_alone   one worker, and one harvester

Two rates of each. `steady`: between the first and the last step that training reports, which is what a long fit runs
at. `whole`: from the moment that the workers are up, so with a stream's start in it: the harvesters load the model, and
the first window of shuffled tokens fills. The bar is the steady rate of `streamed` against the better of the two
colocated ones. `start_s` is what the two differ by: seconds from that moment to the first step's end.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from interp.engine import open_engine
from interp.engine.lazy import available_cores
from interp.plan import make_plan
from interp.spec.loading import load_study
from interp.spec.study import Study
from interp.stages.runner import run_plan
from interp.store import Store

TOKENS = 200_000
QUICKSTART = Path(__file__).parents[1] / "specs" / "quickstart.yaml"
WORKERS = min(2, available_cores())

WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "inprocess": ("inprocess", {}),
    "colocated": ("ray", {"mode": "colocated", "workers": WORKERS}),
    "colocated_alone": ("ray", {"mode": "colocated"}),
    "streamed": ("ray", {"mode": "streamed", "workers": WORKERS}),
    "streamed_alone": ("ray", {"mode": "streamed"}),
}


def study(store: str, fit: dict[str, Any]) -> Study:
    """The quickstart's corpus and dictionaries, fewer tokens, nothing after the fit."""
    data = load_study(QUICKSTART).model_dump(mode="json", by_alias=True, exclude_unset=True)
    data = {name: part for name, part in data.items() if name not in ("evaluate", "trace")}
    data["corpus"] |= {"tokens": TOKENS, "holdout": 0}
    data["fit"] |= fit
    return Study.model_validate({**data, "store": store})


def run() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        found = {way: _fit(engine, f"{folder}/{way}", fit) for way, (engine, fit) in WAYS.items()}
    colocated = max(found["colocated"]["steady"], found["colocated_alone"]["steady"])
    return {
        f"quickstart's 7 dictionaries, {TOKENS} tokens": {
            **{f"{way}_{name}": round(figure, 1) for way in found for name, figure in found[way].items()},
            "streamed_to_colocated": round(found["streamed"]["steady"] / colocated, 3),
            "streamed_to_inprocess": round(found["streamed"]["steady"] / found["inprocess"]["steady"], 3),
        }
    }


def _fit(engine: str, folder: str, fit: dict[str, Any]) -> dict[str, float]:
    store = Store.open(folder)
    plan = make_plan(study(store.url, fit), store)
    summary = run_plan(plan, store, lambda: open_engine(engine))
    stage = summary.stage("fit")
    assert stage is not None
    lines = store.get("fit", stage.key).read("metrics.jsonl").decode().splitlines()
    rows = [json.loads(line) for line in lines]
    first, last = rows[0], rows[-1]
    began, ended = (row["tokens"] / row["tokens_per_s"] for row in (first, last))
    return {
        "steady": (last["tokens"] - first["tokens"]) / (ended - began),
        "whole": float(last["tokens_per_s"]),
        "start_s": began,
        "stage_s": stage.seconds,
    }
