"""What KubeRay 1.7 says of RayJobs that it will not have: their status turns to ValidationFailed."""

from __future__ import annotations

import re

from kube_rest import Object

_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_LONGEST = 47


def complaint(job: Object) -> str | None:
    """The first thing that is wrong; None if nothing is."""
    name, spec = job["metadata"]["name"], job["spec"]
    if len(name) > _LONGEST:
        return f"The RayJob metadata is invalid: RayJob name should be no more than {_LONGEST} characters"
    if not _NAME.fullmatch(name):
        return "The RayJob metadata is invalid: RayJob name should be a valid DNS1035 label"
    said = _spec_complaint(spec)
    return None if said is None else f"The RayJob spec is invalid: {said}"


def _spec_complaint(spec: Object) -> str | None:
    shuts_down = spec.get("shutdownAfterJobFinishes", False)
    if spec.get("suspend") and not shuts_down:
        return "a RayJob with shutdownAfterJobFinishes set to false is not allowed to be suspended"
    if spec.get("ttlSecondsAfterFinished", 0) > 0 and not shuts_down:
        return "a RayJob with shutdownAfterJobFinishes set to false cannot have TTLSecondsAfterFinished"
    if "rayClusterSpec" not in spec:
        return "one of RayClusterSpec or ClusterSelector must be set"
    for field in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if field in spec and spec[field] <= 0:
            return f"{field} must be a positive integer"
    for group in spec["rayClusterSpec"].get("workerGroupSpecs", []):
        if group.get("minReplicas", 0) > group.get("maxReplicas", 2**31):
            return f"worker group {group['groupName']} has minReplicas greater than maxReplicas"
    return None
