"""What the operator's stand-in needs of the Kubernetes API, over plain HTTP: it must not rest on the tested client."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from kube_kinds import by_kind

Object = dict[str, Any]


@dataclass(frozen=True)
class KubeRest:
    server: str
    token: str = field(repr=False)
    namespace: str = "interp"

    @staticmethod
    def of(kubeconfig: Path, namespace: str) -> KubeRest:
        config = yaml.safe_load(kubeconfig.read_text())
        return KubeRest(config["clusters"][0]["cluster"]["server"], config["users"][0]["user"]["token"], namespace)

    def list(self, kind: str) -> list[Object]:
        found = self._call("GET", self._path(kind))["items"]
        return [{"kind": kind, **each} for each in found]

    def get(self, kind: str, name: str) -> Object | None:
        try:
            return dict(self._call("GET", self._path(kind, name)))
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise

    def create(self, obj: Object) -> Object:
        return dict(
            self._call("POST", self._path(obj["kind"]), {"apiVersion": by_kind(obj["kind"]).api_version, **obj})
        )

    def patch(self, kind: str, name: str, patch: Object, *, status: bool = False) -> Object:
        path = self._path(kind, name) + ("/status" if status else "")
        return dict(self._call("PATCH", path, {"status": patch} if status else patch))

    def delete(self, kind: str, name: str) -> bool:
        """False if it is not there; what it owns goes with it."""
        try:
            self._call("DELETE", self._path(kind, name), {"propagationPolicy": "Background"})
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return False
            raise
        return True

    def event(self, about: Object, kind: str, reason: str, message: str, source: str) -> None:
        meta = about["metadata"]
        involved = {
            "kind": about["kind"],
            "name": meta["name"],
            "namespace": self.namespace,
            "uid": meta.get("uid", ""),
        }
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        event = {"involvedObject": involved, "type": kind, "reason": reason, "message": message, "count": 1}
        event |= {"firstTimestamp": now, "lastTimestamp": now, "source": {"component": source}}
        self.create({"kind": "Event", "metadata": {"generateName": f"{meta['name'][:200]}."}, **event})

    def _path(self, kind: str, name: str = "") -> str:
        row = by_kind(kind)
        base = f"/apis/{row.group}/{row.version}" if row.group else f"/api/{row.version}"
        return f"{base}/namespaces/{self.namespace}/{row.plural}" + (f"/{name}" if name else "")

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        media = "application/merge-patch+json" if method == "PATCH" else "application/json"
        request = urllib.request.Request(
            self.server + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self.token}", "Content-Type": media},
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.loads(answer.read())
