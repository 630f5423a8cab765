"""Pod objects as KubeRay 1.7 and a kubelet would make them of a RayJob's templates, and the environment they give."""

from __future__ import annotations

import base64
import copy
import re
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kube_rest import KubeRest, Object

UNKNOWN_IMAGE = re.compile(r"/does-not-exist:")
MACHINES_OWN = ("/tmp", "/dev/shm")


class MissingSecret(Exception):
    """A Secret that a container names is not there, or lacks the key."""


def labels_of(cluster: str, node: str, group: str) -> dict[str, str]:
    return {
        "ray.io/is-ray-node": "yes",
        "ray.io/cluster": cluster,
        "ray.io/node-type": node,
        "ray.io/group": group,
        "ray.io/identifier": f"{cluster}-{node}",
        "app.kubernetes.io/name": "kuberay",
        "app.kubernetes.io/created-by": "kuberay-operator",
    }


def pod(prefix: str, template: Object, labels: dict[str, str], owner: Object) -> Object:
    """What a template becomes. Its own labels win, but for those that KubeRay finds its pods by."""
    meta = template.get("metadata") or {}
    fixed = {name: value for name, value in labels.items() if name.startswith(("ray.io/", "batch.", "job-name"))}
    return {
        "kind": "Pod",
        "metadata": {
            "name": f"{prefix[:58]}-{uuid.uuid4().hex[:5]}",
            "labels": {**labels, **(meta.get("labels") or {}), **fixed},
            "annotations": meta.get("annotations") or {},
            "ownerReferences": [owner_of(owner)],
        },
        "spec": copy.deepcopy(template["spec"]),
    }


def owner_of(obj: Object) -> Object:
    meta = {"name": obj["metadata"]["name"], "uid": obj["metadata"]["uid"]}
    return {"apiVersion": obj["apiVersion"], "kind": obj["kind"], "controller": True, "blockOwnerDeletion": True} | meta


def container_of(template: Object) -> Object:
    return dict(template["spec"]["containers"][0])


def environment(container: Object, rest: KubeRest, volumes: Path) -> dict[str, str]:
    """The variables of a container. Volumes are folders here: what points into a mount points there."""
    found: dict[str, str] = {}
    for source in container.get("envFrom") or []:
        found |= _secret(rest, source["secretRef"]["name"])
    for variable in container.get("env") or []:
        reference = (variable.get("valueFrom") or {}).get("secretKeyRef")
        found[variable["name"]] = _key(rest, reference) if reference else variable.get("value", "")
    for mount in container.get("volumeMounts") or []:
        path = mount["mountPath"]
        if path not in MACHINES_OWN:
            for name, value in found.items():
                if value == path or value.startswith(f"{path}/"):
                    found[name] = f"{volumes}/{mount['name']}{value.removeprefix(path)}"
    return found


def _secret(rest: KubeRest, name: str) -> dict[str, str]:
    secret = rest.get("Secret", name)
    if secret is None:
        raise MissingSecret(f'secret "{name}" not found')
    return {key: base64.b64decode(value).decode() for key, value in (secret.get("data") or {}).items()}


def _key(rest: KubeRest, reference: Object) -> str:
    values = _secret(rest, reference["name"])
    if reference["key"] not in values:
        raise MissingSecret(f"couldn't find key {reference['key']} in Secret {rest.namespace}/{reference['name']}")
    return values[reference["key"]]


def status(made: Object, phase: str, state: Object, *, ready: bool = False) -> Object:
    """A pod's status with one container, in this state: `{"running": {...}}`, `{"waiting": {"reason": ...}}`."""
    container = made["spec"]["containers"][0]
    containers = [
        {"name": container["name"], "image": container["image"], "ready": ready, "restartCount": 0, "state": state}
    ]
    scheduled = {"type": "PodScheduled", "status": "True"}
    conditions = [scheduled, {"type": "Ready", "status": "True" if ready else "False"}]
    return {"phase": phase, "conditions": conditions, "containerStatuses": containers}


def running(made: Object) -> Object:
    return status(made, "Running", {"running": {"startedAt": now()}}, ready=True)


def waiting(made: Object, reason: str, message: str = "") -> Object:
    return status(made, "Pending", {"waiting": {"reason": reason} | ({"message": message} if message else {})})


def ended(made: Object, code: int, reason: str = "") -> Object:
    told: dict[str, Any] = {"exitCode": code, "reason": reason or ("Completed" if code == 0 else "Error")}
    return status(made, "Succeeded" if code == 0 else "Failed", {"terminated": told | {"finishedAt": now()}})


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def seconds_since(text: str) -> float:
    return datetime.now(UTC).timestamp() - datetime.fromisoformat(text).timestamp()
