"""A gateway that says 5xx of a request which the API has carried out."""

from __future__ import annotations

from typing import Any

import pytest
from client_cases import rayjob, verbs
from kube_api import KubeApi

from interp.cluster.client import Cluster


class Answer:
    def __init__(self, status: int) -> None:
        self.status, self.data, self.headers = status, b"upstream error", dict[str, str]()


def hide_next(cluster: Cluster, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next request is done, and answered with this status."""
    pool = cluster.connection.pool
    request, left = pool.request, [status]

    def answered(*args: Any, **kwargs: Any) -> Any:
        found = request(*args, **kwargs)
        return Answer(left.pop()) if left else found

    monkeypatch.setattr(pool, "request", answered)


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_what_was_done_all_the_same_is_found(
    status: int, cluster: Cluster, kube: KubeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide_next(cluster, status, monkeypatch)
    made = cluster.create_job(rayjob())
    assert made["metadata"]["uid"] == kube.objects("RayJob")[0]["metadata"]["uid"]
    assert verbs(kube) == ["create", "create", "get"]
    hide_next(cluster, status, monkeypatch)
    assert cluster.delete_job("run") and kube.objects("RayJob") == []
