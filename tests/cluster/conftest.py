"""The API server's double, for tests of the cluster."""

from __future__ import annotations

import os
import uuid
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from cluster_env import PROFILE, ClusterEnv, Double
from kube_api import TOKENS, KubeApi
from operator_stand_in import Operator
from s3 import S3Server

from interp.cluster.client import Cluster


@pytest.fixture
def kube(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubeApi]:
    """A server of its own for each test; KUBECONFIG names it."""
    with KubeApi() as api:
        monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig(tmp_path / "kubeconfig")))
        yield api


@pytest.fixture
def cluster(kube: KubeApi) -> Cluster:
    """A client of the double."""
    return Cluster.open(None, "interp", timeout=5)


@pytest.fixture
def double(kube: KubeApi, s3_env: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Double]:
    """The API's double, and a stand-in for KubeRay's operator that really runs RayJobs; S3 that their pods may use."""
    variables = s3_env.env()
    keys = {name: variables[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    kube.put({"kind": "ServiceAccount", "metadata": {"name": "interp-worker"}})
    data = {name: b64encode(value.encode()).decode() for name, value in keys.items()}
    kube.put({"kind": "Secret", "metadata": {"name": "interp-s3"}, "data": data})
    open_ones = {name: value for name, value in variables.items() if name not in keys}
    (tmp_path / "profile.yaml").write_text(yaml.safe_dump({**PROFILE, "env": open_ones}))
    monkeypatch.setenv("INTERP_CACHE_DIR", str(tmp_path / "here"))
    with Operator(kube, tmp_path / "operator") as operator:
        yield Double(kube, operator)


@pytest.fixture
def cluster_env(double: Double, s3_url: str, tmp_path: Path) -> ClusterEnv:
    """A place where runs can be submitted."""
    return ClusterEnv(tmp_path, tmp_path / "profile.yaml", s3_url)


@pytest.fixture
def planted(cluster_env: ClusterEnv, double: Double, s3_env: S3Server) -> dict[str, str]:
    """Secrets that pods, or the commands here, have."""
    hub = "planted-secret-of-the-hub"
    secret = {"HF_TOKEN": b64encode(hub.encode()).decode()}
    double.kube.put({"kind": "Secret", "metadata": {"name": "hub"}, "data": secret})
    cluster_env.change_profile(secrets=["interp-s3", "hub"])
    tokens = {f"of the API's {user}": token for token, user in TOKENS.items()}
    return {"of the hub": hub, "of the bucket": s3_env.secret_key, "the bucket's name": s3_env.access_key, **tokens}


@pytest.fixture
def real_cluster(tmp_path: Path) -> ClusterEnv:
    """A cluster that KUBECONFIG names, if it is asked for: see `test_cluster_end_to_end`."""
    if os.environ.get("INTERP_TEST_CLUSTER") != "1":
        pytest.skip("needs a real cluster: INTERP_TEST_CLUSTER=1, KUBECONFIG, INTERP_TEST_PROFILE, INTERP_TEST_STORE")
    profile = tmp_path / "profile.yaml"
    profile.write_text(Path(os.environ["INTERP_TEST_PROFILE"]).read_text())
    url = f"{os.environ['INTERP_TEST_STORE'].rstrip('/')}/{uuid.uuid4().hex[:12]}"
    return ClusterEnv(tmp_path, profile, url)
