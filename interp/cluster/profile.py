"""A profile: where studies run. A study says what is computed; image, queue, machines and secrets' names are here.

    apiVersion: interp/v1
    kind: Profile
    metadata: {name: h200}
    namespace: interp
    image: registry.example/interp:0.1.0
    secrets: [interp-s3]
    env: {AWS_ENDPOINT_URL: "http://seaweedfs-s3.interp:8333", AWS_DEFAULT_REGION: us-east-1}
    workers:
      - {name: cpu, cpus: 8, memory: 32G, max: 4}
      - {name: gpu, cpus: 16, memory: 128G, gpus: 1, gpu: h200-141g, max: 8}

No secret is ever in a profile: secrets are named, and become environment variables in the pods.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from interp.plan.machines import GPUS, Gpu
from interp.plan.nodes import Nodes
from interp.spec.base import NUMBER, PositiveCount, SpecModel

_LABEL = re.compile(r"^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$")
_VARIABLE = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")
SECRET_LIKE = re.compile(
    r"SECRET|TOKEN(?!I[SZ]E)|PASSWORD|PASSWD|PASSPHRASE|(?<!BY)PASS(_|$)|CREDENTIAL|PRIVATE|API_?KEY|ACCESS_KEY"
    r"|(^|_)KEY(_ID)?$|(^|_)DSN(_|$)|AUTH(?!OR(?!I[SZ])|_MODE)",
    re.IGNORECASE,
)
"""Names of variables whose values are shown nowhere; TOKENIZERS_PARALLELISM and GIT_AUTHOR are none of them."""

USER_IN_URL = re.compile(r"://([^/@\s]*)@")
"""Credentials in an address."""

_IMAGE = re.compile(r"[\w.-]+(:\d+)?(/[\w.-]+)*(:[\w.-]+)?(@sha256:[0-9a-f]{64})?")
_OBJECT = re.compile(r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")
_LABEL_VALUE = re.compile(r"^([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?$")
_KEY = re.compile(r"^([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$")
_OURS = ("interp.dev/", "app.kubernetes.io/", "kueue.x-k8s.io/", "ray.io/")

Cpus = Annotated[float, Field(gt=0), NUMBER]


def _label(name: str) -> str:
    if not _LABEL.fullmatch(name):
        raise ValueError("a lower-case letter first, then letters, digits and '-', at most 63 characters")
    return name


def _object(name: str) -> str:
    if not _OBJECT.fullmatch(name):
        raise ValueError("this cannot be a name: lower-case letters, digits, '-' and '.', at most 253 characters")
    return name


def _selector(labels: dict[str, str]) -> dict[str, str]:
    for key, value in labels.items():
        if not _KEY.fullmatch(key):
            raise ValueError(f"{key!r} cannot be a label's key: prefix/name of letters, digits, '-', '_' and '.'")
        if not _LABEL_VALUE.fullmatch(value):
            raise ValueError(f"{key}: {value!r} cannot be a label's value: at most 63 letters, digits, '-_.'")
    return labels


NodeSelector = Annotated[dict[str, str], AfterValidator(_selector)]
"""Labels of the nodes where pods may run."""

ObjectName = Annotated[str, AfterValidator(_object)]
"""Of something that is in the namespace."""


class ProfileMetadata(SpecModel):
    name: str
    description: str = ""

    _is_a_label = field_validator("name")(_label)


class Toleration(SpecModel):
    """As Kubernetes has it."""

    key: str | None = None
    operator: Literal["Exists", "Equal"] = "Equal"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    tolerationSeconds: int | None = Field(default=None, ge=0)  # noqa: N815 - Kubernetes' own name

    @model_validator(mode="after")
    def _holds(self) -> Toleration:
        if self.key is None and self.operator == "Equal":
            raise ValueError("key is missing: only operator Exists goes without, and tolerates every taint")
        if self.key is not None and not _KEY.fullmatch(self.key):
            raise ValueError(f"{self.key!r} cannot be a taint's key")
        if self.operator == "Exists" and self.value:
            raise ValueError("operator Exists takes no value")
        if self.value is not None and not _LABEL_VALUE.fullmatch(self.value):
            raise ValueError(f"{self.value!r} cannot be a taint's value: at most 63 letters, digits, '-_.'")
        if self.tolerationSeconds is not None and self.effect != "NoExecute":
            raise ValueError("tolerationSeconds goes with effect NoExecute alone")
        return self


class Cache(SpecModel):
    """Where pods keep downloaded models and copies of artifacts: a volume of the pod, or a claim that outlives it."""

    size: PositiveCount = Field(default=100_000_000_000, description="bytes; of a pod's own volume, its limit")
    claim: ObjectName | None = Field(
        default=None, description="a PersistentVolumeClaim (ReadWriteMany) that all pods share; absent: the pod's own"
    )


class Head(SpecModel):
    """The head of the Ray cluster: it schedules and runs the driver, and takes no other work."""

    cpus: Cpus = 4
    memory: PositiveCount = 16_000_000_000
    node_selector: NodeSelector = Field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()


class WorkerGroup(SpecModel):
    """Pods of one kind, each a Ray node; Ray starts and stops them between `min` and `max` as work comes and goes."""

    name: str
    cpus: Cpus
    memory: PositiveCount = Field(description="bytes")
    gpus: int = Field(default=0, ge=0, le=64)
    gpu: str | None = Field(default=None, description="a row of interp.plan.machines.GPUS; needed where gpus > 0")
    gpu_resource: str = Field(default="nvidia.com/gpu", description="the resource that the device plugin offers")
    min: int = Field(default=0, ge=0)
    max: int = Field(ge=1)
    shm: PositiveCount | None = Field(
        default=None, description="bytes of /dev/shm, where Ray keeps what flows between actors; default 0.3 of memory"
    )
    node_selector: NodeSelector = Field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()

    _is_a_label = field_validator("name")(_label)

    @model_validator(mode="after")
    def _fits_together(self) -> WorkerGroup:
        if self.name == "head":
            raise ValueError("the head is no worker group: call this one something else")
        if self.min > self.max:
            raise ValueError(f"min {self.min} is more than max {self.max}")
        if self.gpus and self.gpu is None:
            raise ValueError(f"gpu is missing: say which, one of {', '.join(n for n in GPUS if n != 'cpu')}")
        if self.gpu is not None and (self.gpu not in GPUS or self.gpu == "cpu"):
            raise ValueError(f"gpu {self.gpu!r} is not known: one of {', '.join(n for n in GPUS if n != 'cpu')}")
        if self.gpu is not None and not self.gpus:
            raise ValueError("gpu is given, but gpus is 0")
        if int(self.cpus) < self.gpus:
            raise ValueError(f"cpus {self.cpus:g} are fewer than gpus {self.gpus}: a process takes one of both")
        if self.shm is not None and self.shm > self.memory:
            raise ValueError(f"shm {self.shm} is more than memory {self.memory}: it is part of it")
        return self

    @property
    def shared_memory(self) -> int:
        return self.shm or int(0.3 * self.memory)

    @property
    def kind(self) -> Gpu | None:
        return None if self.gpu is None else GPUS[self.gpu]

    @property
    def nodes(self) -> Nodes:
        """What Ray and the engine are told of the group: logical CPUs are whole numbers, for Ray's autoscaler."""
        return Nodes(
            name=self.name,
            count=self.max,
            cpus=max(1, int(self.cpus)),
            gpus=self.gpus,
            memory=self.memory,
            shared_memory=self.shared_memory,
            gpu_memory=0 if self.kind is None else self.kind.memory,
        )


