"""`interp submit`, `status`, `logs`, `cancel`, `resume`, `list`, `diff` as they are typed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from kube_api import KubeApi
from small_run import Small

from interp.cli.console import print_line
from interp.cli.main import COMMANDS, main
from interp.cluster import control
from interp.errors import StoreError

pytestmark = pytest.mark.s3

OURS = ("submit", "status", "logs", "cancel", "resume", "list", "diff")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def small(kube: KubeApi, s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Small:
    monkeypatch.setenv("INTERP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("INTERP_PROFILE", str(tmp_path / "profile.yaml"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("INTERP_STORE", raising=False)
    return Small.make(kube, tmp_path, s3_url)


@pytest.fixture
def interp(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command in this process; what it said, if its exit code is the one that is expected."""

    def run(*arguments: object, code: int = 0) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        told = capsys.readouterr()
        assert int(left.value.code or 0) == code, told
        return told.out + told.err

    return run


def test_from_submit_to_the_end(small: Small, interp: Any) -> None:
    run, study = small.run, small.study_file
    told = interp("submit", study)
    assert f"{run}: submitted" in told and f"interp logs {run} -f" in told
    assert f"{run}: already running (starting)" in interp("submit", study)
    assert f"{run}  starting" in interp("status", run[:9])

    small.kuberay_says("Running", "RUNNING")
    figures = {"done": 1024, "total": 9000, "unit": "tokens", "rate": 100.0, "fvu": 0.25}
    small.driver_says("running", stage="fit", state="running", step="train", figures=figures, seconds=12)
    small.make_artifacts("corpus")
    lines = interp("status").splitlines()
    assert lines[0].startswith(f"{run}  running  (KubeRay: Running, heard of ")
    assert [line.split()[:2] for line in lines[1:]] == [["corpus", "done"], ["fit", "running"], ["trace", "waiting"]]
    assert "1024/9000 tokens  100 tokens/s" in lines[2] and "fvu 0.25" in lines[2] and "80 s left" in lines[2]
    told = json.loads(interp("status", run, "--json"))
    assert told["phase"] == "running" and told["ended"] is False and told["stages"][1]["figures"] == figures
    assert run in interp("list") and "fit 1024/9000 tokens" in interp("list")

    small.make_artifacts("fit", "trace")
    small.kuberay_says("Complete", "SUCCEEDED")
    small.driver_says("succeeded")
    assert f"{run}  succeeded" in interp("status", "--watch")
    assert f"{run}: everything is cached" in interp("submit", study)
    assert "nothing left" not in interp("resume", run) and "everything is cached" in interp("resume", run)
    small.kube.remove("RayJob", run)
    assert "no runs in namespace" in interp("list")
    assert "there is no run" in interp("status", run, code=1)
    url = small.store.url
    assert f"{run}  succeeded" in interp("status", run, "--store", url)
    assert run in interp("list", "--all", "--store", url)
    assert json.loads(interp("list", "--all", "--store", url, "--json"))[0]["phase"] == "succeeded"


def test_a_dry_run_prints_what_is_sent_and_writes_nothing(small: Small, interp: Any) -> None:
    manifest = yaml.safe_load(interp("submit", small.study_file, "--dry-run"))
    assert not small.store.backend.objects("") and small.kube.requests == []
    assert json.loads(interp("submit", small.study_file, "--dry-run", "--json")) == manifest
    interp("submit", small.study_file)
    sent = small.kube.get("RayJob", small.run)
    assert sent is not None and sent["spec"] == manifest["spec"]
    for part in ("name", "namespace", "labels"):
        assert sent["metadata"][part] == manifest["metadata"][part]
    token = {"interp.dev/token": (small.run_folder.json("run.json") or {})["token"]}  # each submission's own
    assert sent["metadata"]["annotations"] == manifest["metadata"]["annotations"] | token


