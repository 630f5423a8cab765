"""The Kubernetes API as interp uses it: a few verbs on RayJobs, and what explains them (pods, events, queues).

Objects are plain dicts in the API's own camelCase. `client_config` finds the cluster, `client_http` makes the requests,
again where that helps, `client_errors` says what went wrong. Importing this costs
nothing; `Cluster.open` loads the `kubernetes` package.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from interp.cluster.client_config import Connection, connect
from interp.cluster.client_errors import (
    Absent,
    AlreadyThere,
    Asked,
    Conflict,
    Expired,
    Forbidden,
    NotInstalled,
    Resource,
)
from interp.cluster.client_http import METADATA_ONLY, Api, Object, Tries

__all__ = ["AlreadyThere", "Cluster", "Existing"]

RAYJOBS = Resource("rayjobs", "ray.io")
PODS = Resource("pods")
EVENTS = Resource("events")
_KUEUE = "kueue.x-k8s.io"
_REVIEWS = Resource("selfsubjectaccessreviews", "authorization.k8s.io", namespaced=False)
_PAGE = 500

Existing = Literal[
    "Namespace", "Secret", "ServiceAccount", "PersistentVolumeClaim", "LocalQueue", "CustomResourceDefinition"
]
_NAMED = {
    "Namespace": Resource("namespaces", namespaced=False),
    "Secret": Resource("secrets"),
    "ServiceAccount": Resource("serviceaccounts"),
    "PersistentVolumeClaim": Resource("persistentvolumeclaims"),
}


@dataclass(frozen=True)
class Cluster:
    """A cluster and a namespace of it. Made by `open`."""

    namespace: str
    api: Api

    @staticmethod
    def open(context: str | None, namespace: str, *, timeout: float = 10.0) -> Cluster:
        """The cluster of a context (None: the kubeconfig's current one, or the one that this pod is in).

        Args:
            timeout: seconds that a request may take, with all its tries.

        Raises:
            ClusterError: there is no such context, or its cluster cannot be reached or does not know who asks.
        """
        cluster = Cluster(namespace, Api(connect(context), timeout))
        try:
            cluster.api.call(cluster._asked("get", Resource("version"), namespace=""), path="/version")
        except Forbidden:
            # It was reached, and it knows who asks: what else may be done is said when it is tried.
            return cluster
        return cluster

    @property
    def connection(self) -> Connection:
        return self.api.connection

    # -- RayJobs

    def create_job(self, manifest: Object) -> Object:
        """Creates a RayJob; nothing that the server does not know is accepted silently.

        Raises:
            AlreadyThere: there is a RayJob of this name, and it is not the one that this call has made.
        """
        # Who made an object stands in it: a create whose answer was lost, and that is made again, finds itself.
        mine = f"interp-{uuid.uuid4().hex[:12]}"
        name = str(manifest["metadata"]["name"])
        query, tries = {"fieldValidation": "Strict", "fieldManager": mine}, Tries()
        try:
            asked = self._asked("create", RAYJOBS, name)
            return self.api.call(asked, path=self._path(RAYJOBS), query=query, body=manifest, tries=tries)
        except AlreadyThere:
            there = self.job(name) if tries.lost else None
            managers = there["metadata"].get("managedFields", ()) if there else ()
            if there is not None and any(manager.get("manager") == mine for manager in managers):
                return there
            raise

    def job(self, name: str) -> Object | None:
        """The RayJob; None if there is none."""
        return self._get(RAYJOBS, name)

    def jobs(self, selector: str = "") -> list[Object]:
        """The RayJobs of the namespace whose labels match."""
        return self._list(RAYJOBS, "RayJob", {"labelSelector": selector})

    def delete_job(self, name: str, *, uid: str | None = None) -> bool:
        """Deletes a RayJob, after the Ray cluster and the pods that belong to it. False if there was none.

        Args:
            uid: of the one that is meant: another of its name is left alone, as if there was none.
        """
        tries = Tries()
        options: Object = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Foreground"}
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        try:
            self.api.call(self._asked("delete", RAYJOBS, name), body=options, tries=tries)
        except (Absent, Conflict) as error:
            if isinstance(error, Conflict) and uid is None:
                raise
            # A try whose answer was lost may have been the one that deleted it.
            return tries.lost
        return True

    def pods(self, selector: str) -> list[Object]:
        return self._list(PODS, "Pod", {"labelSelector": selector})

    def events(self, kind: str, name: str) -> list[Object]:
        """What was said about an object, oldest first."""
        field = f"involvedObject.kind={kind},involvedObject.name={name}"
        return sorted(self._list(EVENTS, "Event", {"fieldSelector": field}), key=_said_at)

    def workloads(self, job: str) -> list[Object]:
        """Kueue's Workloads of a RayJob; none where Kueue is not installed."""
        resource = self._served(_KUEUE, "workloads")
        found = self._list(resource, "Workload", {}) if resource else []
        return [one for one in found if _is_owned(one, "RayJob", job)]

    def pod_log(
        self,
        pod: str,
        *,
        container: str | None = None,
        follow: bool = False,
        since: str | None = None,
        tail: int | None = None,
        timestamps: bool = True,
    ) -> Iterator[str]:
        """Lines of a container's log; `follow` goes on until it has ended.

        Args:
            since: RFC 3339. The API knows whole seconds only: lines of that second come, those before it too.

        Raises:
            NotStarted: the container waits.
            Absent: there is no such pod.
            Unreachable: the connection was cut, after some lines perhaps.
        """
        given = {"container": container, "sinceTime": since, "tailLines": tail}
        query = {name: value for name, value in given.items() if value is not None}
        query |= {name: "true" for name, wanted in {"follow": follow, "timestamps": timestamps}.items() if wanted}
        asked = self._asked("get", PODS, pod, subresource="log")
        # A program may be silent for hours: TCP's own keep-alive notices a connection that is dead.
        return self.api.lines(asked, query=query, silence=None if follow else self.api.timeout)

    # -- what may be done, what is there

    def can(self, verb: str, resource: str, group: str = "") -> bool:
        """Whether the server would let us; `resource` may be `pods/log`."""
        plural, _, subresource = resource.partition("/")
        wanted = {"namespace": self.namespace, "verb": verb, "resource": plural, "group": group}
        wanted |= {"subresource": subresource} if subresource else {}
        review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview"}
        answer = self.api.call(
            self._asked("create", _REVIEWS, namespace=""), body={**review, "spec": {"resourceAttributes": wanted}}
        )
        return bool(answer.get("status", {}).get("allowed"))

    def exists(self, kind: Existing, name: str) -> bool:
        """Whether there is one. Of a Secret only its metadata is asked for."""
        if kind == "CustomResourceDefinition":
            # Discovery tells anybody; to read the definition itself takes rights on the whole cluster.
            plural, _, group = name.partition(".")
            return self._served(group, plural) is not None
        resource = self._served(_KUEUE, "localqueues") if kind == "LocalQueue" else _NAMED[kind]
        return resource is not None and self._get(resource, name, accept=METADATA_ONLY) is not None

    # -- inside

    def _asked(
        self, verb: str, resource: Resource, name: str = "", *, namespace: str | None = None, subresource: str = ""
    ) -> Asked:
        where = self.namespace if namespace is None and resource.namespaced else namespace or ""
        return Asked(verb, resource, where, name, subresource, self.connection.context)

    def _path(self, resource: Resource) -> str:
        """Of the collection, into which objects are created."""
        return f"/apis/{resource.group}/{resource.version}/namespaces/{self.namespace}/{resource.plural}"

    def _get(self, resource: Resource, name: str, accept: str = "application/json") -> Object | None:
        try:
            return self.api.call(self._asked("get", resource, name), accept=accept)
        except Absent:
            return None

    def _list(self, resource: Resource, kind: str, query: dict[str, Any]) -> list[Object]:
        """All of them. Items say what they are, which the API leaves out for its own kinds."""
        given = {name: value for name, value in query.items() if value}
        version = f"{resource.group}/{resource.version}" if resource.group else resource.version
        asked = self._asked("list", resource)
        try:
            items = list(self._pages(asked, given | {"limit": _PAGE}))
        except Expired:
            # The server forgot the list while we read its pages: at once, then, however long it is.
            items = self.api.call(asked, query=given)["items"]
        return [{"apiVersion": version, "kind": kind, **item} for item in items]

    def _pages(self, asked: Asked, query: dict[str, Any]) -> Iterator[Object]:
        while True:
            page = self.api.call(asked, query=query)
            yield from page["items"]
            following = page["metadata"].get("continue")
            if not following:
                return
            query = {**query, "continue": following}

    def _served(self, group: str, plural: str) -> Resource | None:
        """A kind in the version that the server prefers; None where it is not installed."""
        asked = self._asked("get", Resource(plural, group), namespace="")
        try:
            version = self.api.call(asked, path=f"/apis/{group}")["preferredVersion"]["version"]
            kinds = self.api.call(asked, path=f"/apis/{group}/{version}").get("resources", ())
        except (NotInstalled, Absent):
            return None
        return Resource(plural, group, version) if any(kind.get("name") == plural for kind in kinds) else None


def _said_at(event: Object) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or event["metadata"].get("creationTimestamp", ""))


def _is_owned(obj: Object, kind: str, name: str) -> bool:
    owners = obj["metadata"].get("ownerReferences") or ()
    return any(owner.get("kind") == kind and owner.get("name") == name for owner in owners)
