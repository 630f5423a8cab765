"""The API server's double, on the wire: URLs, tokens, permissions, lists in pages, watches, logs, discovery."""

from __future__ import annotations

import base64
import json
import socket
import time
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from kube_kinds import KINDS, Kind, Object, Refused, by_path, check_fields
from kube_logs import container_of, require_started, seconds_of, stamped
from kube_requests import Request, understood
from kube_selectors import BadSelector, field_terms, fields_match, label_matcher
from kube_store import Change

if TYPE_CHECKING:
    from kube_api import KubeApi

_MERGES = ("application/merge-patch+json", "application/strategic-merge-patch+json")


class PlainNotFound(Exception):
    """What a path that nobody serves answers: text, and no Status object."""


class Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    kube: KubeApi  # set by a subclass for each server
    cut = False

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.kube.connections.add(self)

    def finish(self) -> None:
        self.kube.connections.discard(self)
        super().finish()

    def handle(self) -> None:
        try:
            super().handle()
        except (ConnectionError, ValueError, OSError):
            # The client went away, or the test cut the connection.
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        """The double says nothing."""

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815 - http.server's own names

    def sever(self) -> None:
        """As a cut cable: no end of the body, no goodbye."""
        self.cut = True
        try:
            self.connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            return

    # -- one request

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.streaming = False
        fault = None
        try:
            user = self.kube.user_of(self.headers.get("Authorization", ""))
            request = understood(self.command, self.path, user)
            fault = self.kube.fault_for(request)
            if fault.seconds:
                time.sleep(fault.seconds)
            if fault.status:
                raise Refused(fault.status, fault.reason, fault.message)
            self.kube.authorize(request)
            code, answer = 201 if request.verb == "create" else 200, self._serve(request, body)
        except Refused as refused:
            code, answer = refused.code, refused.status()
        except BadSelector as error:
            code, answer = 400, Refused(400, "BadRequest", str(error)).status()
        except PlainNotFound:
            return self._send_text(404, "404 page not found\n")
        if fault is not None and fault.lose_answer:
            self.close_connection = True
            self.sever()
        elif answer is not None:
            self._send(code, answer)

    def _serve(self, request: Request, body: bytes) -> Object | None:
        if not request.plural:
            return self._discovery(request)
        if request.resource == "selfsubjectaccessreviews.authorization.k8s.io":
            review = _parsed(body)
            return review | {"status": self.kube.review(request.user, review["spec"]["resourceAttributes"])}
        row = by_path(request.group, request.version, request.plural)
        if row is None or not self.kube.store.is_served(row):
            raise PlainNotFound
        if request.subresource == "log" and row.kind == "Pod" and request.verb == "get":
            return self._log(request, row)
        if request.subresource not in (("status", "") if row.status else ("",)):
            raise PlainNotFound
        return getattr(self, f"_{request.verb}")(request, row, body)

    # -- verbs

    def _get(self, request: Request, row: Kind, _: bytes) -> Object:
        found = self.kube.store.get(row, request.key)
        if "as=PartialObjectMetadata" in self.headers.get("Accept", ""):
            return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": found["metadata"]}
        return found

    def _create(self, request: Request, row: Kind, body: bytes) -> Object:
        obj = _parsed(body)
        if obj.get("kind") != row.kind or obj.get("apiVersion") != row.api_version:
            message = f"the object provided is unrecognized: {obj.get('apiVersion')}, Kind={obj.get('kind')}"
            raise Refused(400, "BadRequest", message)
        given = obj.get("metadata", {}).get("namespace")
        if given and given != request.namespace:
            message = f"the namespace of the provided object does not match the namespace sent on the request: {given}"
            raise Refused(400, "BadRequest", message)
        strict, dry_run = request.query.get("fieldValidation") == "Strict", request.query.get("dryRun") == "All"
        manager = request.query.get("fieldManager") or self.headers.get("User-Agent", "").partition("/")[0]
        return self.kube.store.create(row, request.namespace, obj, strict=strict, dry_run=dry_run, manager=manager)

    def _update(self, request: Request, row: Kind, body: bytes) -> Object:
        return self.kube.store.update(row, request.key, _parsed(body), **_how(request))

    def _patch(self, request: Request, row: Kind, body: bytes) -> Object:
        media = self.headers.get("Content-Type", "").partition(";")[0]
        if media not in (_MERGES[:1] if row.custom else _MERGES):
            accepted = "application/merge-patch+json"
            message = f"the body of the request was in an unknown format - accepted media types include: {accepted}"
            raise Refused(415, "UnsupportedMediaType", message)
        return self.kube.store.patch(row, request.key, _parsed(body), **_how(request))

    def _delete(self, request: Request, row: Kind, body: bytes) -> Object:
        options = _parsed(body) if body else {}
        policy = options.get("propagationPolicy") or request.query.get("propagationPolicy")
        uid = (options.get("preconditions") or {}).get("uid")
        held = self.kube.store.delete(row, request.key, policy, uid)
        if row.kind == "Pod" and held is None:
            self.kube.logs.drop(request.namespace, request.name)
        gone = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
        return held or gone | {"details": row.details(request.name)}

    def _deletecollection(self, request: Request, row: Kind, body: bytes) -> Object:
        options = _parsed(body) if body else {}
        for obj in self._selected(request, row):
            key = (obj["metadata"].get("namespace", ""), obj["metadata"]["name"])
            self.kube.store.delete(row, key, options.get("propagationPolicy"))
        return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}

    def _list(self, request: Request, row: Kind, _: bytes) -> Object:
        store = self.kube.store
        with store.changed:
            version, items = store.version, self._selected(request, row)
            start, seen = _continued(request.query.get("continue", ""))
            if seen and seen < store.forgotten:
                raise Refused(410, "Expired", "The provided continue parameter is too old to display a consistent list")
        items = [one for one in items if _order(one) > start] if start else items
        metadata: Object = {"resourceVersion": str(seen or version)}
        limit = int(request.query.get("limit") or 0)
        if limit and len(items) > limit:
            token = json.dumps([*_order(items[limit - 1]), seen or version]).encode()
            metadata |= {"continue": base64.urlsafe_b64encode(token).decode()}
            metadata |= {"remainingItemCount": len(items) - limit}
            items = items[:limit]
        if not row.custom:
            # Only custom objects repeat what they are inside a list.
            items = [{key: value for key, value in one.items() if key not in ("kind", "apiVersion")} for one in items]
        return {"kind": f"{row.kind}List", "apiVersion": row.api_version, "metadata": metadata, "items": items}

    def _selected(self, request: Request, row: Kind) -> list[Object]:
        matches = _matcher(request, row)
        return [obj for obj in self.kube.store.list(row, request.namespace) if matches(obj)]

    # -- streams

    def _watch(self, request: Request, row: Kind, _: bytes) -> None:
        store, matches = self.kube.store, _matcher(request, row)
        asked = int(request.query.get("resourceVersion") or 0)
        until = time.monotonic() + float(request.query.get("timeoutSeconds") or 1800)
        bookmarks, marked = request.flag("allowWatchBookmarks"), time.monotonic()
        self._begin("application/json")
        with store.changed:
            seen = asked or store.version
            first = [] if asked else [("ADDED", one) for one in self._selected(request, row)]
        if seen < store.forgotten:
            message = f"too old resource version: {seen} ({store.forgotten})"
            self._event("ERROR", Refused(410, "Expired", message).status())
            return self._end()
        for kind, obj in first:
            self._event(kind, obj)
        while not self.cut and time.monotonic() < until:
            with store.changed:
                if store.version <= seen and not self.cut:
                    store.changed.wait(max(0.0, min(0.2, until - time.monotonic())))
                new = [change for change in store.history if change.version > seen and change.kind is row]
                seen = store.version if not new else max(store.version, new[-1].version)
            for change in new:
                if told := _told(change, request.namespace, matches):
                    self._event(*told)
            if bookmarks and time.monotonic() - marked >= self.kube.bookmark_every:
                marked = time.monotonic()
                self._event("BOOKMARK", _bookmark(row, seen))
        return None if self.cut else self._end()

    def _log(self, request: Request, row: Kind) -> None:
        pod = self.kube.store.get(row, request.key)
        logs, query = self.kube.logs, request.query
        container = container_of(pod, query.get("container") or None)
        place = (request.namespace, request.name, container)
        require_started(pod, container, logs.of(place))
        since = seconds_of(query["sinceTime"]) if "sinceTime" in query else None
        with logs.changed:
            lines = [one for one in logs.of(place).lines if since is None or one[0] >= since]
            done = len(logs.of(place).lines)
        if "tailLines" in query:
            lines = lines[max(0, len(lines) - int(query["tailLines"])) :]
        self._begin("text/plain")
        while not self.cut:
            for when, line in lines:
                self._chunk((stamped(when, line) if request.flag("timestamps") else line).encode() + b"\n")
            with logs.changed:
                idle = done >= len(logs.of(place).lines)
                if idle and (not request.flag("follow") or self._is_over(pod, place)):
                    break
                if idle:
                    logs.changed.wait(0.2)
                lines = logs.of(place).lines[done:]
                done += len(lines)
        return None if self.cut else self._end()

    def _is_over(self, pod: Object, place: tuple[str, str, str]) -> bool:
        """The container has ended, or its pod is gone, or it is another pod of that name."""
        if self.kube.logs.of(place).ended:
            return True
        try:
            now = self.kube.store.get(by_path("", "v1", "pods"), place[:2])  # type: ignore[arg-type]
        except Refused:
            return True
        return now["metadata"]["uid"] != pod["metadata"]["uid"]

    # -- discovery

    def _discovery(self, request: Request) -> Object:
        path = urlsplit(self.path).path.rstrip("/")
        served = [row for row in KINDS if self.kube.store.is_served(row)]
        groups = {row.group: row.version for row in served if row.group}
        if path in ("/healthz", "/livez", "/readyz"):
            return {"status": "ok"}
        if path == "/version":
            return {"major": "1", "minor": "37", "gitVersion": "v1.37.0"}
        if path == "/api":
            return {"kind": "APIVersions", "versions": ["v1"]}
        if path == "/apis":
            found = [_group(name, version) for name, version in groups.items()]
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": found}
        parts = path.strip("/").split("/")
        if parts[0] == "apis" and len(parts) == 2 and parts[1] in groups:
            return {"kind": "APIGroup", "apiVersion": "v1"} | _group(parts[1], groups[parts[1]])
        rows = [row for row in served if (row.group, row.version) == (request.group, request.version)]
        if not request.version or not rows:
            raise PlainNotFound
        found = [{"name": row.plural, "kind": row.kind, "namespaced": row.namespaced} for row in rows]
        return {"kind": "APIResourceList", "groupVersion": rows[0].api_version, "resources": found}

    # -- bytes

    def _send(self, code: int, body: Object) -> None:
        self._send_text(code, json.dumps(body), "application/json")

    def _send_text(self, code: int, text: str, media: str = "text/plain; charset=utf-8") -> None:
        data = text.encode()
        self.send_response(code)
        self.send_header("Content-Type", media)
        self.send_header("Content-Length", str(len(data)))
        if code == 429:
            self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.write(data)

    def _begin(self, media: str) -> None:
        self.streaming = True
        self.send_response(200)
        self.send_header("Content-Type", media)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _event(self, kind: str, obj: Object) -> None:
        self._chunk(json.dumps({"type": kind, "object": obj}).encode() + b"\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def _end(self) -> None:
        self.wfile.write(b"0\r\n\r\n")
        self.streaming = False


def _parsed(body: bytes) -> Object:
    try:
        found = json.loads(body)
    except ValueError as error:
        raise Refused(400, "BadRequest", f"couldn't get version/kind; json parse error: {error}") from error
    if not isinstance(found, dict):
        raise Refused(400, "BadRequest", "the body is not an object")
    return found


def _how(request: Request) -> dict[str, bool]:
    return {"status": request.subresource == "status", "strict": request.query.get("fieldValidation") == "Strict"}


def _order(obj: Object) -> tuple[str, str]:
    return (obj["metadata"].get("namespace", ""), obj["metadata"]["name"])


def _continued(token: str) -> tuple[tuple[str, str] | None, int]:
    if not token:
        return None, 0
    try:
        namespace, name, version = json.loads(base64.urlsafe_b64decode(token))
    except ValueError as error:
        raise Refused(400, "BadRequest", f"continue key is not valid: {error}") from error
    return (namespace, name), version


def _matcher(request: Request, row: Kind) -> Any:
    labels = label_matcher(request.query.get("labelSelector", ""))
    terms = field_terms(request.query.get("fieldSelector", ""))
    check_fields(row, terms)
    return lambda obj: labels(obj["metadata"].get("labels") or {}) and fields_match(obj, terms)


def _told(change: Change, namespace: str, matches: Any) -> tuple[str, Object] | None:
    """What a watch with selectors sees of a change: coming into view is ADDED, going out of it is DELETED."""
    if namespace and change.key[0] != namespace:
        return None
    was, is_now = change.before is not None and matches(change.before), matches(change.object)
    if change.type == "DELETED":
        return ("DELETED", change.object) if was else None
    if was:
        return ("MODIFIED" if is_now else "DELETED", change.object)
    return ("ADDED", change.object) if is_now else None


def _bookmark(row: Kind, version: int) -> Object:
    return {"kind": row.kind, "apiVersion": row.api_version, "metadata": {"resourceVersion": str(version)}}


def _group(name: str, version: str) -> Object:
    found = {"groupVersion": f"{name}/{version}", "version": version}
    return {"name": name, "versions": [found], "preferredVersion": found}
