"""A study that is planned in no time, a profile, a cluster without an operator: how a run goes is set by hand."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
import yaml
from kube_api import KubeApi

from interp.cluster import control
from interp.cluster.client import Cluster
from interp.cluster.profile import Profile
from interp.plan import make_plan
from interp.plan.plan import Plan
from interp.spec.loading import load_study
from interp.store import Store
from interp.store.runs import RunFolder


@dataclass(frozen=True)
class Small:
    """Attributes:
    url: an S3 prefix of this test's own.
    """

    kube: KubeApi
    folder: Path
    url: str

    @staticmethod
    def make(kube: KubeApi, folder: Path, url: str) -> Small:
        with fsspec.open(f"{url}/corpus.txt", "w") as file:
            file.write("import this\n")
        profile = {
            "apiVersion": "interp/v1",
            "kind": "Profile",
            "metadata": {"name": "small"},
            "image": "registry.example/interp:1",
            "secrets": ["interp-s3"],
            "workers": [{"name": "cpu", "cpus": 4, "memory": "16G", "max": 2}],
        }
        (folder / "profile.yaml").write_text(yaml.safe_dump(profile))
        small = Small(kube, folder, url)
        small.write_study()
        return small

    @property
    def study_file(self) -> Path:
        return self.folder / "study.yaml"

    @property
    def profile(self) -> Profile:
        return Profile.model_validate(yaml.safe_load((self.folder / "profile.yaml").read_text()))

    @property
    def store(self) -> Store:
        return Store.open(f"{self.url}/store")

    def write_study(self, *, k: int = 4, batch: int = 1024, name: str = "small-one") -> Path:
        latents = {"activation": {"type": "topk", "k": k}, "latents": 64}
        dictionary = {"name": "mlp", "kind": "transcoder", "at": "layers_first.*.mlp", **latents}
        study = {
            "apiVersion": "interp/v1",
            "kind": "Study",
            "metadata": {"name": name},
            "model": {"source": "builtin://tiny-split-llama"},
            "corpus": {"source": f"{self.url}/corpus.txt", "context": 128, "tokens": "10K", "holdout": "1K"},
            "dictionaries": [dictionary],
            "fit": {"batch_tokens": 1024, "harvesters": 1 if batch == 1024 else 2},
            "trace": {"prompts": ["def f("]},
            "store": f"{self.url}/store",
        }
        self.study_file.write_text(yaml.safe_dump(study))
        return self.study_file

    def plan(self) -> Plan:
        return make_plan(load_study(self.study_file), self.store)

    def cluster(self, timeout: float = 10.0) -> Cluster:
        return Cluster.open(None, "interp", timeout=timeout)

    def submit(self, **options: Any) -> control.Done:
        return control.submit(self.plan(), self.profile, self.cluster(), self.store, **options)

    @property
    def run(self) -> str:
        return control.name_of_run(self.plan(), self.store)

    @property
    def run_folder(self) -> RunFolder:
        return RunFolder(self.store, self.run)

    def make_artifacts(self, *stages: str) -> None:
        """As a driver would."""
        for stage in self.plan().stages:
            if not stages or stage.stage in stages:
                with self.store.create(stage.stage, stage.key, spec=stage.spec, inputs=stage.inputs) as writer:
                    writer.write("made", b"x")

    def kuberay_says(self, deployment: str, outcome: str = "", reason: str = "", message: str = "") -> None:
        said = {"jobDeploymentStatus": deployment, "jobStatus": outcome, "reason": reason, "message": message}
        self.kube.set_status("RayJob", self.run, {name: value for name, value in said.items() if value})

    def driver_says(self, state: str, error: dict[str, str] | None = None, /, **stage: Any) -> None:
        record = self.run_folder.json("run.json") or {}
        now = datetime.now(UTC).isoformat()
        said = {"run": self.run, "state": state, "attempt": 1, "host": "h", "pid": 1, "started": now, "updated": now}
        stages = [{**planned, "state": "waiting"} for planned in record["stages"]]
        told = [{**planned, **stage} if planned["stage"] == stage.get("stage") else planned for planned in stages]
        document = {**said, "stages": told, "error": error, "token": record["token"]}
        self.run_folder.write_json("status.json", document)
