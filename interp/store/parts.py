"""Files that workers put into an artifact themselves: what is large passes through no driver and is written once.

    parts = writer.parts()                      the driver, which holds the lock; `parts` can be pickled
    with parts.folder() as folder:              a worker: makes files, each near where it will lie
        part = parts.put(folder / "0", "resid/00000.safetensors")
    parts.finish("00000", [part])               a record in the scratch: this piece of work is done
    writer.adopt(part)                          the driver: the manifest will name it

A part lies in `attempt-<n>-<token>/`, which is this writer's alone, from the beginning: it is moved there whole, and
never again. An attempt that fails or is killed leaves its parts and their records; the next one finds them by
`finished`, makes only what is missing, and its manifest names files of both. Whoever commits removes what its manifest
does not name, and `Store.gc` what a worker that lived on has put there since.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from interp.errors import StoreAccessError, StoreError
from interp.store.digest import FileRecord, digest_of, file_chunks
from interp.store.names import TEMPORARY, checked_name
from interp.store.scratch import Scratch

_RECORDS = "parts"
_AT_ONCE = 8


@dataclass(frozen=True)
class Part:
    """A file that is in its place.

    Attributes:
        folder: which writer's it is.
    """

    name: str
    folder: str
    record: FileRecord


@dataclass(frozen=True)
class PartWriter:
    """Made by `Writer.parts`; needs no lock and can be pickled. Workers write side by side, each its own names."""

    scratch: Scratch
    attempt_folder: str

    @contextlib.contextmanager
    def folder(self) -> Iterator[Path]:
        """A local folder to make files in, on the store's disk if it has one here; it is gone afterwards."""
        near = self.scratch.store.backend.local(str(self.scratch.place))
        try:
            if near is None:
                made = Path(tempfile.mkdtemp(prefix="interp-parts-"))
            else:
                made = near / f"{TEMPORARY}parts-{uuid.uuid4().hex[:12]}"
                made.mkdir(parents=True)
        except OSError as error:
            what = f"cannot make a folder to work in: {error.strerror or error}"
            raise StoreAccessError(what, value=str(near), remedy="see that it can be written") from error
        try:
            yield made
        finally:
            shutil.rmtree(made, ignore_errors=True)

    def put(self, local_path: Path, name: str, record: FileRecord | None = None) -> Part:
        """Moves a local file into the artifact; by a rename where the store is on the same disk.

        Args:
            record: size and sha256 of the file, from whoever counted them while writing it; read from it otherwise.
        """
        if not local_path.is_file():
            what = f"there is no file to put into {self.scratch.place} as {name}"
            raise StoreError(what, value=str(local_path))
        found = record or digest_of(file_chunks(local_path))
        size = local_path.stat().st_size
        if size != found.size:
            what = f"{name} is not as long as its writer says"
            raise StoreError(what, value=f"{size} bytes", expected=f"{found.size} bytes", remedy="run again")
        backend = self.scratch.store.backend
        path = f"{self.scratch.place}/{self.attempt_folder}/{checked_name(name)}"
        if not backend.adopt(local_path, path):
            backend.write_stream(path, file_chunks(local_path), size)
            local_path.unlink()
        return Part(name, self.attempt_folder, found)

    def finish(self, label: str, parts: Sequence[Part]) -> None:
        """Notes that a piece of work is done, and which files it is made of."""
        self.scratch.write_json(f"{_RECORDS}/{label}.json", [_to_json(part) for part in parts])

    def finished(self) -> dict[str, tuple[Part, ...]]:
        """The pieces of work that are done, by label, whichever attempt did them; all their files are there."""
        backend, place = self.scratch.store.backend, self.scratch.place
        names = [name for name in self.scratch.list(f"{_RECORDS}/") if name.endswith(".json")]
        if not names:
            return {}
        sizes = {stat.path: stat.size for stat in backend.objects(str(place))}
        with ThreadPoolExecutor(_AT_ONCE, "interp-parts") as pool:
            records = list(pool.map(self.scratch.json, names))
        found = {
            name.removeprefix(f"{_RECORDS}/").removesuffix(".json"): tuple(_from_json(each) for each in record)
            for name, record in zip(names, records, strict=True)
            if record is not None
        }
        return {
            label: parts
            for label, parts in found.items()
            if all(sizes.get(f"{place}/{part.folder}/{part.name}") == part.record.size for part in parts)
        }


def _to_json(part: Part) -> dict[str, object]:
    return {"name": part.name, "folder": part.folder, "size": part.record.size, "sha256": part.record.sha256}


def _from_json(saved: dict[str, object]) -> Part:
    return Part(str(saved["name"]), str(saved["folder"]), FileRecord(int(str(saved["size"])), str(saved["sha256"])))
