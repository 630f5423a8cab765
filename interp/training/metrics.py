"""What a step tells: figures of each dictionary, as JSON lines, and to whoever else is to know (`trackers`).

`MetricsLog` survives a resume without a step twice or missing: its rows travel with the checkpoint, and trackers begin
with them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from interp.training.trackers import TRACKERS, TrackedRun, require_trackers

JSONL = "metrics.jsonl"


@dataclass(frozen=True)
class DictionaryMetrics:
    """One dictionary in one step, over the tokens of all workers.

    Attributes:
        fvu: fraction of the target's variance in this step that is unexplained; of several places, the mean.
        l0: active latents of a token; of several places, the mean.
        dead: share of the latents that have been silent for `fit.dead_after` tokens.
        loss: what was minimised, of one token.
        penalty: its sparsity part, before the warm-up factor.
        aux: its AuxK part, before the coefficient: about 1 when dead latents explain nothing of the error.
        lr: learning rate of the step.
        grad_norm: before clipping.
    """

    fvu: float
    l0: float
    dead: float
    loss: float
    penalty: float
    aux: float
    lr: float
    grad_norm: float


@dataclass(frozen=True)
class StepMetrics:
    """A step: its number (from 0), its tokens, all tokens so far, and the figures of each dictionary.

    `stop` says that some worker was asked to stop; `tokens_per_s` is this run's rate, 0 when it is not known.
    """

    step: int
    tokens: int
    tokens_seen: int
    dictionaries: Mapping[str, DictionaryMetrics]
    stop: bool = False
    tokens_per_s: float = 0.0

    def to_row(self) -> dict[str, Any]:
        """What a line of `metrics.jsonl` holds."""
        figures = {name: asdict(metrics) for name, metrics in self.dictionaries.items()}
        return {
            "step": self.step,
            "tokens": self.tokens_seen,
            "tokens_per_s": round(self.tokens_per_s, 1),
            "dictionaries": figures,
        }


class MetricsLog:
    """`metrics.jsonl` in the fit's output, and the trackers that the study asks for.

    Args:
        run: where they go; what is there of an earlier attempt is replaced.
        rows: the content of `metrics.jsonl` up to the checkpoint that training goes on from.
        trackers: names of `TRACKERS`.

    Raises:
        EngineError: a tracker cannot be opened.
    """

    def __init__(self, run: TrackedRun, rows: str = "", trackers: Sequence[str] = ("tensorboard",)):
        require_trackers(trackers)
        run.folder.mkdir(parents=True, exist_ok=True)
        self.path = run.folder / JSONL
        self.path.write_text(rows, encoding="utf-8")
        earlier = [json.loads(line) for line in rows.splitlines()]
        self._trackers = [TRACKERS[name](run, earlier) for name in trackers]

    def add(self, metrics: StepMetrics) -> None:
        """Append a step; the line is on disk when this returns."""
        row = metrics.to_row()
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        for tracker in self._trackers:
            tracker.add(row)

    def rows(self) -> str:
        """All lines so far: what a checkpoint keeps."""
        return self.path.read_text(encoding="utf-8")

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()
