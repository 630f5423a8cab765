"""The plain manifests: what Kubernetes would say of them, what they allow, and that the sample is what is sent.

Kustomize is no Python package: what is used of it (resources, a namespace, strategic merges of maps) is done here.

INTERP_WRITE_GOLDEN=1 writes manifests/rayjob-sample.yaml again.
"""

from __future__ import annotations

import ast
import copy
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from interp.cli.main import root
from interp.cluster.events import ROWS
from interp.cluster.profiles import load_profile
from interp.cluster.render import KEEP_ANNOTATION, PLAN_ANNOTATION, QUEUE_LABEL, dump_yaml, render
from interp.plan import make_plan
from interp.spec.loading import load_study

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "manifests"
SAMPLE = MANIFESTS / "rayjob-sample.yaml"
FOLDERS = ("base", "kueue", "overlays/gpu")
Object = dict[str, Any]

HEADER = """\
# What `interp submit specs/quickstart-cluster.yaml --profile specs/profiles/h200.yaml --dry-run` prints, but for the
# digests: of the run, in its name, and of the plan. To read, not to apply: a plan goes to the store as well.
"""


def objects_of(path: Path) -> list[Object]:
    return [each for each in yaml.safe_load_all(path.read_text()) if each]


def build(folder: Path) -> list[Object]:
    """What `kubectl kustomize` makes of a folder."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert set(kustomization) <= {"apiVersion", "kind", "namespace", "resources", "patches"}, "not emulated here"
    found: list[Object] = []
    for name in kustomization["resources"]:
        path = folder / name
        assert path.exists(), f"{folder.name}: {name} is listed and not there"
        found += build(path) if path.is_dir() else objects_of(path)
    for patch in kustomization.get("patches", ()):
        for change in objects_of(folder / patch["path"]):
            targets = [index for index, each in enumerate(found) if identity(each) == identity(change)]
            assert len(targets) == 1, f"{patch['path']}: {identity(change)} is not among the resources"
            found[targets[0]] = merged(found[targets[0]], change)
    return found


def merged(old: Any, new: Any) -> Any:
    if not isinstance(new, dict) or not isinstance(old, dict):
        assert not isinstance(new, list), "lists are merged by keys that depend on the kind: not emulated here"
        return new
    return old | {key: merged(old.get(key), value) for key, value in new.items()}


def identity(each: Object) -> tuple[str, str, str, str]:
    metadata = each["metadata"]
    return each["apiVersion"], each["kind"], metadata.get("namespace", ""), metadata["name"]


def everything() -> Iterator[Any]:
    for folder in FOLDERS:
        for each in build(MANIFESTS / folder):
            yield pytest.param(each, id=f"{folder}-{each['kind']}-{each['metadata']['name']}")


@pytest.fixture(scope="module")
def sample() -> Object:
    plan = make_plan(load_study(ROOT / "specs/quickstart-cluster.yaml"), None)
    job = render("quickstart-cluster-00000000", plan, load_profile(str(ROOT / "specs/profiles/h200.yaml")))
    # The corpus is this interpreter's own library: elsewhere the plan's digest and the run's name are others.
    job["metadata"]["annotations"][PLAN_ANNOTATION] = "0" * 16
    return job


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_file_of_a_folder_is_listed_and_no_object_comes_twice(folder: str) -> None:
    kustomization = yaml.safe_load((MANIFESTS / folder / "kustomization.yaml").read_text())
    listed = {*kustomization["resources"], *(patch["path"] for patch in kustomization.get("patches", ()))}
    assert {path.name for path in (MANIFESTS / folder).glob("*.yaml")} == {
        "kustomization.yaml",
        *(name for name in listed if "/" not in name),
    }
    identities = [identity(each) for each in build(MANIFESTS / folder)]
    assert len(identities) == len(set(identities))


def test_a_patch_changes_its_target_and_keeps_the_rest() -> None:
    def quota(folder: str) -> Object:
        return next(each["spec"]["hard"] for each in build(MANIFESTS / folder) if each["kind"] == "ResourceQuota")

    assert quota("base")["requests.nvidia.com/gpu"] == "0"
    assert quota("overlays/gpu")["requests.nvidia.com/gpu"] == "16"
    assert quota("overlays/gpu")["pods"] == quota("base")["pods"]


def test_a_patch_without_a_target_is_noticed(tmp_path: Path) -> None:
    stray = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "other", "namespace": "interp"}}
    (tmp_path / "patch.yaml").write_text(yaml.safe_dump(stray))
    (tmp_path / "quota.yaml").write_text((MANIFESTS / "base/quota.yaml").read_text())
    kustomization = {"resources": ["quota.yaml"], "patches": [{"path": "patch.yaml"}]}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    with pytest.raises(AssertionError, match="not among the resources"):
        build(tmp_path)


@pytest.mark.parametrize("each", everything())
def test_kubernetes_knows_every_field(each: Object) -> None:
    if each["apiVersion"].startswith("kueue.x-k8s.io/"):
        assert set(each) == {"apiVersion", "kind", "metadata", "spec"}
        return
    kubernetes_validate.validate(each, "1.31", strict=True)
    kubernetes_validate.validate(each, "1.37", strict=True)


def test_a_misspelt_field_would_be_noticed() -> None:
    account = copy.deepcopy(build(MANIFESTS / "base")[1])
    account["automountServiceAccountTokens"] = False
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(account, "1.37", strict=True)


@pytest.mark.parametrize("each", everything())
def test_all_is_in_the_one_namespace(each: Object) -> None:
    of_the_cluster = ("Namespace", "ResourceFlavor", "ClusterQueue")
    assert each["metadata"].get("namespace") == (None if each["kind"] in of_the_cluster else "interp")


def test_the_namespace_is_restricted_and_all_profiles_name_it() -> None:
    namespace = build(MANIFESTS / "base")[0]
    for mode in ("enforce", "audit", "warn"):
        assert namespace["metadata"]["labels"][f"pod-security.kubernetes.io/{mode}"] == "restricted"
    for path in (ROOT / "specs/profiles").glob("*.yaml"):
        profile = load_profile(str(path))
        assert profile.namespace == namespace["metadata"]["name"]
        assert profile.metadata.name == path.stem


def roles() -> list[Object]:
    return [each for folder in FOLDERS for each in build(MANIFESTS / folder) if each["kind"] in ("Role", "ClusterRole")]


def test_roles_have_no_wildcards_and_do_not_read_secrets() -> None:
    assert roles()
    for role in roles():
        assert role["kind"] == "Role"
        for rule in role["rules"]:
            words = {*rule["apiGroups"], *rule["resources"], *rule["verbs"]}
            assert "*" not in words
            assert not words & {"secrets", "pods/exec", "pods/attach", "pods/portforward", "serviceaccounts/token"}
            assert not words & {"escalate", "bind", "impersonate", "deletecollection"}


def test_the_submitter_may_do_what_interp_does() -> None:
    """The rows are those that `interp profile check` asks for, and what it looks at."""
    source = ast.parse((ROOT / "interp/cluster/checks.py").read_text())
    [asked] = [
        ast.literal_eval(node.value)
        for node in source.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "_VERBS"
    ]
    allowed = {
        (group, resource, verb)
        for rule in roles()[0]["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    needed = {(group, resource, verb) for resource, group, verbs in asked for verb in verbs}
    looks = {("", "serviceaccounts", "get"), ("", "persistentvolumeclaims", "get"), ("", "namespaces", "get")}
    queues = {("kueue.x-k8s.io", "workloads", "list"), ("kueue.x-k8s.io", "localqueues", "get")}
    assert allowed == needed | looks | queues


def test_the_binding_and_the_account_name_what_is_there() -> None:
    base = {(each["kind"], each["metadata"]["name"]): each for each in build(MANIFESTS / "base")}
    binding = base["RoleBinding", "interp-submitters"]
    assert ("Role", binding["roleRef"]["name"]) in base
    # The worker's account is bound to nothing here: KubeRay makes the autoscaler's role.
    assert [subject["kind"] for subject in binding["subjects"]] == ["Group"]
    assert base["ServiceAccount", "interp-worker"]["automountServiceAccountToken"] is False
    for path in (ROOT / "specs/profiles").glob("*.yaml"):
        assert ("ServiceAccount", load_profile(str(path)).service_account) in base


def test_the_dashboard_is_open_to_the_submitter_and_the_operator_only() -> None:
    """Who reaches 8265 of the head: the union over all policies that select it."""
    policies = [each["spec"] for each in build(MANIFESTS / "base") if each["kind"] == "NetworkPolicy"]
    assert {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]} in policies
    head = {"ray.io/is-ray-node": "yes", "ray.io/node-type": "head"}
    reach = [
        source["podSelector"]["matchLabels"]
        for policy in policies
        if policy["podSelector"].get("matchLabels", {}).items() <= head.items()
        for rule in policy.get("ingress", ())
        if not rule.get("ports") or {"port": 8265, "protocol": "TCP"} in rule["ports"]
        for source in rule["from"]
    ]
    assert reach == [
        {"ray.io/is-ray-node": "yes"},
        {"ray.io/originated-from-crd": "RayJob"},
        {"app.kubernetes.io/name": "kuberay-operator"},
    ]


def test_every_egress_names_its_ports_and_where_to() -> None:
    for policy in (each for each in build(MANIFESTS / "base") if each["kind"] == "NetworkPolicy"):
        for rule in policy["spec"].get("egress", ()):
            assert rule["to"]
            assert rule.get("ports") or policy["metadata"]["name"] == "ray-inside"


def test_queues_name_one_another_and_the_profile_names_the_queue() -> None:
    objects = build(MANIFESTS / "kueue")
    names = {(each["kind"], each["metadata"]["name"]): each for each in objects}
    [local] = [each for each in objects if each["kind"] == "LocalQueue"]
    queue = names["ClusterQueue", local["spec"]["clusterQueue"]]["spec"]
    assert queue["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": local["metadata"]["namespace"]}
    for group in queue["resourceGroups"]:
        for flavor in group["flavors"]:
            assert ("ResourceFlavor", flavor["name"]) in names
            # Kueue wants the resources of every flavor in the order of coveredResources.
            assert [resource["name"] for resource in flavor["resources"]] == group["coveredResources"]
    assert load_profile(str(ROOT / "specs/profiles/h200.yaml")).queue == local["metadata"]["name"]


def test_the_sample_is_what_is_sent(sample: Object) -> None:
    text = HEADER + dump_yaml(sample)
    if os.environ.get("INTERP_WRITE_GOLDEN"):
        SAMPLE.write_text(text)
    assert SAMPLE.read_text() == text


def test_all_of_the_samples_pods_are_restricted(sample: Object) -> None:
    """The Pod Security Standard of the namespace, with the containers that KubeRay adds: they copy these."""
    spec = sample["spec"]
    cluster = spec["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    pods = [spec["submitterPodTemplate"]["spec"], *(group["template"]["spec"] for group in groups)]
    containers = [container for pod in pods for container in pod["containers"]] + [cluster["autoscalerOptions"]]
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["fsGroup"] == 1000  # the image's, which has to write the volumes
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert all({"emptyDir", "persistentVolumeClaim"} & set(volume) for volume in pod.get("volumes", ()))
    for container in containers:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert "hostPort" not in str(container)


def test_the_sample_fits_the_manifests(sample: Object) -> None:
    """Its queue, account and labels are those that the queues, accounts and policies name."""
    template = sample["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]
    assert sample["metadata"]["labels"][QUEUE_LABEL] == "interp"
    assert sample["spec"]["suspend"] is True
    assert template["spec"]["serviceAccountName"] == "interp-worker"
    # The account says no, so the head's pod, in which the autoscaler is, has to say yes.
    assert template["spec"]["automountServiceAccountToken"] is True
    assert template["metadata"]["annotations"][KEEP_ANNOTATION] == "false"
    # KubeRay sets these on pods; one of ours would open the dashboard to workers, or close it to the submitter.
    for pod in (template, *(group["template"] for group in sample["spec"]["rayClusterSpec"]["workerGroupSpecs"])):
        assert not any(label.startswith("ray.io/") for label in pod["metadata"]["labels"])


def test_the_sample_stays_below_the_queues_quota(sample: Object) -> None:
    [queue] = [each for each in build(MANIFESTS / "kueue") if each["kind"] == "ClusterQueue"]
    [flavor] = [each for each in queue["spec"]["resourceGroups"][0]["flavors"] if each["name"] == "interp-h200"]
    quota = {each["name"]: each["nominalQuota"] for each in flavor["resources"]}
    gpus = sum(
        int(group["template"]["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu", 0))
        * group["maxReplicas"]
        for group in sample["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    )
    assert 0 < gpus <= int(quota["nvidia.com/gpu"])


def commands_of_the_guide() -> Iterator[Any]:
    """What the guide's blocks tell to type."""
    for block in re.findall(r"```bash\n(.*?)```", (ROOT / "docs/cluster.md").read_text(), re.DOTALL):
        for line in block.splitlines():
            if line.startswith("interp "):
                words = shlex.split(line, comments=True)[1:]
                yield pytest.param(words, id=" ".join(words))


@pytest.mark.parametrize("words", commands_of_the_guide())
def test_the_guides_commands_are_there(words: list[str]) -> None:
    name, *words = words
    found = root().commands[name].load()
    while hasattr(found, "commands"):
        name, *words = words
        found = found.commands[name]
    found.make_context(name, words)  # refuses what it does not know, and runs nothing


def test_an_option_that_is_not_there_would_be_noticed() -> None:
    with pytest.raises(Exception, match="No such option"):
        root().commands["submit"].make_context("submit", ["study.yaml", "--profiles", "mine"])


def test_the_guide_explains_every_reason() -> None:
    told = set(re.findall(r"`([a-z-]+)`", (ROOT / "docs/cluster.md").read_text()))
    assert {row.kind for row in ROWS} <= told
