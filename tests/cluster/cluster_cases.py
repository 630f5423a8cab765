"""What a run on a cluster must do on every one: the double with the operator's stand-in, or a real one."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable

import fsspec
from cluster_env import INTERP, LONG, STEP, ClusterEnv, Double, Run, wait

from interp.cluster import control
from interp.store import Store


def submit_to_graphs(env: ClusterEnv, meanwhile: Callable[[], None] = lambda: None) -> Run:
    """By the commands: submit, logs -f, status, list, diff, artifacts.

    Args:
        meanwhile: happens while the log is followed and a stage is under way.
    """
    study, profile = str(env.study_file()), ("--profile", str(env.profile))
    plan = env.plan()
    run = Run(env, control.name_of_run(plan, Store.open(f"{env.url}/store")), plan, Store.open(f"{env.url}/store"))
    sent = env.interp("submit", study, *profile, "--dry-run")
    assert f"name: {run.name}" in sent and env.cluster().job(run.name) is None
    assert json.loads(env.interp("submit", study, *profile, "--json"))["outcome"] == "submitted"
    again = json.loads(env.interp("submit", study, *profile, "--json"))
    assert (again["run"], again["outcome"]) == (run.name, "already running")

    followed = follow(env, run.name, "corpus: begins", meanwhile)
    run.succeeds()
    stored = [line for line in run.log().splitlines() if " INFO " in line]
    assert len(stored) > 10
    assert [line for line in followed if line in set(stored)] == stored  # each once, in its order

    state = json.loads(env.interp("status", run.name, *profile, "--json"))
    assert (state["phase"], state["reason"], state["error"]) == ("succeeded", None, None)
    assert {stage["stage"]: stage["state"] for stage in state["stages"]} == dict.fromkeys(
        ("corpus", "fit", "trace"), "done"
    )
    listed = json.loads(env.interp("list", *profile, "--json"))
    assert [(one["run"], one["phase"]) for one in listed if one["run"] == run.name] == [(run.name, "succeeded")]
    env.interp("diff", study, run.name)
    assert json.loads(env.interp("submit", study, *profile, "--json"))["outcome"] == "cached"

    artifacts = json.loads(env.interp("artifacts", "ls", "--store", run.store.url, "--json"))
    assert {stage.key for stage in plan.stages} <= {one["key"] for one in artifacts}
    assert len(run.graphs()) == 5
    assert all(graph["nodes"] and graph["links"] for graph in run.graphs().values())
    return run


def follow(env: ClusterEnv, run: str, until: str, meanwhile: Callable[[], None]) -> list[str]:
    """All lines of `interp logs -f`, which leaves by itself; `meanwhile` happens when one has this in it."""
    command = [INTERP, "logs", run, "-f", "--profile", str(env.profile)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    # Whoever hangs is ended, so that reading ends.
    timer = threading.Timer(600, process.kill)
    timer.start()
    lines: list[str] = []
    assert process.stdout is not None and process.stderr is not None
    for line in process.stdout:
        lines.append(line.rstrip("\n"))
        if until in line:
            meanwhile()
    timer.cancel()
    assert process.wait() == 0, "\n".join([*lines, process.stderr.read()])
    process.stderr.close()
    return lines


def cannot_pull(env: ClusterEnv, image: str, *, seconds: int) -> None:
    """The reason is said while there is time to mend it, and after it was given up."""
    env.change_profile(image=image, limits={"start": seconds, "keep": 3600}, retries={"cluster": 0})
    run = env.submit()
    waiting = wait(lambda: (found := env.state(run.name)).reason and found)
    assert image in waiting.reason.why and waiting.reason.next_step and waiting.phase == "starting"
    assert run.ends()["reason"] == "PreRunningDeadlineExceeded"
    failed = env.state(run.name)
    assert failed.phase == "failed" and failed.reason is not None and image in failed.reason.why
    control.cancel(run.name, env.cluster(), run.store)


def cancel_and_resume(env: ClusterEnv) -> Run:
    """In the middle of the fit; the run is under way again."""
    run = env.submit(**LONG)
    wait(lambda: run.checkpoint() > 0, 600)
    assert control.cancel(run.name, env.cluster(), run.store).outcome == "cancelled"
    wait(lambda: env.cluster().job(run.name) is None, 180)
    wait(lambda: not env.cluster().pods(f"interp.dev/run={run.name}"), 180)
    assert env.state(run.name).phase == "cancelled" and not run.store.has("fit", run.key("fit"))
    assert (run.folder.json("status.json") or {})["state"] == "stopped"
    kept = run.checkpoint()

    assert control.resume(run.name, env.cluster(), run.store).outcome == "resumed"
    wait(lambda: run.store.has("fit", run.key("fit")), 600)

    assert min(row["done"] for row in run.told_of("fit", 2) if row["step"] == "train") > kept * STEP
    return run


def ends_as_if_nothing_had_happened(run: Run) -> None:
    """All steps of the fit and all graphs, each once."""
    run.succeeds()
    steps = [json.loads(line)["step"] for line in run.made("fit").read("metrics.jsonl").splitlines()]
    assert steps == list(range(LONG["corpus"]["tokens"] // STEP))
    assert len(run.graphs()) == len(LONG["trace"]["prompts"])
    assert run.env.state(run.name).phase == "succeeded"


def require_no_secrets(run: Run, double: Double, planted: dict[str, str]) -> None:
    """In no object of the store and of the API but Secrets, and in no log of a pod."""
    texts = {}
    files, root = fsspec.core.url_to_fs(run.store.url)
    for name in files.find(root):
        texts[name] = files.cat_file(name)
    assert any(name.endswith("plan.json") for name in texts) and any("/log/" in name for name in texts)
    for kind in ("RayJob", "RayCluster", "Pod", "Job", "Event"):
        texts |= {f"{kind} {i}": json.dumps(one).encode() for i, one in enumerate(double.kube.objects(kind))}
    for pod in double.kube.objects("Pod"):
        name, container = pod["metadata"]["name"], pod["spec"]["containers"][0]["name"]
        lines = double.kube.logs.of(("interp", name, container)).lines
        texts[f"log of {name}"] = "\n".join(line for _, line in lines).encode()
    assert double.operator.tokens
    values = {**planted, **{f"token {i} of Ray": text for i, text in enumerate(double.operator.tokens)}}
    for place, text in texts.items():
        for what, value in values.items():
            assert value.encode() not in text, f"the secret {what} stands in {place}"
