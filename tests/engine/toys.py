"""Small workers for the tests of the engines; the processes of Ray import this module by its name."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from interp.errors import ModelError, PromptError


@dataclass(frozen=True)
class Squares:
    """Squares numbers; every call leaves a line in `folder`, and some numbers have accidents.

    Attributes:
        kills_once: these numbers kill their process, the first time.
        kills: these kill it every time.
        refused, defects: these end in an error that we understand, or in one that we do not.
        room: so many processes can start; a further one is killed, as where memory is short.
        until: no number is done before so many processes have "started", or been "refused" for want of room.
    """

    folder: str
    kills_once: tuple[int, ...] = ()
    kills: tuple[int, ...] = ()
    refused: tuple[int, ...] = ()
    defects: tuple[int, ...] = ()
    seconds: float = 0.0
    starts: bool = True
    room: int | None = None
    until: tuple[str, int] = ("started", 0)

    def start(self) -> Callable[[int], int]:
        if not self.starts:
            raise ModelError("there is no model here", value=self.folder)
        refused = self.room is not None and len(self.processes()) >= self.room
        with (Path(self.folder) / ("refused" if refused else "started")).open("a") as file:
            file.write(f"{os.getpid()}\n")
        if refused:
            os.kill(os.getpid(), signal.SIGKILL)
        return self._square

    def _square(self, number: int) -> int:
        time.sleep(self.seconds)
        event, times = self.until
        deadline = time.monotonic() + 60
        while len(self.processes(event)) < times and time.monotonic() < deadline:
            time.sleep(0.02)
        marker = Path(self.folder) / f"killed-{number}"
        if number in self.kills or (number in self.kills_once and not marker.exists()):
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if number in self.refused:
            raise PromptError("not this one", value=number)
        if number in self.defects:
            raise ZeroDivisionError("a defect")
        with (Path(self.folder) / f"done-{number}").open("a") as file:
            file.write(f"{os.getpid()}\n")
        return number * number

    def times_done(self, number: int) -> int:
        path = Path(self.folder) / f"done-{number}"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def processes(self, event: str = "started") -> list[str]:
        path = Path(self.folder) / event
        return path.read_text().split() if path.exists() else []
