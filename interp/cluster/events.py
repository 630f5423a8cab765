"""Why a run waits or has failed, and what to do: one row for each cause, the one that explains most first.

The first row that fits any fact wins. `ImagePullBackOff` stands above `PreRunningDeadlineExceeded`, for example,
because the second is only what came of the first; a study that cannot be run stands above a worker that once ran out
of memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from interp.cluster.facts import Fact, Where


@dataclass(frozen=True)
class Reason:
    """Why a run waits or failed.

    Attributes:
        kind: a word for programs; stable.
        what: the cause, in one clause.
        why: what Kubernetes, KubeRay, Kueue or the driver said.
        next_step: what a person can do now.
    """

    kind: str
    what: str
    why: str
    next_step: str


@dataclass(frozen=True)
class Row:
    """One cause: facts of these places whose word and message match.

    `what` and `next_step` may name {about}, {image}, {run}, and {name}: what the message's first group caught.
    """

    kind: str
    where: tuple[Where, ...]
    reason: str
    message: str
    what: str
    next_step: str

    def match(self, fact: Fact, run: str) -> Reason | None:
        """The reason, if the fact is one of this cause."""
        if fact.where not in self.where or not re.fullmatch(self.reason, fact.reason):
            return None
        found = re.search(self.message, fact.message, re.IGNORECASE | re.DOTALL)
        if found is None:
            return None
        name = (found[1] or "") if found.re.groups else ""
        words = {"about": fact.about, "image": fact.image or "the image", "run": run, "name": name}
        why = " ".join(fact.message.split()) or fact.reason
        return Reason(self.kind, self.what.format(**words), why, self.next_step.format(**words))


_ANY = ""
_STUDY_ERRORS = (
    "SpecError|SourceError|HookError|CorpusError|ModelError|UnsafeFormat|ProbeFailed|DictionaryError|ModelMismatch"
)
_NO_IMAGE = (
    "ErrImagePull|ImagePullBackOff|InvalidImageName|ErrImageNeverPull|ImageInspectError|RegistryUnavailable|"
    "SignatureValidationFailed"
)
_NO_NODE = (
    "NodeLost|NodeShutdown|Shutdown|Terminated|DeletionByTaintManager|DeletionByPodGC|UnexpectedAdmissionError|"
    "DisruptionTarget"
)
_NO_GPU = r"insufficient ((?:nvidia\.com|amd\.com|habana\.ai|gpu\.intel\.com)/[\w.-]*\w|[\w./-]*gpu)"
_NO_VOLUME = (
    r'unbound immediate persistentvolumeclaims?|persistentvolumeclaim "?([^" ]+)"? not found|'
    r"didn't find available persistent volumes"
)
_STORE_ERRORS = "StoreError|StoreAccessError|ArtifactMissing|ArtifactCorrupt"

ROWS: tuple[Row, ...] = (
    Row("invalid", ("job",), "ValidationFailed", _ANY,
        "KubeRay refused the RayJob",
        "correct what it names in the profile (interp profile check), then: interp resume {run} --profile PROFILE"),
    Row("deadline", ("job",), "DeadlineExceeded", _ANY,
        "the run took longer than the profile's limits.run",
        "raise limits.run in the profile, then: interp resume {run} --profile PROFILE  (what is finished is kept)"),
    Row("study", ("driver",), _STUDY_ERRORS, _ANY,
        "the study cannot be run as it is",
        "change the study as the message says, check it with `interp validate`, and submit it"),
    Row("image", ("waiting",), _NO_IMAGE, _ANY,
        "the image of {about} cannot be had: {image}",
        "check `image` and `image_pull_secrets` in the profile and that the image was pushed; then interp "
        "cancel {run} and interp resume {run} --profile PROFILE"),
    Row("secret", ("waiting", "volume"), ".*", 'secret "?([^" ]+)"? not found',
        "the Secret {name} is not there",
        "create the Secret {name} in the run's namespace, or correct `secrets` in the profile; the pod starts "
        "by itself when it is there"),
    Row("secret", ("waiting", "volume"), "CreateContainerConfigError|FailedMount",
        r"couldn't find key (\S+) in secret",
        "a Secret lacks the key {name}",
        "add the key to the Secret; the pod starts by itself when it is there"),
    Row("configmap", ("waiting", "volume"), ".*", 'configmap "?([^" ]+)"? not found',
        "the ConfigMap {name} is not there",
        "create the ConfigMap {name} in the run's namespace; the pod starts by itself"),
    Row("container", ("waiting",), "CreateContainerConfigError|CreateContainerError|RunContainerError", _ANY,
        "the container of {about} cannot be started",
        "correct what the message names in the profile or the image"),
    Row("quota", ("creation",), ".*", "exceeded quota: ([^,]+)",
        "the namespace's ResourceQuota {name} is used up",
        "wait for other runs to end, ask for a larger quota, or lower cpus, memory or gpus in the profile"),
    Row("limits", ("creation",), ".*", "(maximum|minimum) .* usage per|must be less than or equal to .* limit",
        "the namespace's LimitRange does not allow a pod of this size",
        "lower cpus or memory of the profile's groups"),
    Row("pod-security", ("creation",), ".*", 'violates PodSecurity "?([^":]+)',
        "the namespace's pod security ({name}) refuses the pod",
        "compare the namespace's pod-security labels with what the message names; interp's pods satisfy "
        "`restricted` unless an admission webhook changes them"),
    Row("service-account", ("creation",), ".*",
        'serviceaccount "?([^" ]+)"? not found|error looking up service account',
        "the service account of the pods is not there",
        "create it (the chart makes interp-worker) or correct `service_account` in the profile"),
    Row("forbidden", ("creation",), ".*", _ANY,
        "the cluster refuses to create a pod or object of the run",
        "read the message: an admission rule of the cluster or a right of the operator is in the way"),
    Row("queue-off", ("workload",), "Inadmissible", _ANY,
        "the queue takes no run",
        "check `queue` in the profile: the LocalQueue must be in the namespace and its ClusterQueue be active"),
    Row("queue-preempted", ("workload",), "Preempted|.*Preempt.*", _ANY,
        "the queue gave the run's place to another",
        "nothing: it is admitted again when there is room, and goes on where it was"),
    Row("queue-deactivated", ("workload",), "Deactivated|DeactivatedDueTo.*|InactiveWorkload|.*LimitExceeded", _ANY,
        "Kueue put the run aside",
        "interp cancel {run}, see why its pods were not ready, then interp resume {run}"),
    Row("queue", ("workload",), "Pending|QuotaReserved|.*", _ANY,
        "the run waits in its queue",
        "nothing: it starts when there is quota; `kubectl get workloads` shows who is before it"),
    Row("volume", ("scheduling",), ".*",
        _NO_VOLUME,
        "the volume of the cache is not there or not bound",
        "check `cache.claim` in the profile: kubectl describe pvc; its storage class must give ReadWriteMany "
        "volumes"),
    Row("volume", ("volume",), ".*", _ANY,
        "a volume of {about} cannot be mounted",
        "kubectl describe pod {about}; check `cache.claim` in the profile"),
    Row("out-of-memory", ("terminated", "pod"), "OOMKilled", _ANY,
        "{about} was killed for want of memory",
        "give its group more memory in the profile, or use less: smaller fit.micro_tokens or trace.memory; "
        "then interp cancel {run} and interp resume {run} --profile PROFILE"),
    Row("evicted", ("pod",), "Evicted|EvictionByEvictionAPI|TerminationByKubelet", _ANY,
        "{about} was evicted from its node",
        "nothing if it was once: the run goes on by itself. If it was for disk or memory, give its group more "
        "in the profile"),
    Row("preempted", ("pod",), "Preempting|Preempted|PreemptionByScheduler", _ANY,
        "{about} made way for one of higher priority",
        "nothing: the run goes on by itself; `priority_class` in the profile decides who makes way"),
    Row("node-lost", ("pod",), _NO_NODE, _ANY,
        "{about} lost its node",
        "nothing: the run goes on by itself, with a new pod"),
    Row("no-gpu", ("scheduling",), ".*", _NO_GPU,
        "no node has a free GPU for {about} ({name})",
        "wait for others to end, or check the group's gpus, gpu_resource, node_selector and tolerations in "
        "the profile"),
    Row("no-memory", ("scheduling",), ".*", "insufficient memory",
        "no node has enough free memory for {about}",
        "wait for others to end, or lower `memory` of its group (or head) in the profile to what a node has"),
    Row("no-cpu", ("scheduling",), ".*", "insufficient cpu",
        "no node has enough free CPUs for {about}",
        "wait for others to end, or lower `cpus` of its group (or head) in the profile to what a node has"),
    Row("no-storage", ("scheduling",), ".*", "insufficient ephemeral-storage",
        "no node has enough free disk for {about}",
        "lower `cache.size` in the profile, or name a claim in `cache.claim`"),
    Row("tainted", ("scheduling",), ".*", r"untolerated taint \{?([^:}]+)",
        "every node that would do repels {about} (taint {name})",
        "add a toleration of {name} to its group in the profile"),
    Row("no-node", ("scheduling",), ".*", "didn't match pod's node (affinity|selector)",
        "no node has the labels that {about} asks for",
        "correct `node_selector` of its group in the profile: kubectl get nodes --show-labels"),
    Row("unscheduled", ("scheduling",), ".*", _ANY,
        "{about} has no node yet",
        "kubectl describe pod {about}"),
    Row("crash-loop", ("waiting",), "CrashLoopBackOff", _ANY,
        "{about} ends again and again",
        "see why: interp logs {run}, and kubectl logs --previous {about}; often an image of another interp or "
        "Ray"),
    Row("store", ("driver",), _STORE_ERRORS, _ANY,
        "the driver could not use the store",
        "check the Secret with the keys, and AWS_ENDPOINT_URL in the profile's env, then: interp resume {run} "
        "--profile PROFILE"),
    Row("locked", ("driver",), "LockHeld", _ANY,
        "another driver is making the same artifact",
        "wait for the other run to end (interp list), then: interp resume {run}"),
    Row("app", ("driver",), ".*", _ANY,
        "the driver failed",
        "read interp logs {run}; then: interp resume {run}  (what is finished is kept)"),
    Row("start-deadline", ("job",), "PreRunningDeadlineExceeded", _ANY,
        "the pods were not ready within the profile's limits.start",
        "see what they waited for (kubectl get events), or raise limits.start in the profile; then: interp resume "
        "{run} --profile PROFILE"),
    Row("submission", ("job",), "SubmissionFailed", _ANY,
        "KubeRay could not hand the driver to Ray",
        "read interp logs {run}: most often the head was lost or the image lacks ray; then: interp resume "
        "{run}"),
    Row("app", ("job",), "AppFailed", _ANY,
        "the driver failed and left no word of its own",
        "read interp logs {run}; it was killed, or could not reach the store. Then: interp resume {run}"),
    Row("failed", ("job",), ".*", _ANY,
        "KubeRay gave the run up",
        "read interp logs {run}; then: interp resume {run}"),
    Row("driver-silent", ("seen",), "DriverSilent", _ANY,
        "the driver has not been heard of",
        "if it lasts: read interp logs {run}; then interp cancel {run} and interp resume {run}"),
    Row("cluster-unreachable", ("seen",), "ClusterUnreachable", _ANY,
        "the Kubernetes API does not answer; this is what the store knows",
        "check the profile's context and namespace: interp profile check"),
    Row("operator-silent", ("seen",), "OperatorSilent", _ANY,
        "no KubeRay operator has taken the RayJob up",
        "check that the operator runs and watches the namespace: interp profile check"),
    Row("queue-silent", ("seen",), "QueueSilent", _ANY,
        "Kueue has not taken the RayJob up",
        "check that Kueue runs with its RayJob integration, and `queue` in the profile: interp profile check"),
    Row("elsewhere", ("seen",), "Elsewhere", _ANY,
        "the driver writes, but its RayJob is not in this cluster and namespace",
        "name the profile that it was submitted with (--profile); if somebody removed the RayJob, wait a minute"),
    Row("not-allowed", ("seen",), "NotAllowed", _ANY,
        "the cluster does not let you see all that could explain this",
        "ask for the rights that interp profile check names"),
    Row("gone", ("seen",), "Gone", _ANY,
        "the RayJob was removed before the run had ended",
        "interp resume {run}  (what is finished is kept)"),
    Row("store-unreachable", ("seen",), "StoreUnreachable", _ANY,
        "the store cannot be read from here; the run may well reach it",
        "set AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for this machine"),
)  # fmt: skip


def reason_of(facts: Iterable[Fact], run: str) -> Reason | None:
    """The reason that explains most; None if no fact is one."""
    found = list(facts)
    for row in ROWS:
        for fact in found:
            if (reason := row.match(fact, run)) is not None:
                return reason
    return None
