"""A double of the Kubernetes API server, on loopback, in threads: real REST semantics, and faults on demand.

    with KubeApi() as kube:
        kubeconfig = kube.kubeconfig(tmp_path / "kubeconfig")
        ...
        kube.objects("RayJob"); kube.set_status("RayJob", name, {...}); kube.cut_watches()

Two users: `tester`, whom faults and denials meet, and `operator`, who always may and never fails.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml
from kube_http import Handler
from kube_kinds import KINDS, Kind, Object, Refused, by_kind, by_path
from kube_logs import PodLogs
from kube_requests import Request
from kube_schemas import admission_by_schema
from kube_store import Key, ObjectStore, merged
from kube_tls import ServerCertificate

TESTER, OPERATOR = "tester", "operator"
# No real secrets, but words that a test can look for where no secret may be.
TOKENS = {"planted-token-of-the-tester": TESTER, "planted-token-of-the-operator": OPERATOR}
_REASONS = {
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    409: "Conflict",
    410: "Expired",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request."""

    status: int = 0
    message: str = ""
    seconds: float = 0.0
    lose_answer: bool = False

    @property
    def reason(self) -> str:
        return _REASONS.get(self.status, "InternalError")


class KubeApi:
    """See the module. `start` after `stop` takes the same port again, with the objects that there were."""

    def __init__(
        self,
        *,
        namespaces: Iterable[str] = ("default", "interp"),
        schemas: Path | None = None,
        tls: ServerCertificate | None = None,
    ) -> None:
        self.tls = tls
        self.store = ObjectStore()
        self.store.admission = admission_by_schema(schemas)
        self.logs = PodLogs(self.store.changed)
        self.connections: set[Handler] = set()
        self.requests: list[Request] = []
        self.bookmark_every = 60.0
        self._faults: list[Fault] = []
        self._delay = 0.0
        self._denied: set[tuple[str, str]] = set()
        self._expired = False
        self._port = 0
        self._server: ThreadingHTTPServer | None = None
        for namespace in namespaces:
            self.put({"kind": "Namespace", "metadata": {"name": namespace}, "status": {"phase": "Active"}})
            self.put({"kind": "ServiceAccount", "metadata": {"name": "default", "namespace": namespace}})
        for row in KINDS:
            if row.custom:
                self.store.install(row)

    # -- the server

    def start(self) -> KubeApi:
        handler = type("BoundHandler", (Handler,), {"kube": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), handler)
        self._server.daemon_threads = True
        self._port = self._server.server_address[1]
        if self.tls is not None:
            self._server.socket = self.tls.context().wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="kube api", daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        if self._server is None:
            return
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._sever(list(self.connections))
        self._server = None

    def __enter__(self) -> KubeApi:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http{'s' if self.tls else ''}://127.0.0.1:{self._port}"

    def kubeconfig(
        self,
        path: Path,
        *,
        user: str = TESTER,
        namespace: str = "interp",
        context: str = "double",
        token: str | None = None,
    ) -> Path:
        """Writes one that names this server; `token` in place of the user's own."""
        trusted = {"certificate-authority": str(self.tls.authority)} if self.tls else {}
        own = next(found for found, name in TOKENS.items() if name == user)
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": context,
            "clusters": [{"name": context, "cluster": {"server": self.url} | trusted}],
            "users": [{"name": user, "user": {"token": own if token is None else token}}],
            "contexts": [{"name": context, "context": {"cluster": context, "user": user, "namespace": namespace}}],
        }
        path.write_text(yaml.safe_dump(content))
        return path

    # -- objects, past all rules

    def objects(self, kind: str, namespace: str | None = None) -> list[Object]:
        return self.store.list(by_kind(kind), namespace or "")

    def get(self, kind: str, name: str, namespace: str = "interp") -> Object | None:
        try:
            return self.store.get(by_kind(kind), self._key(kind, name, namespace))
        except Refused:
            return None

    def put(self, obj: Object) -> Object:
        """Creates or replaces, the status too; apiVersion is filled in, and the namespace `interp` if absent."""
        return self.store.put(obj)

    def set_status(self, kind: str, name: str, status: Object, namespace: str = "interp") -> Object:
        """Merges into the status, as an operator would."""
        return self.store.patch(by_kind(kind), self._key(kind, name, namespace), {"status": status}, status=True)

    def patch(self, kind: str, name: str, patch: Object, namespace: str = "interp") -> Object:
        """Merges into anything, the status too."""
        with self.store.changed:
            now = self.store.get(by_kind(kind), self._key(kind, name, namespace))
            return self.store.put(merged(now, patch))

    def remove(self, kind: str, name: str, namespace: str = "interp", policy: str = "Background") -> None:
        self.store.delete(by_kind(kind), self._key(kind, name, namespace), policy)
        if kind == "Pod":
            self.logs.drop(namespace, name)

    def uninstall(self, resource: str) -> None:
        """Takes a kind such as `rayjobs.ray.io` away, with all its objects."""
        self.remove("CustomResourceDefinition", resource)

    def _key(self, kind: str, name: str, namespace: str) -> Key:
        return (namespace if by_kind(kind).namespaced else "", name)

    # -- logs

    def write_log(
        self,
        pod: str,
        text: str,
        *,
        container: str | None = None,
        namespace: str = "interp",
        at: datetime | None = None,
    ) -> None:
        """Lines of a container (default: the pod's first), at a time (default: now)."""
        self.logs.write((namespace, pod, container or self._first(pod, namespace)), text, at)

    def end_log(self, pod: str, *, container: str | None = None, namespace: str = "interp") -> None:
        self.logs.end((namespace, pod, container or self._first(pod, namespace)))

    def _first(self, pod: str, namespace: str) -> str:
        return str(self.store.get(by_kind("Pod"), (namespace, pod))["spec"]["containers"][0]["name"])

    # -- faults

    def fail_next(self, n: int, status: int, message: str = "") -> None:
        """The next n requests of the tester are refused with this status, before anything happens."""
        self._faults += [Fault(status, message or f"the double was told to fail with {status}")] * n

    def lose_next(self, n: int) -> None:
        """The next n requests of the tester are done, but the answer never comes."""
        self._faults += [Fault(lose_answer=True)] * n

    def delay(self, seconds: float) -> None:
        """Each request of the tester takes so much longer."""
        self._delay = seconds

    def cut_watches(self) -> int:
        """Cuts all connections over which a watch or a log is followed. How many there were."""
        streams = [one for one in list(self.connections) if getattr(one, "streaming", False)]
        self._sever(streams)
        return len(streams)

    def streams(self) -> int:
        """How many watches and logs are being followed now."""
        return sum(1 for one in list(self.connections) if getattr(one, "streaming", False))

    def forget_history(self) -> None:
        """Watches from a resourceVersion before now get 410 Gone."""
        self.store.forget()

    def deny(self, verb: str, resource: str) -> None:
        """Forbids the tester a verb on a resource such as `rayjobs.ray.io` or `pods/log`; `*` is all of them."""
        self._denied.add((verb, resource))

    def heal(self) -> None:
        """No faults, delays and denials any more."""
        self._faults.clear()
        self._denied.clear()
        self._delay, self._expired = 0.0, False

    def expire_tokens(self) -> None:
        """From now on nobody is known: 401."""
        self._expired = True

    def _sever(self, handlers: list[Handler]) -> None:
        for handler in handlers:
            handler.sever()
        with self.store.changed:
            self.store.changed.notify_all()

    # -- asked by the handlers

    def user_of(self, header: str) -> str:
        kind, _, token = header.partition(" ")
        if kind.lower() != "bearer" or token not in TOKENS or self._expired:
            raise Refused(401, "Unauthorized", "Unauthorized")
        return TOKENS[token]

    def fault_for(self, request: Request) -> Fault:
        self.requests.append(request)
        if request.user != TESTER:
            return Fault()
        fault = self._faults.pop(0) if self._faults else Fault()
        return replace(fault, seconds=self._delay)

    def authorize(self, request: Request) -> None:
        if not request.plural or self._may(request.user, request.verb, request.resource):
            return
        plural = request.plural + (f"/{request.subresource}" if request.subresource else "")
        row = by_path(request.group, request.version, request.plural)
        whole = row.resource if row else request.resource
        subject = f'{whole} "{request.name}"' if request.name else whole
        place = f'in the namespace "{request.namespace}"' if request.namespace else "at the cluster scope"
        raise Refused(
            403,
            "Forbidden",
            f'{subject} is forbidden: User "{request.user}" cannot {request.verb} resource "{plural}" '
            f'in API group "{request.group}" {place}',
            row.details(request.name) if row else {},
        )

    def review(self, user: str, wanted: dict[str, Any]) -> Object:
        group, plural = wanted.get("group", ""), wanted["resource"]
        resource = f"{plural}.{group}" if group else plural
        if subresource := wanted.get("subresource"):
            resource += f"/{subresource}"
        allowed = self._may(user, wanted["verb"], resource)
        return {"allowed": allowed} | ({} if allowed else {"reason": "the double was told to deny it"})

    def _may(self, user: str, verb: str, resource: str) -> bool:
        pairs = {(verb, resource), ("*", resource), (verb, "*"), ("*", "*")}
        return user != TESTER or not pairs & self._denied


__all__ = ["OPERATOR", "TESTER", "TOKENS", "Kind", "KubeApi", "Object"]
