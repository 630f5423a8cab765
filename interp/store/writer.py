"""Making one artifact.

    with store.create("fit", key, spec=..., inputs=...) as writer:
        writer.write("summary.json", b"...")

Phases: take the lock (see `lock`) - write files into this attempt's own folder, noting size and sha256 of each -
confirm the lock and that every file is there - create the manifest, exclusively - sweep what other attempts left.

Two writers of one key cannot corrupt it: they write into different folders, the manifest names one of them, it can
be created once, and nobody removes another attempt's files before a manifest exists. A second writer that gets so
far finds the manifest, drops its own files with a warning, and its `committed` is False: keys are hashes of all that
decides the content, so what is there is what it would have made. One that finds out earlier gets `LockHeld`.

An artifact in which something is missing can be made anew (`Store.create(..., replaces=...)`): by an attempt of a
higher number, so in a folder of its own. The old manifest, and all that it names, stays until the new one takes its
place in one step, and only if it is still the one that was to be replaced.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from interp.errors import LockHeld, StoreAccessError, StoreError
from interp.store.backends import Backend
from interp.store.cleanup import sweep
from interp.store.digest import CHUNK, Digest, FileRecord, digest_of, file_chunks
from interp.store.lock import Lock, acquire
from interp.store.manifest import Manifest, to_json_bytes
from interp.store.names import TEMPORARY, Place, checked_name
from interp.store.parts import Part, PartWriter
from interp.store.provenance import now, provenance
from interp.store.scratch import Scratch

logger = logging.getLogger(__name__)

_SMALL = 64 * 2**20


class Writer:
    """A context manager; commits on a clean exit, and leaves no manifest on any other.

    Attributes:
        scratch: what an earlier attempt of the same key left, and what this one leaves if it fails.
        committed: after the exit: whether it was this writer that made the artifact.
    """

    def __init__(
        self,
        backend: Backend,
        place: Place,
        scratch: Scratch,
        *,
        spec: Mapping[str, Any],
        inputs: Mapping[str, str],
        provenance: Mapping[str, Any] | None,
        ttl: float,
        wait: float,
        replaces: Manifest | None = None,
    ) -> None:
        self.scratch = scratch
        self.committed = False
        self._backend, self._place, self._ttl, self._wait = backend, place, ttl, wait
        self._spec, self._inputs, self._given = dict(spec), dict(inputs), dict(provenance or {})
        self._replaces, self._old = replaces, b""
        self._files: dict[str, FileRecord] = {}
        self._placed: dict[str, str] = {}
        self._guard = threading.Lock()
        self._lock: Lock | None = None
        self._pid = 0
        self._work: Path | None = None
        self._files_may_go = True

    @property
    def stage(self) -> str:
        return self._place.stage

    @property
    def key(self) -> str:
        return self._place.key

    @property
    def attempt(self) -> int:
        """1 for the first; counts failed and killed ones."""
        return self._held().attempt

    @property
    def path_hint(self) -> Path:
        """A local folder to make files in before `put(..., move=True)`, on the store's disk if it has one here.

        Removed when the writer ends; what a killed writer left in a folder store goes with the next commit or gc.
        """
        if self._work is None:
            near = self._backend.local(str(self._place))
            if near is not None:
                self._work = near / f"{TEMPORARY}work-{self.attempt}-{os.getpid()}"
                try:
                    self._work.mkdir(parents=True, exist_ok=True)
                except OSError as error:
                    what = f"cannot make a folder to work in: {error.strerror or error}"
                    raise StoreAccessError(what, value=str(self._work), remedy="see that it can be written") from error
            else:
                self._work = Path(tempfile.mkdtemp(prefix="interp-"))
        return self._work

    # --- writing

    def write(self, name: str, data: bytes) -> None:
        path = self._path(name)
        if len(data) <= _SMALL:
            with self._writing():
                self._backend.write(path, data)
            self._note(name, FileRecord.of(data))
        else:
            view = memoryview(data)
            pieces = (bytes(view[start : start + CHUNK]) for start in range(0, len(view), CHUNK))
            self._stream(name, path, pieces, len(data))

    def write_json(self, name: str, obj: object) -> None:
        self.write(name, to_json_bytes(obj, f"{name} of {self._place}"))

    def put(self, local_path: str | os.PathLike[str], name: str, *, move: bool = False) -> None:
        """Copies a local file of any size; with `move`, the file may be taken instead of copied, and is gone after."""
        source, path = Path(local_path), self._path(name)
        if not source.is_file():
            raise StoreError(f"there is no file to put into {self._place} as {name}", value=str(source))
        if move:
            record = digest_of(file_chunks(source))
            if self._backend.adopt(source, path):
                self._note(name, record)
                return
        self._stream(name, path, file_chunks(source), source.stat().st_size)
        if move:
            source.unlink()

    def put_dir(self, local_dir: str | os.PathLike[str], prefix: str = "", *, move: bool = False) -> None:
        """`put` for every file below a folder, under the same relative names."""
        folder = Path(local_dir)
        for source in sorted(path for path in folder.rglob("*") if path.is_file()):
            name = source.relative_to(folder).as_posix()
            self.put(source, f"{prefix.rstrip('/')}/{name}" if prefix else name, move=move)

    def parts(self) -> PartWriter:
        """For workers that put files into this artifact themselves; what they return is for `adopt`."""
        lock = self._held()
        return PartWriter(self.scratch, self._place.parts(lock.attempt, lock.record.token))

    def adopt(self, part: Part) -> None:
        """Makes a file that a worker put there, of this attempt or of one before, one of the artifact's.

        Raises:
            StoreError: the artifact has another file of this name.
        """
        self._held().check()
        with self._guard:
            if (there := self._files.get(part.name, part.record)) != part.record:
                raise StoreError(
                    f"two different files of {self._place} have one name: {part.name}",
                    value=str(part.record),
                    expected=str(there),
                    remedy="remove the artifact's folder and run again",
                )
            self._files[checked_name(part.name)] = part.record
            self._placed[part.name] = part.folder

    def names(self) -> tuple[str, ...]:
        """What has been written so far."""
        with self._guard:
            return tuple(sorted(self._files))

    def _stream(self, name: str, path: str, chunks: Iterator[bytes], size: int) -> None:
        digest = Digest()
        with self._writing():
            self._backend.write_stream(path, digest.over(chunks), size)
        self._note(name, digest.record())

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """When a write fails because another writer has taken over and tidied up, that is what the error says."""
        try:
            yield
        except StoreError as error:
            try:
                self._held().confirm(patience=10)
            except LockHeld:
                raise
            except StoreError:
                raise error from None
            raise

    def _path(self, name: str) -> str:
        self._held().check()
        return f"{self._place.folder(self.attempt)}/{checked_name(name)}"

    def _path_of(self, name: str, lock: Lock) -> str:
        """Where a file lies."""
        folder = self._placed.get(name)
        return f"{self._place.folder(lock.attempt)}/{name}" if folder is None else f"{self._place}/{folder}/{name}"

    def _note(self, name: str, record: FileRecord) -> None:
        with self._guard:
            self._files[name] = record
            self._placed.pop(name, None)

    def _held(self) -> Lock:
        if self._lock is None:
            raise StoreError(f"the writer of {self._place} is not open", remedy="use it inside its `with` block")
        return self._lock

    # --- phases

    def __enter__(self) -> Self:
        for what, part in (("spec", self._spec), ("inputs", self._inputs), ("provenance", self._given)):
            to_json_bytes(part, f"the {what} of {self._place}")
        self._started, self._pid = now(), os.getpid()
        self._old = self._to_replace()
        lock = self._acquire()
        try:
            # Again under the lock: it may have been finished, and its locks removed, between the two looks.
            self._refuse_finished()
        except BaseException:
            lock.stop()
            self._backend.delete([self._place.lock(lock.attempt)])
            raise
        self._lock = lock
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._pid != os.getpid():  # a forked child leaves the parent's block: the artifact is not its business
            return
        lock = self._held()
        try:
            if kind is None:
                self._commit(lock)
        finally:
            lock.stop()
            self._lock = None
            self._tidy(lock)

    def _acquire(self) -> Lock:
        deadline = time.monotonic() + self._wait
        while True:
            self._refuse_finished()
            try:
                after = 0 if self._replaces is None else self._replaces.attempt
                return acquire(self._backend, self._place, self._ttl, after=after)
            except LockHeld as error:
                if time.monotonic() >= deadline:
                    raise
                logger.info("waiting for up to %.0f s: %s (%s)", self._wait, error.what, error.value)
                time.sleep(min(5.0, self._ttl / 10))

    def _to_replace(self) -> bytes:
        """The manifest that is to be replaced, as it is in the store; nothing where it is another one by now."""
        data = b"" if self._replaces is None else self._backend.read(self._place.manifest) or b""
        return data if data and Manifest.from_bytes(data, self._place) == self._replaces else b""

    def _refuse_finished(self) -> None:
        if self._finished() is not None:
            raise LockHeld(
                f"{self._place} is finished already",
                expected="an artifact that is still to be made",
                remedy="read it with `Store.get`; to make it anew, remove it first",
            )

    def _commit(self, lock: Lock) -> None:
        try:
            lock.confirm()
            self._confirm_files(lock)
        except StoreError:
            if self._drop_if_finished(lock):
                return
            raise
        manifest = Manifest(
            self.stage,
            self.key,
            files=dict(self._files),
            spec=self._spec,
            inputs=self._inputs,
            provenance=provenance(self._started, self._given),
            created=now(),
            attempt=lock.attempt,
            writer=lock.record.token,
            placed=dict(self._placed),
        )
        # If the store does not answer now, the manifest may have arrived all the same: its files must stay.
        self._files_may_go = False
        path, data = self._place.manifest, manifest.to_bytes()
        self.committed = self._backend.swap(path, self._old, data) if self._old else self._backend.create(path, data)
        if not self.committed:
            self._files_may_go = True
            if not self._drop_if_finished(lock):
                raise StoreError(f"{self._place} was removed while it was made anew", remedy="run again")

    def _finished(self) -> bytes | None:
        """The manifest, if there is one that this writer is not to replace."""
        data = self._backend.read(self._place.manifest)
        return None if data is None or (self._old and data == self._old) else data

    def _confirm_files(self, lock: Lock) -> None:
        """Every file is where it was put, and as long. Content is checked when it is read."""
        within = str(self._place) if self._placed else self._place.folder(lock.attempt)
        found = {stat.path: stat.size for stat in self._backend.objects(within)}
        for name, record in self._files.items():
            size = found.get(self._path_of(name, lock))
            if size != record.size:
                raise StoreError(
                    f"{name} of {self._place} is not as it was written",
                    value="absent" if size is None else f"{size} bytes",
                    expected=f"{record.size} bytes",
                    remedy="see that nothing else writes or cleans up in the store, then run again",
                )

    def _drop_if_finished(self, lock: Lock) -> bool:
        data = self._finished()
        if data is None:
            return False
        logger.warning("%s was finished by another writer meanwhile; what this one made is dropped", self._place)
        if Manifest.from_bytes(data, self._place).attempt == lock.attempt:
            # Removed and made anew since our lock was taken, so the numbers began again: these names are theirs.
            self._files_may_go = False
        return True

    def _tidy(self, lock: Lock) -> None:
        """Leaves nothing behind but scratch. Best effort: the artifact is safe, or the error is on its way already."""
        if self._work is not None:
            shutil.rmtree(self._work, ignore_errors=True)
        backend = self._backend.impatient(10)
        try:
            if self.committed:
                sweep(backend, self._place, keep=[self._path_of(name, lock) for name in self._files])
            else:
                if self._files_may_go:  # what workers put there stays: the next attempt goes on from it
                    backend.delete([self._path_of(name, lock) for name in self._files if name not in self._placed])
                lock.release()
        except StoreError as error:
            logger.warning("%s: could not tidy up: %s", self._place, error.what)
