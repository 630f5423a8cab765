"""An endpoint that swallows packets: a firewall, or an address of another network."""

from __future__ import annotations

import socket
import time

import pytest

from interp.errors import StoreAccessError
from interp.store import Store
from interp.store.backends import s3


def test_a_connection_that_is_never_made_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "CONNECT_S", 0.3)
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(3)]
        for one in waiting:  # the kernel answers no more than it may queue
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        variables = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{full.getsockname()[1]}", "AWS_DEFAULT_REGION": "us-east-1"}
        for name, value in {**variables, "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}.items():
            monkeypatch.setenv(name, value)
        start = time.monotonic()
        with pytest.raises(StoreAccessError):
            Store.open("s3://bucket/prefix", patience=0.5).list()
        assert time.monotonic() - start < 6
        for one in waiting:
            one.close()
