"""Engine: the fit of the quickstart's dictionaries, in one process and streamed through Ray, on the same tokens.

`steady` is the rate that training itself reports at its end, from its first step on; `whole` counts the start of
processes too.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from interp.engine import open_engine
from interp.plan import make_plan
from interp.spec.loading import load_study
from interp.spec.study import Study
from interp.stages.runner import run_plan
from interp.store import Store

TOKENS = 200_000
QUICKSTART = Path(__file__).parents[1] / "specs" / "quickstart.yaml"


def study(store: str) -> Study:
    """The quickstart's corpus and dictionaries, fewer tokens, nothing after the fit."""
    data = load_study(QUICKSTART).model_dump(mode="json", by_alias=True, exclude_unset=True)
    data = {name: part for name, part in data.items() if name not in ("evaluate", "trace")}
    data["corpus"] |= {"tokens": TOKENS, "holdout": 0}
    return Study.model_validate({**data, "store": store})


def run() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        here, streamed = (_fit(name, folder) for name in ("inprocess", "ray"))
    return {
        f"quickstart's 7 dictionaries, {TOKENS} tokens": {
            "inprocess_tokens_per_s": round(here["rate"]),
            "streamed_tokens_per_s": round(streamed["rate"]),
            "streamed_to_inprocess": round(streamed["rate"] / here["rate"], 3),
            "streamed_whole_stage_tokens_per_s": round(TOKENS / streamed["seconds"]),
        }
    }


def _fit(engine: str, folder: str) -> dict[str, float]:
    store = Store.open(f"{folder}/{engine}")
    plan = make_plan(study(store.url), store)
    summary = run_plan(plan, store, lambda: open_engine(engine))
    fit = summary.stage("fit")
    assert fit is not None
    rows = store.get("fit", fit.key).read("metrics.jsonl").decode().splitlines()
    return {"seconds": fit.seconds, "rate": float(json.loads(rows[-1])["tokens_per_s"])}
