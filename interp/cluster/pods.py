"""Pods, as far as a run needs them: closed models of what Kubernetes takes, so that no key is misspelt.

Field names are Python's; `manifest` gives Kubernetes' own (`claim_name` is sent as `claimName`). What is None is not
sent.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from interp.cluster.profile import Toleration


class Manifest(BaseModel):
    """A part of a Kubernetes object: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)

    def manifest(self) -> dict[str, Any]:
        """As the API takes it."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class Metadata(Manifest):
    name: str | None = None
    namespace: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None


class NamedReference(Manifest):
    name: str


class Variable(Manifest):
    name: str
    value: str


class VariablesFrom(Manifest):
    secret_ref: NamedReference


class Mount(Manifest):
    name: str
    mount_path: str


class EmptyDir(Manifest):
    medium: Literal["Memory"] | None = None
    size_limit: str | None = None


class Claim(Manifest):
    claim_name: str


class Volume(Manifest):
    name: str
    empty_dir: EmptyDir | None = None
    persistent_volume_claim: Claim | None = None


class Resources(Manifest):
    limits: dict[str, str]
    requests: dict[str, str]


class Capabilities(Manifest):
    drop: tuple[str, ...] = ("ALL",)


class ContainerSecurity(Manifest):
    """What the Pod Security Standard `restricted` asks of a container; and the root file system cannot be written."""

    allow_privilege_escalation: bool = False
    capabilities: Capabilities = Capabilities()
    read_only_root_filesystem: bool = True
    run_as_non_root: bool = True


class SeccompProfile(Manifest):
    type: Literal["RuntimeDefault"] = "RuntimeDefault"


class PodSecurity(Manifest):
    """What it asks of a pod. The group owns the volumes, so that the image's user can write a shared claim."""

    run_as_non_root: bool = True
    seccomp_profile: SeccompProfile = SeccompProfile()
    fs_group: int = 1000
    fs_group_change_policy: Literal["OnRootMismatch"] = "OnRootMismatch"


class Container(Manifest):
    name: str
    image: str
    image_pull_policy: str
    command: tuple[str, ...] | None = None
    resources: Resources
    security_context: ContainerSecurity = ContainerSecurity()
    env: tuple[Variable, ...] | None = None
    env_from: tuple[VariablesFrom, ...] | None = None
    volume_mounts: tuple[Mount, ...] | None = None


class PodSpec(Manifest):
    service_account_name: str
    automount_service_account_token: bool
    enable_service_links: bool = False
    security_context: PodSecurity = PodSecurity()
    containers: tuple[Container, ...] = Field(min_length=1)
    volumes: tuple[Volume, ...] | None = None
    restart_policy: Literal["Never"] = "Never"
    termination_grace_period_seconds: int = Field(ge=0)
    image_pull_secrets: tuple[NamedReference, ...] | None = None
    priority_class_name: str | None = None
    node_selector: dict[str, str] | None = None
    tolerations: tuple[Toleration, ...] | None = None


class PodTemplate(Manifest):
    metadata: Metadata
    spec: PodSpec
