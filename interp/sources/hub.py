"""Repositories of the Hugging Face hub: which commit a name means, with the network or from the local cache."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from interp.errors import SourceError
from interp.sources.memo import Memo

_LOG = logging.getLogger(__name__)

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
"""`org/name`"""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_REMEDY = (
    "check the name, the network, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE; or download the files and name their folder"
)

Kind = Literal["model", "dataset"]


@dataclass(frozen=True)
class HubRevision:
    """A repository at one commit.

    Attributes:
        files: names of its files; those in the local cache when the hub was not asked.
        cached: whether the local cache answered.
    """

    repository: str
    commit: str
    files: tuple[str, ...]
    cached: bool


def repository_of(source: str, kind: Kind) -> str:
    """`hf://org/name` -> `org/name`.

    Raises:
        SourceError: it is no name of a repository.
    """
    name = source.removeprefix("hf://").removeprefix(f"{kind}s/").strip("/")
    if not REPOSITORY.fullmatch(name):
        raise SourceError(
            f"this is no {kind} of the hub",
            value=source,
            expected="hf://org/name",
            remedy="give the repository alone; a branch or commit goes into `revision`",
        )
    return name


def look_up(repository: str, kind: Kind, revision: str | None) -> HubRevision:
    """The commit that `revision` (default: main) is now; without a network, the one in the local cache.

    Raises:
        SourceError: there is no such repository or revision, or neither network nor cache can tell.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HTTPError, RepositoryNotFoundError, RevisionNotFoundError

    if revision is not None and _COMMIT.fullmatch(revision) and (known := _in_cache(repository, kind, revision)):
        return known
    try:
        info = HfApi().repo_info(repository, repo_type=kind, revision=revision)
    except (RepositoryNotFoundError, RevisionNotFoundError, GatedRepoError, ValueError) as error:
        what = f"the hub does not give this {kind}: {_reason(error)}"
        raise SourceError(what, value=_shown(repository, revision), remedy=_REMEDY) from error
    except (HTTPError, OSError) as error:
        if known := _in_cache(repository, kind, revision):
            _LOG.warning("the hub cannot be reached; %s is taken from the local cache at %s", repository, known.commit)
            return known
        what = f"the hub cannot be reached ({type(error).__name__}), and this {kind} is not in the local cache"
        raise SourceError(what, value=_shown(repository, revision), remedy=_REMEDY) from error
    return HubRevision(repository, str(info.sha), _names(info), cached=False)


def listing(repository: str, kind: Kind, revision: str | None) -> HubRevision:
    """As `look_up`, with the names of all files of the commit: the local cache has those that were downloaded so far.

    What a commit holds never changes, so the hub is asked once.

    Raises:
        SourceError: as `look_up`; or the hub cannot be reached, and was never asked for the files of this commit.
    """
    at = look_up(repository, kind, revision)
    with Memo() as memo:
        files = memo.recall(f"hub:{kind}:{repository}@{at.commit}", [], lambda: list(_all_files(at, kind)))
    return HubRevision(repository, at.commit, tuple(files), cached=False)


def _all_files(at: HubRevision, kind: Kind) -> tuple[str, ...]:
    if not at.cached:
        return at.files
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    try:
        info = HfApi().repo_info(at.repository, repo_type=kind, revision=at.commit)
    except (HTTPError, OSError, ValueError) as error:
        raise SourceError(
            f"the hub cannot say which files this {kind} has, and a part of them may be in the local cache",
            value=f"{_shown(at.repository, at.commit)}: {_reason(error)}",
            remedy=_REMEDY,
        ) from error
    return _names(info)


def read_file(revision: HubRevision, name: str, kind: Kind = "model") -> bytes:
    """One small file of a repository, through the local cache."""
    return fetch_file(revision, name, kind).read_bytes()


def fetch_file(revision: HubRevision, name: str, kind: Kind = "model") -> Path:
    """Where one file of a repository is in the local cache, downloaded if need be."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HTTPError

    try:
        path = hf_hub_download(
            revision.repository, name, repo_type=kind, revision=revision.commit, local_files_only=revision.cached
        )
    except (HTTPError, OSError) as error:
        what = f"{name} cannot be had from the hub: {_reason(error)}"
        raise SourceError(what, value=_shown(revision.repository, revision.commit), remedy=_REMEDY) from error
    return Path(path)


def _names(info: Any) -> tuple[str, ...]:
    return tuple(file.rfilename for file in getattr(info, "siblings", None) or ())


def _in_cache(repository: str, kind: Kind, revision: str | None) -> HubRevision | None:
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / "--".join([f"{kind}s", *repository.split("/")])
    commit = revision or "main"
    if not _COMMIT.fullmatch(commit):
        reference = folder / "refs" / commit
        if not reference.is_file():
            return None
        commit = reference.read_text().strip()
    snapshot = folder / "snapshots" / commit
    if not snapshot.is_dir():
        return None
    files = tuple(sorted(path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()))
    return HubRevision(repository, commit, files, cached=True)


def _reason(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _shown(repository: str, revision: str | None) -> str:
    return f"{repository} at revision {revision or 'main'}"
