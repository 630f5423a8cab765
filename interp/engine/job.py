"""A fit as an engine sees it, and what it leaves in its scratch.

Scratch is in the store, so a fit goes on where it stopped whatever was killed: a process, the driver, the machine.

    checkpoint.json           {"step", "files"}: the last checkpoint, named when all its files are there
    checkpoint/<step>/<file>
    progress.json             figures of the last reported step
    stop.json                 somebody asks for a checkpoint and an end
    result.json               {"files"}: training is finished; named when all its files are there
    result/<file>             what the training loop left in its output folders

Several workers write the files of a checkpoint, and of the result, one for each shard. Each leaves a list of its own,
<folder>/shard-<n>.json, until rank 0 makes one of them all.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from interp.engine.base import Device
from interp.errors import StoreError
from interp.spec.study import ModelSpec
from interp.store import Artifact, Scratch

if TYPE_CHECKING:
    from interp.training.plan import FitPlan

CHECKPOINT, PROGRESS, RESULT, STOP = "checkpoint.json", "progress.json", "result.json", "stop.json"


@dataclass(frozen=True)
class FitJob:
    """One forward pass over a corpus into the training of all dictionaries of a plan. Can be pickled.

    Attributes:
        workers: processes that train; each step is shared out among them.
        harvesters: processes that run the model, in streamed mode.
        mode, shards: as in the study; auto and None are settled by the engine (`interp.plan.placement`).
        cache: activations that were written before, which are read instead of running the model.
    """

    plan: FitPlan
    model: ModelSpec
    corpus: Artifact
    scratch: Scratch
    workers: int = 1
    harvesters: int = 1
    device: Device = "auto"
    mode: Literal["auto", "colocated", "streamed"] = "auto"
    shards: int | None = None
    cache: Artifact | None = None

    def finished(self) -> bool:
        """Whether training is done and its result is in the scratch."""
        return self.scratch.json(RESULT) is not None

    def resume_step(self) -> int:
        """The step that training goes on with: 0 when there is no checkpoint."""
        checkpoint = self.scratch.json(CHECKPOINT)
        return 0 if checkpoint is None else int(checkpoint["step"])

    def fetch_checkpoint(self, folder: Path, members: Collection[str]) -> Path | None:
        """Copy what is common to the last checkpoint, and the parts of `members`, into `folder`; None when there is
        none, or when it is torn. Who knows that all workers have looked for it forgets a torn one (`forget`)."""
        checkpoint = self.scratch.json(CHECKPOINT)
        if checkpoint is None:
            return None
        step, target = checkpoint["step"], folder / str(checkpoint["step"])
        wanted = [file for file in checkpoint["files"] if "/" not in file or file.rpartition("/")[0] in members]
        if all(self.scratch.fetch(f"{_checkpoint(step)}/{file}", target / file) for file in wanted):
            return target
        return None

    def forget(self) -> None:
        """Start from the beginning next time."""
        self.scratch.delete(CHECKPOINT)

    def put_checkpoint(self, step: int, folder: Path, shard: int = 0) -> None:
        """Copy what is in `folder`, a shard's part of a checkpoint, into the scratch."""
        self._put(folder, _checkpoint(step), shard)

    def name_checkpoint(self, step: int, shards: int = 1) -> None:
        """Make what all shards have put there the last checkpoint; the one before is deleted after that."""
        files = self._files(_checkpoint(step), shards)
        self.scratch.write_json(CHECKPOINT, {"step": step, "files": files})
        kept = {f"{_checkpoint(step)}/{file}" for file in files}
        self.scratch.delete(*(name for name in self.scratch.list("checkpoint/") if name not in kept))

    def put_result(self, folder: Path, shard: int = 0) -> None:
        """Copy what is in `folder`, a shard's part of the result, into the scratch."""
        self._put(folder, "result", shard)

    def name_result(self, shards: int = 1) -> None:
        """Say that the result is what all shards have put there."""
        self.scratch.write_json(RESULT, {"files": self._files("result", shards)})

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

    def _put(self, folder: Path, prefix: str, shard: int) -> None:
        files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        for file in files:
            self.scratch.put(folder / file, f"{prefix}/{file}")
        self.scratch.write_json(f"{prefix}/shard-{shard}.json", files)

    def _files(self, prefix: str, shards: int) -> list[str]:
        """What the shards have put below `prefix`."""
        lists = [self.scratch.json(f"{prefix}/shard-{shard}.json") for shard in range(shards)]
        if None in lists:
            raise StoreError(
                "the list of a shard's files is not there",
                value=f"{prefix}/shard-{lists.index(None)}.json",
                remedy="run again: training goes on from the last checkpoint",
            )
        return sorted(file for files in lists for file in files)


def _checkpoint(step: int) -> str:
    return f"checkpoint/{step:08d}"
