"""What an unfinished artifact keeps between attempts: checkpoints, finished items. It goes when the artifact is done.

An object is its payload and then a seal of 48 bytes: the payload's sha256, its length (8 bytes, big-endian) and a
mark. Payload and seal are one object, so that replacing one checkpoint by the next is one step, and they are written
in one pass. An object whose seal does not fit is torn: it counts as absent, with a warning, and its work is done
again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.errors import StoreAccessError, StoreError
from interp.store.digest import CHUNK, Digest, file_chunks
from interp.store.manifest import to_json_bytes
from interp.store.names import TEMPORARY, Place, checked_name

if TYPE_CHECKING:
    from interp.store.store import Store

logger = logging.getLogger(__name__)

_MARK = b"interp/1"
_SEAL = 32 + 8 + len(_MARK)


@dataclass(frozen=True)
class Scratch:
    """The scratch folder of one key. Needs no lock and can be pickled: workers write into it side by side.

    A name that is written twice holds one of the two, whole.
    """

    store: Store
    place: Place

    @property
    def url(self) -> str:
        """The folder's URL, for libraries that write there by themselves (what they write has no seal)."""
        return f"{self.store.url}/{self.place.scratch}"

    def write(self, name: str, data: bytes) -> None:
        path = self._path(name)
        pieces = (data[start : start + CHUNK] for start in range(0, len(data), CHUNK))
        self.store.backend.write_stream(path, _sealed(pieces), len(data) + _SEAL)

    def write_json(self, name: str, obj: object) -> None:
        self.write(name, to_json_bytes(obj, f"{name} in the scratch of {self.place}"))

    def write_chunks(self, name: str, size: int, chunks: Iterable[bytes]) -> None:
        """What is never whole in memory: `size` bytes in all."""
        self.store.backend.write_stream(self._path(name), _sealed(chunks), size + _SEAL)

    def put(self, local_path: str | os.PathLike[str], name: str) -> None:
        """Copies a local file of any size."""
        source = Path(local_path)
        if not source.is_file():
            raise StoreError(f"there is no file to put into the scratch of {self.place} as {name}", value=str(source))
        self.store.backend.write_stream(self._path(name), _sealed(file_chunks(source)), source.stat().st_size + _SEAL)

    def read(self, name: str) -> bytes | None:
        """The object; None if it is absent or torn."""
        data = self.store.backend.read(self._path(name))
        if data is None:
            return None
        payload, seal = data[:-_SEAL], data[-_SEAL:]
        if seal != _seal(hashlib.sha256(payload).digest(), len(payload)):
            self._warn(name)
            return None
        return payload

    def json(self, name: str) -> Any:
        """The object as JSON; None if it is absent or torn."""
        data = self.read(name)
        return None if data is None else json.loads(data)

    def fetch(self, name: str, local_path: str | os.PathLike[str]) -> bool:
        """Copies an object of any size into a local file; False, and no file, if it is absent or torn."""
        target = Path(local_path)
        stat = self.store.backend.stat(self._path(name))
        if stat is None:
            return False
        if stat.size < _SEAL:
            self._warn(name)
            return False
        temporary = target.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:12]}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                whole = _unseal(self.store.backend.chunks(self._path(name), stat.size), stat.size - _SEAL, file.write)
            if whole:
                temporary.replace(target)
        except OSError as error:
            what = f"cannot copy {name} out of the scratch of {self.place}: {error.strerror or error}"
            raise StoreAccessError(
                what, value=str(target), remedy="see that the disk is writable and not full"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)
        if not whole:
            self._warn(name)
        return whole

    def list(self, prefix: str = "") -> list[str]:
        """The names that begin with `prefix`, sorted; torn objects are among them."""
        below = f"{self.place.scratch}/"
        folder = prefix.rpartition("/")[0]
        found = self.store.backend.objects(f"{below}{folder}".rstrip("/"))
        names = [stat.path.removeprefix(below) for stat in found]
        return sorted(name for name in names if name.startswith(prefix) and f"/{TEMPORARY}" not in f"/{name}")

    def delete(self, *names: str) -> None:
        """Removes objects; absent ones do not matter."""
        self.store.backend.delete([self._path(name) for name in names])

    def _path(self, name: str) -> str:
        return f"{self.place.scratch}/{checked_name(name)}"

    def _warn(self, name: str) -> None:
        logger.warning("%s in the scratch of %s is torn or changed: taken as absent", name, self.place)


def _seal(sha256: bytes, length: int) -> bytes:
    return sha256 + length.to_bytes(8, "big") + _MARK


def _sealed(chunks: Iterable[bytes]) -> Iterator[bytes]:
    digest = Digest()
    yield from digest.over(chunks)
    yield _seal(digest.raw(), digest.size)


def _unseal(chunks: Iterable[bytes], payload: int, write: Any) -> bool:
    """Passes `payload` bytes on to `write` and checks what comes after them."""
    digest, seal = Digest(), b""
    for chunk in chunks:
        part = chunk[: max(0, payload - digest.size)]
        digest.update(part)
        write(part)
        seal += chunk[len(part) :]
    return seal == _seal(digest.raw(), digest.size) and digest.size == payload
