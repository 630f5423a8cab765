"""What the Kubernetes API answers, as errors that say what to do. No token, certificate or Secret is ever in one.

ClusterError
  Unreachable       no answer: refused, cut, timed out, TLS; or the server says that it cannot answer now
  Unauthenticated   401
  Forbidden         403
  Absent            404: the object, or its namespace
  NotInstalled      404: the server does not know the kind at all
  AlreadyThere      409 on a create
  Conflict          409 on a change
  NotStarted        400: the container has no log yet
  Invalid           400, 422, and 403 by a policy: the server does not accept the object
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from interp.errors import ClusterError

KUBERAY = (
    "helm repo add kuberay https://ray-project.github.io/kuberay-helm/ && helm install kuberay-operator "
    "kuberay/kuberay-operator --version 1.7.0 --namespace kuberay-system --create-namespace"
)
_LONGEST = 2000


class Unreachable(ClusterError):
    """No answer came, or the server cannot answer now."""


class Unauthenticated(ClusterError):
    """The server does not know who asks."""


class Forbidden(ClusterError):
    """The server knows who asks, and says no."""


class Absent(ClusterError):
    """There is no such object."""


class NotInstalled(ClusterError):
    """The server does not know this kind of object."""


class AlreadyThere(ClusterError):
    """An object of this name is there already."""


class Conflict(ClusterError):
    """Somebody else changed the object in between."""


class Expired(ClusterError):
    """The server has forgotten what we wanted to go on from."""


class NotStarted(ClusterError):
    """The container waits: it has written nothing yet."""


class Invalid(ClusterError):
    """The server does not accept what was sent."""


@dataclass(frozen=True)
class Resource:
    """A kind, as URLs and permissions name it."""

    plural: str
    group: str = ""
    version: str = "v1"
    namespaced: bool = True

    @property
    def full(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural


@dataclass(frozen=True)
class Asked:
    """What was asked of the server: for the words of an error."""

    verb: str
    resource: Resource
    namespace: str = ""
    name: str = ""
    subresource: str = ""
    context: str | None = None

    def __str__(self) -> str:
        what = " ".join(part for part in (self.full, self.name) if part)
        where = f" in namespace {self.namespace}" if self.namespace else ""
        return f"{self.verb} {what}{where}"

    @property
    def full(self) -> str:
        return self.resource.full + (f"/{self.subresource}" if self.subresource else "")

    def kubectl(self, words: str) -> str:
        options = f" -n {self.namespace}" if self.namespace else ""
        return f"kubectl{f' --context {self.context}' if self.context else ''}{options} {words}"

    def can_i(self) -> str:
        verb = "get" if self.subresource == "log" else self.verb
        if self.subresource:
            return self.kubectl(f"auth can-i {verb} {self.resource.full} --subresource={self.subresource}")
        return self.kubectl(f"auth can-i {verb} {self.full}")


def refusal(asked: Asked, code: int, body: bytes) -> ClusterError:
    """The error for an answer that is no success."""
    status = _status(body)
    message, reason = str(status.get("message", ""))[:_LONGEST], str(status.get("reason", ""))
    if code == 401:
        return Unauthenticated(
            "the Kubernetes API does not know who asks",
            value=f"401 for {asked}",
            expected="a token or certificate that is valid now",
            remedy="the credentials are wrong or have expired: log in to the cluster again (a cloud's login command, "
            f"or a new kubeconfig), then try `{asked.kubectl('auth whoami')}`",
        )
    if code == 403 and "exceeded quota" in message and "count/" in message:
        return Invalid(
            f"the namespace may have no more objects of this kind: {asked}",
            value=message,
            remedy="remove those of runs that have ended: `interp list`, then `interp cancel RUN` for each (what they "
            "made stays); or ask for a larger quota",
        )
    if code == 403 and ("admission webhook" in message or "exceeded quota" in message):
        return Invalid(
            f"a policy of the cluster refuses this: {asked}",
            value=message,
            remedy="change the profile to what the policy allows, or ask who set it",
        )
    if code == 403:
        return Forbidden(
            f"not allowed: {asked}",
            value=message or "403 Forbidden",
            expected=f"the permission to {asked.verb} {asked.full}",
            remedy=f"see `{asked.can_i()}`; an administrator gives it with a Role and a RoleBinding",
        )
    if code == 404:
        return _missing(asked, status, message)
    if code == 409 and reason == "AlreadyExists":
        return AlreadyThere(
            f"{asked.full} {asked.name} is there already",
            value=message,
            remedy=f"look at it with `{asked.kubectl(f'get {asked.full} {asked.name}')}`",
        )
    if code == 409:
        return Conflict(f"a conflict: {asked}", value=message, remedy="somebody changed it in between: try again")
    if code == 410:
        return Expired(f"too old: {asked}", value=message, remedy="list again")
    if code == 400 and "is waiting to start" in message:
        return NotStarted("the container has not started", value=message, remedy="wait for it, or see why it waits")
    if code in (400, 422):
        return Invalid(
            f"the Kubernetes API does not accept this: {asked}",
            value=message or f"HTTP {code}",
            remedy="an unknown field: the KubeRay of the cluster may be older than 1.7"
            if "unknown field" in message
            else "see the path in the message",
        )
    if code in (429, 500, 502, 503, 504):
        return Unreachable(
            f"the Kubernetes API cannot answer now: {asked}",
            value=f"HTTP {code}" + (f": {message}" if message else ""),
            remedy=f"try again in a minute; `{asked.kubectl('get --raw /readyz?verbose')}` says what is wrong with it",
        )
    return ClusterError(
        f"the Kubernetes API refused: {asked}", value=f"HTTP {code}" + (f": {message}" if message else "")
    )


def _missing(asked: Asked, status: dict[str, Any], message: str) -> ClusterError:
    details = status.get("details") or {}
    if not status:
        # A path that nobody serves is answered in plain text.
        if asked.resource.group == "ray.io":
            return NotInstalled(
                "KubeRay is not installed on this cluster",
                value=f"the server does not know {asked.resource.full}/{asked.resource.version}",
                expected="KubeRay 1.7 or newer",
                remedy=KUBERAY,
            )
        return NotInstalled(
            f"the cluster does not know {asked.resource.full}",
            value=f"version {asked.resource.version}",
            remedy=f"see `{asked.kubectl('api-resources')}`",
        )
    if details.get("kind") == "namespaces" and asked.resource.plural != "namespaces":
        return Absent(
            f"there is no namespace {asked.namespace}",
            value=message,
            remedy=f"create it (kubectl create namespace {asked.namespace}), or name another one in the profile",
        )
    return Absent(
        f"there is no {asked.full} {asked.name}".rstrip(),
        value=message,
        remedy=f"see `{asked.kubectl(f'get {asked.resource.full}')}`",
    )


def _status(body: bytes) -> dict[str, Any]:
    """The Status object of an answer; empty when the answer is none."""
    try:
        found = json.loads(body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) and found.get("kind") == "Status" else {}


def without_credentials(url: str) -> str:
    """A URL as it may be shown."""
    return re.sub(r"//[^/@]*@", "//", url)


def no_answer(asked: Asked, server: str, error: BaseException, seconds: float) -> Unreachable:
    """The error for a request to which no answer came. `error` is urllib3's: it has addresses in it, never headers."""
    server = without_credentials(server)
    told = _chain(error)
    if "CERTIFICATE_VERIFY_FAILED" in told or "SSL" in told or "certificate" in told.lower():
        return _tls(server, told)
    if "NameResolution" in told or "Name or service not known" in told or "nodename nor servname" in told:
        what, remedy = "its name cannot be resolved", "check the name, the VPN and DNS"
    elif "refused" in told.lower():
        what = "it refuses connections"
        remedy = "is the cluster running, is the VPN up, is the address of the kubeconfig still right?"
    elif "timed out" in told.lower() or "Timeout" in told:
        what, remedy = f"no answer within {seconds:.0f} s", "check the VPN, a firewall, or an API that is private"
    elif "Proxy" in told:
        what, remedy = "the proxy does not pass it on", "check HTTPS_PROXY and NO_PROXY"
    else:
        what, remedy = "the connection was cut", "try again"
    return Unreachable(
        f"the Kubernetes API cannot be reached: {what}",
        value=f"{server}, for {asked}",
        remedy=f"{remedy} (`{asked.kubectl('cluster-info')}` asks the same server)",
    )


