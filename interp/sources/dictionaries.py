"""Where the files of borrowed dictionaries are, and what identifies their content.

    FOLDER                              what `interp` or another program wrote; or one file, of one layer
    hf://org/name[@revision][/folder]   a repository of the hub; by its commit

A set of circuit-tracer may list files that lie elsewhere (`transcoders` in its config.yaml): a path, taken from the
set's folder, or `hf://org/name/file[?revision=...]`. They are part of the content.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import yaml

from interp.errors import SourceError
from interp.sources import hub
from interp.sources.folders import combined
from interp.sources.memo import Memo
from interp.sources.revision import content_revision

CONFIG = "config.yaml"
"""Of a set of circuit-tracer."""

PARAMS = ("params.npz", "params.safetensors")
"""What Gemma Scope and Gemma Scope 2 call the file of one layer."""

SPARSIFY_WEIGHTS = "sae.safetensors"
"""What sparsify calls the weights in the folder of a module, whose name alone tells where they belong."""

HUB = "hf://"

_LAYER = re.compile(r"layer_(0|[1-9]\d*)(_.*)?")
_READ = (".safetensors", ".npz", ".json", ".yaml", "/ae.pt")
_HUB_NAME = re.compile(r"(?P<repository>[^/@]+/[^/@]+)(?:@(?P<revision>[^/]+))?(?:/(?P<below>.+))?")


def layer_in(path: Path) -> int | None:
    """The layer that a path tells: `.../layer_12/width_16k/params.npz`; the innermost folder that tells one."""
    told = [match for part in path.parts if (match := _LAYER.fullmatch(part))]
    return int(told[-1][1]) if told else None


def module_in(folder: Path) -> str:
    """The module that sparsify's folder of one sparse coder is named by; of several seeds each has a folder below."""
    path = folder.absolute()
    return path.parent.name if re.fullmatch(r"seed\d+", path.name) else path.name


@dataclass(frozen=True)
class HubPlace:
    """A folder or file of a repository of the hub."""

    repository: str
    revision: str | None
    below: str

    @classmethod
    def of(cls, source: str) -> HubPlace:
        """From `hf://org/name[@revision][/below][?revision=...]`.

        Raises:
            SourceError: it is none.
        """
        parts = urlsplit(source)
        match = _HUB_NAME.fullmatch(f"{parts.netloc}{parts.path}".strip("/"))
        if parts.scheme != "hf" or match is None or not hub.REPOSITORY.fullmatch(match["repository"]):
            raise SourceError(
                "this is no place of the hub", value=source, expected="hf://org/name[@revision][/folder or file]"
            )
        asked = parse_qs(parts.query).get("revision", [None])[0]
        return cls(match["repository"], match["revision"] or asked, match["below"] or "")

    @cached_property
    def found(self) -> hub.HubRevision:
        """The repository at the commit that the revision is now, with all its files."""
        return hub.listing(self.repository, "model", self.revision)

    @property
    def pinned(self) -> str:
        """The same place at its commit."""
        return f"{HUB}{self.repository}@{self.found.commit}{'/' if self.below else ''}{self.below}"

    def files(self) -> list[str]:
        """The files at or below the place that a dictionary can consist of."""
        below = [name for name in self.found.files if f"/{name}".startswith(f"/{self.below}/" if self.below else "/")]
        files = (
            [self.below] if self.below in self.found.files else [name for name in below if f"/{name}".endswith(_READ)]
        )
        if not files:
            raise SourceError(
                "there are no dictionaries at this place of the hub",
                value=f"{HUB}{self.repository} at {self.found.commit}, {self.below or 'the whole repository'}",
                expected=f"files that end in {', '.join(_READ)}",
            )
        return files

    def fetch(self) -> Path:
        """Bring the files here; where they are."""
        files = self.files()
        _require_one_for_each_layer(files, self.repository)
        paths = [hub.fetch_file(self.found, name) for name in files]
        if files == [self.below]:
            return paths[0]
        root = paths[0]
        for _ in Path(files[0]).parts:
            root = root.parent
        return root / self.below


def fetched(source: str) -> Path:
    """Where the files are; those of the hub are brought here.

    Raises:
        SourceError: there are none, or they cannot be reached.
    """
    if source.startswith(HUB):
        return HubPlace.of(source).fetch()
    path = _local(source)
    if not path.exists():
        raise SourceError("there is no such folder or file", value=source, remedy="check the path")
    return path


