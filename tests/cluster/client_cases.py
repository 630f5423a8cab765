"""Objects and steps for tests of the client."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from kube_api import KubeApi


def rayjob(name: str = "run", **metadata: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "interp", **metadata}
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": metadata, "spec": {"entrypoint": "true"}}


def pod(name: str, **more: Any) -> dict[str, Any]:
    return {"kind": "Pod", "metadata": {"name": name}, "spec": {"containers": [{"name": "ray"}]}, **more}


def verbs(kube: KubeApi) -> list[str]:
    """What was asked, but for whether the server is there."""
    return [one.verb for one in kube.requests if one.plural]


def after(seconds: float, *steps: Callable[[], Any]) -> threading.Thread:
    """Does the steps in a thread, each after so long."""

    def run() -> None:
        for step in steps:
            time.sleep(seconds)
            step()

    thread = threading.Thread(target=run)
    thread.start()
    return thread
