"""Dictionaries beside the peers' trainers: the same model, token ids, k, width, batch and dtype, in one run.

    python -m benchmarks.dictionaries --sparsify PY --saelens PY --dictionary-learning PY [--quick] [CASE ...]

PY are the pythons of the peers' environments; without one, its cases are left out. Each trainer runs as its users run
it, the model's forward pass included, in a process and an environment of its own; files pass between them:

    base      a small Llama is trained once, with the token ids for all (`benchmarks.peers.base_model`), and kept
    rates     short runs in turns A B C A B C, so that a machine whose speed drifts treats all alike; medians count
    quality   one long run each; all results are judged alike by `benchmarks.peers.quality`

TopK SAEs on the residual stream behind block 2 (0-based) of 4, or behind all four: SAELens trains at one hook point a
run, so its four are the sum of four runs. Token order: all read the same contexts in the same order; SAELens and
dictionary_learning mix the tokens of a buffer. What is timed: `benchmarks.peers.training`; what each peer's settings
are: its `*_side`. Exit status 1 if a bar of `benchmarks.peers.bars` is missed or a case failed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers import bars
from benchmarks.peers.base_model import D_MODEL, LAYERS
from benchmarks.peers.quality import judge
from benchmarks.peers.training import Request
from benchmarks.run import RESULTS
from benchmarks.timing import machine

ROOT = Path(__file__).parents[1]
LAYER, LATENTS, K, BATCH = 2, 4096, 32, 4096
SHORT, LONG, HELD_OUT = 131_072, 1_048_576, 65_536
QUICK, QUICK_HELD_OUT = 16_384, 8_192


@dataclass(frozen=True)
class Case:
    """A trainer in one setting.

    Attributes:
        side: its module, and which environment it runs in.
        short, long: whether it takes part in the turns, and in the long runs.
    """

    side: str
    options: dict[str, Any] = field(default_factory=dict)
    layers: tuple[int, ...] = (LAYER,)
    short: bool = True
    long: bool = False


ALL_LAYERS = tuple(range(LAYERS))
COLOCATED = {"mode": "colocated", "workers": 2}
STREAMED = {"mode": "streamed", "workers": 1, "harvesters": 1}
BFLOAT16 = {"model_dtype": "bfloat16", "fit": {"dtype": "bfloat16"}}
CASES = {
    "sparsify": Case("sparsify", long=True),
    "saelens": Case("saelens", long=True),
    "dictionary-learning": Case("dictionary_learning", long=True),
    "interp": Case("interp", long=True),
    "interp-bf16": Case("interp", BFLOAT16, long=True),
    "interp-unshuffled": Case("interp", {"fit": {"shuffle_tokens": 0}}, long=True),
    "sparsify-4": Case("sparsify", layers=ALL_LAYERS),
    "saelens-4": Case("saelens", layers=ALL_LAYERS),
    "interp-4": Case("interp", layers=ALL_LAYERS),
    "interp-colocated": Case("interp", {"engine": "ray", "fit": COLOCATED}),
    "interp-streamed": Case("interp", {"engine": "ray", "fit": STREAMED}),
    "harvest": Case("interp", {"harvest": True}),
    "sparsify-signum": Case("sparsify", {"optimizer": "signum"}, short=False, long=True),
}
NOTES = {"interp-bf16": "the model runs in bfloat16 too, as do training's products"}
"""What must be known of a case to read its figures."""

BY_HAND = ("sparsify-signum",)
"""Run only when named."""


class Failed(Exception):
    """A side ended with an error: its last lines."""


@dataclass(frozen=True)
class Bench:
    """One run of the benchmark: the environments, the folder, and what all cases are asked."""

    pythons: dict[str, str]
    work: Path
    request: Request
    timeout: float

    def run(self, name: str, tokens: int, out: Path) -> dict[str, Any]:
        """One process of a case; its figures. What it trained is in `out`.

        Raises:
            Failed: it ended with an error, or not at all.
        """
        case = CASES[name]
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        options = {"d_model": D_MODEL, **case.options}
        replace(self.request, tokens=tokens, layers=case.layers, options=options).write(out / "request.json")
        command = [self.pythons[case.side], "-m", f"benchmarks.peers.{case.side}_side"]
        log = out / "log.txt"
        try:
            with log.open("w", encoding="utf-8") as file:
                subprocess.run(
                    [*command, self.work, out / "request.json", out],
                    check=True,
                    cwd=ROOT,
                    env=self._environment(case),
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    timeout=self.timeout,
                )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            last = log.read_text("utf-8", errors="replace").strip().splitlines()[-8:]
            raise Failed("\n".join([*last, str(error).split("]' ")[-1]] if last else [str(error)])) from error
        figures: dict[str, Any] = json.loads((out / "figures.json").read_bytes())
        return figures

    def _environment(self, case: Case) -> dict[str, str]:
        """On Ray the engine says how many threads each process has."""
        names = () if case.options.get("engine") == "ray" else ("OMP", "MKL", "OPENBLAS")
        threads = {f"{name}_NUM_THREADS": str(self.request.threads) for name in names}
        kept = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
        return {**kept, **threads, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "WANDB_MODE": "disabled"}


def measure(bench: Bench, rounds: int, short: int, long: int, results: dict[str, dict[str, Any]]) -> None:
    """Turns of short runs, then one long run each, into `results`; a case that failed is not tried again.

    Where both have the same length, the last turn is the long run too. What is there so far is in results.json.
    """
    turns = [(name, f"turn {turn + 1}", short) for turn in range(rounds) for name in results if CASES[name].short]
    last = [(name, "long", long) for name in results if CASES[name].long]
    for name, what, tokens in turns + last:
        found = results[name]
        if "error" in found:
            continue
        known = found.get("rates") if what == "long" and short == long else None
        figures = known[-1] if known else _one(bench, name, tokens, found, what)
        if figures and what == "long":
            found["long"] = figures
        elif figures:
            found.setdefault("rates", []).append(figures)
        (bench.work / "results.json").write_text(json.dumps(results, indent=2), "utf-8")


def _one(bench: Bench, name: str, tokens: int, found: dict[str, Any], what: str) -> dict[str, Any] | None:
    """The figures of one run; None, with the error kept, if it failed."""
    try:
        figures = bench.run(name, tokens, bench.work / "runs" / name)
    except Failed as error:
        found["error"] = str(error)
        print(f"{name}, {what}: failed\n{error}", flush=True)
        return None
    for kept in ("settings", "versions"):
        found[kept] = figures.pop(kept)
    shown = {key: figures[key] for key in ("tokens_per_s", "tokens_per_cpu_s", "ratio_to_bare") if key in figures}
    print(f"{name}, {what}: {shown}", flush=True)
    return figures


def judge_all(bench: Bench, results: dict[str, dict[str, Any]], tokens: int, held_out: int) -> None:
    """The quality of whatever was trained in a long run."""
    files = {name: bench.work / "runs" / name / f"layer_{LAYER}.safetensors" for name in results}
    trained = {name: path for name, path in files.items() if "long" in results[name]}
    judged = judge(bench.work, LAYER, trained, tokens=tokens, held_out=held_out) if trained else {}
    for name, figures in judged.items():
        results[name]["quality"] = figures


def main() -> None:
    arguments = _parser().parse_args()
    if arguments.quick:
        arguments.rounds, arguments.rate_tokens, arguments.tokens = 1, QUICK, QUICK
        arguments.held_out = QUICK_HELD_OUT
    torch.set_num_threads(arguments.threads)
    pythons = {side: getattr(arguments, side) for side in ("sparsify", "saelens", "dictionary_learning")}
    pythons = {side: python for side, python in pythons.items() if python} | {"interp": sys.executable}
    if unknown := set(arguments.cases) - set(CASES):
        raise SystemExit(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    chosen = arguments.cases or [name for name in CASES if name not in BY_HAND]
    names = [name for name in CASES if name in chosen and CASES[name].side in pythons]
    work = arguments.work.resolve()
    given = ["--minutes", str(arguments.base_minutes), "--threads", str(arguments.threads)]
    subprocess.run([sys.executable, "-m", "benchmarks.peers.base_model", work, *given], check=True, cwd=ROOT)
    request = Request(0, BATCH, LATENTS, K, (), arguments.threads, arguments.seed, arguments.warmup_steps, {})
    bench = Bench(pythons, work, request, arguments.timeout)
    results: dict[str, dict[str, Any]] = {name: {} for name in names}
    measure(bench, arguments.rounds, arguments.rate_tokens, arguments.tokens, results)
    judge_all(bench, results, arguments.tokens, arguments.held_out)
    _report(arguments, work, results)


def _report(arguments: argparse.Namespace, work: Path, results: dict[str, dict[str, Any]]) -> None:
    about, judged = machine(), bars.judge(results)
    noted = {name: NOTES[name] for name in results if name in NOTES}
    sizes = {"layer": LAYER, "latents": LATENTS, "k": K, "batch_tokens": BATCH, "dtype": "float32"}
    asked = {name: getattr(arguments, name) for name in ("rounds", "rate_tokens", "tokens", "held_out", "seed")}
    report = {
        "machine": about | {"load_after": round(os.getloadavg()[0], 2)},
        "base": json.loads((work / "base.json").read_bytes()),
        "asked": sizes | asked,
        "notes": noted,
        "bars": judged,
        "results": results,
    }
    name = f"{about['date']}-{about['device'].split(':')[0]}-dictionaries.json"
    path = arguments.out or (work / "quick.json" if arguments.quick else RESULTS / name)
    path.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    print(f"\n{bars.table(results)}\n")
    for bar, found in judged.items():
        long = f"  long runs {found['long']}" if "long" in found else ""
        bound = f">= {found['at_least']}" if "at_least" in found else f"<= {found['at_most']}"
        verdict = "pass" if found["passed"] else "MISS"
        print(f"{verdict}  {bar:<44} {found['value']}  ({bound}){long}  {found.get('why', '')}")
    for name, told in noted.items():
        print(f"{name}: {told}")
    print(f"\nkept in {path}")
    failed = [name for name, found in results.items() if "error" in found]
    if failed or not all(found["passed"] for found in judged.values()):
        raise SystemExit(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for peer in ("sparsify", "saelens", "dictionary-learning"):
        parser.add_argument(f"--{peer}", metavar="PY", help=f"the python of {peer}'s environment")
    parser.add_argument("--work", type=Path, default=ROOT / "build/dictionaries", help="base model and runs")
    parser.add_argument("--base-minutes", type=float, default=10.0, help="to train the base model, if it is not there")
    parser.add_argument("--threads", type=int, default=2, help="of each side alike")
    parser.add_argument("--rounds", type=int, default=3, help="turns of short runs")
    parser.add_argument("--rate-tokens", type=int, default=SHORT, help="of a short run")
    parser.add_argument("--tokens", type=int, default=LONG, help="of a long run")
    parser.add_argument("--held-out", type=int, default=HELD_OUT, help="tokens that quality is measured on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--warmup-steps", type=int, help="of the peers' learning rates; default a twentieth of the run")
    parser.add_argument("--timeout", type=float, default=3600.0, help="seconds that one process may take")
    parser.add_argument("--quick", action="store_true", help="a trial of a few minutes: 16k tokens, nothing is kept")
    parser.add_argument("--out", type=Path, help="the report; default benchmarks/results/<date>-<device>-...")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    return parser


if __name__ == "__main__":
    main()
