"""Where things lie below the root of a store. Only this module knows.

    <stage>/<key>/manifest.json          written last: without it the artifact is not done
    <stage>/<key>/<name>                 the files of the first attempt
    <stage>/<key>/attempt-<n>/<name>     those of a later attempt (the writer before it failed or was killed)
    <stage>/<key>/attempt-<n>-<token>/<name>    those that workers of attempt n put there themselves (see `parts`)
    <stage>/<key>/lock/<n>.json          who makes, or made, attempt n; removed when the artifact is done
    runs/<run>/<name>                    no artifact: how a run on a cluster goes (see `runs`)
    <stage>/<key>/scratch/<name>         checkpoints and other things that outlive a failed attempt; removed when done

Every attempt has a place of its own, so a writer that was taken for dead and wakes up again writes over nothing
that a manifest names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from interp.errors import StoreError

MANIFEST = "manifest.json"
RUNS = "runs"
"""Beside the stages: what `interp.store.runs` keeps."""

TEMPORARY = ".tmp-"
"""First characters of the name of a file that is being written, or was when its writer died."""

_LOCK, _SCRATCH, _ATTEMPT = "lock", "scratch", "attempt-"
_STAGE = re.compile(r"^[a-z][a-z0-9_-]{0,62}$")
_KEY = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_-]{0,127}$")
_BAD_NAME = re.compile(r"[\x00-\x1f\x7f\\]")


@dataclass(frozen=True)
class Place:
    """The folder of one artifact."""

    stage: str
    key: str

    def __post_init__(self) -> None:
        if not _STAGE.match(self.stage) or self.stage == RUNS:
            raise StoreError(
                "this cannot be a stage", value=self.stage, expected="lower-case letters, digits, '-', '_'"
            )
        if not _KEY.match(self.key):
            raise StoreError("this cannot be a key", value=self.key, expected="letters, digits, '-' and '_', up to 128")

    def __str__(self) -> str:
        return f"{self.stage}/{self.key}"

    @property
    def manifest(self) -> str:
        return f"{self}/{MANIFEST}"

    @property
    def locks(self) -> str:
        return f"{self}/{_LOCK}"

    @property
    def scratch(self) -> str:
        return f"{self}/{_SCRATCH}"

    def lock(self, attempt: int) -> str:
        return f"{self.locks}/{attempt:06d}.json"

    def folder(self, attempt: int) -> str:
        """Where an attempt keeps its files."""
        return str(self) if attempt == 1 else f"{self}/{_ATTEMPT}{attempt}"

    @staticmethod
    def parts(attempt: int, token: str) -> str:
        """The name of the folder of what an attempt's workers put there; no other writer's has the same."""
        return f"{_ATTEMPT}{attempt}-{token[:12]}"

    def is_remnant(self, path: str) -> bool:
        """Whether a path is of a kind that only writers make: a lock, scratch, a later attempt, a temporary file."""
        parts = path.removeprefix(f"{self}/").split("/")
        return (
            parts[0] in (_LOCK, _SCRATCH)
            or parts[0].startswith(_ATTEMPT)
            or any(p.startswith(TEMPORARY) for p in parts)
        )


def attempt_of(lock_path: str) -> int | None:
    """The number in a lock's path; None for another file in that folder."""
    stem = lock_path.rsplit("/", 1)[-1].removesuffix(".json")
    return int(stem) if stem.isdigit() else None


def checked_name(name: str) -> str:
    """The name of a file in an artifact: a relative path with '/', which no reserved name begins.

    Raises:
        StoreError: it leaves the artifact's folder, or is reserved.
    """
    parts = name.split("/")
    if _BAD_NAME.search(name) or any(part in ("", ".", "..") or part.startswith(TEMPORARY) for part in parts):
        raise StoreError(
            "this cannot be a file's name in an artifact", value=name, expected="such as 'train/0.safetensors'"
        )
    if name == MANIFEST or parts[0] in (_LOCK, _SCRATCH) or parts[0].startswith(_ATTEMPT):
        expected = f"no name that begins with {MANIFEST}, {_LOCK}/, {_SCRATCH}/ or {_ATTEMPT}"
        raise StoreError("this file's name is reserved in an artifact", value=name, expected=expected)
    return name
