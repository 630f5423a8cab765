"""A fit as an engine sees it, and what it leaves in its scratch.

Scratch is in the store, so a fit goes on where it stopped whatever was killed: a process, the driver, the machine.

    checkpoint.json           {"step", "files"}: the last checkpoint, named when all its files are there
    checkpoint/<step>/<file>
    progress.json             figures of the last reported step
    result.json               {"files"}: training is finished; named when all its files are there
    result/<file>             what the training loop left in its output folder
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.engine.base import Device
from interp.errors import StoreError
from interp.spec.study import ModelSpec
from interp.store import Artifact, Scratch

if TYPE_CHECKING:
    from interp.training.plan import FitPlan

CHECKPOINT, PROGRESS, RESULT = "checkpoint.json", "progress.json", "result.json"


@dataclass(frozen=True)
class FitJob:
    """One forward pass over a corpus into the training of all dictionaries of a plan. Can be pickled.

    Attributes:
        workers: processes that train; each step is shared out among them.
        harvesters: processes that run the model.
    """

    plan: FitPlan
    model: ModelSpec
    corpus: Artifact
    scratch: Scratch
    workers: int = 1
    harvesters: int = 1
    device: Device = "auto"

    def finished(self) -> bool:
        """Whether training is done and its result is in the scratch."""
        return self.scratch.json(RESULT) is not None

    def resume_step(self) -> int:
        """The step that training goes on with: 0 when there is no checkpoint."""
        checkpoint = self.scratch.json(CHECKPOINT)
        return 0 if checkpoint is None else int(checkpoint["step"])

    def fetch_checkpoint(self, folder: Path) -> Path | None:
        """Copy the last checkpoint into `folder`; None when there is none, or when it is torn: it is forgotten then."""
        checkpoint = self.scratch.json(CHECKPOINT)
        if checkpoint is None:
            return None
        target = folder / str(checkpoint["step"])
        if all(self.scratch.fetch(_name(checkpoint["step"], file), target / file) for file in checkpoint["files"]):
            return target
        self.scratch.delete(CHECKPOINT)
        return None

    def keep_checkpoint(self, step: int, folder: Path) -> None:
        """Make the files of `folder` the last checkpoint; the one before is deleted after that."""
        files = _files(folder)
        for file in files:
            self.scratch.put(folder / file, _name(step, file))
        self.scratch.write_json(CHECKPOINT, {"step": step, "files": files})
        kept = {_name(step, file) for file in files}
        self.scratch.delete(*(name for name in self.scratch.list("checkpoint/") if name not in kept))

    def keep_result(self, folder: Path) -> None:
        """Put all files of `folder` into the scratch as the result."""
        files = _files(folder)
        for file in files:
            self.scratch.put(folder / file, f"result/{file}")
        self.scratch.write_json(RESULT, {"files": files})

    def fetch_result(self, folder: Path) -> list[str]:
        """Copy the result into `folder`; the names of its files.

        Raises:
            StoreError: the result is not there, or torn; a torn one is forgotten, so that a rerun makes it again.
        """
        result = self.scratch.json(RESULT)
        files: list[str] = [] if result is None else result["files"]
        for file in files:
            if not self.scratch.fetch(f"result/{file}", folder / file):
                self.scratch.delete(RESULT)
                raise StoreError(
                    "a file of the finished training is torn", value=file, remedy="run again: it is made anew"
                )
        if not files:
            raise StoreError("training left no result", value=str(self.scratch.place), remedy="run again")
        return files

    def show(self, figures: dict[str, Any]) -> None:
        """Leave word of how far training is, for whoever watches."""
        self.scratch.write_json(PROGRESS, figures)


def _name(step: int, file: str) -> str:
    return f"checkpoint/{step:08d}/{file}"


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
