"""Reading the activations that the stage `activations` has kept: a fit from them loads no model.

    index.json                        what there is (`interp.wrapper.cache_files`)
    <hook point>/00000.safetensors    about 65,000 tokens each

Files of a store in a folder are mapped where they lie. Of a store elsewhere they are fetched when they are first read,
the next shard while this one is in use, and those that were read longest ago are removed when more than `keep_bytes`
of them lie here: a cache is larger than any disk of a worker. The processes of a machine share the files: what any of
them has used in the last RECENT_S seconds stays, be it more than `keep_bytes`. What is checked, once a process and
file: length, shape and dtype always, sha256 of what is fetched, on its way. What lies in a folder is not hashed before
use, for that would read terabytes twice; `interp artifacts verify` does.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from interp.errors import HookError, SpecError
from interp.spec.base import parse_quantity
from interp.store import Artifact
from interp.wrapper.cache_files import INDEX, CacheFile, Column, Index, ShardReader

KEEP_BYTES = 64 << 30
"""Of fetched files, on each machine."""

RECENT_S = 120.0
"""A file counts as in use for so long after it was last read; while it is read, it is marked four times as often."""

_BOUND = "INTERP_CACHE_BYTES"


class CachedActivations:
    """The activations of an artifact at some of its hook points.

    Args:
        hooks: those to read; nothing of the others is fetched.
        keep_bytes: how much of what is fetched stays on this machine, beside what is in use; INTERP_CACHE_BYTES, or
            `KEEP_BYTES`, when not given.

    Attributes:
        tokens: how many there are.
        columns: width and dtype by hook point.

    Raises:
        HookError: a hook point that is not kept.
        SpecError: INTERP_CACHE_BYTES is no number of bytes.
    """

    def __init__(self, artifact: Artifact, hooks: Sequence[str], *, keep_bytes: int | None = None):
        index = Index.from_json(artifact.json(INDEX), f"{INDEX} of {artifact.manifest.place}")
        if absent := [hook for hook in hooks if hook not in index.columns]:
            raise HookError(
                "the activations of these hook points were not kept",
                value=", ".join(absent),
                expected=f"some of {', '.join(index.columns)}",
            )
        self.hooks, self.tokens = tuple(hooks), index.rows
        self.columns: dict[str, Column] = {hook: index.columns[hook] for hook in hooks}
        self._artifact, self._index = artifact, index
        self._keep = bound_from_environment() if keep_bytes is None else keep_bytes
        self._reader = ShardReader(index, self._fetched)
        self._remote = artifact.store.backend.local("") is None
        self._ahead: dict[int, Future[None]] = {}
        self._marked = 0.0
        self._pool = ThreadPoolExecutor(1, "interp-activations") if self._remote else None

    def rows(self, start: int, stop: int) -> dict[str, Float[Tensor, "tokens d"]]:
        """Tokens start .. stop - 1 of every hook point, in the dtype in which they are kept.

        Raises:
            ArtifactCorrupt: a file is absent, truncated or (where it is fetched) changed.
        """
        if self._pool is not None:
            self._fetch_ahead(self._reader.shards_of(start, stop))
        return {hook: self._reader.read(hook, start, stop) for hook in self.hooks}

    def close(self) -> None:
        """Fetch nothing more."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _fetched(self, file: CacheFile) -> Path:
        return self._artifact.local(file.name, verify="size")

    def _fetch_ahead(self, needed: range) -> None:
        """See that the shards that are needed are here, and begin with the one after them."""
        assert self._pool is not None
        for number in range(needed.start, min(needed.stop + 1, len(self._index.shards))):
            if number not in self._ahead:
                self._ahead[number] = self._pool.submit(self._fetch, number, needed)
        for number in needed:
            self._ahead[number].result()
        if time.monotonic() - self._marked > RECENT_S / 4:
            self._marked = time.monotonic()
            self._artifact.touch([name for number in self._ahead for name in self._names(number)])
        for number in [number for number in self._ahead if number < needed.start]:
            del self._ahead[number]

    def _fetch(self, number: int, needed: range) -> None:
        for name in self._names(number):
            self._artifact.local(name, verify="size")
        using = [name for one in {number, *needed} for name in self._names(one)]
        self._artifact.forget(self._keep, using, recent_s=RECENT_S)

    def _names(self, number: int) -> list[str]:
        """The files of a shard that are read."""
        return [self._index.shards[number].files[hook].name for hook in self.hooks]


def bound_from_environment() -> int:
    """INTERP_CACHE_BYTES, such as 64000000000 or 64G (10^9); `KEEP_BYTES` when it is not set.

    Raises:
        SpecError: it is no number of bytes.
    """
    said = os.environ.get(_BOUND, "").strip()
    if not said:
        return KEEP_BYTES
    try:
        bound = int(parse_quantity(said))
        if bound < 0:
            raise ValueError("negative")
    except ValueError as error:
        raise SpecError(
            f"{_BOUND} is no number of bytes",
            value=said,
            expected="a number such as 64000000000, 500M or 64G",
            remedy=f"set {_BOUND} anew, or unset it: {KEEP_BYTES} then",
        ) from error
    return bound
