"""Profiles and plans that tests of rendering share; nothing in them depends on the machine."""

from __future__ import annotations

from typing import Any

from interp.cluster.profile import Profile
from interp.plan import VERSIONS, Plan, PlannedStage
from interp.plan.cost import Cost
from interp.plan.keys import stage_key
from interp.spec.study import Study

CPU = {"name": "cpu", "cpus": 8, "memory": "32G", "max": 4}
GPU = {"name": "gpu", "cpus": 16, "memory": "128G", "gpus": 1, "gpu": "h200-141g", "max": 8, "shm": "40G"}

PROFILES: dict[str, dict[str, Any]] = {
    "cpu": {
        "metadata": {"name": "cpu"},
        "image": "registry.example/interp:0.1.0",
        "secrets": ["interp-s3"],
        "env": {"AWS_ENDPOINT_URL": "http://seaweedfs-s3.interp:8333", "AWS_DEFAULT_REGION": "us-east-1"},
        "workers": [CPU],
    },
    "gpu-queued": {
        "metadata": {"name": "h200"},
        "namespace": "research",
        "image": "registry.example/interp@sha256:" + "0" * 64,
        "queue": "team",
        "secrets": ["interp-s3", "hub-token"],
        "head": {"cpus": 2.5, "memory": "24G", "node_selector": {"pool": "system"}},
        "workers": [
            CPU,
            {**GPU, "min": 1, "node_selector": {"nvidia.com/gpu.product": "NVIDIA-H200"}},
            {
                **{**GPU, "name": "small-gpu", "gpus": 4, "gpu": "l4-24g", "gpu_resource": "example.com/gpu"},
                "tolerations": [{"key": "pool", "value": "gpu", "effect": "NoSchedule"}],
            },
        ],
        "limits": {"run": 86400, "start": 900, "keep": 60, "idle": 300},
        "retries": {"driver": 0, "cluster": 5},
        "labels": {"team": "interpretability"},
        "annotations": {"example.com/cost-centre": "42"},
    },
    "shared-cache": {
        "metadata": {"name": "shared"},
        "image": "registry.example/interp:0.1.0",
        "image_pull_policy": "Always",
        "image_pull_secrets": ["registry", "mirror"],
        "service_account": "worker",
        "priority_class": "batch",
        "cache": {"claim": "interp-cache"},
        "workers": [CPU],
    },
}


def profile(name: str = "cpu", **changes: Any) -> Profile:
    return Profile.model_validate({**PROFILES[name], **changes})


def study(**changes: Any) -> Study:
    parts: dict[str, Any] = {
        "apiVersion": "interp/v1",
        "kind": "Study",
        "metadata": {"name": "facts"},
        "model": {"source": "hf://org/llama"},
        "corpus": {"source": "s3://corpora/text", "context": 128, "tokens": "100K", "holdout": "8K"},
        "dictionaries": [
            {
                "name": "mlp",
                "kind": "skip-transcoder",
                "at": "layers.*.mlp",
                "activation": {"type": "topk", "k": 8},
                "expansion": 4,
            }
        ],
        "fit": {"batch_tokens": 8192},
        "trace": {"prompts": ["one", "two", "three", "four", "five"], "dictionaries": "mlp"},
        "store": "s3://interp/store",
    }
    for name, change in changes.items():
        parts[name] = {**parts.get(name, {}), **change} if isinstance(change, dict) else change
    return Study.model_validate({name: part for name, part in parts.items() if part is not None})


def plan(of: Study | None = None, *, cached: tuple[str, ...] = (), **costs: Cost) -> Plan:
    """A plan with the stages that a study has; `costs` by stage."""
    of = of or study()
    wanted = {
        "corpus": of.corpus,
        "activations": of.trained and of.fit.cache,
        "fit": of.trained,
        "evaluate": of.evaluate,
        "trace": of.trace,
    }
    stages = dict[str, PlannedStage]()
    for name in (name for name, there in wanted.items() if there):
        reads = {"activations": stages["activations"].key} if name == "fit" and "activations" in stages else {}
        stages[name] = _stage(name, reads, name in cached, costs.get(name))
    return Plan(of, tuple(stages.values()))


def _stage(name: Any, inputs: dict[str, str], cached: bool, cost: Cost | None) -> PlannedStage:
    spec, version = {"stage": name}, VERSIONS[name]
    key = stage_key(name, version, spec, inputs)
    return PlannedStage(name, key, version, spec, inputs, cached, cost or Cost(1000, 10**9, 10**6, 10**6))
