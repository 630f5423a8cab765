"""What a cluster is to the tests: a namespace, a profile of it and a bucket. It is the double with the operator's
stand-in, or a real one (see `test_cluster_end_to_end`)."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import yaml
from kube_api import KubeApi
from operator_stand_in import Operator
from tiny_study import make_inputs, make_study

from interp.cluster import control
from interp.cluster.client import Cluster
from interp.cluster.look import look
from interp.cluster.profile import Profile
from interp.cluster.state import RunState
from interp.plan import make_plan
from interp.plan.plan import Plan
from interp.spec.study import Study
from interp.store import Store
from interp.store.runs import RunFolder

INTERP = Path(sys.executable).with_name("interp")
PROMPTS = [f"def f{n}(self, x, y): return self.over(x, y) + {n} * the_cat(mat)" for n in range(24)]
STEP = 64
LONG: dict[str, Any] = {
    "corpus": {"tokens": 16_000},
    "fit": {"batch_tokens": STEP, "checkpoint_every": STEP},
    "trace": {"prompts": PROMPTS},
}
"""Changes of the study with which there is time to kill something."""


@dataclass(frozen=True)
class ClusterEnv:
    """A namespace of a cluster, a profile of it, and a bucket that it and this process reach.

    Attributes:
        url: an S3 prefix of this test's own.
    """

    folder: Path
    profile: Path
    url: str
    context: str | None = None

    @property
    def namespace(self) -> str:
        return self.read_profile().namespace

    def read_profile(self, **changes: Any) -> Profile:
        return Profile.model_validate({**yaml.safe_load(self.profile.read_text()), **changes})

    def state(self, run: str) -> RunState:
        return look(run, self.cluster(), f"{self.url}/store")

    def change_profile(self, **changes: Any) -> None:
        text = yaml.safe_dump({**yaml.safe_load(self.profile.read_text()), **changes})
        self.profile.write_text(text)

    def cluster(self) -> Cluster:
        return Cluster.open(self.context, self.namespace)

    def study(self, **changes: Any) -> Study:
        """The tiny study, with its model and corpus in the bucket."""
        make_inputs(self.folder / "inputs")
        files, _ = fsspec.core.url_to_fs(self.url)
        if not files.exists(f"{self.url}/inputs/corpus.jsonl"):
            files.put(str(self.folder / "inputs"), f"{self.url}/inputs", recursive=True)
        inputs, corpus = f"{self.url}/inputs", changes.pop("corpus", {})
        sources = {"model": {"source": f"{inputs}/model"}, "store": f"{self.url}/store"}
        return make_study(
            self.folder / "inputs", **{**sources, "corpus": {"source": f"{inputs}/corpus.jsonl", **corpus}, **changes}
        )

    def study_file(self, **changes: Any) -> Path:
        path = self.folder / "study.yaml"
        path.write_text(yaml.safe_dump(self.study(**changes).model_dump(mode="json", by_alias=True, exclude_none=True)))
        return path

    def plan(self, **changes: Any) -> Plan:
        study = self.study(**changes)
        return make_plan(study, Store.open(study.store))

    def submit(self, **changes: Any) -> Run:
        plan, store = self.plan(**changes), Store.open(f"{self.url}/store")
        done = control.submit(plan, self.read_profile(), self.cluster(), store)
        assert done.outcome == "submitted"
        return Run(self, done.run, plan, store)

    def interp(self, command: str, *arguments: str, code: int = 0, seconds: float = 120) -> str:
        """A command in a process of its own; what it said, on stderr if it failed as it should."""
        done = subprocess.run([INTERP, command, *arguments], capture_output=True, text=True, timeout=seconds)
        assert done.returncode == code, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done.stderr if code else done.stdout


@dataclass(frozen=True)
class Run:
    """A run that was submitted."""

    env: ClusterEnv
    name: str
    plan: Plan
    store: Store

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.store, self.name)

    def told(self) -> dict[str, Any]:
        """The RayJob's status."""
        return dict((self.env.cluster().job(self.name) or {}).get("status") or {})

    def ends(self, seconds: float = 600) -> dict[str, Any]:
        """Wait until KubeRay says that it is over; the RayJob's status."""
        wait(lambda: self.told().get("jobDeploymentStatus") in ("Complete", "Failed", "ValidationFailed"), seconds)
        return self.told()

    def succeeds(self) -> dict[str, Any]:
        told = self.ends()
        assert told["jobStatus"] == "SUCCEEDED", f"{told}\n{self.log()}"
        return told

    def log(self) -> str:
        return "".join(text for _, text in self.folder.pieces("log"))

    def made(self, stage: str) -> Any:
        """A finished artifact."""
        planned = self.plan.stage(stage)
        assert planned is not None
        return self.store.get(stage, planned.key)

    def key(self, stage: str) -> str:
        planned = self.plan.stage(stage)
        assert planned is not None
        return planned.key

    def checkpoint(self) -> int:
        """The step of the last checkpoint of the fit; 0 before there is one."""
        found = self.store.scratch("fit", self.key("fit")).json("checkpoint.json")
        return 0 if found is None else int(found["step"])

    def told_of(self, stage: str, attempt: int) -> list[dict[str, Any]]:
        """The metrics that an attempt left of a stage."""
        pieces = [text for name, text in self.folder.pieces("metrics") if f"/{attempt:04d}/" in name]
        rows = [json.loads(line) for piece in pieces for line in piece.splitlines()]
        return [row for row in rows if row["stage"] == stage]

    def rows(self) -> dict[str, dict[str, Any]]:
        """What is finished of a trace that is under way, by the name of its row."""
        scratch = self.store.scratch("trace", self.key("trace"))
        return {name: scratch.json(name) for name in scratch.list("rows/")}

    def graphs(self) -> dict[str, dict[str, Any]]:
        made = self.made("trace")
        names = [name for name in made.names() if name.startswith("graphs/") and name.endswith(".json")]
        return {name: made.json(name) for name in names}


def wait(until: Callable[[], Any], seconds: float = 300) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := until()):
        assert time.monotonic() < deadline, f"it does not come to that within {seconds} s"
        time.sleep(0.1)
    return found


@dataclass(frozen=True)
class Double:
    """What stands behind the default `cluster_env`, for the tests that break something."""

    kube: KubeApi
    operator: Operator


PROFILE: dict[str, Any] = {
    "apiVersion": "interp/v1",
    "kind": "Profile",
    "metadata": {"name": "tests"},
    "namespace": "interp",
    "image": "registry.example/interp:1",
    "secrets": ["interp-s3"],
    "workers": [{"name": "cpu", "cpus": 2, "memory": "8G", "max": 3}],
    "retries": {"driver": 1, "cluster": 2},
    "limits": {"start": 300, "keep": 3600},
}