class Limits(SpecModel):
    """Seconds."""

    run: PositiveCount | None = Field(default=None, description="the whole run; then it is stopped (DeadlineExceeded)")
    start: PositiveCount = Field(default=1800, description="from submission until the driver runs; queueing excluded")
    keep: PositiveCount = Field(default=600, description="after the end the head's pod stays so long, for its logs")
    idle: PositiveCount = Field(default=120, description="a worker without work is given back after so long")


class Retries(SpecModel):
    """KubeRay has two, and interp's stages resume whichever it is: nothing that was finished is done again.

    driver   of the pod that hands the driver to Ray and follows it (submitterConfig.backoffLimit): where it was lost,
             the next one finds the driver and follows it, or hands it over anew where Ray's head was replaced
    cluster  of all of it, with new pods (RayJob's backoffLimit): the driver failed or was killed, or the head was lost
    """

    driver: int = Field(default=2, ge=0, le=20)
    cluster: int = Field(default=2, ge=0, le=20)


class Profile(SpecModel):
    """One place where studies run. `interp.cluster.profiles` finds and reads the files."""

    apiVersion: Literal["interp/v1"] = "interp/v1"  # noqa: N815 - Kubernetes' own name
    kind: Literal["Profile"] = "Profile"
    metadata: ProfileMetadata
    context: str | None = Field(default=None, description="of the kubeconfig; absent: its current one")
    namespace: str = "interp"
    image: str = Field(min_length=1, description="with interp of this version in it; a tag or a digest, not :latest")
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    image_pull_secrets: tuple[ObjectName, ...] = ()
    service_account: ObjectName = "interp-worker"
    queue: ObjectName | None = Field(default=None, description="a Kueue LocalQueue: the run waits there, suspended")
    priority_class: ObjectName | None = None
    secrets: tuple[ObjectName, ...] = Field(default=(), description="Secrets by name; their keys become variables")
    env: dict[str, str] = Field(default_factory=dict, description="variables that are no secrets")
    head: Head = Head()
    workers: tuple[WorkerGroup, ...] = Field(min_length=1, max_length=16)
    cache: Cache = Cache()
    limits: Limits = Limits()
    retries: Retries = Retries()
    labels: dict[str, str] = Field(default_factory=dict, description="put on all that is made")
    annotations: dict[str, str] = Field(default_factory=dict)

    _is_a_label = field_validator("namespace")(_label)

    @field_validator("image")
    @classmethod
    def _image_is_pinned(cls, image: str) -> str:
        if not _IMAGE.fullmatch(image):
            raise ValueError(f"{image!r} cannot be an image's name: registry/path:tag or registry/path@sha256:digest")
        tag = image.rsplit("/", 1)[-1].partition("@")[0].partition(":")[2]
        if "@sha256:" not in image and tag in ("", "latest"):
            raise ValueError(f"{image!r} has no fixed version: name a tag other than latest, or a digest")
        return image

    @field_validator("env")
    @classmethod
    def _env_has_no_secrets(cls, env: dict[str, str]) -> dict[str, str]:
        for name in env:
            if not _VARIABLE.fullmatch(name):
                raise ValueError(f"{name!r} cannot be a variable's name")
            if SECRET_LIKE.search(name):
                raise ValueError(f"{name} looks like a secret: put it into a Secret, and its name into `secrets`")
            if name.startswith(("RAY_", "INTERP_RUN", "INTERP_CLUSTER")):
                raise ValueError(f"{name} is set by interp or by KubeRay")
            if USER_IN_URL.search(env[name]):
                raise ValueError(f"{name} is a URL with credentials in it: put it into a Secret")
        return env

    @field_validator("labels", "annotations")
    @classmethod
    def _keys_are_free(cls, given: dict[str, str]) -> dict[str, str]:
        for key in given:
            if not _KEY.fullmatch(key):
                raise ValueError(f"{key!r} cannot be a key: prefix/name of letters, digits, '-', '_' and '.'")
            if key.startswith(_OURS):
                raise ValueError(f"{key} is set by interp, KubeRay or Kueue")
        return given

    @field_validator("labels")
    @classmethod
    def _values_are_short(cls, labels: dict[str, str]) -> dict[str, str]:
        return _selector(labels)

    @model_validator(mode="after")
    def _groups_differ(self) -> Profile:
        names = [group.name for group in self.workers]
        if len(set(names)) < len(names):
            raise ValueError(f"two worker groups have one name: {', '.join(names)}")
        return self

    def model_dump_file(self) -> dict[str, Any]:
        """As a file has it: without what is left at its default."""
        return {"apiVersion": self.apiVersion, "kind": self.kind} | self.model_dump(mode="json", exclude_defaults=True)