def test_the_rayjob_says_the_store_whatever_the_environment_says(
    small: Small, interp: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    interp("submit", small.study_file)
    small.driver_says("running", stage="fit", state="running")
    monkeypatch.setenv("INTERP_STORE", f"{small.url}/another")
    told = json.loads(interp("status", small.run, "--json"))
    assert told["store"] == small.store.url and told["study"] == "small-one" and told["updated"]
    assert f"{small.run}: cancelled" in interp("cancel", small.run, "--wait", 0)
    assert small.run_folder.json("cancel.json") is not None


def test_runs_are_found_among_rayjobs_when_the_store_is_away(
    small: Small, interp: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    interp("submit", small.study_file)

    def away(*_: object) -> None:
        raise StoreError("no answer")

    monkeypatch.setattr("interp.cluster.runs.run_names", away)
    url = small.store.url
    assert f"{small.run}  starting" in interp("status", small.run[:12], "--store", url)
    assert small.run in interp("list", "--all", "--store", url)
    assert "no answer" in interp("status", "nobody", "--store", url, code=1)


def test_a_cached_study_is_told_before_it_must_fit(small: Small, interp: Any) -> None:
    small.make_artifacts()
    profile = small.folder / "profile.yaml"
    profile.write_text(profile.read_text().replace("16G", "1K"))
    assert f"{small.run}: everything is cached" in interp("submit", small.study_file)


def test_following_with_json_is_an_object_a_line(small: Small, interp: Any) -> None:
    interp("submit", small.study_file)
    small.kuberay_says("Failed", "FAILED", "AppFailed")
    small.driver_says("failed", {"kind": "RuntimeError", "message": "boom"})

    def follow(run: str, *_: object, as_json: bool) -> None:
        print_line(json.dumps({"run": run, "phase": "succeeded"}))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("interp.cli.follow.follow_run", follow)
        lines = [json.loads(line) for line in interp("resume", small.run, "--follow", "--json").splitlines()]
    assert [line.get("outcome", line.get("phase")) for line in lines] == ["resumed", "succeeded"]


def test_a_failure_has_a_reason_a_next_step_and_can_be_resumed(small: Small, interp: Any) -> None:
    run = small.run
    interp("submit", small.study_file)
    small.kuberay_says("Failed", "FAILED", "AppFailed", "exit code 1")
    small.driver_says("failed", {"kind": "HookError", "message": "there is no layers.9.mlp"})
    told = interp("status", run)
    assert "there is no layers.9.mlp" in told and "next: change the study" in told
    assert f"interp resume {run}" in interp("submit", small.study_file, code=1)
    interp("status", run, "--watch", code=1)
    interp("logs", run, "-f", code=1)
    assert f"{run}: resumed" in interp("resume", run)
    assert "has not ended" in interp("resume", run, code=1)
    assert f"{run}: cancelled" in interp("cancel", run)
    assert f"{run}: has ended before (cancelled)" in interp("cancel", run, "--store", small.store.url)
    assert f"{run}  cancelled" in interp("status", run, "--store", small.store.url)


def test_logs_are_the_stores_when_pods_are_gone(small: Small, interp: Any) -> None:
    interp("submit", small.study_file)
    stamp = "2026-11-21T20:00:00.00000"
    for number in range(3):
        small.run_folder.put_piece("log", 1, number, f"{stamp}{number}Z INFO    interp: line {number}\n")
    assert interp("logs", small.run).splitlines() == [f"{stamp}{n}Z INFO    interp: line {n}" for n in range(3)]
    assert interp("logs", small.run, "--tail", 1).splitlines() == [f"{stamp}2Z INFO    interp: line 2"]
    assert json.loads(interp("logs", small.run, "--tail", 1, "--json"))["line"].endswith("line 2")
    small.kuberay_says("Complete", "SUCCEEDED")
    followed = interp("logs", small.run, "-f", "--json").splitlines()
    assert json.loads(followed[-1]) == {"run": small.run, "phase": "succeeded"} and len(followed) == 4


def test_diff(small: Small, interp: Any) -> None:
    interp("submit", small.study_file)
    run = small.run
    assert f"the study makes what {run} makes" in interp("diff", small.study_file, run)
    small.write_study(k=8)
    told = interp("diff", small.study_file, run[:12], code=1)
    assert "activation.k: 4 -> 8" in told and "fit: the run has" in told
    assert json.loads(interp("diff", small.study_file, run, "--json", code=1))["equal"] is False


def test_without_an_api_the_store_is_told_of(small: Small, interp: Any) -> None:
    interp("submit", small.study_file)
    small.driver_says("running", stage="fit", state="running")
    small.kube.stop()
    told = interp("status", small.run, "--store", small.store.url)
    assert f"{small.run}  running" in told and "Kubernetes API does not answer" in told
    assert "error: " in interp("status", small.run, code=1)
    small.write_study(k=8)
    message = interp("submit", small.study_file, "--json", code=1)
    assert json.loads(message)["error"]["kind"] == "Unreachable"
    small.kube.start()


def test_what_must_change_is_exit_code_two(small: Small, interp: Any) -> None:
    small.study_file.write_text(small.study_file.read_text().replace("batch_tokens", "batch_tokans"))
    assert "batch_tokans" in interp("submit", small.study_file, code=2)
    small.write_study()
    assert "no profile" in interp("submit", small.study_file, "--profile", "nobody", code=2)
    local = small.study_file.read_text().replace(f"{small.url}/store", str(small.folder / "here"))
    small.study_file.write_text(local)
    assert "on this machine" in interp("submit", small.study_file, code=2)
    assert small.kube.objects("RayJob") == []


def test_several_runs_and_none(small: Small, interp: Any) -> None:
    assert "there is no run" in interp("status", code=1)
    interp("submit", small.study_file)
    first = small.run
    small.write_study(k=8)
    interp("submit", small.study_file)
    told = interp("status", "small-one", code=1)
    assert "several runs begin with small-one" in told and first in told and small.run in told
    assert [row["run"] for row in json.loads(interp("list", "--json"))].count(first) == 1


def test_help_says_the_exit_codes(interp: Any) -> None:
    for command in OURS:
        assert command in COMMANDS
        assert "Exit codes:" in " ".join(interp(command, "--help").split())


PROBE = """
import sys, time
began = time.monotonic()
from interp.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as left:
    code = left.code or 0
heavy = [name for name in ("torch", "ray", "transformers", "nnsight", "datasets") if name in sys.modules]
sys.stderr.write(f"\\n{time.monotonic() - began} {','.join(heavy)}\\n")
raise SystemExit(code)
"""


def test_commands_are_quick_and_load_neither_torch_nor_ray(small: Small) -> None:
    interp_in_a_process(small, "submit", small.study_file)
    small.driver_says("running", stage="fit", state="running")
    run = small.run
    for command in (
        ("submit", small.study_file, "--dry-run"),
        ("submit", small.study_file),
        ("status", run),
        ("logs", run),
        ("list", "--all"),
        ("diff", small.study_file, run),
        ("cancel", run, "--wait", 0, "--store", small.store.url),
    ):
        interp_in_a_process(small, *command)
    assert control.resume(run, small.cluster(), small.store).outcome == "resumed"


def interp_in_a_process(small: Small, *arguments: object) -> None:
    words = [str(argument) for argument in arguments]
    seconds: list[float] = []
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", PROBE, *words], capture_output=True, text=True, timeout=60, env=os.environ, cwd=ROOT
        )
        assert done.returncode == 0, done.stdout + done.stderr
        took, _, heavy = done.stderr.splitlines()[-1].partition(" ")
        assert heavy == "", words
        seconds.append(float(took))
        # The machine may be busy with other things, and then everything takes longer.
        limit = 2 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
        if seconds[-1] < limit:
            return
        time.sleep(1)
    raise AssertionError((words, seconds, limit))
