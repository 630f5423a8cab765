"""Requests to the Kubernetes API: paths, answers as plain dicts, retries, streams of lines.

A request that failed for want of an answer, or with 429, 500, 502, 503 or 504, is made again, with growing pauses,
while its time lasts. Reads and deletes can be made twice; who creates must look whose object is there.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from interp.cluster.client_config import Connection
from interp.cluster.client_errors import Asked, no_answer, refusal
from interp.errors import ClusterError

logger = logging.getLogger(__name__)

Object = dict[str, Any]
_METHODS = {"get": "GET", "list": "GET", "watch": "GET", "create": "POST", "delete": "DELETE"}
_PERHAPS_DONE = (500, 502, 503, 504)
"""What a server, or a proxy before it, may also say of a request that it has carried out."""

_AGAIN = (429, *_PERHAPS_DONE)
_TRIES = 5
_FIRST_PAUSE = 0.1
METADATA_ONLY = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"


@dataclass
class Tries:
    """What became of the tries of a request. `lost`: one got no answer that says it was not done."""

    lost: bool = False


@dataclass(frozen=True)
class Api:
    """One server. `timeout` is the seconds that a request may take with all its tries."""

    connection: Connection
    timeout: float

    def call(
        self,
        asked: Asked,
        *,
        query: Mapping[str, Any] | None = None,
        body: Object | None = None,
        accept: str = "application/json",
        path: str | None = None,
        tries: Tries | None = None,
    ) -> Object:
        """One request, made again where that helps; `tries` is told what happened on the way.

        Raises:
            ClusterError: by kind, see `client_errors`.
        """
        import urllib3

        url = self.connection.server + (path or path_of(asked)) + (f"?{urlencode(query)}" if query else "")
        headers = {"Accept": accept, "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        tries = tries or Tries()
        until, pause = time.monotonic() + self.timeout, _FIRST_PAUSE
        for tries_left in reversed(range(_TRIES)):
            left = max(until - time.monotonic(), 0.001)
            error: ClusterError
            wait = pause
            try:
                answer = self.connection.pool.request(
                    _METHODS[asked.verb],
                    url,
                    body=data,
                    headers={**headers, **self.connection.headers()},
                    timeout=urllib3.Timeout(connect=left, read=left),
                )
            except (urllib3.exceptions.HTTPError, OSError) as cause:
                if _is_tls(cause):
                    raise no_answer(asked, self.connection.server, cause, self.timeout) from None
                error = no_answer(asked, self.connection.server, cause, self.timeout)
                tries.lost = tries.lost or _was_sent(cause)
            else:
                if answer.status < 300:
                    return _parsed(asked, answer.data)
                error = refusal(asked, answer.status, answer.data)
                tries.lost = tries.lost or answer.status in _PERHAPS_DONE
                if answer.status not in _AGAIN:
                    raise error
                wait = max(pause, _retry_after(answer.headers))
            if not tries_left or time.monotonic() + wait >= until:
                raise error
            logger.debug("again in %.1f s: %s", wait, error.what)
            time.sleep(wait)
            pause *= 2
        raise AssertionError("the last try returns or raises")

    def lines(self, asked: Asked, *, query: Mapping[str, Any], silence: float | None) -> Iterator[str]:
        """The lines of an answer as they come; the answer's end is the iterator's end.

        Args:
            silence: seconds without a line after which the stream counts as cut; None waits for ever.

        Raises:
            ClusterError: Unreachable when the stream was cut.
        """
        import urllib3

        url = f"{self.connection.server}{path_of(asked)}?{urlencode(query)}"
        timeout = urllib3.Timeout(connect=self.timeout, read=silence)
        answer = None
        try:
            answer = self.connection.pool.request(
                "GET", url, headers=self.connection.headers(), timeout=timeout, preload_content=False
            )
            if answer.status >= 300:
                raise refusal(asked, answer.status, answer.data)
            rest = b""
            while data := answer.read1():
                *whole, rest = (rest + data).split(b"\n")
                for line in whole:
                    yield line.decode(errors="replace")
            if rest:
                yield rest.decode(errors="replace")
        except (urllib3.exceptions.HTTPError, OSError) as cause:
            raise no_answer(asked, self.connection.server, cause, silence or self.timeout) from None
        finally:
            if answer is not None:
                # Not given back to the pool: what is left in a stream would be the next request's answer.
                answer.close()


def path_of(asked: Asked) -> str:
    """The path of a request's URL."""
    resource = asked.resource
    parts = ["apis", resource.group, resource.version] if resource.group else ["api", resource.version]
    parts += ["namespaces", asked.namespace] if resource.namespaced and asked.namespace else []
    parts += [part for part in (resource.plural, asked.name, asked.subresource) if part]
    return "/" + "/".join(quote(part, safe="") for part in parts)


def _parsed(asked: Asked, data: bytes) -> Object:
    try:
        found = json.loads(data)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ClusterError(
            f"what answers is no Kubernetes API: {asked}",
            value=f"{len(data)} bytes that are no JSON object",
            remedy="check the server's address in the kubeconfig, and a proxy or login page in between",
        )
    return found


def _is_tls(cause: BaseException) -> bool:
    import urllib3

    reason = getattr(cause, "reason", None) or cause.__cause__
    return isinstance(cause, urllib3.exceptions.SSLError) or isinstance(reason, urllib3.exceptions.SSLError)


def _was_sent(cause: BaseException) -> bool:
    """Whether the server may have got the request: not when there was no connection."""
    import urllib3

    return not isinstance(cause, urllib3.exceptions.NewConnectionError | urllib3.exceptions.ConnectTimeoutError)


def _retry_after(headers: Mapping[str, str]) -> float:
    try:
        return float(headers.get("Retry-After", 0))
    except ValueError:
        return 0.0
