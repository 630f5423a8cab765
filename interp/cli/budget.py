"""What `interp plan --gpu` prints: GPUs, bytes and hours of a fit."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.cli.console import human, human_bytes, print_line, print_table
from interp.errors import SourceError

if TYPE_CHECKING:
    from interp.plan import Cost, ModelShape
    from interp.plan.budget import Budget
    from interp.plan.places import Place
    from interp.spec.study import Study

    Places = Mapping[str, Sequence[Place]]


def found_at(study: Study) -> tuple[ModelShape, Places]:
    """The shape of the study's model, which is at hand, and where its dictionaries go in it."""
    from interp.plan import check_places

    return check_places(study)


def known_from(study: Study, config: Path) -> tuple[ModelShape, Places]:
    """The shape of a model from its configuration alone, and where the study's dictionaries go in it.

    Raises:
        SourceError: the file cannot be read.
    """
    from interp.plan import places_in, shape_of

    shape = shape_of(_configuration(config), study.model.family)
    return shape, places_in(study, shape)


def fit_budget(
    study: Study,
    shape: ModelShape,
    places: Places,
    gpu: str,
    utilisation: float,
    workers: int | None,
    harvesters: int | None,
) -> Budget:
    """What a fit takes; see `interp.plan.budget`."""
    from interp.plan.budget import budget_of
    from interp.plan.machines import gpu_of

    sets, kind = list(places.values()), gpu_of(gpu)
    return budget_of(study, shape, sets, kind, utilisation=utilisation, workers=workers, harvesters=harvesters)


def as_written(study: Study, shape: ModelShape, places: Places, budget: Budget) -> Budget | None:
    """The same with the workers and harvesters that the study names, if it names any."""
    if not {"workers", "harvesters"} & study.fit.model_fields_set:
        return None
    fit, gpu = study.fit, budget.gpu.name
    return fit_budget(study, shape, places, gpu, budget.utilisation, fit.workers, fit.harvesters)


def budget_json(budget: Budget, written: Budget | None) -> dict[str, Any]:
    from interp.plan.budget import to_json

    return to_json(budget) if written is None else {**to_json(budget), "as_written": to_json(written)}


def print_written(written: Budget, workers: int, harvesters: int) -> None:
    """One line about the numbers in the study."""
    if written.why_not is None:
        result = f"{_hours(written.hours)} on {written.gpus} GPUs, {written.mode}, {_count(written.shards, 'shard')}"
    else:
        result = f"does not fit: {written.why_not}"
    print_line(f"as the study has it (fit.workers={workers}, fit.harvesters={harvesters}): {result}")


def print_costs(name: str, costs: Mapping[str, Cost]) -> None:
    """The stages of a study whose model is not at hand: no keys."""
    columns = ("stage", "tokens", "FLOPs", "bytes", "memory")
    rows = [
        (stage, human(cost.tokens), human(cost.flops), human_bytes(cost.bytes), human_bytes(cost.memory))
        for stage, cost in costs.items()
    ]
    print_line(f"{name}: costs from the model's configuration alone; keys, and a trace's cost, need what it reads")
    print_table(columns, rows, right=columns[1:])


def _configuration(path: Path) -> dict[str, Any]:
    """From a file, or from the config.json of a folder; weights need not be there."""
    file = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SourceError("the model's configuration cannot be read", value=f"{file}: {error}") from error
    if not isinstance(config, dict):
        raise SourceError("the model's configuration holds no mapping", value=str(file))
    return config


def print_budget(budget: Budget) -> None:
    """A table of two columns, and what limits the fit."""
    from interp.plan.budget import to_json

    told = to_json(budget)
    rows = [*_work(told)]
    if budget.why_not is None:
        rows += _machines(budget, told)
    print_line(f"fit on {budget.gpu.name}, {budget.utilisation:.0%} of its peak (estimates)")
    print_table(("what", "how much", "of which"), rows, right=("how much",))
    if budget.why_not is not None:
        print_line(f"it does not fit: {budget.why_not}")
    else:
        print_line(f"slowest: {budget.bound}. {budget.mode}, {_count(budget.shards, 'shard')}: {budget.reason}")


def _work(told: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What there is to do and to keep, on whatever machine."""
    return [
        ("FLOPs: harvest", human(told["harvest_flops"]), f"{human(told['tokens'])} tokens, one forward pass each"),
        ("FLOPs: dictionaries", human(told["dictionary_flops"]), f"{told['dictionaries']} of them, forth and back"),
        ("model", human_bytes(told["model_bytes"]), "weights, in every process that runs it"),
        (
            "dictionaries in training",
            human_bytes(told["training_bytes"]),
            f"{human(told['parameters'])} parameters, with gradients and moments",
        ),
        ("activations", human_bytes(told["activation_bytes_per_token"]), "a token, at all hook points"),
        ("step or shuffling window", human_bytes(told["window_bytes"]), "of activations, over all workers"),
        ("cache", human_bytes(told["cache_bytes"]), "of activations in the store (fit.cache)"),
        ("checkpoint", human_bytes(told["checkpoint_bytes"]), f"written {told['checkpoints']} times, one is kept"),
        ("artifact", human_bytes(told["artifact_bytes"]), "dictionaries in float32"),
    ]


def _machines(budget: Budget, told: dict[str, Any]) -> list[tuple[str, str, str]]:
    """How many GPUs, what each holds, and for how long."""
    roles = ", ".join(
        [
            f"{_count(budget.workers, 'worker')} in {_count(budget.shards, 'shard')}",
            _count(budget.harvesters, "harvester"),
        ]
    )
    parts = (
        f"harvest {_hours(budget.harvest_hours)}, products {_hours(budget.product_hours)}, "
        f"optimiser {_hours(budget.optimiser_hours)}"
    )
    return [
        ("GPUs", str(budget.gpus), roles),
        ("memory of a worker", human_bytes(budget.worker_bytes), f"of {human_bytes(budget.gpu.memory)}"),
        ("memory of a harvester", human_bytes(budget.harvester_bytes), f"of {human_bytes(budget.gpu.memory)}"),
        ("stream between processes", human_bytes(budget.stream_bytes), _rate(budget)),
        ("hours", _hours(budget.hours), parts),
        ("GPU hours", f"{told['gpu_hours']:,.1f}", ""),
    ]


def _rate(budget: Budget) -> str:
    if not budget.stream_bytes:
        return "none: the model runs in the workers, or not at all"
    return f"{human_bytes(budget.stream_bytes / (3600 * budget.hours))}/s in all"


def _count(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"


def _hours(hours: float) -> str:
    return f"{hours:.3g} h" if hours >= 0.1 else f"{3600 * hours:.3g} s"
