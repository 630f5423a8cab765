"""Ray's job submission over plain HTTP, with the token that guards it."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass(frozen=True)
class JobClient:
    url: str
    token: str = field(repr=False)

    def answers(self) -> bool:
        """Whether the dashboard and the service behind it are healthy, as KubeRay's submitter asks."""
        try:
            self._call("GET", "/api/version")
            self._call("GET", "/api/jobs/")
        except (OSError, ValueError):
            return False
        return True

    def info(self, job: str) -> dict[str, Any] | None:
        """None if no such job was submitted."""
        try:
            return dict(self._call("GET", f"/api/jobs/{job}"))
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise

    def submit(self, job: str, entrypoint: str) -> None:
        """Ray answers 500 to an id that it has seen: look first."""
        self._call("POST", "/api/jobs/", {"submission_id": job, "entrypoint": entrypoint})

    def stop(self, job: str) -> None:
        """SIGTERM, and SIGKILL three seconds later."""
        self._call("POST", f"/api/jobs/{job}/stop")

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.loads(answer.read())