def _tls(server: str, told: str) -> Unreachable:
    if "WRONG_VERSION_NUMBER" in told or "record layer failure" in told:
        why, remedy = "the server does not speak TLS", "the kubeconfig says https where the server has http"
    elif "self-signed" in told or "self signed" in told or "unable to get local issuer" in told:
        why = "its certificate is signed by an authority that the kubeconfig does not name"
        remedy = "get the kubeconfig anew: certificate-authority-data is of another or an older cluster"
    elif "expired" in told:
        why, remedy = "a certificate has expired", "renew the cluster's certificates; check this machine's clock"
    elif "match" in told:
        why = "its certificate is for another name"
        remedy = "use the name that the certificate has, or tls-server-name in the kubeconfig"
    else:
        why, remedy = "the TLS handshake failed", "check client-certificate and certificate-authority of the kubeconfig"
    return Unreachable(f"the Kubernetes API cannot be trusted: {why}", value=server, remedy=remedy)


def _chain(error: BaseException) -> str:
    """All that an error and its causes say: to choose words by, not to show."""
    parts: list[str] = []
    seen: BaseException | None = error
    while seen is not None and len(parts) < 8:
        parts.append(f"{type(seen).__name__}: {seen}")
        reason = getattr(seen, "reason", None)
        seen = reason if isinstance(reason, BaseException) else seen.__cause__ or seen.__context__
    return " | ".join(parts)
