"""A folder to a repository of the Hugging Face hub, where there is a token; otherwise what would be sent."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from interp.cli.console import print_line
from interp.errors import SourceError, SpecError

TOKEN = "HF_TOKEN"


def require_repository(name: str) -> None:
    """Refuse what is no `org/name`."""
    from interp.sources.hub import REPOSITORY

    if not REPOSITORY.fullmatch(name):
        raise SpecError("this is no repository of the hub", value=f"--push {name}", expected="org/name")


def push(folder: Path, repository: str) -> dict[str, Any]:
    """Upload a folder, as one commit; the repository is made if need be.

    Returns:
        `repository`, `files` with their sizes, and `commit`, which is None where there is no token and nothing is sent.

    Raises:
        SourceError: the hub does not take it.
    """
    require_repository(repository)
    files = {
        path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()
    }
    told: dict[str, Any] = {"repository": repository, "files": files, "commit": None}
    token = os.environ.get(TOKEN)
    return told if not token else {**told, "commit": _upload(folder, repository, token)}


def tell(pushed: dict[str, Any]) -> None:
    """What was sent, or would be."""
    files: dict[str, int] = pushed["files"]
    size = f"{len(files)} files, {sum(files.values()) / 1e6:.1f} MB"
    if pushed["commit"] is not None:
        print_line(f"{size} are in https://huggingface.co/{pushed['repository']} as commit {pushed['commit']}")
        return
    print_line(f"{TOKEN} is not set, so nothing was sent. To {pushed['repository']} would go {size}:")
    for name, n_bytes in files.items():
        print_line(f"  {n_bytes:>12,}  {name}")


def _upload(folder: Path, repository: str, token: str) -> str:
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HTTPError
    except ImportError as error:
        what = "huggingface_hub is not installed, and nothing was sent"
        raise SourceError(what, remedy="pip install huggingface_hub") from error
    api = HfApi(token=token)
    try:
        api.create_repo(repository, repo_type="model", exist_ok=True)
        made = api.upload_folder(
            repo_id=repository, repo_type="model", folder_path=folder, commit_message="Dictionaries, by interp convert"
        )
    except (HTTPError, OSError, ValueError) as error:
        raise SourceError(
            f"the hub does not take this: {next(iter(str(error).splitlines()), type(error).__name__)}",
            value=repository,
            remedy=f"check the name, the network, and that {TOKEN} may write; the folder is complete and can be sent "
            "again",
        ) from error
    return str(made.oid)
