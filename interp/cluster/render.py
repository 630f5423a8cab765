"""Plan and profile -> one RayJob. A pure function: what it returns is what is sent, and what `--dry-run` prints.

    head       Ray's head, without logical CPUs: the driver runs there (the RayJob's entrypoint), and no other work
    workers    a group for each of the profile's; Ray's autoscaler starts pods as the driver asks for CPUs and GPUs
    submitter  a small pod that hands the entrypoint to Ray and follows its log, see `ray_jobs.submitter`; it gets no
               secrets

All pods keep to the Pod Security Standard `restricted`, and their root file systems cannot be written: /tmp and /cache
are volumes. Only the head has a service account's token, for the autoscaler beside it. Secrets are named, never read.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import yaml

from interp.cluster import quantities
from interp.cluster.naming import label_value
from interp.cluster.pods import (
    Claim,
    Container,
    EmptyDir,
    Metadata,
    Mount,
    NamedReference,
    PodSpec,
    PodTemplate,
    Resources,
    Variable,
    VariablesFrom,
    Volume,
)
from interp.cluster.profile import Profile, Toleration, WorkerGroup
from interp.cluster.rayjob import (
    AutoscalerOptions,
    HeadGroup,
    RayClusterSpec,
    RayJob,
    RayJobSpec,
    SubmitterConfig,
    WorkerGroupSpec,
)
from interp.plan.plan import Plan

CACHE, TEMPORARY, SHARED_MEMORY = "/cache", "/tmp", "/dev/shm"

RUN_LABEL, STUDY_LABEL = "interp.dev/run", "interp.dev/study"
STORE_ANNOTATION, PLAN_ANNOTATION = "interp.dev/store", "interp.dev/plan-digest"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
ELASTIC_ANNOTATION = "kueue.x-k8s.io/elastic-job"
KEEP_ANNOTATION = "cluster-autoscaler.kubernetes.io/safe-to-evict"

GRACE_SECONDS = 120
"""A driver that is told to stop keeps a checkpoint first."""

_STOP_SECONDS = 90
"""For the same when Ray stops the job, as it does for Kueue: by default it kills after 3 s."""

_HEAD_SHM = 0.3
_OBJECT_STORE = 0.9
"""Of /dev/shm: the rest is for what else is shared there, and Ray refuses a store larger than it."""

_HOME = (Variable(name="HOME", value=TEMPORARY),)
_TMP = (Mount(name="tmp", mount_path=TEMPORARY),)
"""Where a container that is not Ray's own may write."""

_SUBMITTER = Resources(limits={"cpu": "1", "memory": "1G"}, requests={"cpu": "200m", "memory": "500M"})
_AUTOSCALER = Resources(limits={"cpu": "1", "memory": "1G"}, requests={"cpu": "500m", "memory": "1G"})


def render(run: str, plan: Plan, profile: Profile, *, retry_failed: bool = False) -> dict[str, Any]:
    """The RayJob of a run, as plain data.

    Args:
        run: its name, see `interp.cluster.naming.run_name`.
        retry_failed: prompts that failed before are traced again.
    """
    labels = {**profile.labels, **labels_of(run, plan)}
    annotations = {**profile.annotations, STORE_ANNOTATION: plan.study.store, PLAN_ANNOTATION: plan_digest(plan)}
    pods = _Pods(run, plan, profile, labels)
    queued: dict[str, str] = {} if profile.queue is None else {QUEUE_LABEL: profile.queue}
    # Kueue refuses a job that grows and shrinks unless it says so; from Kueue 0.18 on that is enough.
    elastic: dict[str, str] = {} if profile.queue is None else {ELASTIC_ANNOTATION: "true"}
    limits, entrypoint = profile.limits, _entrypoint(run, plan, retry_failed)
    job = RayJob(
        metadata=Metadata(
            name=run,
            namespace=profile.namespace,
            labels={**labels, **queued},
            annotations={**annotations, **elastic},
        ),
        spec=RayJobSpec(
            entrypoint=entrypoint,
            submitter_config=SubmitterConfig(backoff_limit=profile.retries.driver),
            backoff_limit=profile.retries.cluster,
            active_deadline_seconds=limits.run,
            pre_running_deadline_seconds=limits.start,
            ttl_seconds_after_finished=limits.keep,
            suspend=True if profile.queue is not None else None,
            submitter_pod_template=pods.submitter(entrypoint),
            ray_cluster_spec=RayClusterSpec(
                ray_version=version("ray"),
                autoscaler_options=AutoscalerOptions(
                    idle_timeout_seconds=limits.idle,
                    image_pull_policy=profile.image_pull_policy,
                    resources=_AUTOSCALER,
                    env=_HOME,
                    volume_mounts=_TMP,
                ),
                head_group_spec=pods.head(),
                worker_group_specs=tuple(pods.worker(group) for group in profile.workers),
            ),
        ),
    )
    return job.to_manifest()


