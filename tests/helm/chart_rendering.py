"""The chart, rendered by Helm's own library: what it makes of one values file, as objects that tests can ask.

`VALUES` are the values files that are part of the chart; each is a way in which somebody installs it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from helm_python import Chart

CHART = Path(__file__).parents[2] / "helm" / "interp"
VALUES = {
    path.name.removeprefix("values-").removesuffix(".yaml").removesuffix("-values"): path
    for path in (*sorted(CHART.glob("values-*.yaml")), *sorted((CHART / "ci").glob("*.yaml")))
}
RELEASE = "interp"
NAMESPACE = "studies"
CUSTOM = {"ServiceMonitor", "PodMonitor"}
"""Kinds of the Prometheus operator: no part of Kubernetes, so no schema of it."""

Object = dict[str, Any]


def values(name: str) -> Object:
    return yaml.safe_load(VALUES[name].read_text())


def merged(base: Object, over: Object) -> Object:
    """As Helm lays one values file over another."""
    both = dict(base)
    for key, value in over.items():
        both[key] = merged(both[key], value) if isinstance(value, dict) and isinstance(both.get(key), dict) else value
    return both


def render(given: Object, *, revision: int = 1) -> Rendered:
    with Chart.load(CHART) as chart:
        texts = chart.render(
            given,
            name=RELEASE,
            namespace=NAMESPACE,
            revision=revision,
            is_install=revision == 1,
            is_upgrade=revision > 1,
        )
    notes = next((text for path, text in texts.items() if path.endswith("NOTES.txt")), "")
    manifests = [texts[path] for path in sorted(texts) if path.endswith(".yaml")]
    objects = [object_ for text in manifests for object_ in yaml.safe_load_all(text) if object_]
    return Rendered(tuple(objects), notes, "\n".join(manifests))


@cache
def rendered(name: str) -> Rendered:
    return render(values(name))


@dataclass(frozen=True)
class Pod:
    """What a workload starts: where it was said, and its template."""

    owner: str
    labels: dict[str, str]
    annotations: dict[str, str]
    spec: Object

    @property
    def containers(self) -> list[Object]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]


@dataclass(frozen=True)
class Rendered:
    objects: tuple[Object, ...]
    notes: str
    text: str

    def kind(self, kind: str) -> list[Object]:
        return [one for one in self.objects if one["kind"] == kind]

    def one(self, kind: str, name: str) -> Object:
        (found,) = [one for one in self.kind(kind) if one["metadata"]["name"] == name]
        return found

    def pods(self) -> Iterator[Pod]:
        for one in self.objects:
            template = _template(one)
            if template is not None:
                meta = template["metadata"]
                yield Pod(
                    f"{one['kind']}/{one['metadata']['name']}",
                    meta["labels"],
                    meta.get("annotations", {}),
                    template["spec"],
                )

    def pod(self, component: str) -> Pod:
        (found,) = [pod for pod in self.pods() if pod.labels["app.kubernetes.io/component"] == component]
        return found


def _template(one: Object) -> Object | None:
    match one["kind"]:
        case "Deployment" | "StatefulSet" | "Job":
            return one["spec"]["template"]
        case "CronJob":
            return one["spec"]["jobTemplate"]["spec"]["template"]
        case "Pod":
            return one
    return None


def environment(container: Object) -> dict[str, str]:
    """Variables with plain values; those of Secrets are not among them."""
    return {one["name"]: one["value"] for one in container.get("env", []) if "value" in one}


def selects(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in selector.items())
