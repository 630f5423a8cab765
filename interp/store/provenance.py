"""Where and with what an artifact was made. Reads package metadata only: nothing is imported to ask its version."""

from __future__ import annotations

import platform
import socket
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

_PACKAGES = ("interp", "torch", "transformers", "nnsight", "ray", "numpy", "safetensors", "tokenizers")


def now() -> str:
    """The time in UTC, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def provenance(started: str, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Versions, host, platform, start and end; what the stage itself has to say comes on top."""
    return {
        "versions": {"python": platform.python_version(), **_versions()},
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "started": started,
        "finished": now(),
        **(given or {}),
    }


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # an optional one, or a checkout that is not installed
            continue
    return found
