"""The loop: restore, then for each step its micro-batches, now and then a report and a checkpoint; the result.

It runs the same on every worker. A step's tokens are known beforehand (`FitPlan.tokens_of`), and a step that was given
more or fewer is an error: no token is lost or seen twice, whatever was killed in between.

Of every shard the worker that leads it writes its dictionaries, and rank 0 what is common. The result is, together,
`<name>/<at>/` for each dictionary, `metrics.jsonl`, `tensorboard/` and, last, `summary.json`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import astuple, fields, replace
from pathlib import Path
from statistics import fmean

import torch

from interp.errors import EngineError
from interp.training.checkpoint import load_checkpoint, save_checkpoint
from interp.training.dictionary_set import DictionarySet
from interp.training.metrics import JSONL, DictionaryMetrics, MetricsLog, StepMetrics
from interp.training.plan import FitPlan
from interp.training.session import FitSession
from interp.training.trackers import TrackedRun
from interp.training.trainer import Trainer

REPORTS = 200
"""About how many steps of a run are reported."""

SUMMARY_STEPS = 10
"""The summary's figures are means over so many last reported steps: those of a single one are noisy."""


def fit_loop(session: FitSession, plan: FitPlan) -> bool:
    """Train a plan's dictionaries, from the last checkpoint if there is one.

    Returns:
        Whether it is finished: the result is in `session.output` of the workers that lead a shard. Otherwise some
        worker was asked to stop, and a checkpoint was saved.

    Raises:
        EngineError: activations or losses are not finite, a step's tokens are wrong, or the checkpoint is another
            plan's.
    """
    place = session.place
    dictionaries = DictionarySet(plan, session.device, plan.shard_targets(place.shard, place.shards))
    trainer = Trainer(plan, dictionaries, place.replica, place.replicas, session.all_reduce)
    folder = session.load_checkpoint([member.key for member in dictionaries])
    rows = load_checkpoint(trainer, folder) if folder else ""
    log = None
    if place.rank == 0:
        log = MetricsLog(TrackedRun.of(plan, session.output, session.run_id), rows, plan.fit.log)
    try:
        finished = _steps(plan, session, trainer, log)
    finally:
        if log:
            log.close()
    if finished and place.leads:
        _export(trainer, session.output)
    if finished and place.rank == 0:
        _summarise(trainer, session.output)
    return finished


def _steps(plan: FitPlan, session: FitSession, trainer: Trainer, log: MetricsLog | None) -> bool:
    """All steps that are left; False when asked to stop before the last."""
    started, at_start = time.monotonic(), trainer.tokens_seen
    for step, micros in session.batches(trainer.step_index):
        if step != trainer.step_index:
            raise EngineError("steps came out of order", value=step, expected=str(trainer.step_index))
        if trainer.statistics is None:
            micros = list(micros)
            trainer.initialise(micros)
        for acts in micros:
            trainer.micro(acts)
        metrics = _of_all(plan, session, trainer.step(stop=session.should_stop()))
        _check_tokens(plan, metrics)
        last = trainer.step_index == plan.n_steps
        scheduled = last or step % max(1, plan.n_steps // REPORTS) == 0
        if scheduled or metrics.stop:
            rate = (metrics.tokens_seen - at_start) / max(time.monotonic() - started, 1e-9)
            metrics = replace(metrics, tokens_per_s=rate)
            # A stop is shown but leaves no row: what is kept is the uninterrupted run's.
            if log and scheduled:
                log.add(metrics)
            session.report(metrics)
        if last or metrics.stop or _checkpoint_is_due(plan, step):
            _save(session, trainer, log)
        if metrics.stop:
            return last
    if trainer.step_index != plan.n_steps:
        raise EngineError("the activations ended early", value=trainer.step_index, expected=f"{plan.n_steps} steps")
    return True


def _of_all(plan: FitPlan, session: FitSession, own: StepMetrics) -> StepMetrics:
    """A step's metrics with those of the other shards' dictionaries, and whether any worker was asked to stop."""
    place = session.place
    if place.shards == 1:
        return own
    names = [field.name for field in fields(DictionaryMetrics)]
    flat = torch.zeros(1 + len(plan.targets) * len(names), dtype=torch.float64, device=session.device)
    figures = flat[1:].view(len(plan.targets), len(names))
    if place.leads:
        flat[0] = float(own.stop)
        for row, target in zip(figures, plan.targets, strict=True):
            if target.key in own.dictionaries:
                row.copy_(torch.tensor(astuple(own.dictionaries[target.key]), dtype=torch.float64))
    session.share(flat)
    each = {
        target.key: DictionaryMetrics(**dict(zip(names, row, strict=True)))
        for target, row in zip(plan.targets, figures.tolist(), strict=True)
    }
    return replace(own, dictionaries=each, stop=flat[0].item() > 0)


def _save(session: FitSession, trainer: Trainer, log: MetricsLog | None) -> None:
    def write(folder: Path) -> None:
        save_checkpoint(trainer, log.rows() if log else None, folder)

    session.save_checkpoint(trainer.step_index, write)


def _check_tokens(plan: FitPlan, metrics: StepMetrics) -> None:
    expected = len(plan.tokens_of(metrics.step))
    if metrics.tokens != expected:
        raise EngineError(
            f"step {metrics.step} was trained on the wrong number of tokens",
            value=metrics.tokens,
            expected=str(expected),
            remedy="this is a defect of the engine: a worker lost a micro-batch or had one twice",
        )


def _checkpoint_is_due(plan: FitPlan, step: int) -> bool:
    """Whether the step crossed a multiple of `checkpoint_every` tokens."""
    tokens, every = plan.tokens_of(step), plan.fit.checkpoint_every
    return tokens.stop // every > tokens.start // every


def _export(trainer: Trainer, output: Path) -> None:
    """Write a shard's dictionaries, folded to read raw activations."""
    assert trainer.statistics is not None
    for key, dictionary in trainer.dictionaries.folded(trainer.statistics):
        dictionary.save(output / key)


def _summarise(trainer: Trainer, output: Path) -> None:
    """Write what was reached, of all dictionaries."""
    rows = [json.loads(line) for line in (output / JSONL).read_text(encoding="utf-8").splitlines()[-SUMMARY_STEPS:]]
    summary = {
        "tokens": trainer.tokens_seen,
        "steps": trainer.step_index,
        "figures_over_steps": len(rows),
        "dictionaries": {
            target.key: _reached([row["dictionaries"][target.key] for row in rows]) for target in trainer.plan.targets
        },
    }
    (output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


def _reached(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over the last steps; the dead share is the very last one's."""
    means = {name: fmean(row[name] for row in rows) for name in ("fvu", "l0", "loss")}
    return {**means, "dead": rows[-1]["dead"]}
