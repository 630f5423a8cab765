"""What the double of the API server serves, a kind a row; its Status objects; its rules of names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]

_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_LABEL_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
_ALWAYS_FIELDS = ("metadata.name", "metadata.namespace")


class Refused(Exception):
    """An answer that is no success, as the API's Status object."""

    def __init__(self, code: int, reason: str, message: str, details: Object | None = None) -> None:
        super().__init__(message)
        self.code, self.reason, self.message, self.details = code, reason, message, details or {}

    def status(self) -> Object:
        body: Object = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
        body |= {"message": self.message, "reason": self.reason, "code": self.code}
        return body | ({"details": self.details} if self.details else {})


@dataclass(frozen=True)
class Kind:
    """A row: `custom` ones are served only while their CustomResourceDefinition is there."""

    kind: str
    plural: str
    group: str = ""
    version: str = "v1"
    namespaced: bool = True
    custom: bool = False
    status: bool = False
    fields: tuple[str, ...] = ()

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def resource(self) -> str:
        """As messages and CRDs name it: `rayjobs.ray.io`, `pods`."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    def details(self, name: str = "") -> Object:
        found = {"name": name, "group": self.group, "kind": self.plural}
        return {key: value for key, value in found.items() if value}

    def missing(self, name: str) -> Refused:
        return Refused(404, "NotFound", f'{self.resource} "{name}" not found', self.details(name))

    def invalid(self, name: str, causes: list[tuple[str, str]]) -> Refused:
        listed = [{"field": where, "message": what, "reason": "FieldValueInvalid"} for where, what in causes]
        told = "; ".join(f"{where}: {what}" for where, what in causes)
        title = f"{self.kind}.{self.group}" if self.group else self.kind
        return Refused(422, "Invalid", f'{title} "{name}" is invalid: {told}', {**self.details(name), "causes": listed})


_INVOLVED = tuple(f"involvedObject.{part}" for part in ("kind", "name", "namespace", "uid", "apiVersion"))

KINDS = (
    Kind("Namespace", "namespaces", namespaced=False, status=True, fields=("status.phase",)),
    Kind("Node", "nodes", namespaced=False, status=True),
    Kind("Pod", "pods", status=True, fields=("spec.nodeName", "status.phase", "spec.serviceAccountName")),
    Kind("Event", "events", fields=(*_INVOLVED, "reason", "type")),
    Kind("Secret", "secrets", fields=("type",)),
    Kind("ConfigMap", "configmaps"),
    Kind("Service", "services", status=True),
    Kind("ServiceAccount", "serviceaccounts"),
    Kind("PersistentVolumeClaim", "persistentvolumeclaims", status=True),
    Kind("Job", "jobs", group="batch", status=True),
    Kind(
        "CustomResourceDefinition",
        "customresourcedefinitions",
        group="apiextensions.k8s.io",
        namespaced=False,
        status=True,
    ),
    Kind("RayJob", "rayjobs", group="ray.io", custom=True, status=True),
    Kind("RayCluster", "rayclusters", group="ray.io", custom=True, status=True),
    Kind("Workload", "workloads", group="kueue.x-k8s.io", version="v1beta1", custom=True, status=True),
    Kind("LocalQueue", "localqueues", group="kueue.x-k8s.io", version="v1beta1", custom=True, status=True),
    Kind(
        "ClusterQueue",
        "clusterqueues",
        group="kueue.x-k8s.io",
        version="v1beta1",
        namespaced=False,
        custom=True,
        status=True,
    ),
)


def by_kind(name: str) -> Kind:
    return next(row for row in KINDS if row.kind == name)


def by_path(group: str, version: str, plural: str) -> Kind | None:
    """The row of a URL; None when there is none."""
    wanted = (group, version, plural)
    return next((row for row in KINDS if (row.group, row.version, row.plural) == wanted), None)


def definition(row: Kind) -> Object:
    """The CustomResourceDefinition that makes a kind exist."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": row.resource},
        "spec": {
            "group": row.group,
            "names": {"kind": row.kind, "plural": row.plural},
            "scope": "Namespaced" if row.namespaced else "Cluster",
            "versions": [{"name": row.version, "served": True, "storage": True}],
        },
        "status": {"conditions": [{"type": "Established", "status": "True"}]},
    }


def check_names(row: Kind, obj: Object) -> None:
    """Names and labels, by the API server's rules (an operator may have others)."""
    metadata = obj["metadata"]
    name = metadata["name"]
    # Pods, Jobs and custom objects are named as DNS subdomains, namespaces and services as labels.
    rule, longest = (_LABEL, 63) if row.kind in ("Namespace", "Service") else (_SUBDOMAIN, 253)
    causes = []
    if len(name) > longest or not rule.fullmatch(name):
        causes.append(("metadata.name", f'Invalid value: "{name}": a lowercase RFC 1123 name is needed'))
    for key, value in (metadata.get("labels") or {}).items():
        if not isinstance(value, str):
            raise Refused(400, "BadRequest", f"json: cannot unmarshal {value!r} into metadata.labels of type string")
        if len(value) > 63 or not _LABEL_VALUE.fullmatch(value) or len(key.rpartition("/")[2]) > 63:
            causes.append(("metadata.labels", f'Invalid value: "{value}": a valid label is needed'))
    if causes:
        raise row.invalid(name, causes)


def check_fields(row: Kind, terms: list[tuple[str, bool, str]]) -> None:
    """A field selector that the kind does not know is refused, as the API server does it."""
    for field, _, _ in terms:
        if field not in (*_ALWAYS_FIELDS, *row.fields):
            raise Refused(
                400, "BadRequest", f'Unable to find "{row.resource}" that match: field label not supported: {field}'
            )
