"""Who may talk to whom, as NetworkPolicies add up: a flow needs leave to go out and leave to come in."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

import pytest
import yaml
from chart_rendering import (
    CHART,
    NAMESPACE,
    RELEASE,
    VALUES,
    Object,
    Rendered,
    merged,
    render,
    rendered,
    selects,
    values,
)


@dataclass(frozen=True)
class End:
    """One end of a flow: a pod, by its labels and namespace, or an address outside of the cluster."""

    labels: dict[str, str] = field(default_factory=dict)
    namespace: str = NAMESPACE
    address: str | None = None


def component(name: str) -> End:
    return End(
        {
            "app.kubernetes.io/name": "interp",
            "app.kubernetes.io/instance": RELEASE,
            "app.kubernetes.io/component": name,
        }
    )


RUN = End({"app.kubernetes.io/name": "interp", "app.kubernetes.io/managed-by": "interp", "interp.dev/run": "a-run"})
STRANGER = End({"app": "anything"})
ELSEWHERE = End({"app": "anything"}, "another-namespace")
CONTROLLER = End({"app.kubernetes.io/name": "ingress-nginx"}, "ingress-nginx")
PROMETHEUS = End({"app.kubernetes.io/name": "prometheus"}, "monitoring")
DNS = End({"k8s-app": "kube-dns"}, "kube-system")
OUTSIDE = End(address="203.0.113.7")


def allowed(chart: Rendered, source: End, target: End, port: int, protocol: str = "TCP") -> bool:
    policies = chart.kind("NetworkPolicy")
    return _may(policies, "Egress", source, target, port, protocol) and _may(
        policies, "Ingress", target, source, port, protocol
    )


def _may(policies: list[Object], direction: str, of: End, other: End, port: int, protocol: str) -> bool:
    mine = [
        one["spec"]
        for one in policies
        if of.namespace == NAMESPACE
        and of.address is None
        and direction in one["spec"]["policyTypes"]
        and selects(one["spec"]["podSelector"].get("matchLabels", {}), of.labels)
    ]
    if not mine:
        return True
    side = "to" if direction == "Egress" else "from"
    return any(
        any(_is(peer, other) for peer in rule[side])
        and any(one["port"] == port and one["protocol"] == protocol for one in rule["ports"])
        for spec in mine
        for rule in spec.get(direction.lower(), [])
    )


def _is(peer: Object, end: End) -> bool:
    if "ipBlock" in peer:
        return end.address is not None and ip_address(end.address) in ip_network(peer["ipBlock"]["cidr"])
    if end.address is not None:
        return False
    namespace = peer.get("namespaceSelector")
    if namespace is None:
        here = end.namespace == NAMESPACE
    else:
        here = selects(namespace["matchLabels"], {"kubernetes.io/metadata.name": end.namespace})
    return here and selects(peer.get("podSelector", {}).get("matchLabels", {}), end.labels)


NEEDED = [
    ("webapp", "postgres", 5432),
    ("database", "postgres", 5432),
    ("backup", "postgres", 5432),
    ("test", "postgres", 5432),
    ("webapp", "s3", 8333),
    ("buckets", "s3", 8333),
    ("test", "s3", 8333),
    ("test", "webapp", 3000),
]


@pytest.mark.parametrize("name", ["minimal", "gpu", "ingress-tls"])
def test_what_is_needed_passes_and_nothing_else_does(name: str) -> None:
    """All pairs of the chart's own components, at all ports that any of them listens on."""
    chart = rendered(name)
    parts = sorted({pod.labels["app.kubernetes.io/component"] for pod in chart.pods()})
    ports = {5432, 8333, 3000, 9327, 9333, 8888, 8080, 5002, 5003, 5004}
    servers = [("inference", 5002), ("autointerp", 5003), ("graph", 5004)] if name == "gpu" else []
    needed = {*NEEDED, *(("webapp", server, port) for server, port in servers)}
    open_ones = {
        (source, target, port)
        for source in parts
        for target in parts
        for port in ports
        if allowed(chart, component(source), component(target), port)
    }
    assert open_ones == needed


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("who", [STRANGER, ELSEWHERE, OUTSIDE])
def test_strangers_reach_nothing(name: str, who: End) -> None:
    chart = rendered(name)
    for pod in chart.pods():
        target = End(pod.labels)
        assert not any(allowed(chart, who, target, port) for port in (5432, 8333, 3000, 5002, 5003, 5004, 9333, 8888))


