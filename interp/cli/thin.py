"""Three commands for people who think in flags: each builds a study and runs it.

    interp-train-saes         --model_path M --dataset_name D --hook_names H [H ...] --checkpoint_dir OUT
    interp-train-transcoders  --model_path M --dataset_name D --train_all            --checkpoint_dir OUT
    interp-trace              --model_path M --transcoder_dir OUT/dictionaries --prompt P --output_dir GRAPHS

The study that was built is written beside the results (`study.yaml`), so a run that began with flags goes on as a file:
`interp run OUT/study.yaml`, or `interp submit` for a cluster.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from interp.errors import InterpError

ACTIVATIONS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "topk": lambda a: {"type": "topk", "k": a.k},
    "batchtopk": lambda a: {"type": "batchtopk", "k": a.k},
    "relu": lambda a: {"type": "relu", "l1": a.sparsity_coefficient or 5.0},
    "jumprelu": lambda a: {"type": "jumprelu"} | ({"l0": a.sparsity_coefficient} if a.sparsity_coefficient else {}),
    "gated": lambda a: {"type": "gated", "l1": a.sparsity_coefficient or 5.0},
}


def train_saes(argv: Sequence[str] | None = None) -> None:
    """Console entry `interp-train-saes`."""
    parser = _training_parser("Train sparse autoencoders.", default_k=32)
    parser.add_argument("--hook_names", nargs="+", required=True, help="hook points or globs, e.g. layers.3.resid_post")
    arguments = parser.parse_args(argv)
    dictionary = {"name": "saes", "kind": "sae", "at": arguments.hook_names} | _shape(arguments)
    _guarded(lambda: _run(_training_study(arguments, dictionary), Path(arguments.checkpoint_dir), arguments))


def train_transcoders(argv: Sequence[str] | None = None) -> None:
    """Console entry `interp-train-transcoders`."""
    parser = _training_parser("Train transcoders.", default_k=64)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--train_all", action="store_true", help="one transcoder for every MLP of the model")
    where.add_argument("--hook_names", nargs="+", help="MLPs or globs, e.g. layers_first.*.mlp")
    parser.add_argument("--no_skip", action="store_true", help="plain transcoders, without the affine skip path")
    arguments = parser.parse_args(argv)
    kind = "transcoder" if arguments.no_skip else "skip-transcoder"
    at = ["layers*.*.mlp"] if arguments.train_all else arguments.hook_names
    dictionary = {"name": "transcoders", "kind": kind, "at": at} | _shape(arguments)
    _guarded(lambda: _run(_training_study(arguments, dictionary), Path(arguments.checkpoint_dir), arguments))


def trace(argv: Sequence[str] | None = None) -> None:
    """Console entry `interp-trace`."""
    from interp.cli.run import plain_target

    parser = argparse.ArgumentParser(description="Compute attribution graphs of prompts.", epilog=_STUDY_HINT)
    _model_flags(parser)
    parser.add_argument("--transcoder_dir", required=True, help="a folder of dictionaries that interp wrote")
    prompts = parser.add_mutually_exclusive_group(required=True)
    prompts.add_argument("--prompt", nargs="+", help="one or more prompts")
    prompts.add_argument(
        "--prompts",
        help="a .txt (one a line), .jsonl or .parquet file or URL; or a folder or quoted glob of .txt, one prompt each",
    )
    parser.add_argument(
        "--target",
        default="salient",
        help="salient: the most probable next tokens; last-token: each prompt's last token, which is cut off; or as a "
        "study says it: '{tokens: [...]}'",
    )
    parser.add_argument("--output_dir", required=True, help="where graphs and the store go")
    parser.add_argument("--max_features", type=int, default=8192)
    parser.add_argument("--memory", default="8G", help="bytes for one prompt beside the model")
    parser.add_argument("--actors", type=int, default=1, help="prompts traced side by side, at most")
    arguments = parser.parse_args(argv)
    folder = str(Path(arguments.transcoder_dir).resolve()) if Path(arguments.transcoder_dir).exists() else None
    study = _study("trace", arguments, Path(arguments.output_dir)) | {
        "dictionaries": [{"name": "transcoders", "from": folder or arguments.transcoder_dir}],
        "trace": {
            "prompts": arguments.prompt or arguments.prompts,
            "max_features": arguments.max_features,
            "memory": arguments.memory,
            "actors": {"min": 1, "max": arguments.actors},
        },
    }

    def run() -> None:
        study["trace"]["target"] = plain_target(arguments.target)
        _run(study, Path(arguments.output_dir), arguments)

    _guarded(run)


_STUDY_HINT = "The study these flags build is kept as study.yaml beside the results."


def _training_parser(description: str, default_k: int) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, epilog=_STUDY_HINT)
    _model_flags(parser)
    parser.add_argument(
        "--dataset_name", required=True, help="hub data set, path, glob, URL or builtin://python-stdlib"
    )
    parser.add_argument("--dataset_config", help="configuration of a hub data set")
    parser.add_argument("--text_column", default="text")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--total_tokens", default="100M", help="number, or with K, M, G")
    parser.add_argument("--holdout_tokens", default="0")
    width = parser.add_mutually_exclusive_group()
    width.add_argument("--expansion_factor", type=int)
    width.add_argument("--num_latents", type=int)
    parser.add_argument("--activation_fn", choices=sorted(ACTIVATIONS), default="topk")
    parser.add_argument("--k", type=int, default=default_k)
    parser.add_argument("--sparsity_coefficient", type=float, help="L1 (relu, gated) or L0 (jumprelu) coefficient")
    parser.add_argument("--batch_tokens", type=int, default=8192)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--workers", type=int, default=1, help="data-parallel training processes")
    parser.add_argument("--checkpoint_dir", required=True, help="where dictionaries and the store go")
    return parser


def _model_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model_path", required=True, help="directory, hub name, .gguf file or builtin://")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=["ray", "inprocess"], default="ray")


def _shape(arguments: argparse.Namespace) -> dict[str, Any]:
    width = (
        {"latents": arguments.num_latents} if arguments.num_latents else {"expansion": arguments.expansion_factor or 32}
    )
    return {"activation": ACTIVATIONS[arguments.activation_fn](arguments)} | width


def _training_study(arguments: argparse.Namespace, dictionary: dict[str, Any]) -> dict[str, Any]:
    corpus = {
        "source": _dataset(arguments.dataset_name),
        "column": arguments.text_column,
        "context": arguments.context,
        "tokens": arguments.total_tokens,
        "holdout": arguments.holdout_tokens,
    } | ({"name": arguments.dataset_config} if arguments.dataset_config else {})
    fit = {"batch_tokens": arguments.batch_tokens, "workers": arguments.workers} | (
        {"lr": arguments.lr} if arguments.lr else {}
    )
    study = _study(str(dictionary["name"]), arguments, Path(arguments.checkpoint_dir))
    return study | {"corpus": corpus, "dictionaries": [dictionary], "fit": fit}


def _study(name: str, arguments: argparse.Namespace, out: Path) -> dict[str, Any]:
    return {
        "apiVersion": "interp/v1",
        "kind": "Study",
        "metadata": {"name": name},
        "model": {"source": arguments.model_path, "dtype": arguments.dtype},
        "seed": arguments.seed,
        "store": str((out / "store").resolve()),
    }


def _dataset(name: str) -> str:
    """A bare `org/name` that is no path here is a hub data set, as in other trainers."""
    if "://" in name or Path(name).exists() or name.count("/") != 1 or name.startswith((".", "/")):
        return name
    return f"hf://{name}"


def _run(study: dict[str, Any], out: Path, arguments: argparse.Namespace) -> None:
    from interp.cli.run import run_study_file

    out.mkdir(parents=True, exist_ok=True)
    path = out / "study.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False), "utf-8")
    run_study_file(path, engine=arguments.engine, export=out)


def _guarded(action: Callable[[], None]) -> None:
    try:
        action()
    except InterpError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None
