"""Who else is told of the reported steps of a fit, beside `metrics.jsonl`: the rows of the table `TRACKERS`.

    tensorboard    event files in the artifact
    wandb          Weights & Biases; optional: `pip install "interp[wandb]"`

A tracker is opened with the rows up to the checkpoint that training goes on from, and must end up with every such step
once, however often a run was interrupted. Rank 0 alone has any.

Weights & Biases takes its key from WANDB_API_KEY, its project from WANDB_PROJECT (default `interp`), and its mode from
WANDB_MODE: `offline` writes `wandb/` into the artifact, for `wandb sync`, and needs no key. The run's id is the
artifact's key, so a resumed fit goes on in the same run. What it is told: the figures of each step, the options of the
fit, and the shapes of the dictionaries. No paths, no URLs, no code, no output of the program.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tensorboardX import SummaryWriter

from interp.errors import EngineError
from interp.spec.canonical import key_spec
from interp.training.plan import FitPlan

EVENTS, WANDB = "tensorboard", "wandb"

Row = Mapping[str, Any]
"""A line of `metrics.jsonl`."""


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told once.

    Attributes:
        folder: of the fit's output, where a tracker may keep files.
        run_id: the same whenever this fit is resumed.
        options: of the fit and its dictionaries.
    """

    folder: Path
    run_id: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, plan: FitPlan, folder: Path, run_id: str) -> TrackedRun:
        dictionaries = {
            target.key: target.config.model_dump(mode="json", exclude={"model", "corpus"}) for target in plan.targets
        }
        names = ("batch_tokens", "micro_tokens", "total_tokens", "context", "seed")
        sizes = {name: getattr(plan, name) for name in names}
        return cls(folder, run_id, {**sizes, "fit": key_spec(plan.fit), "dictionaries": dictionaries})


class Tracker(Protocol):
    """Told of the steps of a fit."""

    def add(self, row: Row) -> None: ...

    def close(self) -> None: ...


def scalars(row: Row) -> dict[str, float]:
    """A row as named numbers: `fvu/<dictionary>` and so on."""
    each = {f"{figure}/{name}": v for name, figures in row["dictionaries"].items() for figure, v in figures.items()}
    return {"tokens_per_s": row["tokens_per_s"], **each}


class TensorBoard:
    """Event files, written anew when a fit is resumed."""

    def __init__(self, run: TrackedRun, rows: Iterable[Row]):
        shutil.rmtree(run.folder / EVENTS, ignore_errors=True)
        self._events = SummaryWriter(str(run.folder / EVENTS))
        for row in rows:
            self.add(row)

    def add(self, row: Row) -> None:
        for name, value in scalars(row).items():
            self._events.add_scalar(name, value, row["step"])

    def close(self) -> None:
        self._events.close()


class WeightsAndBiases:
    """A run of Weights & Biases.

    Steps that the run has already are not sent again: a resumed fit computes the same figures for them.
    """

    def __init__(self, run: TrackedRun, rows: Iterable[Row]):
        require_wandb()
        import wandb

        self._temporary = None if _offline() else tempfile.mkdtemp(prefix="interp-wandb-")
        folder = self._temporary or str(run.folder)
        self._kept = run.folder / WANDB
        shutil.rmtree(self._kept, ignore_errors=True)
        Path(folder).mkdir(parents=True, exist_ok=True)
        settings = wandb.Settings(
            console="off",
            silent=True,
            disable_git=True,
            disable_code=True,
            disable_job_creation=True,
            x_disable_meta=True,  # the program's path and arguments, user and host
            x_save_requirements=False,
        )
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "interp"),
                id=run.run_id,
                resume="allow",
                dir=folder,
                config=json.loads(json.dumps(run.options)),
                settings=settings,
            )
        except wandb.errors.Error as error:
            raise EngineError(
                "Weights & Biases does not start a run",
                value=f"{type(error).__name__}: {error}",
                remedy="check WANDB_API_KEY, WANDB_ENTITY and the network; WANDB_MODE=offline needs none of them",
            ) from error
        self._next = int(self._run.step)
        for row in rows:
            self.add(row)

    def add(self, row: Row) -> None:
        if row["step"] >= self._next:
            self._run.log({"tokens": row["tokens"], **scalars(row)}, step=row["step"])
            self._next = row["step"] + 1

    def close(self) -> None:
        self._run.finish()
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
        for logs in self._kept.glob("*/logs"):  # of wandb itself, with this machine's paths
            shutil.rmtree(logs, ignore_errors=True)


TRACKERS: dict[str, Callable[[TrackedRun, Iterable[Row]], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
}


def require_trackers(names: Sequence[str]) -> None:
    """See that trackers can be opened, before there is work that would be lost.

    Raises:
        EngineError: a package or a key is missing.
    """
    if "wandb" in names:
        require_wandb()


def require_wandb() -> None:
    if importlib.util.find_spec("wandb") is None:
        raise EngineError(
            "the study logs to Weights & Biases, which is not installed",
            value="fit.log: wandb",
            expected="the package wandb",
            remedy='pip install "interp[wandb]", or leave wandb out of fit.log',
        )
    if not _offline() and not os.environ.get("WANDB_API_KEY"):
        raise EngineError(
            "the study logs to Weights & Biases, and there is no key for it",
            value="WANDB_API_KEY is not set",
            remedy="set WANDB_API_KEY, or WANDB_MODE=offline to write the run into the artifact",
        )


def _offline() -> bool:
    return os.environ.get("WANDB_MODE", "online") in ("offline", "disabled", "dryrun")
