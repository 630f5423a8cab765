"""Which cluster is meant, and what is said when a kubeconfig or TLS is wrong. Never with what is secret in the file."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from kube_api import TOKENS, KubeApi
from kube_tls import make_certificate

from interp.cluster.client import Cluster
from interp.cluster.client_errors import Unauthenticated, Unreachable
from interp.errors import ClusterError

TOKEN = next(iter(TOKENS))


@pytest.fixture(autouse=True)
def _outside_of_any_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def changed(path: Path, **sections: Any) -> None:
    """The kubeconfig with other sections."""
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | sections))


def refused(context: str | None = None) -> str:
    """What the error says, which must not have a token in it."""
    with pytest.raises(ClusterError) as error:
        Cluster.open(context, "interp", timeout=1)
    told = str(error.value)
    cause: BaseException | None = error.value
    while cause is not None:
        assert TOKEN not in str(cause)
        cause = None if cause.__suppress_context__ and cause.__cause__ is None else cause.__cause__ or cause.__context__
    return told


@pytest.fixture
def kubeconfig(kube: KubeApi, tmp_path: Path) -> Path:
    return tmp_path / "kubeconfig"


def test_without_a_kubeconfig(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    assert "there is no kubeconfig" in refused() and str(tmp_path / "none") in refused()
    monkeypatch.delenv("KUBECONFIG")
    assert "~/.kube/config" in refused()


def test_the_kubeconfig_at_home(
    kube: KubeApi, kubeconfig: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("KUBECONFIG")
    (tmp_path / "home" / ".kube").mkdir(parents=True)
    kubeconfig.rename(tmp_path / "home" / ".kube" / "config")
    assert Cluster.open(None, "interp").connection.context == "double"


def test_several_files_are_one(
    kube: KubeApi, kubeconfig: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = kube.kubeconfig(tmp_path / "other", context="second", user="operator")
    monkeypatch.setenv("KUBECONFIG", f"{kubeconfig}{os.pathsep}{tmp_path / 'none'}{os.pathsep}{other}")
    Cluster.open("second", "interp").jobs()
    assert kube.requests[-1].user == "operator"
    Cluster.open("double", "interp").jobs()
    assert kube.requests[-1].user == "tester"


def test_a_context_that_is_not_there(kubeconfig: Path) -> None:
    told = refused("h200")
    assert "the kubeconfig has no context h200" in told and "expected: one of double" in told
    changed(kubeconfig, **{"current-context": ""})
    assert "no current context" in refused()


def test_a_context_whose_parts_are_not_there(kubeconfig: Path) -> None:
    content = yaml.safe_load(kubeconfig.read_text())
    content["contexts"][0]["context"]["cluster"] = "gone"
    changed(kubeconfig, contexts=content["contexts"])
    assert "its cluster gone is not in the file" in refused()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "just words",
        f"users: [{{name: u, user: {{token: {TOKEN}}}}}]",
        f"contexts: x\nusers: [token: {TOKEN}\n",
        f"contexts: [{{name: a, context: {{cluster: c, user: u}}}}]\ncurrent-context: a\nclusters: [{{name: c}}]\n"
        f"users: [{{name: u, user: {{token: {TOKEN}}}}}]",
        f"contexts: [{{name: a, context: {{user: u}}}}]\ncurrent-context: a\nclusters: []\n"
        f"users: [{{name: u, user: {{token: {TOKEN}}}}}]",
        f"contexts: [{{name: a, context: {{cluster: c, user: u}}}}]\ncurrent-context: a\n"
        f"clusters: [{{name: c, cluster: {{server: 'https://h', certificate-authority-data: '{TOKEN}'}}}}]\n"
        f"users: [{{name: u, user: {{token: {TOKEN}}}}}]",
    ],
)
def test_a_file_that_is_no_kubeconfig(kubeconfig: Path, text: str) -> None:
    kubeconfig.write_text(text)
    told = refused()
    assert "kubeconfig" in told and "remedy" in told


def test_a_wrong_token(kube: KubeApi, kubeconfig: Path) -> None:
    kube.kubeconfig(kubeconfig, token="of-yesterday")
    with pytest.raises(Unauthenticated) as error:
        Cluster.open(None, "interp")
    assert "of-yesterday" not in str(error.value)


def plugin(path: Path, kubeconfig: Path, script: str | None, **more: Any) -> None:
    """A login plugin as the user of the kubeconfig."""
    if script is not None:
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    found = {"apiVersion": "client.authentication.k8s.io/v1", "command": str(path), "args": ["--secret", TOKEN], **more}
    changed(kubeconfig, users=[{"name": "tester", "user": {"exec": found}}])


def credential(token: str, **more: str) -> str:
    """What a login plugin prints."""
    kind = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential"}
    return json.dumps(kind | {"status": {"token": token, **more}})


def test_a_login_plugin(kube: KubeApi, kubeconfig: Path, tmp_path: Path) -> None:
    plugin(tmp_path / "login", kubeconfig, f"echo '{credential(TOKEN)}'")
    Cluster.open(None, "interp").jobs()
    assert kube.requests[-1].user == "tester"


def test_a_login_plugin_is_asked_again_when_its_token_expires(
    kube: KubeApi, kubeconfig: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    soon = (datetime.now(UTC) + timedelta(seconds=5)).strftime("%Y-%m-%dT%H:%M:%SZ")
    asked = tmp_path / "asked"
    answer = credential(TOKEN, expirationTimestamp=soon)
    plugin(tmp_path / "login", kubeconfig, f"echo x >> {asked}\ntest -e {tmp_path}/broken || echo '{answer}'")
    cluster = Cluster.open(None, "interp")
    before = len(asked.read_text().split())
    cluster.jobs()
    assert len(asked.read_text().split()) > before
    # One that fails later is not heard in the log either: the old token is tried, and the server says what it thinks.
    (tmp_path / "broken").touch()
    kube.expire_tokens()
    with pytest.raises(Unauthenticated):
        cluster.jobs()
    assert "exec" not in caplog.text


def test_a_login_plugin_that_is_missing(kubeconfig: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plugin(tmp_path / "login", kubeconfig, None, installHint="get it from your cloud")
    told = refused()
    assert f"login plugin is not installed: {tmp_path / 'login'}" in told and "get it from your cloud" in told
    assert TOKEN not in caplog.text


def test_a_login_plugin_that_fails(kubeconfig: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plugin(tmp_path / "login", kubeconfig, f"echo 'expired: {TOKEN}' >&2; exit 3")
    assert "login plugin failed" in refused()
    assert TOKEN not in caplog.text
    plugin(tmp_path / "login", kubeconfig, "echo no json")
    assert "login plugin failed" in refused()


def test_nobody_answers(kube: KubeApi) -> None:
    kube.stop()
    told = refused()
    assert "cannot be reached: it refuses connections" in told and kube.url in told


def test_a_server_whose_name_nobody_knows(kubeconfig: Path) -> None:
    changed(kubeconfig, clusters=[{"name": "double", "cluster": {"server": f"http://u:{TOKEN}@none.invalid:1"}}])
    told = refused()
    assert "its name cannot be resolved" in told and "http://none.invalid:1" in told


def test_something_else_answers(kubeconfig: Path, kube: KubeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kube_http.Handler._send", lambda self, code, body: self._send_text(200, "<html>log in</html>"))
    assert "what answers is no Kubernetes API" in refused()


def test_a_proxy_is_not_asked_for_this_machine(kube: KubeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert Cluster.open(None, "interp").jobs() == []


def test_the_proxy_of_the_kubeconfig_is_asked(kube: KubeApi, kubeconfig: Path) -> None:
    entry = {"server": "http://api.invalid", "proxy-url": kube.url}
    changed(kubeconfig, clusters=[{"name": "double", "cluster": entry}])
    # Nobody but a proxy can reach that server; the double answers in its place.
    assert Cluster.open(None, "interp").jobs() == []
    assert kube.requests[-1].verb == "list"


# -- TLS


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Starts a double with a certificate."""
    started: list[KubeApi] = []

    def serve(**how: Any) -> KubeApi:
        kube = KubeApi(tls=make_certificate(tmp_path / f"tls-{len(started)}", **how)).start()
        started.append(kube)
        monkeypatch.setenv("KUBECONFIG", str(kube.kubeconfig(tmp_path / "tls-config")))
        return kube

    yield serve
    for kube in started:
        kube.stop()


