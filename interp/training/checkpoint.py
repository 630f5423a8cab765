"""A run's state as a folder: what is common, and a part of each dictionary.

    state.json, metrics.jsonl       the plan, the place in the data, the metrics so far
    <name>/<at>/state.safetensors   of one dictionary; what is no tensor is in its metadata

Kept of a dictionary are weights, thresholds, the optimiser's moments, the counters of silent latents, the statistics
of the first data and the error of the last step. With the same number of threads a run that goes on from here
computes, bit for bit in float32, what the uninterrupted one would have.

Parts are named by dictionary, so a run may go on with other numbers of workers and shards: every worker writes the
parts of its own dictionaries, reads them one at a time, and needs no others.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from interp.errors import EngineError
from interp.training.trainer import Trainer

FORMAT = "interp/fit-checkpoint/v2"
TENSORS, VALUES, ROWS = "state.safetensors", "state.json", "metrics.jsonl"


def save_checkpoint(trainer: Trainer, rows: str | None, folder: Path) -> None:
    """Write the parts of a trainer's dictionaries, and with `rows`, the metrics so far, what is common."""
    tensors, values = trainer.state()
    for key, own in values.pop("members").items():
        part = folder / key
        part.mkdir(parents=True)
        prefix = f"{key}/"
        named = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        # Weights are views into one vector, and safetensors wants each tensor to own its memory.
        copies = {name: tensor.detach().cpu().clone() for name, tensor in named.items()}
        save_file(copies, part / TENSORS, metadata={VALUES: json.dumps(own)})
    if rows is not None:
        (folder / ROWS).write_text(rows, encoding="utf-8")
        (folder / VALUES).write_text(json.dumps({"format": FORMAT, **values}, indent=1), encoding="utf-8")


def load_checkpoint(trainer: Trainer, folder: Path) -> str:
    """Put a trainer where `save_checkpoint` was called; the metrics so far.

    Raises:
        EngineError: the folder holds no checkpoint, or one of another plan.
    """
    try:
        values: dict[str, Any] = json.loads((folder / VALUES).read_text(encoding="utf-8"))
        if values.get("format") != FORMAT:
            raise EngineError(
                f"a checkpoint is of another format: {folder}",
                value=values.get("format"),
                expected=FORMAT,
                remedy="remove it, and the fit begins anew",
            )
        trainer.check_plan(values["plan"])
        members, tensors = {}, dict[str, Tensor]()
        for member in trainer.dictionaries:
            with safe_open(folder / member.key / TENSORS, framework="pt") as part:
                members[member.key] = json.loads(part.metadata()[VALUES])
                tensors |= {f"{member.key}/{name}": part.get_tensor(name) for name in part.keys()}  # noqa: SIM118
        rows = (folder / ROWS).read_text(encoding="utf-8")
    except (OSError, ValueError, SafetensorError) as error:
        raise EngineError(
            f"a checkpoint cannot be read: {folder}", value=str(error), remedy="remove it, and the fit begins anew"
        ) from error
    trainer.load_state(tensors, {**values, "members": members})
    return rows
