"""The loop: restore, then for each step its micro-batches, now and then a report and a checkpoint; the result.

It runs the same on every worker; rank 0 alone writes. A step's tokens are known beforehand (`FitPlan.tokens_of`), and
a step that was given more or fewer is an error: no token is lost or seen twice, whatever was killed in between.

The result is `<name>/<at>/` for each dictionary, `metrics.jsonl`, `tensorboard/` and, last, `summary.json`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from interp.errors import EngineError
from interp.training.checkpoint import load_checkpoint, save_checkpoint
from interp.training.dictionary_set import DictionarySet
from interp.training.metrics import JSONL, MetricsLog, StepMetrics
from interp.training.plan import FitPlan
from interp.training.session import FitSession
from interp.training.trainer import Trainer

REPORTS = 200
"""About how many steps of a run are reported."""

SUMMARY_STEPS = 10
"""The summary's figures are means over so many last reported steps: those of a single one are noisy."""


def fit_loop(session: FitSession, plan: FitPlan) -> bool:
    """Train a plan's dictionaries, from the last checkpoint if there is one.

    Returns:
        Whether it is finished: the result is in `session.output` on rank 0. Otherwise some worker was asked to stop,
        and a checkpoint was saved.

    Raises:
        EngineError: activations or losses are not finite, a step's tokens are wrong, or the checkpoint is another
            plan's.
    """
    dictionaries = DictionarySet(plan, session.device)
    trainer = Trainer(plan, dictionaries, session.rank, session.world, session.all_reduce)
    folder = session.load_checkpoint()
    rows = load_checkpoint(trainer, folder) if folder else ""
    log = MetricsLog(session.output, rows) if session.rank == 0 else None
    try:
        finished = _steps(plan, session, trainer, log)
    finally:
        if log:
            log.close()
    if finished and session.rank == 0:
        _export(trainer, session.output)
    return finished


def _steps(plan: FitPlan, session: FitSession, trainer: Trainer, log: MetricsLog | None) -> bool:
    """All steps that are left; False when asked to stop before the last."""
    started, at_start = time.monotonic(), trainer.tokens_seen
    for step, micros in session.batches(trainer.step_index):
        if step != trainer.step_index:
            raise EngineError("steps came out of order", value=step, expected=str(trainer.step_index))
        if trainer.statistics is None:
            trainer.initialise(micros)
        for acts in micros:
            trainer.micro(acts)
        metrics = trainer.step(stop=session.should_stop())
        _check_tokens(plan, metrics)
        last = trainer.step_index == plan.n_steps
        if last or metrics.stop or step % max(1, plan.n_steps // REPORTS) == 0:
            rate = (metrics.tokens_seen - at_start) / max(time.monotonic() - started, 1e-9)
            metrics = replace(metrics, tokens_per_s=rate)
            if log:
                log.add(metrics)
            session.report(metrics)
        if last or metrics.stop or _checkpoint_is_due(plan, step):
            _save(session, trainer, log)
        if metrics.stop:
            return last
    if trainer.step_index != plan.n_steps:
        raise EngineError("the activations ended early", value=trainer.step_index, expected=f"{plan.n_steps} steps")
    return True


def _save(session: FitSession, trainer: Trainer, log: MetricsLog | None) -> None:
    def write(folder: Path) -> None:
        save_checkpoint(trainer, log.rows() if log else "", folder)

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
    """Write the dictionaries, folded to read raw activations, and the summary last."""
    assert trainer.statistics is not None
    for key, dictionary in trainer.dictionaries.folded(trainer.statistics):
        dictionary.save(output / key)
    rows = [json.loads(line) for line in (output / JSONL).read_text(encoding="utf-8").splitlines()[-SUMMARY_STEPS:]]
    summary = {
        "tokens": trainer.tokens_seen,
        "steps": trainer.step_index,
        "figures_over_steps": len(rows),
        "dictionaries": {m.key: _reached([row["dictionaries"][m.key] for row in rows]) for m in trainer.dictionaries},
    }
    (output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


def _reached(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over the last steps; the dead share is the very last one's."""
    means = {name: fmean(row[name] for row in rows) for name in ("fvu", "l0", "loss")}
    return {**means, "dead": rows[-1]["dead"]}
