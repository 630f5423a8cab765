"""What a run on a cluster leaves in the store beside its artifacts: the plan it was given, and how it went.

    runs/<run>/plan.json                  the plan, as `Plan.to_json` wrote it; created once
    runs/<run>/run.json                   who submitted it, when, by which profile; what it is to do
    runs/<run>/submissions/<token>.json   both, as one submission wrote them: the RayJob's token says which holds
    runs/<run>/status.json                the driver's last word: see `interp.cluster.progress`
    runs/<run>/log/<attempt>/<n>.txt      the driver's log: an object can only be written whole, so it comes in pieces
    runs/<run>/metrics/<attempt>/<n>.jsonl   figures of the stages, with times

Nothing here decides what is computed; a run can be started again after all of it is gone but the plan.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from interp.errors import ArtifactMissing, StoreError
from interp.store.manifest import to_json_bytes
from interp.store.names import RUNS

if TYPE_CHECKING:
    from interp.store.store import Store

_AT_ONCE = 16


@dataclass(frozen=True)
class RunFolder:
    """One run's folder. Small objects; no locks: the driver alone writes status, log and metrics."""

    store: Store
    name: str

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name or self.name.startswith("."):
            raise StoreError("this cannot be the name of a run", value=self.name, expected="letters, digits and '-'")

    def create_json(self, name: str, document: dict[str, Any]) -> bool:
        """Put a document there if there is none. It must carry something of this caller's own, such as a token."""
        return self.store.backend.create(self._path(name), self._bytes(name, document))

    def write_json(self, name: str, document: dict[str, Any]) -> None:
        self.store.backend.write(self._path(name), self._bytes(name, document))

    def json(self, name: str) -> dict[str, Any] | None:
        """A document; None if it is not there.

        Raises:
            StoreError: it is no JSON object.
        """
        text = self.text(name)
        if text is None:
            return None
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise StoreError("this is no JSON object", value=f"{self.store.url}/{self._path(name)}")
        return found

    def write_text(self, name: str, text: str) -> None:
        self.store.backend.write(self._path(name), text.encode())

    def text(self, name: str) -> str | None:
        data = self.store.backend.read(self._path(name))
        return None if data is None else data.decode("utf-8", "replace")

    def required_text(self, name: str) -> str:
        """Raises ArtifactMissing if it is not there."""
        found = self.text(name)
        if found is None:
            raise ArtifactMissing(
                f"run {self.name} has no {name}",
                value=f"{self.store.url}/{self._path(name)}",
                remedy="check the name of the run (interp list) and the store",
            )
        return found

    def begin_attempt(self, text: str) -> int:
        """Claim the next attempt by its first piece of log, which must carry something of this caller's own; of drivers
        that begin at the same moment each gets a number of its own."""
        number = max(self.attempts(), default=0) + 1
        while not self.store.backend.create(self._path(f"log/{number:04d}/{0:08d}.txt"), text.encode()):
            number += 1
        return number

    def put_piece(self, kind: str, attempt: int, number: int, text: str) -> None:
        """The next piece of `log` or `metrics`."""
        suffix = "jsonl" if kind == "metrics" else "txt"
        self.write_text(f"{kind}/{attempt:04d}/{number:08d}.{suffix}", text)

    def pieces(self, kind: str, after: str = "", lines: int | None = None) -> Iterator[tuple[str, str]]:
        """(name, text) of the pieces of `log` or `metrics` in their order, those after the piece of this name. They are
        read several at a time, for there may be thousands of them in a store far away.

        Args:
            lines: only the last pieces, that have so many lines together; the others are not read.
        """
        names = [name for name in self._piece_names(kind) if name > after]
        if lines is None:
            return self._texts(names)
        last, found = list[tuple[str, str]](), 0
        for name, text in self._texts(names[::-1]):
            last.append((name, text))
            found += text.count("\n")
            if found >= lines:
                break
        return reversed(last)

    def _piece_names(self, kind: str) -> list[str]:
        begin = f"{RUNS}/{self.name}/"
        return sorted(stat.path.removeprefix(begin) for stat in self.store.backend.objects(f"{begin}{kind}"))

    def _texts(self, names: Sequence[str]) -> Iterator[tuple[str, str]]:
        """What is there of these, in this order, some at a time."""
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for begin in range(0, len(names), _AT_ONCE):
                some = names[begin : begin + _AT_ONCE]
                for name, text in zip(some, pool.map(self.text, some), strict=True):
                    if text is not None:
                        yield name, text

    def attempts(self, kind: str = "log") -> list[int]:
        """Numbers of the attempts that have left something."""
        return sorted(int(name) for name in self.store.backend.folders(f"{RUNS}/{self.name}/{kind}") if name.isdigit())

    def _path(self, name: str) -> str:
        return f"{RUNS}/{self.name}/{name}"

    def _bytes(self, name: str, document: dict[str, Any]) -> bytes:
        return to_json_bytes(document, f"{name} of run {self.name}")


def run_names(store: Store) -> list[str]:
    """All runs that the store knows."""
    return sorted(store.backend.folders(RUNS))
