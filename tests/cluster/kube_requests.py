"""What a method and a URL ask of the API server: verb, kind, namespace, name, subresource, query."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlsplit

from kube_store import Key

_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


@dataclass(frozen=True)
class Request:
    """One request, as it was understood."""

    user: str
    verb: str
    group: str
    version: str
    plural: str
    namespace: str
    name: str
    subresource: str
    query: dict[str, str]

    @property
    def resource(self) -> str:
        whole = f"{self.plural}.{self.group}" if self.group else self.plural
        return f"{whole}/{self.subresource}" if self.subresource else whole

    @property
    def key(self) -> Key:
        return (self.namespace, self.name)

    def flag(self, name: str) -> bool:
        return self.query.get(name, "").lower() in ("true", "1")


def understood(method: str, target: str, user: str) -> Request:
    """The parts of /api/v1/... and /apis/<group>/<version>/..."""
    url = urlsplit(target)
    query = dict(parse_qsl(url.query, keep_blank_values=True))
    parts = [unquote(part) for part in url.path.strip("/").split("/")]
    group, version, rest = ("", "", parts)
    if parts[0] == "api" and len(parts) > 1:
        version, rest = parts[1], parts[2:]
    elif parts[0] == "apis" and len(parts) > 2:
        group, version, rest = parts[1], parts[2], parts[3:]
    if not version or not rest:
        return Request(user, method.lower(), group, version, "", "", "", "", query)
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 2 and rest[2] not in ("status", "finalize"):
        namespace, rest = rest[1], rest[2:]
    plural, name, subresource = (*rest, "", "")[:3]
    if method == "GET":
        watching = not name and query.get("watch", "").lower() in ("true", "1")
        verb = "get" if name else "watch" if watching else "list"
    else:
        verb = _VERBS.get(method, method.lower()) + ("" if name or method != "DELETE" else "collection")
    return Request(user, verb, group, version, plural, namespace, name, subresource, query)
