"""A study on a cluster, from `interp submit` to graphs in S3.

By default the cluster is the double of the API server, with the operator's stand-in that runs RayJobs on a Ray of this
machine, and the bucket is in an S3 server of this machine. The same cases run on a real cluster, which is skipped
unless it is asked for:

    kind create cluster && helm install kuberay-operator kuberay/kuberay-operator --version 1.7.0   # for instance
    export KUBECONFIG=...                   # of a cluster with KubeRay 1.7, and the profile's namespace and Secrets
    export INTERP_TEST_PROFILE=kind.yaml    # a profile whose image holds this version of interp
    export INTERP_TEST_STORE=s3://bucket/p  # a prefix that pods and this machine reach; AWS_* say how from here
    INTERP_TEST_CLUSTER=1 pytest -m cluster tests/cluster
"""

from __future__ import annotations

import cluster_cases as cases
import pytest
from cluster_env import ClusterEnv, Double


@pytest.mark.ray
@pytest.mark.s3
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_from_submit_to_graphs_with_every_connection_cut(
    cluster_env: ClusterEnv, double: Double, planted: dict[str, str]
) -> None:
    cuts = []
    run = cases.submit_to_graphs(cluster_env, lambda: cuts.append(double.kube.cut_watches()))
    assert len(cuts) == 1 and cuts[0] >= 1
    assert double.operator.history[run.name] == ["Initializing", "Running", "Complete"]
    cases.require_no_secrets(run, double, planted)


@pytest.mark.cluster
@pytest.mark.timeout(3600)
def test_from_submit_to_graphs_on_a_real_cluster(real_cluster: ClusterEnv) -> None:
    cases.submit_to_graphs(real_cluster)


@pytest.mark.cluster
@pytest.mark.timeout(3600)
def test_cancelled_and_resumed_on_a_real_cluster(real_cluster: ClusterEnv) -> None:
    cases.ends_as_if_nothing_had_happened(cases.cancel_and_resume(real_cluster))


@pytest.mark.cluster
@pytest.mark.timeout(3600)
def test_an_image_that_does_not_exist_on_a_real_cluster(real_cluster: ClusterEnv) -> None:
    cases.cannot_pull(real_cluster, "registry.example/does-not-exist:1", seconds=90)
