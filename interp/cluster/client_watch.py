"""Watching one object: list it, then read its changes from that version on, through cuts and 410 Gone.

A server forgets old versions: then the object is listed again, and the difference to what was last seen is told. So
nobody outside misses the last state, though states in between may be skipped.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from interp.cluster.client_errors import Asked, Expired, Unreachable, refusal
from interp.cluster.client_http import Api, Object

logger = logging.getLogger(__name__)

# The server ends a watch after so long, and it is taken up again: a connection that died silently is noticed.
_SEGMENT = 60.0
_GRACE = 5.0
_PATIENCE = 60.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 5.0


@dataclass(frozen=True)
class Watched:
    """`kind` is ADDED, MODIFIED or DELETED; with DELETED, `object` is as it was last seen."""

    kind: str
    object: Object


@dataclass
class _Seen:
    """How far the watch has come: the version to go on from ("" before the first list), and the object, if any."""

    version: str = ""
    object: Object | None = None
    since: float = field(default_factory=time.monotonic)

    def told(self, kind: str, obj: Object) -> Watched:
        self.object = None if kind == "DELETED" else obj
        return Watched(kind, obj)


def watch_one(api: Api, asked: Asked, name: str, seconds: float) -> Iterator[Watched]:
    """See `Cluster.watch_job`. `asked` is about the collection."""
    until, pause, seen = time.monotonic() + seconds, _FIRST_PAUSE, _Seen()
    while time.monotonic() < until:
        try:
            if not seen.version:
                yield from _listed(api, replace(asked, verb="list"), name, seen)
            for one in _segment(api, asked, name, seen, until):
                pause = _FIRST_PAUSE
                yield one
            seen.since = time.monotonic()
        except Expired:
            seen.version = ""
        except Unreachable as error:
            if time.monotonic() - seen.since > _PATIENCE:
                raise
            logger.debug("the watch goes on: %s", error.what)
            time.sleep(max(0.0, min(pause, until - time.monotonic())))
            pause = min(2 * pause, _LONGEST_PAUSE)


def _listed(api: Api, asked: Asked, name: str, seen: _Seen) -> Iterator[Watched]:
    """The object as it is now, told as a difference to what was seen."""
    found = api.call(asked, query={"fieldSelector": f"metadata.name={name}"})
    seen.version, seen.since = str(found["metadata"]["resourceVersion"]), time.monotonic()
    now: Object | None = next(iter(found["items"]), None)
    before = seen.object
    if before is not None and (now is None or now["metadata"]["uid"] != before["metadata"]["uid"]):
        yield seen.told("DELETED", before)
        before = None
    if now is None:
        return
    if before is None:
        yield seen.told("ADDED", now)
    elif now["metadata"]["resourceVersion"] != before["metadata"]["resourceVersion"]:
        yield seen.told("MODIFIED", now)


def _segment(api: Api, asked: Asked, name: str, seen: _Seen, until: float) -> Iterator[Watched]:
    """One connection's changes; it ends when the server ends it, or when the time is over."""
    left = max(until - time.monotonic(), 0.001)
    query = {
        "watch": "true",
        "fieldSelector": f"metadata.name={name}",
        "resourceVersion": seen.version,
        "allowWatchBookmarks": "true",
        "timeoutSeconds": max(1, round(min(left, _SEGMENT))),
    }
    # The silence until our own time is over is a cut like others: nobody goes on after it.
    for line in api.lines(asked, query=query, silence=min(left, _SEGMENT + _GRACE)):
        event = json.loads(line)
        kind, obj = event["type"], event["object"]
        if kind == "ERROR":
            # A Status object, in the midst of the stream.
            raise refusal(asked, int(obj.get("code", 500)), json.dumps(obj).encode())
        seen.version, seen.since = str(obj["metadata"]["resourceVersion"]), time.monotonic()
        if kind != "BOOKMARK":
            yield seen.told(kind, obj)
        if time.monotonic() >= until:
            return
