"""Which sets of dictionaries the command line of `interp eval` means, and what they are called.

    FOLDER, hf://org/name[/folder]   one set, called by its last folder (`hf://` without one: by the repository)
    artifact://KEY                   every set of a fit, called as it was there; artifact://KEY/SET: that one

Two of one name get the nearest folder in which they differ before it (`a-mlp`, `b-mlp`), or a number after it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.errors import SpecError
from interp.plan.versions import VERSIONS

if TYPE_CHECKING:
    from interp.store import Artifact, Store

_ARTIFACT = "artifact://"
_AUTO = "auto"


@dataclass(frozen=True)
class Source:
    """One set.

    Attributes:
        source: as a study says it.
        parts: of its path; the last is what it is called if nobody says otherwise.
        format: as the command line says it; None: it is told from the files.
        artifact: that it is in, under the last of `parts`.
    """

    source: str
    parts: tuple[str, ...]
    format: str | None = None
    artifact: Artifact | None = None

    def called(self, name: str) -> dict[str, Any]:
        """As an entry of a study. A set of an artifact that gets another name there is its folder."""
        source = self.source
        if self.artifact is not None and name != self.parts[-1]:
            source = str(self.artifact.local_dir() / self.parts[-1])
        told = {} if self.format is None else {"format": self.format}
        return {"name": name, "from": source, **told}


def sources_of(texts: Sequence[str], formats: Sequence[str], store: Store) -> list[Source]:
    """The sets that the arguments mean.

    Raises:
        SpecError: there are formats for some of them, or an artifact has no such set.
        ArtifactMissing: the store has no such artifact.
    """
    if len(formats) not in (0, 1, len(texts)):
        raise SpecError(
            "--format is given for some of the dictionaries",
            value=f"{len(formats)} for {len(texts)}",
            expected="1, or all",
        )
    told = list(formats) * (len(texts) if len(formats) == 1 else 1) or [_AUTO] * len(texts)
    found: list[Source] = []
    for text, format in zip(texts, told, strict=True):
        wanted = None if format == _AUTO else format
        if text.startswith(_ARTIFACT):
            found += _in_artifact(text, wanted, store)
        elif "://" in text and not text.startswith("file://"):
            parts = tuple(part for part in text.partition("://")[2].partition("?")[0].split("/") if part)
            found.append(Source(text, parts or (text,), wanted))
        else:
            path = Path(text.removeprefix("file://")).expanduser().absolute()
            found.append(Source(str(path), path.parts, wanted))
    return found


def _in_artifact(text: str, format: str | None, store: Store) -> list[Source]:
    key, _, wanted = text.removeprefix(_ARTIFACT).partition("/")
    if key in VERSIONS:  # a stage stands before the key
        stage, (key, _, wanted) = key, wanted.partition("/")
        if stage != "fit":
            raise SpecError("the artifact has no dictionaries", value=text, expected="an artifact of the stage fit")
    entry = store.find(f"{_ARTIFACT}{key}")
    if entry.stage != "fit":
        raise SpecError(
            "the artifact has no dictionaries",
            value=f"{entry.stage}/{entry.key}",
            expected="an artifact of the stage fit",
        )
    artifact = store.get(entry.stage, entry.key)
    names = [str(one["name"]) for one in artifact.manifest.spec["dictionaries"]]
    if wanted and wanted not in names:
        raise SpecError(
            "the artifact has no dictionaries of that name", value=wanted, expected=f"one of {', '.join(names)}"
        )
    chosen = [wanted] if wanted else names
    return [Source(f"{_ARTIFACT}{entry.key}", (entry.key[:8], name), format, artifact) for name in chosen]


def named(sources: Sequence[Source], names: Sequence[str]) -> list[dict[str, Any]]:
    """The sets as a study's `dictionaries`.

    Raises:
        SpecError: there are names for some of them.
    """
    if names and len(names) != len(sources):
        raise SpecError(
            "--name is given for some of the sets",
            value=f"{len(names)} names for {len(sources)} sets",
            expected="none, or one for each, in their order",
        )
    chosen = list(names) or unique_names([source.parts for source in sources])
    return [source.called(name) for source, name in zip(sources, chosen, strict=True)]


def unique_names(paths: Sequence[tuple[str, ...]]) -> list[str]:
    """A name of a study's form for each path, no two alike."""
    names = [_slug(path[-1]) for path in paths]
    for name in {name for name in names if names.count(name) > 1}:
        alike = [i for i, other in enumerate(names) if other == name]
        before = _where_they_differ([paths[i] for i in alike])
        for i, folder in zip(alike, before, strict=True):
            names[i] = f"{folder}-{name}" if folder else name
    for i, name in enumerate(names):
        number = 2
        while names[i] in names[:i]:
            names[i], number = f"{name}-{number}", number + 1
    return names


def _where_they_differ(paths: Sequence[tuple[str, ...]]) -> list[str]:
    """The folder of each in which they all differ, the nearest to the end; nothing where there is none."""
    for up in range(2, min(map(len, paths)) + 1):
        folders = [_slug(path[-up]) for path in paths]
        if len(set(folders)) == len(folders):
            return folders
    return [""] * len(paths)


def _slug(text: str) -> str:
    """Lower-case letters, digits, `-` and `_`, as names of a study have them."""
    return re.sub(r"[^a-z0-9_]+", "-", text.lower()).strip("-_") or "set"
