"""`interp validate`, `interp plan`, `interp schema`: what can be said of a study without running it."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli.budget import (
    as_written,
    budget_json,
    fit_budget,
    found_at,
    known_from,
    print_budget,
    print_costs,
    print_written,
)
from interp.cli.console import (
    error_json,
    exit_code,
    human,
    human_bytes,
    print_json,
    print_line,
    print_table,
    report,
)
from interp.errors import InterpError
from interp.spec.loading import load_study

if TYPE_CHECKING:
    from interp.plan import Plan, PlannedStage
    from interp.spec.study import Study

StudyFile = Annotated[Path, typer.Argument(metavar="STUDY", help="a study in YAML")]
StudyFiles = Annotated[list[Path], typer.Argument(metavar="STUDY...", help="studies in YAML")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]

GpuName = Annotated[
    str | None, typer.Option("--gpu", help="also what the fit takes on such GPUs: h100-80g, h200-141g, ..., cpu")
]
Utilisation = Annotated[
    float, typer.Option("--utilisation", min=0.01, max=1.0, help="share of a GPU's peak that products reach")
]
Workers = Annotated[
    int | None, typer.Option("--workers", min=1, help="training workers; default: as few as hold the dictionaries")
]
Harvesters = Annotated[
    int | None, typer.Option("--harvesters", min=1, help="default: as few as keep up with the workers")
]
Config = Annotated[
    Path | None,
    typer.Option("--config", help="the model's config.json, where the model is out of reach: costs, and no keys"),
]

_KEY_SHOWN = 12


def validate(
    studies: StudyFiles,
    format_only: Annotated[
        bool, typer.Option("--format-only", help="do not look at the model: it may be out of reach from here")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check study files, and that the model has the hook points they name.

    Every problem of a file is told at once, with its line. The model's configuration is read; its weights are not.
    """
    results: list[dict[str, Any]] = []
    worst = 0
    for path in studies:
        try:
            results.append({"file": str(path), "valid": True, **_described(load_study(path), format_only)})
        except InterpError as error:
            worst = max(worst, exit_code(error))
            results.append({"file": str(path), "valid": False, "error": error_json(error)})
            if not as_json:
                report(error)
        else:
            if not as_json:
                _print_valid(results[-1])
    if as_json:
        print_json(results)
    if worst:
        raise typer.Exit(worst)


def plan(
    study: StudyFile,
    gpu: GpuName = None,
    utilisation: Utilisation = 0.35,
    workers: Workers = None,
    harvesters: Harvesters = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Show the stages of a study: keys, what is cached, what the rest will cost.

    FLOPs, bytes and memory (of the largest process) are estimates from the model's configuration. With --gpu also how
    many GPUs a fit takes, how it is shared among them, and for how long.
    """
    loaded = load_study(study)
    if config is None:
        from interp.plan import make_plan
        from interp.store import Store

        made = make_plan(loaded, Store.open(loaded.store))
        told = json.loads(made.to_json())
        shape, places = found_at(loaded)
        table = partial(_print_plan, made)
    else:
        from interp.plan.cost import costs_of

        shape, places = known_from(loaded, config)
        costs = costs_of(loaded, shape, places)
        told = {"stages": [{"stage": name, "cost": asdict(cost)} for name, cost in costs.items()]}
        table = partial(print_costs, loaded.metadata.name, costs)
    if gpu is None or not places:
        return print_json(told) if as_json else table()
    budget = fit_budget(loaded, shape, places, gpu, utilisation, workers, harvesters)
    written = as_written(loaded, shape, places, budget) if workers is None and harvesters is None else None
    if as_json:
        return print_json({**told, "fit": budget_json(budget, written)})
    table()
    print_budget(budget)
    if written is not None:
        print_written(written, loaded.fit.workers, loaded.fit.harvesters)


def schema(as_json: Annotated[bool, typer.Option("--json", help="the schema is JSON in any case")] = False) -> None:
    """Print the JSON Schema of the study file, for editors."""
    from interp.spec.schema import study_schema

    print_json(study_schema())


def _described(study: Study, format_only: bool) -> dict[str, Any]:
    told: dict[str, Any] = {"name": study.metadata.name, "stages": _stages(study)}
    if not format_only:
        from interp.plan import check_places

        shape, places = check_places(study)
        told["family"] = shape.family
        told["dictionaries"] = {name: [place.at for place in found] for name, found in places.items()}
    return told


def _stages(study: Study) -> list[str]:
    wanted = {
        "corpus": True,
        "activations": study.trained and study.fit.cache,
        "fit": study.trained,
        "evaluate": study.evaluate,
        "trace": study.trace,
    }
    return [name for name, there in wanted.items() if there]


def _print_valid(result: dict[str, Any]) -> None:
    print_line(f"{result['file']}: valid; stages {', '.join(result['stages'])}")
    for name, places in result.get("dictionaries", {}).items():
        print_line(f"  {name}: {len(places)} at {', '.join(places)}")


def _print_plan(made: Plan) -> None:
    columns = ("stage", "key", "reads", "", "tokens", "FLOPs", "bytes", "memory")
    print_line(f"{made.study.metadata.name}, store {made.study.store}")
    print_table(columns, [_row(stage) for stage in made.stages], right=columns[4:])
    if made.to_do:
        left = sum((stage.cost for stage in made.to_do[1:]), start=made.to_do[0].cost)
        work = f"{human(left.flops)} FLOPs, largest process {human_bytes(left.memory)}"
        print_line(f"to do: {', '.join(stage.stage for stage in made.to_do)}; {work} (estimates)")
    else:
        print_line("everything is cached")


def _row(stage: PlannedStage) -> tuple[str, ...]:
    return (
        stage.stage,
        stage.key[:_KEY_SHOWN],
        ", ".join(stage.inputs),
        "cached" if stage.cached else "to do",
        human(stage.cost.tokens),
        human(stage.cost.flops),
        human_bytes(stage.cost.bytes),
        human_bytes(stage.cost.memory),
    )