def dump_yaml(manifest: Mapping[str, Any]) -> str:
    """A manifest as a text that people read: keys in the order of the manifest, no aliases, long texts unbroken."""
    return yaml.dump(manifest, Dumper=_Plain, sort_keys=False, width=10_000, allow_unicode=True)


def labels_of(run: str, plan: Plan) -> dict[str, str]:
    """What everything that is made for a run is found by."""
    return {
        "app.kubernetes.io/managed-by": "interp",
        "app.kubernetes.io/name": "interp",
        RUN_LABEL: run,
        STUDY_LABEL: label_value(plan.study.metadata.name),
    }


def plan_digest(plan: Plan) -> str:
    """Of the stages' keys: equal for plans that make the same things, whatever is cached already."""
    text = "\n".join(f"{stage.stage} {stage.key}" for stage in plan.stages)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def cluster_of(profile: Profile) -> dict[str, Any]:
    """What the cluster can grow to; the driver reads it from INTERP_CLUSTER."""
    return {"nodes": [_node(group) for group in profile.workers]}


def _node(group: WorkerGroup) -> dict[str, Any]:
    told = group.nodes.model_dump()
    if not group.gpus:
        del told["gpu_memory"]
    return {**told, "cpus": int(told["cpus"])}


def _entrypoint(run: str, plan: Plan, retry_failed: bool) -> str:
    """KubeRay puts it into a shell's command line."""
    words = ["python", "-m", "ray_jobs.run_plan", "--run", run, "--store", plan.study.store]
    return shlex.join([*words, "--retry-failed"] if retry_failed else words)


