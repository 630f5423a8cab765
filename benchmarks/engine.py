"""Engine: the fit of the quickstart's dictionaries in one process and on Ray in both modes, on the same tokens.

    inprocess        all cores' threads in one process
    colocated        on Ray: as many workers as there are cores, up to 2; each runs the model on its own micro-batches
    colocated_alone  one worker with all cores' threads
    streamed         one worker, and one harvester; both together may use all cores

The bar is `streamed` against the better of the two colocated ones. Rates are those that training itself reports at its
end, from its first step on; `whole_stage` counts the start of processes too.
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


WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "inprocess": ("inprocess", {}),
    "colocated": ("ray", {"mode": "colocated", "workers": min(2, available_cores())}),
    "colocated_alone": ("ray", {"mode": "colocated"}),
    "streamed": ("ray", {"mode": "streamed"}),
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
    rates = {way: figures["rate"] for way, figures in found.items()}
    colocated = max(rates["colocated"], rates["colocated_alone"])
    return {
        f"quickstart's 7 dictionaries, {TOKENS} tokens": {
            **{f"{way}_tokens_per_s": round(rate) for way, rate in rates.items()},
            "streamed_to_colocated": round(rates["streamed"] / colocated, 3),
            "streamed_to_inprocess": round(rates["streamed"] / rates["inprocess"], 3),
            **{f"{way}_whole_stage_tokens_per_s": round(TOKENS / found[way]["seconds"]) for way in found},
        }
    }


def _fit(engine: str, folder: str, fit: dict[str, Any]) -> dict[str, float]:
    store = Store.open(folder)
    plan = make_plan(study(store.url, fit), store)
    summary = run_plan(plan, store, lambda: open_engine(engine))
    stage = summary.stage("fit")
    assert stage is not None
    rows = store.get("fit", stage.key).read("metrics.jsonl").decode().splitlines()
    return {"seconds": stage.seconds, "rate": float(json.loads(rows[-1])["tokens_per_s"])}
