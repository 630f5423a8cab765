"""Runs on a cluster in which things break: every one ends as it should, with nothing lost, doubled or given away."""

from __future__ import annotations

import time

import cluster_cases as cases
import fsspec
import pytest
from cluster_env import LONG, STEP, ClusterEnv, Double, wait
from s3 import S3Server

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.slow, pytest.mark.timeout(900)]


def test_a_worker_and_the_driver_are_killed_and_no_work_is_lost(
    cluster_env: ClusterEnv, double: Double, planted: dict[str, str]
) -> None:
    """The driver twice: in the middle of the fit, and of the trace."""
    run = cluster_env.submit(**LONG)
    wait(lambda: run.checkpoint() > 0)
    double.operator.kill_worker(run.name, "RayTrainWorker")
    before = run.checkpoint()
    wait(lambda: run.checkpoint() > before)  # training has gone on, in the same attempt
    kept = run.checkpoint()
    double.operator.kill_driver(run.name)
    assert not run.store.has("fit", run.key("fit"))
    wait(lambda: run.store.has("fit", run.key("fit")))
    wait(lambda: len(run.rows()) >= 3)
    double.operator.kill_driver(run.name)
    finished = run.rows()
    assert not run.store.has("trace", run.key("trace"))

    cases.ends_as_if_nothing_had_happened(run)
    assert run.told()["failed"] == 2 and run.folder.attempts() == [1, 2, 3]
    assert double.operator.history[run.name].count("Retrying") == 2
    # A checkpoint that was there is where the second attempt began, and what was finished was not made again.
    tokens = [row["done"] for row in run.told_of("fit", 2) if row.get("step") == "train"]
    assert tokens and min(tokens) > kept * STEP
    assert {row["step"] for row in run.told_of("corpus", 2)} == {"cached"}
    assert {row["step"] for row in run.told_of("fit", 3)} == {"cached"}

    made = {name: graph["metadata"]["info"]["create_time_ms"] for name, graph in run.graphs().items()}
    for name, row in finished.items():
        assert made[name.replace("rows/", "graphs/")] == row["metadata"]["info"]["create_time_ms"]
    cases.require_no_secrets(run, double, planted)


def test_a_cancelled_run_is_resumed_and_lives_through_a_store_that_goes_away(
    cluster_env: ClusterEnv, double: Double, planted: dict[str, str], s3_env: S3Server
) -> None:
    run = cases.cancel_and_resume(cluster_env)
    assert not double.operator.history[run.name].count("Retrying")
    wait(lambda: len(run.rows()) >= 1)
    s3_env.kill()
    time.sleep(10)
    assert run.told()["jobDeploymentStatus"] == "Running"
    s3_env.start()
    cases.ends_as_if_nothing_had_happened(run)
    cases.require_no_secrets(run, double, planted)


def test_an_image_that_does_not_exist_is_named_with_a_next_step(cluster_env: ClusterEnv, double: Double) -> None:
    cases.cannot_pull(cluster_env, "registry.example/does-not-exist:1", seconds=4)
    assert not double.operator.tokens


def test_a_deadline_that_passes_is_final_and_said(cluster_env: ClusterEnv, double: Double) -> None:
    """KubeRay stops the driver only when it removes the cluster."""
    cluster_env.change_profile(limits={"run": 3600, "keep": 1})
    late = cluster_env.submit(**LONG)
    wait(lambda: (late.folder.json("status.json") or {}).get("state") == "running")
    double.kube.patch("RayJob", late.name, {"spec": {"activeDeadlineSeconds": 1}})
    told = late.ends()
    assert (told["reason"], told["failed"]) == ("DeadlineExceeded", 1)
    wait(lambda: not double.operator.clusters)
    over = cluster_env.state(late.name)
    assert over.phase == "failed" and over.reason is not None
    assert "limits.run" in over.reason.next_step


def test_what_does_not_fit_is_refused_with_the_numbers_before_anything_is_made(
    cluster_env: ClusterEnv, double: Double
) -> None:
    cluster_env.change_profile(workers=[{"name": "cpu", "cpus": 1, "memory": "8G", "max": 2}])
    profile, wide = ("--profile", str(cluster_env.profile)), {"workers": 8, "micro_tokens": 16}
    said = cluster_env.interp("submit", str(cluster_env.study_file(fit=wide)), *profile, code=2)
    assert "fit needs 8 places at once (8 workers), and the profile's groups give at most" in " ".join(said.split())
    here = str(cluster_env.study_file(store=str(cluster_env.folder / "here")))
    assert "on this machine, where pods cannot reach it" in cluster_env.interp("submit", here, *profile, code=2)
    assert not double.kube.objects("RayJob")
    files, root = fsspec.core.url_to_fs(f"{cluster_env.url}/store")
    assert not files.exists(root) or not files.find(root)