class _Pods:
    """The pods of one run."""

    def __init__(self, run: str, plan: Plan, profile: Profile, labels: dict[str, str]):
        self.profile = profile
        # A node is not emptied under a pod that works: workers without work are given back by Ray.
        self.metadata = Metadata(labels=labels, annotations={**profile.annotations, KEEP_ANNOTATION: "false"})
        variables = {
            "INTERP_RUN": run,
            "INTERP_RUN_STORE": plan.study.store,
            "INTERP_CLUSTER": json.dumps(cluster_of(profile), separators=(",", ":")),
            "INTERP_CACHE_DIR": CACHE,
            "HF_HOME": f"{CACHE}/huggingface",
            "HOME": TEMPORARY,
            "PYTHONUNBUFFERED": "1",
            "RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_SECONDS),
            **profile.env,
        }
        self.variables = tuple(Variable(name=name, value=value) for name, value in variables.items())

    def head(self) -> HeadGroup:
        head = self.profile.head
        shm = int(_HEAD_SHM * head.memory)
        return HeadGroup(
            # The submitter's pod reaches the dashboard there; a token guards it.
            ray_start_params={"num-cpus": "0", "dashboard-host": "0.0.0.0", "object-store-memory": _store(shm)},
            template=self._ray(
                "ray-head",
                _sized(head.cpus, head.memory),
                shm,
                head.node_selector,
                head.tolerations,
                token=True,
            ),
        )

    def worker(self, group: WorkerGroup) -> WorkerGroupSpec:
        gpus = {group.gpu_resource: str(group.gpus)} if group.gpus else {}
        return WorkerGroupSpec(
            group_name=group.name,
            replicas=group.min,
            min_replicas=group.min,
            max_replicas=group.max,
            idle_timeout_seconds=self.profile.limits.idle,
            ray_start_params={
                "num-cpus": str(int(group.nodes.cpus)),
                "num-gpus": str(group.gpus),
                "object-store-memory": _store(group.shared_memory),
            },
            template=self._ray(
                "ray-worker",
                _sized(group.cpus, group.memory, gpus),
                group.shared_memory,
                group.node_selector,
                _tolerations(group),
                token=False,
            ),
        )

    def submitter(self, entrypoint: str) -> PodTemplate:
        """KubeRay adds Ray's address and token. Its own command takes the end of a connection for the driver's."""
        container = self._container(
            "ray-job-submitter",
            _SUBMITTER,
            command=("python", "-m", "ray_jobs.submitter", entrypoint),
            env=_HOME,
            volume_mounts=_TMP,
        )
        return self._pod(container, (Volume(name="tmp", empty_dir=EmptyDir()),), {}, (), token=False, grace=30)

    def _ray(
        self,
        name: str,
        resources: Resources,
        shm: int,
        selector: Mapping[str, str],
        tolerations: tuple[Toleration, ...],
        *,
        token: bool,
    ) -> PodTemplate:
        cache = self.profile.cache
        volumes = (
            Volume(name="shm", empty_dir=EmptyDir(medium="Memory", size_limit=quantities.of_bytes(shm))),
            Volume(name="tmp", empty_dir=EmptyDir()),
            Volume(name="cache", empty_dir=EmptyDir(size_limit=quantities.of_bytes(cache.size)))
            if cache.claim is None
            else Volume(name="cache", persistent_volume_claim=Claim(claim_name=cache.claim)),
        )
        paths = {"shm": SHARED_MEMORY, "tmp": TEMPORARY, "cache": CACHE}
        secrets = tuple(VariablesFrom(secret_ref=NamedReference(name=one)) for one in self.profile.secrets)
        container = self._container(
            name,
            resources,
            env=self.variables,
            env_from=secrets or None,
            volume_mounts=tuple(Mount(name=volume, mount_path=path) for volume, path in paths.items()),
        )
        return self._pod(container, volumes, selector, tolerations, token=token, grace=GRACE_SECONDS)

    def _container(self, name: str, resources: Resources, **more: Any) -> Container:
        image, policy = self.profile.image, self.profile.image_pull_policy
        return Container(name=name, image=image, image_pull_policy=policy, resources=resources, **more)

    def _pod(
        self,
        container: Container,
        volumes: tuple[Volume, ...],
        selector: Mapping[str, str],
        tolerations: tuple[Toleration, ...],
        *,
        token: bool,
        grace: int,
    ) -> PodTemplate:
        profile = self.profile
        spec = PodSpec(
            service_account_name=profile.service_account,
            automount_service_account_token=token,
            containers=(container,),
            volumes=volumes,
            termination_grace_period_seconds=grace,
            image_pull_secrets=tuple(NamedReference(name=one) for one in profile.image_pull_secrets) or None,
            priority_class_name=profile.priority_class,
            node_selector=dict(selector) or None,
            tolerations=tolerations or None,
        )
        return PodTemplate(metadata=self.metadata, spec=spec)


def _sized(cpus: float, memory: int, more: Mapping[str, str] | None = None) -> Resources:
    """Requests are limits: such a pod is the last to be evicted, and gets no less than it was planned with."""
    amounts = {"cpu": quantities.of_cpus(cpus), "memory": quantities.of_bytes(memory), **(more or {})}
    return Resources(limits=amounts, requests=amounts)


def _tolerations(group: WorkerGroup) -> tuple[Toleration, ...]:
    """Nodes with GPUs are commonly tainted with the name of their resource."""
    if group.tolerations or not group.gpus:
        return group.tolerations
    return (Toleration(key=group.gpu_resource, operator="Exists", effect="NoSchedule"),)


def _store(shm: int) -> str:
    return str(int(_OBJECT_STORE * shm))


class _Plain(yaml.SafeDumper):
    """Lists are indented under their key, and nothing is written once and referred to."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)
