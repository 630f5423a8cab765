"""What the commands write of a run: run.json, at its submission, and cancel.json."""

from __future__ import annotations

import getpass
import platform
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from interp.cluster.profile import Profile
from interp.plan.plan import Plan
from interp.store.runs import RunFolder
from interp.version import __version__

if TYPE_CHECKING:
    from interp.cluster.client import Cluster

TOKEN_ANNOTATION = "interp.dev/token"
"""Of a RayJob: the token of the run.json that is its own."""


def record_of(run: str, plan: Plan, profile: Profile, retry_failed: bool, cluster: Cluster) -> dict[str, Any]:
    return {
        "run": run,
        "study": plan.study.metadata.name,
        "submitted": _now(),
        "by": _who(),
        "interp": __version__,
        "token": uuid.uuid4().hex,
        "profile": profile.model_dump_file(),
        "namespace": profile.namespace,
        "context": cluster.connection.context,
        "stages": [{"stage": stage.stage, "key": stage.key, "cached": stage.cached} for stage in plan.stages],
        "retry_failed": retry_failed,
    }


def mark_cancelled(folder: RunFolder) -> None:
    """For the driver of the present token, and for whoever looks."""
    token = (folder.json("run.json") or {}).get("token")
    folder.write_json("cancel.json", {"at": _now(), "by": _who(), **({"token": token} if token else {})})


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in some containers
        user = "unknown"
    return f"{user}@{platform.node()}"
