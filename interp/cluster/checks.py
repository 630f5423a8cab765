"""What a profile needs in its cluster, and whether it is there: asked before the first run is, one line each.

    there is     namespace, RayJob CRD, service account, secrets, claim, queue
    may I        what submit, status, logs, cancel and list do

Whoever may not look at a thing is told so: that is no failure, since a run does not depend on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from interp.cluster.client_errors import Forbidden
from interp.cluster.profile import Profile

State = Literal["ok", "missing", "unknown"]

RAYJOBS = "rayjobs.ray.io"
KUEUE = "kueue.x-k8s.io"

_VERBS = (
    ("rayjobs", "ray.io", ("create", "get", "list", "delete")),
    ("pods", "", ("get", "list")),
    ("pods/log", "", ("get",)),
    ("events", "", ("list",)),
)


class Asked(Protocol):
    """The part of `interp.cluster.client.Cluster` that answers."""

    def can(self, verb: str, resource: str, group: str = "") -> bool: ...

    def exists(self, kind: Any, name: str) -> bool: ...


@dataclass(frozen=True)
class Check:
    """One answer.

    Attributes:
        remedy: what to do where it is missing; why it is not known, where it is unknown.
    """

    what: str
    state: State
    remedy: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def checks(profile: Profile, cluster: Asked) -> Iterator[Check]:
    """Every check, in the order in which one would put things right.

    Raises:
        ClusterError: the API stopped answering.
    """
    space = profile.namespace
    for kind, name, remedy in _things(profile):
        yield _there(cluster, kind, name, remedy)
    for resource, group, verbs in (*_VERBS, *([("workloads", KUEUE, ("list",))] if profile.queue else [])):
        lacking = [verb for verb in verbs if not cluster.can(verb, resource, group)]
        what = f"you may {', '.join(verbs)} {resource} in {space}"
        remedy = f"ask for a role with {', '.join(lacking)} on {resource}{f'.{group}' if group else ''} in {space}"
        yield Check(what, "missing", remedy) if lacking else Check(what, "ok")


def _things(profile: Profile) -> Iterator[tuple[str, str, str]]:
    """(kind, name, what to do where it is missing)"""
    space = profile.namespace
    yield "Namespace", space, f"kubectl create namespace {space}; or correct `namespace` in the profile"
    yield "CustomResourceDefinition", RAYJOBS, "install the KubeRay operator, 1.7 or later, with its CRDs"
    account = profile.service_account
    yield "ServiceAccount", account, f"install the interp chart into {space}, or kubectl create sa {account} -n {space}"
    for name in profile.secrets:
        yield "Secret", name, f"kubectl create secret generic {name} -n {space} --from-env-file=FILE"
    for name in profile.image_pull_secrets:
        yield "Secret", name, f"kubectl create secret docker-registry {name} -n {space} --docker-server=..."
    if profile.cache.claim is not None:
        claim = profile.cache.claim
        yield "PersistentVolumeClaim", claim, f"create the claim (ReadWriteMany) in {space}, or correct `cache.claim`"
    if profile.queue is not None:
        yield "LocalQueue", profile.queue, f"install Kueue, 0.18 or later, with a LocalQueue of this name in {space}"


def _there(cluster: Asked, kind: str, name: str, remedy: str) -> Check:
    what = f"{kind} {name}"
    try:
        return Check(what, "ok") if cluster.exists(kind, name) else Check(what, "missing", remedy)
    except Forbidden as error:
        return Check(what, "unknown", error.what)
