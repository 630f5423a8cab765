"""What is finished of a trace, and so not computed again: in the scratch of a run that was killed, or in an artifact
that is made anew because some of its prompts failed for reasons that are not their own.

    own fault    empty, too long, no such token; numbers that are not finite      the same again, so never tried again
    not its own  no memory for it, its worker died, the store failed it, a defect    `retry: true` in index and failures

The artifact of a trace that has such failures keeps `sums/<slug>.safetensors` of its graphs: the features over all
prompts can be added up anew when the rest has been traced.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.errors import EngineError, InterpError, StoreError

if TYPE_CHECKING:
    from interp.store import Artifact, Scratch

_NOT_ITS_OWN = (EngineError, StoreError)


def can_be_retried(error: InterpError) -> bool:
    """Whether a prompt that failed so may be traced another time, with more memory or on a machine that lives."""
    return isinstance(error, _NOT_ITS_OWN)


def failures_to_retry(artifact: Artifact) -> int:
    """How many prompts of a finished trace could be tried again; of other stages none."""
    return int(artifact.json("summary.json").get("retry", 0)) if artifact.stage == "trace" else 0


class Finished:
    """Rows and files of prompts that have their fate, from the scratch or else from the earlier artifact."""

    def __init__(self, scratch: Scratch, earlier: Artifact | None):
        self.scratch, self._earlier = scratch, earlier

    def earlier_rows(self) -> dict[str, dict[str, Any]]:
        """By slug: the rows of the earlier artifact, without those that are tried again."""
        if self._earlier is None:
            return {}
        rows = [json.loads(line) for line in self._earlier.read("index.jsonl").splitlines()]
        metadata = {one["slug"]: one for one in self._earlier.json("graph-metadata.json")["graphs"]}
        return {row["slug"]: {**row, "metadata": metadata.get(row["slug"])} for row in rows if not row["retry"]}

    def fetch(self, name: str, path: Path) -> bool:
        """Copy a file to `path`; False if it is nowhere, or torn."""
        if self.scratch.fetch(name, path):
            return True
        if self._earlier is None or name not in self._earlier.manifest.files:
            return False
        self._earlier.copy(name, path)
        return True

    def read(self, name: str) -> bytes | None:
        """A file's bytes; None if it is nowhere, or torn."""
        data = self.scratch.read(name)
        if data is not None or self._earlier is None or name not in self._earlier.manifest.files:
            return data
        return self._earlier.read(name)
