"""`make bench`: every benchmark, printed and kept in benchmarks/results/ with date, device and versions.

    python -m benchmarks.run [harvest fit shuffle trace engine actors | long_prompt kernels] [--threads N]

Figures are ratios against a floor measured in the same run: absolute rates do not carry over to another machine.
"""

from __future__ import annotations

import argparse
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import machine

BENCHMARKS = ("harvest", "fit", "shuffle", "trace", "engine", "actors")
BY_HAND = ("long_prompt", "kernels")
"""Those that are run only when they are named."""

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmarks", nargs="*", default=[], metavar="NAME", help=", ".join((*BENCHMARKS, *BY_HAND)))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    chosen = arguments.benchmarks or BENCHMARKS
    if unknown := set(chosen) - {*BENCHMARKS, *BY_HAND}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join((*BENCHMARKS, *BY_HAND))}")
    results: dict[str, Any] = {"machine": machine()}
    for name in chosen:
        results[name] = import_module(f"benchmarks.{name}").run()
        show(name, results[name])
    path = RESULTS / f"{results['machine']['date']}-{results['machine']['device'].split(':')[0]}.json"
    path.parent.mkdir(exist_ok=True)
    kept = json.loads(path.read_text("utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**kept, **results}, indent=2) + "\n", "utf-8")
    print(f"\nkept in {path}")


def show(name: str, cases: dict[str, dict[str, Any]]) -> None:
    print(f"\n{name}")
    for case, figures in cases.items():
        print(f"  {case}")
        for figure, value in figures.items():
            print(f"    {figure:<32} {value}")


if __name__ == "__main__":
    main()
