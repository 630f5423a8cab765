"""`interp run` and `interp trace`: a study, on this machine."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from interp.cli.console import human, print_json, print_line, print_table
from interp.cli.export import export_results
from interp.cli.watch import open_watcher
from interp.errors import SpecError
from interp.spec.loading import load_study, study_of

if TYPE_CHECKING:
    from interp.plan import Plan
    from interp.spec.study import Study
    from interp.stages.runner import RunSummary, StageSummary

StudyFile = Annotated[Path, typer.Argument(metavar="STUDY", help="a study in YAML")]
EngineName = Annotated[str, typer.Option("--engine", help="ray: processes of their own; inprocess: all in this one")]
StoreUrl = Annotated[str | None, typer.Option("--store", help="another store than the study's")]
OutFolder = Annotated[Path | None, typer.Option("--out", help="also copy the results into this folder")]
RetryFailed = Annotated[
    bool,
    typer.Option(
        "--retry-failed",
        help="trace prompts again that failed for want of memory or of a worker; those that are finished stay",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON, and no progress")]

_KEY_SHOWN = 12


@dataclass(frozen=True)
class How:
    """How a study is run, and the command that runs it again."""

    command: Sequence[str | Path]
    engine: str = "ray"
    store: str | None = None
    export: Path | None = None
    as_json: bool = False
    retry_failed: bool = False

    def again(self) -> str:
        """The command that tries failed prompts again."""
        options = {
            "--engine": self.engine if self.engine != "ray" else None,
            "--store": self.store,
            "--out": self.export,
        }
        given = [word for name, value in options.items() if value is not None for word in (name, str(value))]
        return shlex.join(["interp", *map(str, self.command), *given, "--retry-failed"])


def run(
    study: StudyFile,
    engine: EngineName = "ray",
    store: StoreUrl = None,
    out: OutFolder = None,
    retry_failed: RetryFailed = False,
    as_json: AsJson = False,
) -> None:
    """Run a study on this machine; finished stages are not run again.

    A run that was interrupted goes on where it stopped: an interrupted fit from its last checkpoint, a trace with the
    prompts that are left.
    """
    _run(load_study(study), How(("run", study), engine, store, out, as_json, retry_failed))


def trace(
    study: StudyFile,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", help="a prompt; may be repeated")] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            "--prompts",
            metavar="SOURCE",
            help="a .txt (one a line), .jsonl or .parquet file or URL; or a folder or quoted glob of .txt files, one "
            "prompt each",
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            help="what a graph explains: salient (the most probable next tokens), last-token (the prompt's last token, "
            'which is cut off), or as the study would say it, such as \'{difference: [" he", " she"]}\'',
        ),
    ] = None,
    max_features: Annotated[
        int | None,
        typer.Option("--max-features", help="features of a graph at most, by influence; the rest is added up"),
    ] = None,
    memory: Annotated[
        str | None, typer.Option("--memory", help="bytes for one prompt beside the model, such as 8G")
    ] = None,
    engine: EngineName = "ray",
    store: StoreUrl = None,
    out: OutFolder = None,
    retry_failed: RetryFailed = False,
    as_json: AsJson = False,
) -> None:
    """Trace prompts with the dictionaries of a study, which must be there already.

    What is not given here is as the study says. A run that was interrupted goes on with the prompts that are left.
    """
    if prompt and prompts:
        raise SpecError("--prompt and --prompts are both given", remedy="give one of them")
    wanted = tuple(prompt) if prompt else prompts
    changes = {"target": plain_target(target), "max_features": max_features, "memory": memory}
    options: dict[str, Any] = {"--prompt": prompt or (), "--prompts": prompts, "--target": target}
    options |= {"--max-features": max_features, "--memory": memory}
    how = How(("trace", study, *_words(options)), engine, store, out, as_json, retry_failed)
    _run(traced_only(load_study(study), wanted, **changes), how, fitted=True)


def _words(options: Mapping[str, Any]) -> list[str]:
    """Options as a command line has them: those that are given, one for each of several values."""
    several = {name: value if isinstance(value, list | tuple) else [value] for name, value in options.items()}
    return [
        word for name, values in several.items() for value in values if value is not None for word in (name, str(value))
    ]


def plain_target(text: str | None) -> Any:
    """A target as a command line says it: YAML, like the study.

    Raises:
        SpecError: it is none.
    """
    try:
        return None if text is None else yaml.safe_load(text)
    except yaml.YAMLError as error:
        what = "the target is neither a word nor YAML in braces"
        raise SpecError(what, value=text, expected="salient, last-token or {tokens: [...]} and the like") from error


def run_study_file(
    path: Path, *, engine: str = "ray", store: str | None = None, export: Path | None = None, as_json: bool = False
) -> None:
    """Load a study, run it, say what came out.

    Raises:
        InterpError: the study is not valid, or a stage failed.
    """
    _run(load_study(path), How(("run", path), engine, store, export, as_json))


def _run(study: Study, how: How, fitted: bool = False) -> None:
    from interp.engine import open_engine
    from interp.plan import make_plan
    from interp.stages.runner import run_plan
    from interp.store import Store

    store = Store.open(how.store or study.store)
    plan = make_plan(study, store)
    if fitted:
        require_fitted(plan)
    watcher = open_watcher(quiet=how.as_json)
    try:
        summary = run_plan(plan, store, lambda: open_engine(how.engine), watcher, retry_failed=how.retry_failed)
    finally:
        if watcher is not None:
            watcher.close()
    exported = export_results(summary, store, how.export) if how.export else []
    if how.as_json:
        print_json({**asdict(summary), "exported": [str(path) for path in exported]})
    else:
        _print_summary(summary, exported, how)


def traced_only(study: Study, prompts: tuple[str, ...] | str | None, **changes: Any) -> Study:
    """The study with these prompts and other settings of its trace, and without what tracing does not need.

    Raises:
        SpecError: the settings do not fit, or there is nothing to trace.
    """
    data: dict[str, Any] = study.model_dump(mode="json", by_alias=True, exclude_unset=True)
    data.pop("evaluate", None)
    given = {name: value for name, value in {"prompts": prompts, **changes}.items() if value is not None}
    if "trace" not in data and prompts is None:
        raise SpecError(
            "the study has no part `trace`", value=study.metadata.name, remedy="give --prompt or --prompts, or add one"
        )
    data["trace"] = {**data.get("trace", {}), **given}
    return study_of(data, "the command line and the study")


def require_fitted(plan: Plan) -> None:
    """Refuse a study whose dictionaries are still to be fitted.

    Raises:
        SpecError: so it is.
    """
    fit = plan.stage("fit")
    if fit is not None and not fit.cached:
        raise SpecError(
            "the study's dictionaries are not fitted yet",
            value=f"fit {fit.key[:_KEY_SHOWN]}",
            remedy="run the study first: interp run STUDY",
        )


def _print_summary(summary: RunSummary, exported: list[Path], how: How) -> None:
    rows = [
        (
            stage.stage,
            stage.key[:_KEY_SHOWN],
            "cached" if stage.cached else f"{stage.seconds:.1f} s",
            _figures(stage),
        )
        for stage in summary.stages
    ]
    print_table(["stage", "key", "took", "what came out"], rows, right=["took"])
    for stage in summary.stages:
        _print_top_features(stage.figures.get("top_features", ()))
    print_line(f"{summary.seconds:.1f} s in all. Where to look:")
    for stage in summary.stages:
        print_line(f"  {stage.stage:<11} {stage.url}  ({_LOOK.get(stage.stage, '')})")
    for path in exported:
        print_line(f"  copied to {path}")
    for stage in summary.stages:
        if count := stage.figures.get("retry"):
            prompts = "1 prompt" if count == 1 else f"{count} prompts"
            print_line(f"{prompts} failed by no fault of their own (failed.jsonl has the reasons, with retry: true).")
            print_line(f"To try them again, and no other:\n  {how.again()}")


def _print_top_features(features: Sequence[Mapping[str, Any]]) -> None:
    """What matters most over all prompts that were traced."""
    if not features:
        return
    columns = ("feature", "influence", "prompts", "max activation", "most in")
    rows = [
        (
            f"{row['at']}/{row['latent']}",
            f"{row['influence']:.3g}",
            str(row["prompts"]),
            f"{row['max_activation']:.3g}",
            row["top_prompts"][0],
        )
        for row in features
    ]
    print_line("Features of the greatest influence on the targets, added up over the prompts:")
    print_table(columns, rows, right=columns[1:4])


_LOOK = {
    "corpus": "tokens, packed",
    "activations": "one folder a hook point, index.json",
    "fit": "one folder a dictionary, metrics.jsonl, and tensorboard if fit.log has it",
    "evaluate": "evaluation.json and .parquet, pictures, similarity.json if it was measured",
    "trace": "graphs/*, index.parquet and .jsonl, features.parquet, failed.jsonl",
}


def _figures(stage: StageSummary) -> str:
    parts = []
    for name, value in stage.figures.items():
        if isinstance(value, float):
            parts.append(f"{name} {value:.2e}" if name == "residual" else f"{name} {value:.3g}")
        elif isinstance(value, int) and not isinstance(value, bool):
            parts.append(f"{name} {human(value) if value else 0}")
    return "  ".join(parts)