def dictionary_revision(source: str) -> str:
    """Identifies the content of what `source` names; nothing is downloaded for it but a small config.

    Raises:
        SourceError: there is nothing, or it cannot be reached.
    """
    if source.startswith(HUB):
        place = HubPlace.of(source)
        config = f"{place.below}/{CONFIG}".lstrip("/")
        listed = listed_in(hub.read_file(place.found, config)) if config in place.found.files else ()
        place.files()  # that there are any
        return combined([("commit", place.found.commit, place.below), *_elsewhere(None, listed)])
    path = _local(source)
    if path.is_file():
        with Memo() as memo:
            return combined([(_told_by_path(path), memo.sha256(path))])
    content = content_revision(path)
    config_file = path / CONFIG
    listed = listed_in(config_file.read_bytes()) if config_file.is_file() else ()
    elsewhere = _elsewhere(path, listed)
    layer = layer_in(path.absolute())
    if layer is not None and any(next(path.rglob(name), None) for name in PARAMS):
        elsewhere.append(("layer", str(layer)))  # told by the folder's own path, which its content does not have
    if (path / SPARSIFY_WEIGHTS).is_file():
        elsewhere.append(("module", module_in(path)))  # as the layer above
    return combined([("content", content), *elsewhere]) if elsewhere else content


def require_content(source: str, found: str, expected: str | None) -> None:
    """Refuse dictionaries that are not those that were planned.

    Args:
        found: the `dictionary_revision` of `source`.
        expected: what it was in the plan; None: there is none to compare with.

    Raises:
        SourceError: they are others.
    """
    if expected not in (None, found):
        raise SourceError(
            f"the dictionaries changed after they were planned: {source}",
            value=f"content {found}",
            expected=f"content {expected}",
            remedy="plan the study again, or put back what was there; a listed file of the hub is fixed by its commit, "
            "hf://org/name@<commit>/file",
        )


def listed_file(folder: Path, name: str) -> Path:
    """Where a file is that config.yaml lists; one of the hub is brought here."""
    return HubPlace.of(name).fetch() if name.startswith(HUB) else folder / name


def listed_in(config: bytes) -> Sequence[str]:
    """The files that a config.yaml lists; of one that is not readable, none: its reader will say so."""
    try:
        content = yaml.safe_load(config.decode("utf-8", "replace"))
    except yaml.YAMLError:
        return ()
    listed = content.get("transcoders") if isinstance(content, dict) else None
    return [name for name in listed if isinstance(name, str)] if isinstance(listed, list) else ()


def _elsewhere(folder: Path | None, listed: Sequence[str]) -> list[tuple[str, ...]]:
    """What identifies the content of the files that do not lie in the folder."""
    parts: list[tuple[str, ...]] = []
    commits: dict[tuple[str, str | None], str] = {}
    with Memo() as memo:
        for index, name in enumerate(listed):
            if name.startswith(HUB):
                place = HubPlace.of(name)
                repository = (place.repository, place.revision)
                if repository not in commits:  # the hub is asked once for all of its files
                    commits[repository] = place.found.commit
                parts.append((str(index), commits[repository], place.below))
            elif folder is not None:
                path = folder / name
                if not path.is_file():
                    what = "a file that config.yaml lists is not there"
                    raise SourceError(what, value=str(path), remedy="copy it here, or correct `transcoders`")
                parts.append((str(index), memo.sha256(path)))
    return parts


def _require_one_for_each_layer(files: Sequence[str], repository: str) -> None:
    """Gemma Scope publishes many for each layer, hundreds of gigabytes: nothing is downloaded to find that out."""
    by_layer: dict[int | None, list[str]] = {}
    for name in files:
        if name.endswith(PARAMS):
            by_layer.setdefault(layer_in(Path(name)), []).append(name)
    for layer, names in by_layer.items():
        if len(names) > 1:
            raise SourceError(
                f"{repository} has several dictionaries for layer {layer}",
                value=", ".join(names[:4]) + (", ..." if len(names) > 4 else ""),
                expected="one for each layer",
                remedy="name one of these, or list one for each layer in `transcoders` of a config.yaml of your own",
            )


def _told_by_path(path: Path) -> str:
    layer = layer_in(path.absolute())
    return path.name if layer is None else f"layer_{layer}/{path.name}"


def _local(source: str) -> Path:
    return Path(source.removeprefix("file://")).expanduser()
