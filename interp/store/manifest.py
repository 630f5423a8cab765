"""The manifest: what an artifact is made of and where it came from. It is written last, so having one means done.

It carries a digest of itself: a manifest that was edited or damaged is as corrupt as a file that was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from interp.errors import ArtifactCorrupt, StoreError
from interp.store.digest import FileRecord
from interp.store.names import Place

_FORMAT = "interp/artifact/1"


@dataclass(frozen=True)
class Manifest:
    """One finished artifact.

    Attributes:
        files: by name; sizes in bytes.
        spec: the stage's part of the study, as it went into the key.
        inputs: role -> key of the artifacts it was made from.
        provenance: versions, host, platform, start and end.
        created: when it was committed, ISO 8601 in UTC.
        attempt: which attempt made it; says where its files lie (see `names`).
        writer: a random token of the writer that made it.
        placed: of files that lie in another folder than the attempt's, which one (see `parts`).
    """

    stage: str
    key: str
    files: Mapping[str, FileRecord]
    spec: Mapping[str, Any]
    inputs: Mapping[str, str]
    provenance: Mapping[str, Any]
    created: str
    attempt: int
    writer: str
    placed: Mapping[str, str] = field(default_factory=dict)

    @property
    def place(self) -> Place:
        return Place(self.stage, self.key)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(record.size for record in self.files.values())

    def path(self, name: str) -> str:
        """Where a file lies below the store's root."""
        folder = self.placed.get(name)
        return f"{self.place.folder(self.attempt)}/{name}" if folder is None else f"{self.place}/{folder}/{name}"

    def to_json(self) -> dict[str, Any]:
        body = asdict(self)
        body["files"] = {name: asdict(record) for name, record in sorted(self.files.items())}
        if not self.placed:
            del body["placed"]
        return {"format": _FORMAT, **body}

    def to_bytes(self) -> bytes:
        # By way of JSON, so that the digest is of what a reader will see (tuples as lists, keys as strings).
        body = json.loads(to_json_bytes(self.to_json(), f"the spec, inputs or provenance of {self.place}"))
        return to_json_bytes({**body, "digest": _digest(body)}, "the manifest")

    @staticmethod
    def from_bytes(data: bytes, place: Place) -> Manifest:
        """Reads a manifest and checks it against itself and against the place where it was found.

        Raises:
            ArtifactCorrupt: it is torn, edited, or another artifact's.
        """
        try:
            body = json.loads(data)
            digest = body.pop("digest")
            if body.pop("format") != _FORMAT or digest != _digest({"format": _FORMAT, **body}):
                raise ValueError("it does not match its own digest")
            files = {name: FileRecord(**record) for name, record in body.pop("files").items()}
            manifest = Manifest(files=files, **body)
            if manifest.place != place:
                raise ValueError(f"it is the manifest of {manifest.place}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactCorrupt(
                f"the manifest of {place} is damaged: {error}",
                value=f"{len(data)} bytes",
                expected=f"a manifest of format {_FORMAT} that matches its digest",
                remedy=remake(place),
            ) from error
        return manifest


def remake(place: Place) -> str:
    return f"remove it with `interp artifacts verify {place} --remove --store URL`, then run the study again"


def to_json_bytes(obj: object, what: str) -> bytes:
    """Readable JSON with sorted keys.

    Raises:
        StoreError: the object holds something that JSON does not have (NaN and infinity included).
    """
    try:
        return (json.dumps(obj, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n").encode()
    except (TypeError, ValueError) as error:
        remedy = "turn arrays and paths into lists and strings first; write null for a number that is not finite"
        raise StoreError(f"{what} cannot be written as JSON: {error}", remedy=remedy) from error


def _digest(body: Mapping[str, Any]) -> str:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()
