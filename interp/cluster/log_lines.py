"""Which lines of a run's log have been shown: it is told in several places, and cut off in each.

The driver's own lines begin with a time that no other line of the run has, and stand in its pod's log and in the store.
Other lines (Ray's, those of workers) stand in the pod's log alone, and are known by the driver's line before them: a
pod that follows the same driver from its beginning, as KubeRay's second submitter does, tells them again at the same
places. Of equal lines at one place as many are shown as one source has.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator

_DRIVERS = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z ")
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?\S*")


def time_of_line(line: str) -> str | None:
    """The time of a line of the driver's own, to be compared as text; None for any other."""
    found = _DRIVERS.match(line)
    return None if found is None else found[0]


class Shown:
    """What has been shown of one run. Lines are kept as their hashes."""

    def __init__(self) -> None:
        self.times: Counter[int] = Counter()

    def source(self, name: str) -> Source:
        """A new telling of the log from a beginning; `name` is equal for tellings of the same driver."""
        return Source(self, name)


class Source:
    """One telling of the log, line by line in its order."""

    def __init__(self, shown: Shown, name: str) -> None:
        self._shown, self._place = shown, name
        self._told: Counter[int] = Counter()

    def is_new(self, line: str) -> bool:
        """Whether nobody has told this line yet; from now on it has been told."""
        if time_of_line(line) is not None:
            self._place = line
            key = hash(line)
        else:
            key = hash((self._place, line))
        self._told[key] += 1
        if self._told[key] <= self._shown.times[key]:
            return False
        self._shown.times[key] = self._told[key]
        return True


class Resumed:
    """A container's log over several connections, each from the second in which the last one was cut.

    Attributes:
        since: the time of the last line, as the API wrote it; None before the first.
    """

    def __init__(self) -> None:
        self.since: str | None = None
        self._latest = ("", "")
        self._at_latest = 0

    def lines(self, stamped: Iterable[str]) -> Iterator[str]:
        """The lines of one connection without their times, those left out that an earlier one has had."""
        before, again = self._latest, self._at_latest
        skipping = self.since is not None
        for line in stamped:
            stamp, _, text = line.partition(" ")
            order = _order(stamp)
            if skipping and order < before:
                continue
            if skipping and order == before and again > 0:
                again -= 1
                continue
            skipping = False
            if order > self._latest:
                self.since, self._latest, self._at_latest = stamp, order, 0
            self._at_latest += order == self._latest
            yield text


def _order(stamp: str) -> tuple[str, str]:
    """Nanoseconds lose their last zeros on some nodes."""
    found = _TIME.fullmatch(stamp)
    return (stamp, "") if found is None else (found[1], (found[2] or "").ljust(9, "0"))
