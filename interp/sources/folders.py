"""A folder of files that may be here, on object storage or on the hub: list, read, identify by content, bring here.

LocalFolder    revision: sha256 over names and contents; nothing needs to be brought
RemoteFolder   revision: sha256 over names and the store's etags, so nothing is downloaded to know it; `fetch`
               downloads to a folder of the cache that is named by what it holds
HubFolder      revision: the commit; `fetch` is left to the libraries that know the hub's cache
"""

from __future__ import annotations

import hashlib
import lzma
import shutil
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Protocol

from interp.errors import SourceError
from interp.sources import hub
from interp.sources.memo import Memo, cache_root, replacing

_ETAGS = ("etag", "md5hash", "content_md5", "contentmd5")


class Folder(Protocol):
    """What a checkpoint is read from."""

    def names(self) -> tuple[str, ...]:
        """The files directly in the folder, sorted."""
        ...

    def read(self, name: str) -> bytes: ...

    def revision(self, names: Iterable[str]) -> str:
        """Identifies the content of these files."""
        ...

    def fetch(self, names: Iterable[str]) -> str:
        """Where a library can load these files from: a local path, or the hub's name of the repository."""
        ...


@dataclass(frozen=True)
class LocalFolder:
    path: Path

    def names(self) -> tuple[str, ...]:
        with explained(str(self.path)):
            return tuple(sorted(entry.name for entry in self.path.iterdir() if entry.is_file()))

    def read(self, name: str) -> bytes:
        with explained(str(self.path / name)):
            return (self.path / name).read_bytes()

    def revision(self, names: Iterable[str]) -> str:
        with Memo() as memo:
            return combined((name, memo.sha256(self.path / name)) for name in names)

    def fetch(self, names: Iterable[str]) -> str:
        return str(self.path)


@dataclass(frozen=True)
class HubFolder:
    at: hub.HubRevision

    def names(self) -> tuple[str, ...]:
        return tuple(sorted(name for name in self.at.files if "/" not in name))

    def read(self, name: str) -> bytes:
        return hub.read_file(self.at, name)

    def revision(self, names: Iterable[str]) -> str:
        return self.at.commit

    def fetch(self, names: Iterable[str]) -> str:
        return self.at.repository


@dataclass(frozen=True)
class RemoteFolder:
    """A folder on any filesystem that fsspec knows."""

    url: str
    fs: Any
    path: str

    @staticmethod
    def of(url: str) -> RemoteFolder:
        from fsspec.core import url_to_fs

        with explained(url):
            fs, path = url_to_fs(url)
        return RemoteFolder(url, fs, path)

    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._entries()))

    def read(self, name: str) -> bytes:
        with explained(f"{self.url}/{name}"):
            return bytes(self.fs.cat_file(f"{self.path}/{name}"))

    def revision(self, names: Iterable[str]) -> str:
        entries = self._entries()
        with explained(self.url):
            return combined((name, content_tag(self.fs, entries[name])) for name in names)

    def fetch(self, names: Iterable[str]) -> str:
        entries = self._entries()
        target = cache_root() / "models" / self.revision(names := list(names))
        for name in names:
            size = entries[name]["size"]
            if not (target / name).is_file() or (target / name).stat().st_size != size:
                self._download(entries[name]["name"], target / name, size)
        return str(target)

    def _entries(self) -> dict[str, dict[str, Any]]:
        with explained(self.url):
            self.fs.invalidate_cache()
            found = self.fs.ls(self.path, detail=True)
        # Some writers leave an empty object as the mark of a folder.
        files = [entry for entry in found if entry["type"] == "file" and not entry["name"].endswith("/")]
        return {entry["name"].rsplit("/", 1)[-1]: entry for entry in files}

    def _download(self, source: str, target: Path, size: int) -> None:
        with explained(self.url), replacing(target) as part, self.fs.open(source, "rb") as stream:
            shutil.copyfileobj(stream, part, 8 << 20)
            if (found := part.tell()) != size:
                raise SourceError(f"the download of {source} is cut short", value=f"{found} of {size} bytes")


def combined(parts: Iterable[tuple[str, ...]]) -> str:
    """One digest of several named ones, whatever their order."""
    digest = hashlib.sha256()
    for part in sorted(parts):
        digest.update("\0".join(part).encode() + b"\n")
    return digest.hexdigest()


def matching(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """The names that a glob matches."""
    patterns = tuple(patterns)
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def content_tag(fs: Any, entry: dict[str, Any]) -> str:
    """What changes whenever a remote file does: its size and etag, or the sha256 of its content where it has none."""
    known = {key.lower(): value for key, value in entry.items()}
    tag = next((str(known[name]).strip('"') for name in _ETAGS if known.get(name)), None)
    if tag is not None:
        return f"{entry['size']}:{tag}"
    digest = hashlib.sha256()
    with fs.open(entry["name"], "rb") as stream:
        while chunk := stream.read(8 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _failures() -> tuple[type[Exception], ...]:
    """What reading raises; the errors of S3 and of HTTP are their libraries' own, if these were loaded at all."""
    own: list[type[Exception]] = [OSError, ValueError, ImportError, EOFError, zlib.error, lzma.LZMAError]
    for module, names in (("botocore.exceptions", ("BotoCoreError", "ClientError")), ("aiohttp", ("ClientError",))):
        own += [getattr(sys.modules[module], name) for name in names if module in sys.modules]
    return tuple(own)


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Failures of a filesystem as SourceError. No message of the storage library is repeated: it may show secrets."""
    try:
        yield
    except FileNotFoundError as error:
        raise SourceError("there is no such file or folder", value=what, remedy="check the path") from error
    except PermissionError as error:
        remedy = "check the rights, and for object storage AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL"
        raise SourceError("access is refused", value=what, remedy=remedy) from error
    except _failures() as error:
        remedy = "check the URL, the network and, for object storage, AWS_ENDPOINT_URL and the credentials"
        raise SourceError(f"this cannot be read ({type(error).__name__})", value=what, remedy=remedy) from error
