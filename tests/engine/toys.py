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
    """

    folder: str
    kills_once: tuple[int, ...] = ()
    kills: tuple[int, ...] = ()
    refused: tuple[int, ...] = ()
    defects: tuple[int, ...] = ()
    seconds: float = 0.0
    starts: bool = True

    def start(self) -> Callable[[int], int]:
        if not self.starts:
            raise ModelError("there is no model here", value=self.folder)
        with (Path(self.folder) / "started").open("a") as file:
            file.write(f"{os.getpid()}\n")
        return self._square

    def _square(self, number: int) -> int:
        time.sleep(self.seconds)
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

    def processes(self) -> list[str]:
        return (Path(self.folder) / "started").read_text().split()
