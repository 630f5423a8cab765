"""A run's state as a folder: `state.safetensors`, `state.json`, and the metrics so far.

What is kept: weights, thresholds, both moments of Adam, the counters of silent latents, the statistics of the first
data, the error of the last step, and the place in the data. With the same number of threads a run that goes on from
here computes, bit for bit in float32, what the uninterrupted one would have.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from interp.errors import EngineError
from interp.training.trainer import Trainer

FORMAT = "interp/fit-checkpoint/v1"
TENSORS, VALUES, ROWS = "state.safetensors", "state.json", "metrics.jsonl"


def save_checkpoint(trainer: Trainer, rows: str, folder: Path) -> None:
    """Write the state of a run and its metrics into `folder`."""
    tensors, values = trainer.state()
    # Weights are views into one vector, and safetensors wants each tensor to own its memory.
    save_file({name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}, folder / TENSORS)
    (folder / ROWS).write_text(rows, encoding="utf-8")
    (folder / VALUES).write_text(json.dumps({"format": FORMAT, **values}, indent=1), encoding="utf-8")


def load_checkpoint(trainer: Trainer, folder: Path) -> str:
    """Put a trainer where `save_checkpoint` was called; the metrics so far.

    Raises:
        EngineError: the folder holds no checkpoint, or one of another plan.
    """
    try:
        values: dict[str, Any] = json.loads((folder / VALUES).read_text(encoding="utf-8"))
        tensors: dict[str, Tensor] = load_file(folder / TENSORS)
        rows = (folder / ROWS).read_text(encoding="utf-8")
    except (OSError, ValueError, SafetensorError) as error:
        raise EngineError(
            f"a checkpoint cannot be read: {folder}", value=str(error), remedy="remove it, and the fit begins anew"
        ) from error
    if values.get("format") != FORMAT:
        raise EngineError(f"a checkpoint is of another format: {folder}", value=values.get("format"), expected=FORMAT)
    trainer.load_state(tensors, values)
    return rows
