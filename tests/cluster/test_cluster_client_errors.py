"""What the client's errors say: what is wrong, and what to do; and never a secret."""

from __future__ import annotations

import pytest
from client_cases import pod, rayjob
from kube_api import TOKENS, KubeApi

from interp.cluster.client import Cluster
from interp.cluster.client_errors import Absent, Forbidden, Invalid, NotInstalled, Unauthenticated, Unreachable
from interp.errors import ClusterError


def test_errors_name_the_right_that_is_missing(cluster: Cluster, kube: KubeApi) -> None:
    kube.deny("list", "pods")
    kube.deny("get", "pods/log")
    kube.put(pod("p"))
    with pytest.raises(Forbidden) as error:
        cluster.pods("a=b")
    assert "not allowed: list pods in namespace interp" in str(error.value)
    assert 'User "tester" cannot list resource "pods"' in str(error.value)
    assert "kubectl --context double -n interp auth can-i list pods" in str(error.value)
    with pytest.raises(Forbidden, match="auth can-i get pods --subresource=log"):
        list(cluster.pod_log("p"))


@pytest.mark.parametrize(
    "message",
    [
        'admission webhook "vrayjob.kb.io" denied the request: no',
        'rayjobs.ray.io "run" is forbidden: exceeded quota: q, requested: limits.cpu=9',
    ],
)
def test_what_a_policy_refuses_is_no_missing_right(cluster: Cluster, kube: KubeApi, message: str) -> None:
    kube.fail_next(1, 403, message)
    with pytest.raises(Invalid, match="a policy of the cluster refuses this") as error:
        cluster.create_job(rayjob())
    assert message in str(error.value) and "can-i" not in str(error.value)


def test_too_many_rayjobs_are_removed_by_cancel(cluster: Cluster, kube: KubeApi) -> None:
    kube.fail_next(
        1, 403, "exceeded quota: interp, requested: count/rayjobs.ray.io=1, limited: count/rayjobs.ray.io=32"
    )
    with pytest.raises(Invalid, match=r"may have no more objects") as error:
        cluster.create_job(rayjob())
    assert "interp cancel RUN" in str(error.value)


def test_a_token_that_has_expired(cluster: Cluster, kube: KubeApi) -> None:
    kube.expire_tokens()
    with pytest.raises(Unauthenticated, match="expired: log in to the cluster again"):
        cluster.jobs()
    with pytest.raises(Unauthenticated):
        Cluster.open(None, "interp")


def test_a_cluster_without_kuberay(cluster: Cluster, kube: KubeApi) -> None:
    kube.uninstall("rayjobs.ray.io")
    for call in (cluster.jobs, lambda: cluster.job("run"), lambda: cluster.create_job(rayjob())):
        with pytest.raises(NotInstalled, match=r"KubeRay is not installed.*\n(.*\n)*.*helm install kuberay-operator"):
            call()
    assert not cluster.exists("CustomResourceDefinition", "rayjobs.ray.io")


def test_a_namespace_that_is_not_there(kube: KubeApi) -> None:
    elsewhere = Cluster.open(None, "elsewhere")
    manifest = rayjob()
    manifest["metadata"]["namespace"] = "elsewhere"
    with pytest.raises(Absent, match=r"no namespace elsewhere\n(.*\n)*.*kubectl create namespace elsewhere"):
        elsewhere.create_job(manifest)


def test_no_error_has_a_token_in_it(cluster: Cluster, kube: KubeApi, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    told: list[str] = []
    kube.put(pod("p"))
    for status in (400, 401, 403, 404, 409, 410, 415, 422, 500):
        kube.fail_next(9 if status == 500 else 1, status)
        with pytest.raises(ClusterError) as error:
            cluster.jobs() if status != 410 else list(cluster.pod_log("p"))
        told += [str(error.value), repr(error.value), str(error.value.__cause__)]
        kube.heal()
    kube.stop()
    with pytest.raises(Unreachable) as error:
        Cluster.open(None, "interp", timeout=0.5)
    told += [str(error.value), caplog.text]
    assert len(caplog.records) > 5
    assert not [token for token in TOKENS if token in "".join(told)]
    assert "Bearer" not in "".join(told)
