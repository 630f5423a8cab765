"""What is known of files that did not change: digests of content, so that a large checkpoint is read once.

One JSON file in the user's cache, `digests.json`. An entry is valid while the signature of its file is the same: size,
mtime, ctime and inode. A file that changed within the last two seconds is not remembered, since a write after the read
could leave its signature as it was. Losing the file costs time and nothing else; two processes that write it at once
lose at most an entry.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from interp.errors import SourceError

_LOG = logging.getLogger(__name__)

_CHUNK = 8 << 20
_SETTLED_NS = 2_000_000_000
_MOST_ENTRIES = 20_000

Signature = list[int | str]


def cache_root() -> Path:
    """Where downloads and digests are kept: $INTERP_CACHE_DIR, or `interp` in the user's cache directory."""
    if chosen := os.environ.get("INTERP_CACHE_DIR"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "interp"


class Memo:
    """Values by key and signature; read on entry, written on exit if anything is new.

    with Memo() as memo:
        digest = memo.sha256(path)
    """

    def __init__(self, file: Path | None = None):
        self.file = file or cache_root() / "digests.json"
        self._entries: dict[str, list[Any]] = {}
        self._new: dict[str, list[Any]] = {}

    def __enter__(self) -> Memo:
        self._entries = self._read()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Also after an error: what was hashed so far need not be hashed again.
        if self._new:
            self._write()

    def recall(self, key: str, signature: Signature, compute: Callable[[], Any], *, keep: bool = True) -> Any:
        """The value of `key` if its signature is the same, else what `compute` gives (JSON data)."""
        known = self._new.get(key) or self._entries.get(key)
        if known is not None and known[0] == signature:
            return known[1]
        value = compute()
        if keep:
            self._new[key] = [signature, value]
        return value

    def sha256(self, path: Path) -> str:
        """Digest of a file's content.

        Raises:
            SourceError: it cannot be read, or changes while it is.
        """
        try:
            before = path.stat()
            settled = time.time_ns() - max(before.st_mtime_ns, before.st_ctime_ns) > _SETTLED_NS
            return self.recall(
                f"sha256:{path.resolve()}", signature(before), lambda: _sha256(path, before), keep=settled
            )
        except OSError as error:
            raise SourceError(
                f"{path} cannot be read: {error.strerror}", remedy="check the path and its rights"
            ) from error

    def _read(self) -> dict[str, list[Any]]:
        try:
            found = json.loads(self.file.read_text("utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            _LOG.warning("the digests in %s are not readable and will be made again: %s", self.file, error)
            return {}
        well_formed = isinstance(found, dict) and all(isinstance(e, list) and len(e) == 2 for e in found.values())
        return found if well_formed else {}

    def _write(self) -> None:
        entries = {**self._read(), **self._new}
        newest = dict(list(entries.items())[-_MOST_ENTRIES:])
        try:
            with replacing(self.file) as file:
                file.write(json.dumps(newest).encode())
        except OSError as error:
            _LOG.warning("digests cannot be remembered in %s: %s", self.file, error)


def signature(status: os.stat_result) -> Signature:
    """Equal for a file that was not written to, moved over or replaced."""
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` at the end, if nothing fails: readers see the old content or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _sha256(path: Path, before: os.stat_result) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
        after = os.fstat(file.fileno())
    if signature(after) != signature(before):
        raise SourceError(f"{path} changed while it was read", remedy="wait until whatever writes it has finished")
    return digest.hexdigest()
