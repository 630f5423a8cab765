"""Whatever the values file: valid manifests, restricted pods, references that lead somewhere, rights of the least."""

from __future__ import annotations

import re

import helm_python
import kubernetes_validate
import pytest
from chart_rendering import CHART, CUSTOM, NAMESPACE, VALUES, Object, environment, rendered, selects, values

from interp.cluster.checks import _VERBS as ASKED_BY_PROFILE_CHECK

KUBERNETES = ("1.27", "1.31", "1.37")
EVERY = pytest.mark.parametrize("name", VALUES)
SHORT = {"Job", "CronJob", "Pod"}
"""What comes and goes: nothing sends it requests, so it has no probes."""


@EVERY
def test_lint_is_clean(name: str) -> None:
    report = helm_python.lint(CHART, values(name), strict=True, namespace=NAMESPACE)
    assert report["errors"] == []
    assert [one for one in report["messages"] if one["severity"] >= 2] == []


@EVERY
@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_takes_every_manifest(name: str, version: str) -> None:
    objects = [one for one in rendered(name).objects if one["kind"] not in CUSTOM]
    assert len(objects) > 10
    for one in objects:
        kubernetes_validate.validate(one, version, strict=True)


@EVERY
def test_names_are_unique_and_short_enough(name: str) -> None:
    named = [(one["kind"], one["metadata"]["name"]) for one in rendered(name).objects]
    assert len(set(named)) == len(named)
    assert all(len(one) <= 63 and re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", one) for _, one in named)


@EVERY
def test_pods_are_restricted(name: str) -> None:
    for pod in rendered(name).pods():
        whole = pod.spec["securityContext"]
        assert whole["runAsNonRoot"] and whole["runAsUser"] > 0, pod.owner
        assert whole["seccompProfile"] == {"type": "RuntimeDefault"}, pod.owner
        assert pod.spec["automountServiceAccountToken"] is False, pod.owner
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.spec.keys(), pod.owner
        assert all("hostPath" not in volume for volume in pod.spec["volumes"]), pod.owner
        for container in pod.containers:
            own = container["securityContext"]
            where = f"{pod.owner}: {container['name']}"
            assert own["allowPrivilegeEscalation"] is False and own["readOnlyRootFilesystem"] is True, where
            assert own["capabilities"] == {"drop": ["ALL"]} and "privileged" not in own, where


@EVERY
def test_containers_have_requests_limits_and_a_fixed_image(name: str) -> None:
    for pod in rendered(name).pods():
        for container in pod.containers:
            where = f"{pod.owner}: {container['name']}"
            for part in ("requests", "limits"):
                assert {"cpu", "memory"} <= container["resources"][part].keys(), where
            assert re.search(r"(:[^:/]+|@sha256:[0-9a-f]{64})$", container["image"]), where
            assert not container["image"].endswith(":latest"), where


@EVERY
def test_what_serves_is_probed(name: str) -> None:
    for pod in rendered(name).pods():
        if pod.owner.split("/")[0] in SHORT:
            continue
        for container in pod.spec["containers"]:
            assert container["ports"], pod.owner
            assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys(), pod.owner


@EVERY
def test_volumes_of_mounts_are_there(name: str) -> None:
    for pod in rendered(name).pods():
        there = {volume["name"] for volume in pod.spec["volumes"]}
        owner = next(one for one in rendered(name).objects if f"{one['kind']}/{one['metadata']['name']}" == pod.owner)
        there |= {claim["metadata"]["name"] for claim in owner["spec"].get("volumeClaimTemplates", [])}
        for container in pod.containers:
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            assert mounted <= there, f"{pod.owner}: {container['name']}"


@EVERY
def test_every_secret_is_made_here_or_named_in_the_values(name: str) -> None:
    found = rendered(name)
    made = {one["metadata"]["name"]: set(one["data"]) for one in found.kind("Secret")}
    named = _existing(values(name))
    asked = 0
    for pod in found.pods():
        for container in pod.containers:
            for variable in container.get("env", []):
                reference = variable.get("valueFrom", {}).get("secretKeyRef")
                if reference is None:
                    continue
                asked += 1
                where = f"{pod.owner}: {variable['name']}"
                if reference["name"] in made:
                    assert reference["key"] in made[reference["name"]], where
                else:
                    assert reference["name"] in named, where
            for source in container.get("envFrom", []):
                assert source["secretRef"]["name"] in named, pod.owner
    assert asked


@EVERY
def test_no_secret_stands_in_a_manifest(name: str) -> None:
    """Passwords reach containers from Secrets: no plain variable, argument or ConfigMap has one."""
    secret_like = re.compile(r"(PASSWORD|SECRET|TOKEN|API_KEY|ACCESS_KEY|_KEY)$")
    for pod in rendered(name).pods():
        for container in pod.containers:
            for variable, value in environment(container).items():
                assert not secret_like.search(variable), f"{pod.owner}: {variable}"
                assert not re.search(r"://[^/@:]+:(?!\$\()[^@]*@", value), f"{pod.owner}: {variable}"


@EVERY
def test_services_lead_to_ports_of_pods(name: str) -> None:
    found = rendered(name)
    services = found.kind("Service")
    assert services
    for service in services:
        selector = service["spec"]["selector"]
        pods = [pod for pod in found.pods() if selects(selector, pod.labels)]
        assert len(pods) == 1, service["metadata"]["name"]
        ports = {port["name"]: port["containerPort"] for one in pods[0].containers for port in one.get("ports", [])}
        for port in service["spec"]["ports"]:
            assert ports[port["targetPort"]] == port["port"], service["metadata"]["name"]


@EVERY
def test_selectors_select_their_own_pods_only(name: str) -> None:
    found = rendered(name)
    for one in (*found.kind("Deployment"), *found.kind("StatefulSet")):
        chosen = one["spec"]["selector"]["matchLabels"]
        owners = [pod.owner for pod in found.pods() if selects(chosen, pod.labels)]
        assert owners == [f"{one['kind']}/{one['metadata']['name']}"]
        assert one["spec"]["template"]["metadata"]["labels"] == chosen, "a new chart version would restart it"
    for budget in found.kind("PodDisruptionBudget"):
        assert any(selects(budget["spec"]["selector"]["matchLabels"], pod.labels) for pod in found.pods())
    for ingress in found.kind("Ingress"):
        for rule in ingress["spec"]["rules"]:
            (path,) = rule["http"]["paths"]
            service = found.one("Service", path["backend"]["service"]["name"])
            assert path["backend"]["service"]["port"]["name"] in {port["name"] for port in service["spec"]["ports"]}


@EVERY
def test_rights_are_of_the_least(name: str) -> None:
    found = rendered(name)
    assert not found.kind("ClusterRole") and not found.kind("ClusterRoleBinding")
    (role,) = found.kind("Role")
    for rule in role["rules"]:
        everything = rule["apiGroups"] + rule["resources"] + rule["verbs"]
        assert "*" not in everything
        assert not {"secrets", "pods/exec", "roles", "rolebindings", "serviceaccounts/token"} & set(rule["resources"])
    granted = {
        (group, resource): set(rule["verbs"])
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    for resource, group, verbs in ASKED_BY_PROFILE_CHECK:
        assert set(verbs) <= granted[group, resource]
    assert granted["ray.io", "rayjobs"] == {"create", "get", "list", "delete"}
    assert {verb for key, verbs in granted.items() if key[1] != "rayjobs" for verb in verbs} <= {"get", "list", "watch"}


def test_submitters_are_bound_by_name() -> None:
    (binding,) = rendered("ingress-tls").kind("RoleBinding")
    assert [subject["name"] for subject in binding["subjects"]] == ["researchers", "ci"]
    assert binding["subjects"][1]["namespace"] == "ci"
    assert not rendered("minimal").kind("RoleBinding")


def _existing(given: Object) -> set[str]:
    """Names of Secrets that a values file says are there."""
    secrets = [part["existingSecret"] for part in given["secrets"].values() if isinstance(part, dict)]
    parts = [given["webapp"], *given.get("servers", {}).values()]
    return {*secrets, *(part["envFromSecret"] for part in parts if "envFromSecret" in part)}
