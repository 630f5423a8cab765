"""The RayJob that we send, ray.io/v1 of KubeRay 1.7, closed: of its many fields those that a run uses.

The API server checks types. What KubeRay checks only afterwards, when the object is there and its status turns to
ValidationFailed, is checked here, before anything is sent:

    name         at most 47 characters, DNS-1035
    suspend      needs shutdownAfterJobFinishes
    TTL          not negative; more than 0 needs shutdownAfterJobFinishes
    deadlines    more than 0, backoffLimits not negative
    token auth   needs rayVersion, 2.52 or later
    autoscaler   its idle time-outs need version v2, and that pods are never restarted
    groups       names differ; 0 <= min <= replicas <= max; rayStartParams are text
"""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, StrictStr, model_validator

from interp.cluster.naming import LONGEST, is_run_name
from interp.cluster.pods import ContainerSecurity, Manifest, Metadata, Mount, PodTemplate, Resources, Variable

_TOKENS_SINCE = (2, 52)


class AuthOptions(Manifest):
    mode: Literal["token"] = "token"


class AutoscalerOptions(Manifest):
    """Of the autoscaler's container, which KubeRay puts beside Ray in the head's pod."""

    version: Literal["v1", "v2"] = "v2"
    idle_timeout_seconds: int = Field(ge=0)
    image_pull_policy: str
    resources: Resources
    security_context: ContainerSecurity = ContainerSecurity()
    env: tuple[Variable, ...] | None = None
    volume_mounts: tuple[Mount, ...] | None = None


RayStartParams = dict[str, StrictStr]


class HeadGroup(Manifest):
    ray_start_params: RayStartParams
    template: PodTemplate


class WorkerGroupSpec(Manifest):
    group_name: str
    replicas: int
    min_replicas: int
    max_replicas: int
    idle_timeout_seconds: int | None = Field(default=None, ge=0)
    ray_start_params: RayStartParams
    template: PodTemplate

    @model_validator(mode="after")
    def _replicas_are_ordered(self) -> WorkerGroupSpec:
        if not 0 <= self.min_replicas <= self.replicas <= self.max_replicas:
            raise ValueError(
                f"group {self.group_name}: 0 <= minReplicas {self.min_replicas} <= replicas {self.replicas} "
                f"<= maxReplicas {self.max_replicas} does not hold"
            )
        return self


class RayClusterSpec(Manifest):
    ray_version: str
    enable_in_tree_autoscaling: bool = True
    autoscaler_options: AutoscalerOptions
    auth_options: AuthOptions = AuthOptions()
    head_group_spec: HeadGroup
    worker_group_specs: tuple[WorkerGroupSpec, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _as_kuberay_checks(self) -> RayClusterSpec:
        match = re.match(r"(\d+)\.(\d+)\.\d+", self.ray_version)
        if match is None or (int(match[1]), int(match[2])) < _TOKENS_SINCE:
            raise ValueError(f"token authentication needs Ray 2.52.0 or later, and rayVersion is {self.ray_version!r}")
        names = [group.group_name for group in self.worker_group_specs]
        if len(set(names)) < len(names):
            raise ValueError(f"two worker groups have one name: {', '.join(names)}")
        if self.autoscaler_options.version != "v2" and any(g.idle_timeout_seconds for g in self.worker_group_specs):
            raise ValueError("idleTimeoutSeconds of a group needs autoscalerOptions.version v2")
        return self


class SubmitterConfig(Manifest):
    backoff_limit: int = Field(ge=0)


class RayJobSpec(Manifest):
    entrypoint: str = Field(min_length=1)
    submission_mode: Literal["K8sJobMode"] = "K8sJobMode"
    submitter_config: SubmitterConfig
    backoff_limit: int = Field(ge=0)
    active_deadline_seconds: int | None = Field(default=None, gt=0)
    pre_running_deadline_seconds: int | None = Field(default=None, gt=0)
    shutdown_after_job_finishes: bool = True
    ttl_seconds_after_finished: int = Field(default=0, ge=0)
    suspend: bool | None = None
    submitter_pod_template: PodTemplate
    ray_cluster_spec: RayClusterSpec

    @model_validator(mode="after")
    def _as_kuberay_checks(self) -> RayJobSpec:
        if self.ttl_seconds_after_finished and not self.shutdown_after_job_finishes:
            raise ValueError("ttlSecondsAfterFinished needs shutdownAfterJobFinishes")
        if self.suspend and not self.shutdown_after_job_finishes:
            raise ValueError("suspend needs shutdownAfterJobFinishes")
        return self


class RayJob(Manifest):
    api_version: Literal["ray.io/v1"] = "ray.io/v1"
    kind: Literal["RayJob"] = "RayJob"
    metadata: Metadata
    spec: RayJobSpec

    @model_validator(mode="after")
    def _name_is_one(self) -> RayJob:
        if not is_run_name(self.metadata.name or ""):
            raise ValueError(
                f"{self.metadata.name!r} cannot be a RayJob's name: at most {LONGEST} characters, a lower-case letter "
                "first, then letters, digits and '-', no '-' at the end"
            )
        return self

    def to_manifest(self) -> dict[str, Any]:
        """The object as it is sent."""
        return self.manifest()
