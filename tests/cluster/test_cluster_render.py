"""Plan and profile -> RayJob: golden files, KubeRay's schema, Kubernetes' schema of pods, pod security, names."""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from pydantic import ValidationError
from rendered import GPU, PROFILES, plan, profile, study

from interp.cluster import quantities
from interp.cluster.naming import LONGEST, label_value, run_name
from interp.cluster.profile import Profile
from interp.cluster.rayjob import RayJob
from interp.cluster.render import dump_yaml, plan_digest, render

HERE = Path(__file__).parent
GOLDEN = HERE / "golden"
ROOT = HERE.parents[1]
KUBERNETES = ("1.31.0", "1.35.0")
RUN = "facts-1a2b3c4d"

LABEL_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")


def job(of: Profile | None = None, **options: Any) -> dict[str, Any]:
    return render(RUN, plan(), of or profile(), **options)


def pods(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every pod template by its role."""
    spec = manifest["spec"]
    cluster = spec["rayClusterSpec"]
    groups = {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    return {"submitter": spec["submitterPodTemplate"], "head": cluster["headGroupSpec"]["template"], **groups}


def group(manifest: dict[str, Any], name: str) -> dict[str, Any]:
    found = manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    return next(one for one in found if one["groupName"] == name)


def environment(template: dict[str, Any]) -> dict[str, str]:
    variables = template["spec"]["containers"][0]["env"]
    assert len({one["name"] for one in variables}) == len(variables)
    return {one["name"]: one["value"] for one in variables}


# -- what is sent


def golden(name: str) -> str:
    """As it is with the Ray of the golden files."""
    manifest = job(profile(name))
    manifest["spec"]["rayClusterSpec"]["rayVersion"] = "2.60.0"
    return dump_yaml(manifest)


@pytest.mark.parametrize("name", PROFILES)
def test_golden(name: str) -> None:
    """Where a change is meant, write the files anew by running this module: the diff shows what it comes to."""
    assert golden(name) == (GOLDEN / f"rayjob-{name}.yaml").read_text()


def test_the_cluster_runs_the_ray_that_is_installed() -> None:
    assert job()["spec"]["rayClusterSpec"]["rayVersion"] == version("ray")


def schema(name: str) -> Any:
    places = [os.environ.get("INTERP_KUBERAY_SCHEMAS"), ROOT.parent / "shared" / "kuberay"]
    for folder in places:
        if folder and (path := Path(folder) / f"{name}.schema.json.gz").exists():
            return json.loads(gzip.decompress(path.read_bytes()))
    pytest.skip("KubeRay's schemas are not here: INTERP_KUBERAY_SCHEMAS names their folder")


@pytest.mark.parametrize("name", PROFILES)
def test_kuberays_schema_accepts_it(name: str) -> None:
    checked = jsonschema.Draft202012Validator(schema("rayjobs-v1"))
    manifest = job(profile(name), retry_failed=True)
    assert [f"{error.json_path}: {error.message}" for error in checked.iter_errors(manifest)] == []
    manifest["spec"]["rayClusterSpec"]["workerGroupSpec"] = []
    assert list(checked.iter_errors(manifest)), "the schema would accept anything"


@pytest.mark.parametrize("kubernetes", KUBERNETES)
@pytest.mark.parametrize("name", PROFILES)
def test_its_pods_are_kubernetes_pods(name: str, kubernetes: str) -> None:
    for role, template in pods(job(profile(name))).items():
        pod = {"apiVersion": "v1", "kind": "Pod", **template}
        pod["metadata"] = {"name": role, **template["metadata"]}
        kubernetes_validate.validate(pod, kubernetes, strict=True)


def test_what_is_printed_is_what_is_sent() -> None:
    manifest = job(profile("gpu-queued"))
    text = dump_yaml(manifest)
    assert yaml.safe_load(text) == manifest
    assert text == dump_yaml(json.loads(json.dumps(manifest)))
    assert "&id" not in text and "*id" not in text


def test_it_depends_on_nothing_but_its_arguments() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from rendered import plan, profile;"
        "from interp.cluster.render import dump_yaml, render;"
        "print(dump_yaml(render('facts-1a2b3c4d', plan(), profile('gpu-queued'))), end='');"
        "assert not {'torch', 'ray', 'kubernetes'} & set(sys.modules)"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code, str(HERE)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1] == dump_yaml(job(profile("gpu-queued")))


# -- what it says


def test_the_driver_is_told_its_run_and_nothing_else() -> None:
    spec = job()["spec"]
    words = shlex.split(spec["entrypoint"])
    assert words == ["python", "-m", "ray_jobs.run_plan", "--run", RUN, "--store", "s3://interp/store"]
    assert shlex.split(job(retry_failed=True)["spec"]["entrypoint"]) == [*words, "--retry-failed"]
    container = pods(job())["submitter"]["spec"]["containers"][0]
    assert container["command"] == ["python", "-m", "ray_jobs.submitter", spec["entrypoint"]]


def test_a_store_cannot_add_to_the_command_line() -> None:
    store = "s3://interp/a b;$(reboot)'\"`x`"
    manifest = render(RUN, plan(study(store=store)), profile())
    assert shlex.split(manifest["spec"]["entrypoint"])[-1] == store
    ran = subprocess.run(
        ["bash", "-c", manifest["spec"]["entrypoint"].replace("python -m ray_jobs.run_plan", "printf '%s\\n'")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.splitlines()[-1] == store


def test_head_takes_no_work_and_groups_grow_from_their_min() -> None:
    manifest = job(profile("gpu-queued"))
    cluster = manifest["spec"]["rayClusterSpec"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert cluster["enableInTreeAutoscaling"] and cluster["autoscalerOptions"]["version"] == "v2"
    assert cluster["authOptions"] == {"mode": "token"}
    counts = {one["groupName"]: (one["minReplicas"], one["replicas"], one["maxReplicas"]) for one in _groups(manifest)}
    assert counts == {"cpu": (0, 0, 4), "gpu": (1, 1, 8), "small-gpu": (0, 0, 8)}
    assert {one["idleTimeoutSeconds"] for one in _groups(manifest)} == {300}


def test_gpus_are_asked_for_and_their_taint_is_tolerated() -> None:
    manifest = job(profile("gpu-queued"))
    gpu, small, cpu = (group(manifest, name)["template"]["spec"] for name in ("gpu", "small-gpu", "cpu"))
    resources = gpu["containers"][0]["resources"]
    assert resources["limits"]["nvidia.com/gpu"] == resources["requests"]["nvidia.com/gpu"] == "1"
    assert gpu["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert small["containers"][0]["resources"]["limits"]["example.com/gpu"] == "4"
    assert small["tolerations"] == [{"key": "pool", "operator": "Equal", "value": "gpu", "effect": "NoSchedule"}]
    assert "tolerations" not in cpu and "nvidia.com/gpu" not in cpu["containers"][0]["resources"]["limits"]
    assert group(manifest, "gpu")["rayStartParams"]["num-gpus"] == "1"


def test_rays_store_fits_into_shared_memory() -> None:
    for one in _groups(job(profile("gpu-queued"))):
        volumes = {volume["name"]: volume for volume in one["template"]["spec"]["volumes"]}
        shm = volumes["shm"]["emptyDir"]
        assert shm["medium"] == "Memory"
        limit = one["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"]
        assert int(one["rayStartParams"]["object-store-memory"]) < _bytes(shm["sizeLimit"]) < _bytes(limit)


def test_the_cluster_that_the_driver_is_told_of_is_the_one_that_is_asked_for() -> None:
    manifest = job(profile("gpu-queued"))
    told = json.loads(environment(pods(manifest)["head"])["INTERP_CLUSTER"])["nodes"]
    assert told[1] == {
        "name": "gpu",
        "count": 8,
        "cpus": 16,
        "gpus": 1,
        "memory": 128_000_000_000,
        "shared_memory": 40_000_000_000,
        "gpu_memory": 141_000_000_000,
    }
    for node, one in zip(told, _groups(manifest), strict=True):
        params = one["rayStartParams"]
        assert (node["name"], node["count"]) == (one["groupName"], one["maxReplicas"])
        assert (str(node["cpus"]), str(node["gpus"])) == (params["num-cpus"], params["num-gpus"])


def test_the_engine_reads_the_cluster() -> None:
    from interp.plan.nodes import nodes_from_environment

    for name in PROFILES:
        for role, template in pods(job(profile(name))).items():
            found = nodes_from_environment(environment(template))
            if role == "submitter":
                assert found is None
            else:
                assert found is not None and len(found) == len(profile(name).workers)


def test_a_queue_suspends_it_and_its_scaling_is_announced() -> None:
    queued, plain = job(profile("gpu-queued")), job()
    assert queued["spec"]["suspend"] is True and "suspend" not in plain["spec"]
    assert queued["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    # Without it Kueue refuses a job whose cluster grows.
    assert queued["metadata"]["annotations"]["kueue.x-k8s.io/elastic-job"] == "true"
    assert "kueue" not in dump_yaml(plain)
    for template in pods(queued).values():
        assert "kueue.x-k8s.io/queue-name" not in template["metadata"]["labels"], "it would be queued by itself"


def test_limits_and_retries() -> None:
    spec = job(profile("gpu-queued"))["spec"]
    assert spec["activeDeadlineSeconds"] == 86400 and spec["preRunningDeadlineSeconds"] == 900
    assert spec["shutdownAfterJobFinishes"] and spec["ttlSecondsAfterFinished"] == 60
    assert spec["backoffLimit"] == 5 and spec["submitterConfig"]["backoffLimit"] == 0
    assert "activeDeadlineSeconds" not in job()["spec"]


def test_the_plans_digest_is_of_what_is_made_not_of_what_is_cached() -> None:
    assert plan_digest(plan()) == plan_digest(plan(cached=("corpus",)))
    assert plan_digest(plan()) != plan_digest(plan(study(trace=None)))


# -- security


@pytest.mark.parametrize("name", PROFILES)
def test_pods_keep_to_the_restricted_standard(name: str) -> None:
    manifest = job(profile(name))
    for template in pods(manifest).values():
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        for volume in spec["volumes"]:
            assert set(volume) - {"name"} <= {"emptyDir", "persistentVolumeClaim"}
        for container in spec["containers"]:
            _require_restricted(container["securityContext"])
            written = {mount["mountPath"] for mount in container["volumeMounts"]}
            assert "/tmp" in written and environment(template)["HOME"] == "/tmp"
    # KubeRay adds the autoscaler's container to the head.
    _require_restricted(manifest["spec"]["rayClusterSpec"]["autoscalerOptions"]["securityContext"])


def _require_restricted(context: dict[str, Any]) -> None:
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert context["runAsNonRoot"] is True and context["readOnlyRootFilesystem"] is True


def test_only_the_head_may_ask_the_api() -> None:
    mounted = {role: pod["spec"]["automountServiceAccountToken"] for role, pod in pods(job()).items()}
    assert mounted == {"submitter": False, "head": True, "cpu": False}


def test_secrets_are_named_where_they_are_needed() -> None:
    manifest = job(profile("gpu-queued"))
    named = {role: pod["spec"]["containers"][0].get("envFrom") for role, pod in pods(manifest).items()}
    secrets = [{"secretRef": {"name": "interp-s3"}}, {"secretRef": {"name": "hub-token"}}]
    assert named == {"submitter": None, "head": secrets, "cpu": secrets, "gpu": secrets, "small-gpu": secrets}


def test_no_secret_of_the_environment_gets_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    planted = {
        "AWS_SECRET_ACCESS_KEY": "planted-aws-4f1c",
        "HF_TOKEN": "hf_planted-4f1d",
        "RAY_AUTH_TOKEN": "planted-ray-4f1e",
        "WANDB_API_KEY": "planted-wandb-4f1f",
    }
    for name, value in planted.items():
        monkeypatch.setenv(name, value)
    made, of = plan(), profile("gpu-queued")
    written = [dump_yaml(render(RUN, made, of)), made.to_json(), json.dumps(of.model_dump_file()), repr(of)]
    for text in written:
        assert not [name for name, value in planted.items() if value in text]
        assert "planted" not in text


# -- names


NASTY = [
    "a",
    "0",
    "9-lives",
    "-",
    "x" * 63,
    "a-" * 31 + "a",
    "0" * 63,
    "a" * 38 + "-b",
    "ends-in-dash-after-cutting-it-at-38-c--------d",
    "UPPER Case",
    "ünïcödé",
    "模型",
    "a/b:c@d",
    "..",
    "run",
    "a" * 500,
    "\n",
    "'; drop",
]


def test_any_study_name_gives_a_run_that_kubernetes_takes() -> None:
    draw = random.Random(0)
    letters = "abcxyz0189-_.ABC éß/ \t"
    names = NASTY + ["".join(draw.choices(letters, k=draw.randint(1, 80))) for _ in range(500)]
    for name in names:
        run = run_name(name, ["k1", "k2"], "s3://b/p")
        assert len(run) <= LONGEST and re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", run), (name, run)
        assert run == run_name(name, ["k2", "k1"], "s3://b/p") != run_name(name, ["k1"], "s3://b/p")
        value = label_value(name)
        assert len(value) <= 63 and LABEL_VALUE.fullmatch(value), (name, value)
    assert len({run_name(name, ["k"], "s") for name in names}) == len(set(names))


@pytest.mark.parametrize("name", ["a", "9-lives", "x" * 63, "0" * 63, "a" + "-" * 61 + "a"])
def test_a_study_keeps_its_name_in_the_labels(name: str) -> None:
    made = plan(study(metadata={"name": name}))
    run = run_name(name, [stage.key for stage in made.stages], made.study.store)
    manifest = render(run, made, profile())
    assert manifest["metadata"]["labels"]["interp.dev/study"] == name
    for template in [manifest, *pods(manifest).values()]:
        labels = template["metadata"]["labels"]
        assert all(LABEL_VALUE.fullmatch(value) and len(value) <= 63 for value in labels.values())
        assert labels["interp.dev/run"] == run and labels["app.kubernetes.io/managed-by"] == "interp"


def test_labels_of_the_profile_are_on_all_that_is_made() -> None:
    manifest = job(profile("gpu-queued"))
    for template in [manifest, *pods(manifest).values()]:
        assert template["metadata"]["labels"]["team"] == "interpretability"
        assert template["metadata"]["annotations"]["example.com/cost-centre"] == "42"


# -- the models refuse what KubeRay would refuse later


def test_a_rendered_job_is_what_the_models_read() -> None:
    for name in PROFILES:
        manifest = job(profile(name))
        assert RayJob.model_validate(manifest).to_manifest() == manifest


WRONG: list[tuple[str, tuple[str | int, ...], Any, str]] = [
    ("a long name", ("metadata", "name"), "a" * 48, "at most 47 characters"),
    ("a name that begins with a digit", ("metadata", "name"), "9-lives", "lower-case letter"),
    ("a name that ends in a dash", ("metadata", "name"), "facts-", "no '-' at the end"),
    ("an unknown field", ("spec", "entrypont"), "python", "Extra inputs"),
    ("an unknown field of a pod", ("spec", "submitterPodTemplate", "spec", "hostNetwork"), True, "Extra inputs"),
    ("a TTL of a cluster that stays", ("spec", "shutdownAfterJobFinishes"), False, "needs shutdownAfterJobFinishes"),
    ("a negative TTL", ("spec", "ttlSecondsAfterFinished"), -1, "greater than or equal to 0"),
    ("no deadline", ("spec", "activeDeadlineSeconds"), 0, "greater than 0"),
    ("no time to start", ("spec", "preRunningDeadlineSeconds"), 0, "greater than 0"),
    ("a negative backoffLimit", ("spec", "backoffLimit"), -1, "greater than or equal to 0"),
    ("another mode", ("spec", "submissionMode"), "InteractiveMode", "K8sJobMode"),
    ("no entrypoint", ("spec", "entrypoint"), "", "at least 1 character"),
    ("an old Ray", ("spec", "rayClusterSpec", "rayVersion"), "2.51.9", "2.52.0 or later"),
    ("no Ray version", ("spec", "rayClusterSpec", "rayVersion"), "nightly", "2.52.0 or later"),
    ("no authentication", ("spec", "rayClusterSpec", "authOptions", "mode"), "disabled", "token"),
    ("the old autoscaler", ("spec", "rayClusterSpec", "autoscalerOptions", "version"), "v1", "needs autoscalerOptions"),
    ("more min than max", ("spec", "rayClusterSpec", "workerGroupSpecs", 0, "minReplicas"), 9, "does not hold"),
    ("replicas above max", ("spec", "rayClusterSpec", "workerGroupSpecs", 0, "replicas"), 9, "does not hold"),
    ("two groups of one name", ("spec", "rayClusterSpec", "workerGroupSpecs", 0, "groupName"), "gpu", "one name"),
    (
        "a parameter that is no text",
        ("spec", "rayClusterSpec", "workerGroupSpecs", 0, "rayStartParams", "num-cpus"),
        8,
        "valid string",
    ),
    (
        "pods that are restarted",
        ("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "restartPolicy"),
        "Always",
        "Never",
    ),
]


@pytest.mark.parametrize(("path", "value", "told"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_what_kuberay_would_refuse_later_is_refused_now(path: tuple[str | int, ...], value: Any, told: str) -> None:
    manifest = json.loads(json.dumps(job(profile("gpu-queued"))))
    inside: Any = manifest
    for step in path[:-1]:
        inside = inside[step]
    inside[path[-1]] = value
    with pytest.raises(ValidationError, match=re.escape(told)):
        RayJob.model_validate(manifest)


def test_suspend_needs_a_cluster_that_goes() -> None:
    manifest = job(profile("gpu-queued"))
    manifest["spec"] |= {"shutdownAfterJobFinishes": False, "ttlSecondsAfterFinished": 0}
    with pytest.raises(ValidationError, match="suspend needs"):
        RayJob.model_validate(manifest)


# -- quantities


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (32_000_000_000, "32G"),
        (1_500_000_000, "1500M"),
        (64 << 20, "64Mi"),
        (128 << 30, "128Gi"),
        (10**12, "1T"),
        (1, "1"),
        (1023, "1023"),
        (1000, "1k"),
    ],
)
def test_bytes_stay_readable(size: int, text: str) -> None:
    assert quantities.of_bytes(size) == text and _bytes(text) == size


def test_no_byte_is_lost() -> None:
    draw = random.Random(1)
    for _ in range(300):
        size = draw.randint(1, 10 ** draw.randint(1, 15))
        assert _bytes(quantities.of_bytes(size)) == size


@pytest.mark.parametrize(("count", "text"), [(8, "8"), (0.5, "500m"), (2.5, "2500m"), (0.0001, "1m"), (1.1, "1100m")])
def test_cpus(count: float, text: str) -> None:
    assert quantities.of_cpus(count) == text


def test_a_pod_with_less_than_a_cpu_has_one_logical_cpu() -> None:
    small = profile(workers=[{"name": "small", "cpus": 0.5, "memory": "2G", "max": 1}])
    one = group(job(small), "small")
    assert one["rayStartParams"]["num-cpus"] == "1"
    assert one["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"] == "500m"


def test_gpu_and_its_memory_are_told_only_where_there_is_one() -> None:
    both = profile(workers=[GPU, {"name": "cpu", "cpus": 2, "memory": "8G", "max": 1}])
    nodes = json.loads(environment(pods(job(both))["head"])["INTERP_CLUSTER"])["nodes"]
    assert ["gpu_memory" in node for node in nodes] == [True, False]


def _groups(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    return found


def _bytes(text: str) -> int:
    powers = {"k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
    match = re.fullmatch(r"(\d+)([A-Za-z]*)", text)
    assert match is not None
    return int(match[1]) * powers.get(match[2], 1)


if __name__ == "__main__":
    for each in PROFILES:
        (GOLDEN / f"rayjob-{each}.yaml").write_text(golden(each))