def test_tls(served: Any) -> None:
    kube = served()
    assert kube.url.startswith("https://")
    cluster = Cluster.open(None, "interp")
    made = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": "run"}, "spec": {}}
    assert cluster.create_job(made)["metadata"]["uid"]


def test_inside_a_pod(served: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kubernetes.config import incluster_config

    kube = served()
    monkeypatch.delenv("KUBECONFIG")
    _, _, address = kube.url.partition("//")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", address.partition(":")[0])
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", address.partition(":")[2])
    token = tmp_path / "token"
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(token))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(kube.tls.authority))
    assert "no service account token" in refused()
    token.write_text(TOKEN)
    cluster = Cluster.open(None, "interp")
    assert cluster.jobs() == [] and cluster.connection.context is None
    assert "there is no kubeconfig" in refused("some-context")


def test_a_certificate_of_another_authority(served: Any, tmp_path: Path) -> None:
    kube = served()
    other = make_certificate(tmp_path / "other")
    clusters = [{"name": "double", "cluster": {"server": kube.url, "certificate-authority": str(other.authority)}}]
    changed(tmp_path / "tls-config", clusters=clusters)
    told = refused()
    assert "cannot be trusted" in told and "signed by an authority that the kubeconfig does not name" in told


def test_a_certificate_that_has_expired(served: Any) -> None:
    served(valid=timedelta(hours=-1))
    assert "a certificate has expired" in refused()


def test_a_certificate_for_another_name(served: Any) -> None:
    served(address="127.0.0.2")
    assert "its certificate is for another name" in refused()


def test_https_where_the_server_has_http(kube: KubeApi, kubeconfig: Path) -> None:
    changed(kubeconfig, clusters=[{"name": "double", "cluster": {"server": kube.url.replace("http:", "https:")}}])
    with pytest.raises(Unreachable, match="the server does not speak TLS"):
        Cluster.open(None, "interp", timeout=2)


def test_a_file_of_the_kubeconfig_that_is_not_there(kubeconfig: Path) -> None:
    entry = {"server": "https://127.0.0.1:1", "certificate-authority": "/none/ca.pem"}
    changed(kubeconfig, clusters=[{"name": "double", "cluster": entry}])
    assert "a file that it names is not there" in refused()
