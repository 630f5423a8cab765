"""A proxy on loopback before an S3 server, which can be told to refuse what writes, or to take its time for it: the
reasons for which a real one does (503 SlowDown, 403 AccessDenied) do not come about by themselves.

All else passes unchanged. A request is signed for the address that it is sent to, which is the proxy's; it stays valid
because the Host header passes as it is.
"""

from __future__ import annotations

import http.client
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import urlsplit

_CODES = {503: "SlowDown", 403: "AccessDenied"}
_OF_ONE_CONNECTION = {"connection", "expect", "keep-alive", "transfer-encoding"}


class RefusingS3:
    """`with RefusingS3(server.endpoint) as proxy:`

    Attributes:
        refused: "PUT /bucket/key" of each write that was refused, in their order; `taken` of the others.
        pause_s: how much longer every write takes.
    """

    def __init__(self, endpoint: str) -> None:
        self.refused: list[str] = []
        self.taken: list[str] = []
        self.pause_s = 0.0
        self._behind = urlsplit(endpoint).netloc
        self._status, self._until = 0, 0.0
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="refusing s3")

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def refuse(self, status: int, seconds: float) -> None:
        """From now on, for so long: answer every PUT, POST and DELETE with this."""
        assert status in _CODES
        self._status, self._until = status, time.monotonic() + seconds

    @property
    def refuses(self) -> bool:
        return time.monotonic() < self._until

    def __enter__(self) -> RefusingS3:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def answer(self, method: str, path: str, headers: list[tuple[str, str]], body: bytes) -> _Answer:
        if method in ("PUT", "POST", "DELETE"):
            time.sleep(self.pause_s)
            if self.refuses:
                self.refused.append(f"{method} {path}")
                return _refusal(self._status)
            self.taken.append(f"{method} {path}")
        connection = http.client.HTTPConnection(self._behind, timeout=60)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in headers:
                connection.putheader(name, value)
            connection.endheaders(body)
            found = connection.getresponse()
            return found.status, found.getheaders(), found.read()
        finally:
            connection.close()


_Answer = tuple[int, list[tuple[str, str]], bytes]


def _refusal(status: int) -> _Answer:
    body = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{_CODES[status]}</Code><Message>no</Message></Error>'
    return status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))], body.encode()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    proxy: RefusingS3


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def _pass_on(self) -> None:
        if "Transfer-Encoding" in self.headers:
            return self.send_error(501, "bodies come with their length")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            status, headers, found = self.server.proxy.answer(
                self.command, self.path, _passing(self.headers.items()), body
            )
        except (OSError, http.client.HTTPException):
            self.close_connection = True  # as the server behind it would look: nobody answers
            return
        self.send_response_only(status)
        for name, value in _passing(headers):
            self.send_header(name, value)
        if not any(name.lower() == "content-length" for name, _ in headers) and status != 204:
            self.send_header("Content-Length", str(len(found)))
        self.end_headers()
        self.wfile.write(found)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass_on  # noqa: N815 - as http.server wants them

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: requests are signed, and a test's output is for its failure."""


def _passing(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(name, value) for name, value in headers if name.lower() not in _OF_ONE_CONNECTION]
