"""circuit-tracer beside interp: the same graphs, and what they cost, in one run on the same files.

    python -m benchmarks.circuit_tracer --peer /path/to/its/environment/bin/python [CASE ...]

Each side is a process of its own, in its own environment, on one thread. Two kinds of cases:

    agreement   a small model, every kind of transcoder that both have, all features: adjacencies entry by entry
    cost        12 layers of GPT-2's size: CPU seconds and memory of one graph. Ours runs before and after the peer, so
                that a machine whose speed drifts treats them alike; what both chose is compared here too

Differences in what is defined, not computed: circuit-tracer drops features and errors at position 0, where ours has a
`bos` source a layer; and it lets a skip path run there, which ours does only when position 0 is kept as any other.
Exit status 1 if two adjacencies differ.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from benchmarks.peers.agreement import Disagreement, compare
from benchmarks.peers.case import Case, Shape, make
from benchmarks.run import RESULTS, show
from benchmarks.timing import machine

ROOT = Path(__file__).parents[1]
SMALL = Shape(layers=4, d_model=128, d_mlp=512, heads=4, vocabulary=1000, latents=2048, tokens=16, fit_rows=96)
GPT2 = Shape(layers=12, d_model=768, d_mlp=2048, heads=12, vocabulary=50257, latents=16384, tokens=32, fit_rows=24)


@dataclass(frozen=True)
class Run:
    """A case, and what is asked of both sides."""

    case: Case
    max_features: int | None = None
    batch: int = 64
    calls: int = 2
    bos: str = "auto"

    @property
    def cost(self) -> bool:
        return self.max_features is not None


RUNS = {
    "relu": Run(Case(SMALL, "relu")),
    "relu-skip": Run(Case(SMALL, "relu", skip=True), bos="keep"),
    "jumprelu": Run(Case(SMALL, "jumprelu")),
    "topk": Run(Case(SMALL, "topk", k=16)),
    "cross-layer": Run(Case(SMALL, "relu", cross_layer=True)),
    "1000-features": Run(Case(GPT2, "topk", k=32), max_features=1000, batch=128, calls=1),
    "1000-features-batch-256": Run(Case(GPT2, "topk", k=32), max_features=1000, batch=256, calls=1),
    "7500-features": Run(Case(GPT2, "topk", k=32), max_features=7500, batch=128, calls=1),
}


@dataclass(frozen=True)
class Side:
    """One of the two programs."""

    python: str
    module: str

    def run(self, case: Path, run: Run, out: Path) -> dict[str, Any]:
        """Its figures; its graph is in `out`."""
        out.mkdir()
        request = {
            "max_features": run.max_features,
            "batch": run.batch,
            "calls": run.calls,
            "bos": run.bos,
            "threads": 1,
            "graph_file": run.cost,
        }
        (out / "request.json").write_text(json.dumps(request), "utf-8")
        one_thread = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}
        subprocess.run(
            [self.python, "-m", f"benchmarks.peers.{self.module}", case, out / "request.json", out],
            check=True,
            cwd=ROOT,
            env={**os.environ, **one_thread, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
        )
        figures: dict[str, Any] = json.loads((out / "figures.json").read_bytes())
        return figures


def measure(name: str, run: Run, case: Path, peer: Side) -> tuple[dict[str, Any], dict[str, str]]:
    """Both sides on one case: figures, and the peer's versions."""
    own = Side(sys.executable, "own_side")
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        ours = [own.run(case, run, Path(folder) / "ours")]
        theirs = peer.run(case, run, Path(folder) / "theirs")
        if run.cost:
            ours.append(own.run(case, run, Path(folder) / "ours-again"))
        graphs = (load_file(Path(folder) / side / "graph.safetensors") for side in ("ours", "theirs"))
        agreement = compare(*graphs, capped=run.cost, drop_first=run.bos != "auto")
    versions = theirs.pop("versions")
    # The last call: the first one also compiles and fills caches, which only short runs notice.
    spent = statistics.mean(each["attribute_cpu_s"][-1] for each in ours)
    ratios = {
        "cpu_ratio": round(theirs["attribute_cpu_s"][-1] / spent, 2),
        "memory_ratio": round(theirs["peak_mib"] / max(each["peak_mib"] for each in ours), 2),
    }
    asked = {"max_features": run.max_features, "batch": run.batch}
    fvu = json.loads(case.read_bytes())["fvu"]
    return {**asked, "fvu": fvu, **agreement, "interp": ours, "circuit-tracer": [theirs], **ratios}, versions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, help="the python of circuit-tracer's environment")
    parser.add_argument("runs", nargs="*", metavar="CASE", help=", ".join(RUNS))
    arguments = parser.parse_args()
    if unknown := set(arguments.runs) - set(RUNS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(RUNS)}")
    peer, about = Side(arguments.peer, "circuit_tracer_side"), machine() | {"threads": 1}
    path = RESULTS / f"{about['date']}-{about['device'].split(':')[0]}-circuit-tracer.json"
    results: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    results["machine"] = about
    disagreements = []
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        made: dict[Case, Path] = {}
        for name in arguments.runs or RUNS:
            run = RUNS[name]
            if run.case not in made:
                made[run.case] = Path(folder) / str(len(made))
                make(run.case, made[run.case])
            try:
                results[name], results["peer"] = measure(name, run, made[run.case] / "case.json", peer)
            except Disagreement as error:
                disagreements.append(f"{name}: {error}")
                continue
            show("circuit-tracer", {name: results[name]})
            path.write_text(json.dumps(results, indent=2) + "\n", "utf-8")
    print(f"\nkept in {path}")
    if disagreements:
        raise SystemExit("\n".join(disagreements))


if __name__ == "__main__":
    main()