def test_runs_reach_s3_and_the_web_app_only() -> None:
    chart = rendered("gpu")
    reached = {
        (part, port)
        for part in ("postgres", "s3", "webapp", "inference", "graph", "autointerp")
        for port in (5432, 8333, 3000, 8888, 9333, 5002, 5003, 5004)
        if allowed(chart, RUN, component(part), port)
    }
    assert reached == {("s3", 8333), ("webapp", 3000)}


def test_pods_of_runs_are_the_ones_that_policies_and_monitors_mean() -> None:
    (run,) = [
        one
        for one in yaml.safe_load_all((CHART.parents[1] / "manifests" / "rayjob-sample.yaml").read_text())
        if one["kind"] == "RayJob"
    ]
    cluster = run["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    (monitor,) = rendered("ingress-tls").kind("PodMonitor")
    for group in groups:
        labels = group["template"]["metadata"]["labels"]
        assert allowed(rendered("minimal"), End(labels), component("s3"), 8333)
        assert selects(monitor["spec"]["selector"]["matchLabels"], labels)
        assert set(monitor["spec"]["podTargetLabels"]) <= labels.keys()


def test_the_ingress_controller_reaches_what_is_published_when_it_is() -> None:
    for name, published in (("ingress-tls", True), ("minimal", False)):
        chart = rendered(name)
        assert allowed(chart, CONTROLLER, component("webapp"), 3000) is published
        assert allowed(chart, CONTROLLER, component("s3"), 8333) is published
        assert not allowed(chart, CONTROLLER, component("postgres"), 5432)
        assert allowed(chart, component("webapp"), CONTROLLER, 443) is published, "it reads graphs by their public name"


def test_prometheus_reads_figures_when_it_is_there() -> None:
    assert allowed(rendered("ingress-tls"), PROMETHEUS, component("s3"), 9327)
    assert not allowed(rendered("ingress-tls"), PROMETHEUS, component("s3"), 8333)
    assert not allowed(rendered("minimal"), PROMETHEUS, component("s3"), 9327)


@pytest.mark.parametrize("name", VALUES)
def test_names_can_be_looked_up(name: str) -> None:
    for pod in rendered(name).pods():
        assert allowed(rendered(name), End(pod.labels), DNS, 53, "UDP")


def test_what_lies_outside_is_reached_at_its_addresses() -> None:
    inside, beside = End(address="10.20.3.4"), End(address="10.99.3.4")
    s3 = rendered("external-s3")
    for part in ("webapp", "buckets", "backup", "test"):
        assert allowed(s3, component(part), inside, 9000)
        assert not allowed(s3, component(part), beside, 9000)
    postgres = rendered("external-postgres")
    for part in ("webapp", "database", "test"):
        assert allowed(postgres, component(part), End(address="10.30.1.1"), 6432)
    assert not allowed(postgres, component("buckets"), End(address="10.30.1.1"), 6432)


def test_the_world_is_reached_where_somebody_said_so() -> None:
    assert not allowed(rendered("minimal"), component("webapp"), OUTSIDE, 443)
    assert allowed(rendered("gpu"), component("webapp"), OUTSIDE, 443)
    assert allowed(rendered("gpu"), component("inference"), OUTSIDE, 443), "it downloads models"
    for part in ("postgres", "s3", "backup", "database"):
        assert not allowed(rendered("gpu"), component(part), OUTSIDE, 443)


def test_without_policies_there_are_none() -> None:
    assert not render(merged(values("minimal"), {"networkPolicy": {"enabled": False}})).kind("NetworkPolicy")
