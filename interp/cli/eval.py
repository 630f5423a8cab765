"""`interp eval`: dictionaries of ours or of other programs, measured on the same tokens and put side by side.

It builds a study that borrows the dictionaries and evaluates them, and runs it as any study: what was measured before
is in the store and is not measured again, and the artifact says what it was made of.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from interp.cli.comparison import Table, overlaps, table_of
from interp.cli.console import human, print_json, print_line, print_table
from interp.cli.eval_names import named, sources_of
from interp.cli.run import AsJson, EngineName
from interp.cli.watch import open_watcher
from interp.errors import SpecError
from interp.spec.loading import study_of

if TYPE_CHECKING:
    from interp.plan import Plan
    from interp.spec.study import Study
    from interp.stages.runner import RunSummary
    from interp.store import Artifact, Store

DEFAULT_STORE = "./runs/eval-store"
_METRICS = "fvu,l0,dead,cosine,ce_recovered,kl,density,similarity"
_COPIED = ("evaluation.json", "similarity.json", "pareto.svg", "pareto-ce.svg", "density.svg")

Dictionaries = Annotated[
    list[str],
    typer.Argument(
        metavar="DICTIONARY",
        help="folders, hf://org/name/folder, artifact://KEY or artifact://KEY/SET of the store; of any format",
    ),
]
Model = Annotated[str, typer.Option("--model", help="the model that they belong to: a folder, hf://org/name, ...")]
Corpus = Annotated[str, typer.Option("--corpus", help="text to measure on: builtin://, hf://org/name, a path or URL")]
Tokens = Annotated[str, typer.Option("--tokens", help="how many tokens to measure on, such as 64K")]
Context = Annotated[int, typer.Option("--context", help="tokens of one context")]
Metrics = Annotated[str, typer.Option("--metrics", help="what to measure, with commas between")]
Formats = Annotated[
    list[str] | None,
    typer.Option("--format", help="who wrote the files: auto (told from the files), or a name; once, or once for each"),
]
Names = Annotated[
    list[str] | None,
    typer.Option("--name", help="what to call a set; once for each. Default: its folder's name, made unique"),
]
Dtype = Annotated[str, typer.Option("--dtype", help="of the model: float32, bfloat16 or float16")]
StoreUrl = Annotated[str, typer.Option("--store", help="where results are kept, a folder or s3:// URL")]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", help="also write figures, the table (Markdown, CSV), pictures and study.yaml into this folder"
    ),
]


def evaluate(
    dictionaries: Dictionaries,
    model: Model,
    corpus: Corpus = "builtin://python-stdlib",
    tokens: Tokens = "64K",
    context: Context = 128,
    metrics: Metrics = _METRICS,
    format: Formats = None,
    name: Names = None,
    dtype: Dtype = "float32",
    engine: EngineName = "ray",
    store: StoreUrl = DEFAULT_STORE,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Compare dictionaries, ours or of other programs, on the same tokens.

    Each is measured alone at its place, and a set of several places also all at once. What was measured before is read
    from the store. Files of other programs do not say with certainty which model they belong to: that it is --model is
    your word.

    \b
    fvu           share of the activations' variance that is lost
    l0            latents that fire on a token
    dead          share of latents that fired on none of these tokens
    cosine        between activations and reconstructions
    ce_recovered  of the loss that zero-ablation costs, what is kept
    kl            between the model's predictions and those with it, nats
    density       how often latents fire: a histogram
    similarity    of decoder rows, within a dictionary and between two
    """
    from interp.plan import make_plan
    from interp.store import Store

    if out is not None:
        _require_writable(out)
    opened = Store.open(store)
    borrowed = named(sources_of(dictionaries, format or (), opened), name or ())
    text = {"source": corpus, "context": context, "tokens": max(context, 2), "holdout": tokens}
    asked = [metric.strip() for metric in metrics.split(",") if metric.strip()]
    study = study_for(borrowed, {"source": model, "dtype": dtype}, text, asked, store)
    plan = make_plan(study, opened)
    summary = _measured(plan, opened, engine, quiet=as_json)
    artifact = _evaluation(summary, opened)
    table, found = table_of(artifact.json("evaluation.json")), _overlaps(artifact)
    if not as_json:
        print_line(f"{human(study.required_corpus.holdout)} tokens of {corpus}; model {model}")
        _print(table, found, artifact)
    written = [] if out is None else _write(artifact, table, plan.study, out)
    if as_json:
        print_json(_outcome(artifact, found, borrowed, summary, written))
    elif written:
        print_line(f"{', '.join(path.name for path in written)} are in {written[0].parent}")


