"""Where profiles are, and reading them: what is wrong with one is told with its line, like a study's.

--profile NAME     ~/.config/interp/profiles/NAME.yaml ($XDG_CONFIG_HOME is respected)
--profile FILE     a path: something with a '/' in it, or that ends in .yaml or .yml
$INTERP_PROFILE    either of them, where --profile is not given
neither            the only profile that there is
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from interp.cluster.profile import SECRET_LIKE, Profile
from interp.errors import SpecError
from interp.spec.complaints import Complaint, translate
from interp.spec.loading import FileError, parse, placed, text_of

VARIABLE = "INTERP_PROFILE"

_NAME = re.compile(r"^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$")


class ProfileFileError(FileError):
    """A profile that is refused."""


def folder() -> Path:
    """Where profiles are found by name."""
    config = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(config) / "interp" / "profiles"


def known() -> dict[str, Path]:
    """Every profile that can be named: its name, which is the file's, and the file."""
    return {path.stem: path for path in sorted(folder().glob("*.yaml"))}


def find(given: str | None = None) -> Path:
    """The file of a profile; `given` is what stood after --profile.

    Raises:
        SpecError: there is none, or several and none is named.
    """
    wanted, why = (given, "--profile") if given else (os.environ.get(VARIABLE), f"${VARIABLE}")
    if wanted:
        return _named(wanted, why)
    there = known()
    if len(there) == 1:
        return next(iter(there.values()))
    raise SpecError(
        "no profile is named, and there are several" if there else "there is no profile",
        value=", ".join(there) or str(folder()),
        expected="one, or --profile NAME",
        remedy=f"give --profile, or set {VARIABLE}" if there else "make one: interp profile init NAME",
    )


def load_profile(given: str | None = None) -> Profile:
    """The profile that `find` finds.

    Raises:
        SpecError: it is not there, or says something that is not allowed.
    """
    path = find(given)
    return parse_profile(text_of(path, "profile"), str(path))


def parse_profile(text: str, file: str = "<text>") -> Profile:
    """The profile in a YAML text; `file` is what messages call it.

    Raises:
        ProfileFileError: with every problem and its line.
    """
    return parse(text, file, _validated, ProfileFileError)


def profile_of(data: Any, source: str) -> Profile:
    """The profile in plain data; `source` is what messages call it.

    Raises:
        ProfileFileError: with every problem.
    """
    profile, complaints = _validated(data)
    if profile is None:
        raise ProfileFileError(tuple(placed(complaint, source, None) for complaint in complaints))
    return profile


def init(name: str, image: str) -> Path:
    """Write a profile to begin with, with every setting explained.

    Raises:
        SpecError: it cannot have this name or image, or is there already.
    """
    if not _NAME.fullmatch(name):
        raise SpecError(
            "this cannot be the name of a profile",
            value=name,
            expected="a lower-case letter, then letters, digits and '-', at most 63 characters",
        )
    smallest = {"name": "cpu", "cpus": 1, "memory": "1G", "max": 1}
    profile_of({"metadata": {"name": name}, "image": image, "workers": [smallest]}, "--image")
    path, text = folder() / f"{name}.yaml", _TEMPLATE.replace("NAME", name).replace("IMAGE", image)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise SpecError(
            "this profile is there already",
            value=str(path),
            remedy="edit it, remove it, or choose another name",
        ) from None
    return path


def _named(wanted: str, why: str) -> Path:
    if "/" in wanted or wanted.endswith((".yaml", ".yml")):
        return Path(wanted).expanduser()
    path = folder() / f"{wanted}.yaml"
    if not path.exists():
        raise SpecError(
            f"there is no profile of this name ({why})",
            value=str(path),
            expected=f"one of {', '.join(known())}" if known() else None,
            remedy=f"make it: interp profile init {wanted}; or give the path of a file",
        )
    return path


def _validated(data: Any) -> tuple[Profile | None, list[Complaint]]:
    try:
        return Profile.model_validate(data), []
    except ValidationError as error:
        return None, [_discreet(complaint) for complaint in translate(error, data, Profile)]


def _discreet(complaint: Complaint) -> Complaint:
    """What may be a secret that stands in the wrong place is not repeated."""
    path = complaint.path
    hides = path[:1] in (("secrets",), ("env",)) or any(SECRET_LIKE.search(str(step)) for step in path)
    return replace(complaint, value=None) if hides else complaint


_TEMPLATE = """\
# Where studies run. A study says what is computed; this file says on which machines. `interp profile check NAME` asks
# the cluster whether all that is named here is there. No secret belongs in here: secrets are named, and become
# environment variables in the pods.
apiVersion: interp/v1
kind: Profile
metadata: {name: NAME}

# context: my-cluster            # of the kubeconfig; its current one where this is absent
namespace: interp
image: IMAGE
# image_pull_policy: IfNotPresent
# image_pull_secrets: [registry]
service_account: interp-worker   # it must be there; Ray's autoscaler gets its rights by it
# queue: team                    # a Kueue LocalQueue: runs wait there until there is quota
# priority_class: batch

# Secrets, by name: each key becomes a variable, such as AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, HF_TOKEN.
#   kubectl create secret generic interp-s3 --namespace interp --from-env-file=s3.env
secrets: [interp-s3]
# Variables that are no secrets.
env:
  AWS_DEFAULT_REGION: us-east-1
#   AWS_ENDPOINT_URL: http://seaweedfs-s3.interp:8333

# The head schedules and runs the driver; it takes no other work.
head: {cpus: 4, memory: 16G}

# Pods of one kind each. Ray starts them when there is work and gives them back when there is none, between min and max.
# K, M and G are 10^3, 10^6 and 10^9.
workers:
  - {name: cpu, cpus: 8, memory: 32G, min: 0, max: 4}
  # - name: gpu
  #   cpus: 16
  #   memory: 128G
  #   gpus: 1                    # of one pod
  #   gpu: h200-141g             # what they are: h200-141g, h100-80g, a100-80g, a100-40g, l40s-48g, l4-24g
  #   max: 8
  #   shm: 40G                   # of /dev/shm, part of memory; 0.3 of it where this is absent
  #   gpu_resource: nvidia.com/gpu
  #   node_selector: {nvidia.com/gpu.product: NVIDIA-H200}
  #   tolerations: [{key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}]   # so where none is given

# Downloaded models and copies of artifacts: a volume of each pod, or a claim (ReadWriteMany) that all pods share.
cache: {size: 100G}
# cache: {claim: interp-cache}

# Seconds. run: of the whole run, without it there is no limit; start: from submission until the driver runs, waiting in
# a queue not counted; keep: so long the head stays after the end, for its logs; idle: so long a worker waits for work.
limits: {start: 1800, keep: 600, idle: 120}

# Tries after the first; what was finished is never done again. driver: of the pod that hands over the run and follows
# it. And cluster: with all pods made anew, after the driver failed or the head was lost.
retries: {driver: 2, cluster: 2}

# labels: {team: interpretability}
# annotations: {}
"""
