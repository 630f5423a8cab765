"""The objects of the API server's double: versions, conflicts, subresources, finalizers, owners, and what watches see.

Every change gets the next resourceVersion and stays in a history that watches read from; what was forgotten is 410.
"""

from __future__ import annotations

import copy
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from kube_kinds import KINDS, Kind, Object, Refused, by_kind, check_names, definition

Key = tuple[str, str]  # namespace ("" for cluster-wide kinds), name
_FOREGROUND = "foregroundDeletion"
_SERVERS_OWN = ("uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation")


@dataclass(frozen=True)
class Change:
    """`before` is None for what was added."""

    version: int
    type: str
    kind: Kind
    key: Key
    object: Object
    before: Object | None


class ObjectStore:
    """All changes happen under `changed`, a condition that watches wait on."""

    def __init__(self, *, remembered: int = 5000) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.history: list[Change] = []
        self.forgotten = 0
        self.version = 100
        # Called for each object that a client creates or changes: may complete it or refuse it.
        self.admission: Callable[[Kind, Object, bool], None] | None = None
        self.remembered = remembered
        self._objects: dict[str, dict[Key, Object]] = {row.resource: {} for row in KINDS}

    # -- reading

    def is_served(self, row: Kind) -> bool:
        return not row.custom or ("", row.resource) in self._objects["customresourcedefinitions.apiextensions.k8s.io"]

    def get(self, row: Kind, key: Key) -> Object:
        with self.changed:
            if key not in self._objects[row.resource]:
                raise row.missing(key[1])
            return copy.deepcopy(self._objects[row.resource][key])

    def list(self, row: Kind, namespace: str) -> list[Object]:
        """By namespace and name; an empty namespace is all of them."""
        with self.changed:
            found = sorted(self._objects[row.resource].items())
            return [copy.deepcopy(obj) for (where, _), obj in found if not namespace or where == namespace]

    # -- writing, as clients do it

    def create(
        self, row: Kind, namespace: str, obj: Object, *, strict: bool = False, dry_run: bool = False, manager: str = ""
    ) -> Object:
        obj = copy.deepcopy(obj)
        metadata = obj.setdefault("metadata", {})
        if not metadata.get("name"):
            if not metadata.get("generateName"):
                raise row.invalid("", [("metadata.name", "Required value: name or generateName is required")])
            metadata["name"] = f"{metadata['generateName']}{uuid.uuid4().hex[:5]}"
        if metadata.get("resourceVersion"):
            raise Refused(400, "BadRequest", "resourceVersion should not be set on objects to be created")
        metadata |= {"namespace": namespace} if namespace else {}
        check_names(row, obj)
        with self.changed:
            if namespace and ("", namespace) not in self._objects["namespaces"]:
                raise by_kind("Namespace").missing(namespace)
            key = (namespace, metadata["name"])
            if row.status:
                obj.pop("status", None)
            self._admit(row, obj, strict)
            if key in self._objects[row.resource]:
                message = f'{row.resource} "{key[1]}" already exists'
                raise Refused(409, "AlreadyExists", message, row.details(key[1]))
            self._stamp(row, obj)
            if manager:
                entry = {"manager": manager, "operation": "Update", "apiVersion": row.api_version, "time": _now()}
                obj["metadata"]["managedFields"] = [entry | {"fieldsType": "FieldsV1", "fieldsV1": {}}]
            return obj if dry_run else self._write(row, key, obj)

    def update(self, row: Kind, key: Key, obj: Object, *, status: bool = False, strict: bool = False) -> Object:
        """A PUT: the version must be the present one; custom objects must name it."""
        obj = copy.deepcopy(obj)
        with self.changed:
            now = self.get(row, key)
            version = obj.get("metadata", {}).get("resourceVersion")
            if row.custom and not version:
                raise row.invalid(
                    key[1], [("metadata.resourceVersion", "Invalid value: 0x0: must be specified for an update")]
                )
            return self._replace(row, key, now, obj, version, status, strict)

    def patch(self, row: Kind, key: Key, patch: Object, *, status: bool = False, strict: bool = False) -> Object:
        """A merge patch; it conflicts only if it names another resourceVersion."""
        with self.changed:
            now = self.get(row, key)
            version = (patch.get("metadata") or {}).get("resourceVersion")
            return self._replace(row, key, now, merged(now, patch), version, status, strict)

    def delete(self, row: Kind, key: Key, policy: str | None = None, uid: str | None = None) -> Object | None:
        """None when it is gone; the object when finalizers, or dependents, still hold it."""
        with self.changed:
            obj = self.get(row, key)
            if uid and uid != obj["metadata"]["uid"]:
                message = (
                    f"Precondition failed: UID in precondition: {uid}, UID in object meta: {obj['metadata']['uid']}"
                )
                raise Refused(409, "Conflict", message, row.details(key[1]))
            finalizers = list(obj["metadata"].get("finalizers") or [])
            if policy == "Foreground" and _FOREGROUND not in finalizers:
                finalizers.append(_FOREGROUND)
            if policy == "Orphan":
                self._orphan(obj["metadata"]["uid"])
            if not finalizers:
                self._remove(row, key)
                self._collect(obj["metadata"]["uid"], "Background")
                return None
            obj["metadata"] |= {"finalizers": finalizers, "deletionGracePeriodSeconds": 0}
            obj["metadata"].setdefault("deletionTimestamp", _now())
            self._write(row, key, obj)
            if _FOREGROUND in finalizers:
                self._collect(obj["metadata"]["uid"], "Foreground")
                self._settle()
            return copy.deepcopy(self._objects[row.resource].get(key))

    # -- writing, as the test does it

    def put(self, obj: Object) -> Object:
        """Creates or replaces, its status too, without asking anybody."""
        row = by_kind(obj["kind"])
        obj = copy.deepcopy(obj)
        metadata = obj["metadata"]
        if row.namespaced:
            metadata.setdefault("namespace", "interp")
        check_names(row, obj)
        key = (metadata.get("namespace", "") if row.namespaced else "", metadata["name"])
        with self.changed:
            before = self._objects[row.resource].get(key)
            self._stamp(row, obj, before)
            written = self._write(row, key, obj)
            self._settle()
            return written

    def forget(self) -> None:
        """Watches from before now get 410 Gone."""
        with self.changed:
            # A version is used up, so that whoever saw the last change is too old as well.
            self.version += 1
            self.history.clear()
            self.forgotten = self.version
            self.changed.notify_all()

    def install(self, row: Kind) -> None:
        self.put(definition(row))

    # -- inside

    def _admit(self, row: Kind, obj: Object, strict: bool) -> None:
        if self.admission is not None:
            self.admission(row, obj, strict)

    def _stamp(self, row: Kind, obj: Object, before: Object | None = None) -> None:
        own = {name: before["metadata"][name] for name in _SERVERS_OWN if name in before["metadata"]} if before else {}
        fresh = {"uid": str(uuid.uuid4()), "creationTimestamp": _now(), "generation": 1}
        metadata = {**obj["metadata"], **(fresh | own)}
        obj.update({"apiVersion": row.api_version, "kind": row.kind, "metadata": metadata})

    def _replace(
        self, row: Kind, key: Key, now: Object, new: Object, version: Any, status: bool, strict: bool
    ) -> Object:
        metadata = new.setdefault("metadata", {})
        if version and str(version) != now["metadata"]["resourceVersion"]:
            raise Refused(
                409,
                "Conflict",
                f'Operation cannot be fulfilled on {row.resource} "{key[1]}": the object has been modified; '
                "please apply your changes to the latest version and try again",
                row.details(key[1]),
            )
        if metadata.get("name", key[1]) != key[1] or metadata.get("namespace", key[0]) != key[0]:
            raise Refused(400, "BadRequest", "the name of the object does not match the name on the URL")
        if metadata.get("uid", now["metadata"]["uid"]) != now["metadata"]["uid"]:
            raise Refused(409, "Conflict", f'{row.resource} "{key[1]}": the UID differs', row.details(key[1]))
        if status:
            result = {**now, **({"status": new["status"]} if "status" in new else {})}
        else:
            kept = {name: now["metadata"][name] for name in _SERVERS_OWN if name in now["metadata"]}
            fixed = {"name": key[1], "resourceVersion": now["metadata"]["resourceVersion"], **kept}
            fixed |= {"namespace": key[0]} if key[0] else {}
            clean = {name: value for name, value in metadata.items() if name not in _SERVERS_OWN}
            result = {**new, "apiVersion": row.api_version, "kind": row.kind, "metadata": {**clean, **fixed}}
            if row.status:
                result.pop("status", None)
                result |= {"status": now["status"]} if "status" in now else {}
            check_names(row, result)
            self._admit(row, result, strict)
        if result == now:
            return now
        if row.status and result.get("spec") != now.get("spec"):
            result["metadata"]["generation"] = now["metadata"].get("generation", 1) + 1
        written = self._write(row, key, result)
        self._settle()
        return written

    def _write(self, row: Kind, key: Key, obj: Object) -> Object:
        before = self._objects[row.resource].get(key)
        self.version += 1
        obj["metadata"]["resourceVersion"] = str(self.version)
        self._objects[row.resource][key] = obj
        self._remember(Change(self.version, "MODIFIED" if before else "ADDED", row, key, copy.deepcopy(obj), before))
        return copy.deepcopy(obj)

    def _remove(self, row: Kind, key: Key) -> None:
        obj = self._objects[row.resource].pop(key)
        self.version += 1
        last = copy.deepcopy(obj)
        last["metadata"]["resourceVersion"] = str(self.version)
        self._remember(Change(self.version, "DELETED", row, key, last, obj))
        # What lives in a namespace, or is of a kind that is defined no more, goes with it.
        for other in KINDS:
            for inner in list(self._objects[other.resource]):
                gone = row.kind == "Namespace" and inner[0] == key[1]
                if gone or (row.kind == "CustomResourceDefinition" and other.custom and other.resource == key[1]):
                    self._remove(other, inner)

    def _remember(self, change: Change) -> None:
        self.history.append(change)
        if len(self.history) > self.remembered:
            dropped = self.history[: -self.remembered]
            self.forgotten, self.history = dropped[-1].version, self.history[-self.remembered :]
        self.changed.notify_all()

    def _dependents(self, uid: str) -> list[tuple[Kind, Key, Object]]:
        return [
            (row, key, obj)
            for row in KINDS
            for key, obj in list(self._objects[row.resource].items())
            if any(owner.get("uid") == uid for owner in obj["metadata"].get("ownerReferences") or [])
        ]

    def _collect(self, uid: str, policy: str) -> None:
        """Dependents go, unless another owner is left."""
        for row, key, obj in self._dependents(uid):
            if key not in self._objects[row.resource]:
                continue
            others = [owner for owner in obj["metadata"]["ownerReferences"] if owner.get("uid") != uid]
            if any(self._exists(owner.get("uid")) for owner in others):
                self._write(row, key, merged(obj, {"metadata": {"ownerReferences": others}}))
            elif "deletionTimestamp" not in obj["metadata"]:
                self.delete(row, key, policy)

    def _orphan(self, uid: str) -> None:
        for row, key, obj in self._dependents(uid):
            others = [owner for owner in obj["metadata"]["ownerReferences"] if owner.get("uid") != uid]
            self._write(row, key, merged(obj, {"metadata": {"ownerReferences": others}}))

    def _exists(self, uid: str | None) -> bool:
        return any(obj["metadata"]["uid"] == uid for kind in self._objects.values() for obj in kind.values())

    def _settle(self) -> None:
        """What is being deleted goes when nothing holds it: an owner in the foreground after its dependents."""
        moved = True
        while moved:
            moved = False
            for row in KINDS:
                for key, obj in list(self._objects[row.resource].items()):
                    metadata = obj["metadata"]
                    if "deletionTimestamp" not in metadata:
                        continue
                    held = [
                        name
                        for name in metadata.get("finalizers") or []
                        if name != _FOREGROUND or self._dependents(metadata["uid"])
                    ]
                    if not held:
                        self._remove(row, key)
                        self._collect(metadata["uid"], "Background")
                        moved = True


def merged(target: Any, patch: Any) -> Any:
    """RFC 7386: null removes, objects merge, all else replaces."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