def study_for(
    borrowed: Sequence[Mapping[str, Any]],
    model: Mapping[str, Any],
    corpus: Mapping[str, Any],
    metrics: Sequence[str],
    store: str,
) -> Study:
    """The study that borrows dictionaries and evaluates them on all held-out tokens.

    Raises:
        SpecError: the command line says something that no study may.
    """
    context = corpus["context"]
    micro = context * max(1, 1024 // context) if context > 0 else 1
    data = {
        "apiVersion": "interp/v1",
        "kind": "Study",
        "metadata": {"name": "eval"},
        "model": dict(model),
        "corpus": dict(corpus),
        "dictionaries": [dict(one) for one in borrowed],
        "fit": {"batch_tokens": micro},  # nothing is fitted; it has to fit the context all the same
        "evaluate": {"metrics": list(metrics)},
        "store": store,
    }
    return study_of(data, "the command line")


def _measured(plan: Plan, store: Store, engine: str, *, quiet: bool) -> RunSummary:
    from interp.engine import open_engine
    from interp.stages.runner import run_plan

    watcher = open_watcher(quiet=quiet)
    try:
        return run_plan(plan, store, lambda: open_engine(engine), watcher)
    finally:
        if watcher is not None:
            watcher.close()


def _evaluation(summary: RunSummary, store: Store) -> Artifact:
    stage = summary.stage("evaluate")
    if stage is None:
        raise SpecError("nothing was evaluated", expected="a stage evaluate")
    return store.get(stage.stage, stage.key)


def _overlaps(artifact: Artifact) -> list[dict[str, Any]]:
    return overlaps(artifact.json("similarity.json")) if "similarity.json" in artifact.names() else []


def _outcome(
    artifact: Artifact,
    found: Sequence[Mapping[str, Any]],
    borrowed: Sequence[Mapping[str, Any]],
    summary: RunSummary,
    written: Sequence[Path],
) -> dict[str, Any]:
    """Everything that is said, as JSON."""
    return {
        "dictionaries": list(borrowed),
        "rows": artifact.json("evaluation.json"),
        "overlaps": list(found),
        **asdict(summary),
        "written": [str(path) for path in written],
    }


def _print(table: Table, found: Sequence[Mapping[str, Any]], artifact: Artifact) -> None:
    print_table(table.header, table.cells(), right=table.header[2:])
    if notes := table.notes():
        print_line(notes)
        print_line()
    if found:
        print_line("How much of what one found another found too: the mean largest cosine of its decoder rows (MMCS).")
        rows = [(row["dictionary"], row["in"], str(row["places"]), f"{row['mmcs']:.3f}") for row in found]
        print_table(["of", "in", "places", "MMCS"], rows, right=["places", "MMCS"])
    print_line(f"evaluation: {artifact.url}")


def _require_writable(folder: Path) -> None:
    """Make the folder before the evaluation, whose results could else not be put there.

    Raises:
        SpecError: it cannot be made, or written.
    """
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SpecError(
            f"--out cannot be written: {error.strerror or error}",
            value=str(folder),
            expected="a folder that can be written, or a name for one that can be made",
            remedy="give another folder; what was measured is in the store and is not measured again",
        ) from error


def _write(artifact: Artifact, table: Table, study: Study, folder: Path) -> list[Path]:
    """What the artifact has, and what only people read; what stands there under these names is replaced.

    Raises:
        SpecError: the folder cannot be written.
    """
    rows = artifact.json("evaluation.json")
    content = {name: artifact.read(name) for name in artifact.names() if name in _COPIED}
    content |= {"comparison.md": table.markdown().encode(), "comparison.csv": table.csv().encode()}
    content |= _pictures(artifact, rows)
    plain = study.model_dump(mode="json", by_alias=True, exclude_unset=True)
    content["study.yaml"] = yaml.safe_dump(plain, sort_keys=False).encode()
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in content.items():
            partial = folder / f"{name}.partial"
            partial.write_bytes(data)
            partial.replace(folder / name)
    return [folder / name for name in content]


def _pictures(artifact: Artifact, rows: Sequence[Mapping[str, Any]]) -> dict[str, bytes]:
    """The bars as SVG, and all pictures as PNG."""
    from safetensors.numpy import load

    from interp.plots import comparison_plot, pictures

    counted = load(artifact.read("density.safetensors")) if "density.safetensors" in artifact.names() else {}
    edges = counted.pop("edges", ())
    histograms = {(name, at): counts for key, counts in counted.items() for name, _, at in (key.partition("/"),)}
    bars = {"comparison.svg": comparison_plot(rows), "comparison.png": comparison_plot(rows, format="png")}
    drawn = {name: picture for name, picture in bars.items() if picture is not None}
    return drawn | pictures(rows, histograms, edges, format="png")
