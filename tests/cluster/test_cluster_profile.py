"""Profiles: where they are found, what is wrong with one, and `interp profile` against the API's double."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from kube_api import KubeApi
from rendered import PROFILES, profile

from interp.cli.main import main
from interp.cluster import profiles
from interp.cluster.checks import Check, checks
from interp.cluster.client import Cluster
from interp.cluster.client_errors import Forbidden
from interp.cluster.profile import Profile
from interp.errors import SpecError


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of profiles of a user who has none."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("INTERP_PROFILE", raising=False)
    return tmp_path / "config" / "interp" / "profiles"


def write(folder: Path, name: str, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**PROFILES["cpu"], "metadata": {"name": name}, **changes}))
    return path


def run(*arguments: str) -> int:
    """The exit code of a command."""
    try:
        main(["profile", *arguments])
    except SystemExit as left:
        return int(left.code or 0)
    return 0


# -- finding


def test_named_by_name_by_file_by_variable_or_alone(config: Path, tmp_path: Path, monkeypatch: Any) -> None:
    with pytest.raises(SpecError, match="there is no profile") as caught:
        profiles.find()
    assert caught.value.remedy == "make one: interp profile init NAME"
    lab = write(config, "lab")
    assert profiles.find() == profiles.find("lab") == lab
    cloud = write(config, "cloud")
    with pytest.raises(SpecError, match="there are several") as caught:
        profiles.find()
    assert caught.value.value == "cloud, lab"
    monkeypatch.setenv("INTERP_PROFILE", "cloud")
    assert profiles.find() == cloud and profiles.find("lab") == lab
    elsewhere = write(tmp_path / "elsewhere", "other")
    assert profiles.load_profile(str(elsewhere)).metadata.name == "other"
    monkeypatch.setenv("INTERP_PROFILE", str(elsewhere))
    assert profiles.find() == elsewhere


def test_a_name_that_is_none(config: Path) -> None:
    write(config, "lab")
    with pytest.raises(SpecError, match="no profile of this name") as caught:
        profiles.find("labb")
    assert caught.value.expected == "one of lab" and "interp profile init labb" in str(caught.value.remedy)
    with pytest.raises(SpecError, match=r"missing.yaml cannot be read: No such file"):
        profiles.load_profile("./missing.yaml")


def test_home_where_no_config_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert profiles.folder() == tmp_path / ".config" / "interp" / "profiles"


# -- reading

BAD = """\
apiVersion: interp/v1
kind: Profile
metadata: {name: lab}
namespce: interp
image: registry.example/interp:latest
env:
  WANDB_API_KEY: planted-1
secrets:
  - "planted 2"
workers:
  - {name: cpu, cpus: 8, memory: 32X, max: 4}
  - name: gpu
    cpus: 4
    memory: 32G
    gpus: 1
    gpu: h100
    max: 2
password: planted-3
"""


def test_every_problem_is_told_with_its_line() -> None:
    with pytest.raises(profiles.ProfileFileError) as caught:
        profiles.parse_profile(BAD, "lab.yaml")
    found = {(problem.line, problem.path) for problem in caught.value.problems}
    assert found == {
        (4, "namespce"),
        (5, "image"),
        (6, "env"),
        (9, "secrets[0]"),
        (11, "workers[0].memory"),
        (12, "workers[1]"),
        (18, "password"),
    }
    text = str(caught.value)
    assert "lab.yaml:4: namespce: unknown key\n  found:    interp" in text and "did you mean namespace?" in text
    assert "one of h200-141g, h100-80g" in text
    assert "planted" not in text, "what may be a secret is not repeated"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"image": "interp"}, "no fixed version"),
        ({"image": "registry.example:5000/interp"}, "no fixed version"),
        ({"image": "a b:1"}, "cannot be an image's name"),
        ({"env": {"HF_TOKEN": "x"}}, "looks like a secret"),
        ({"env": {"AWS_SECRET_ACCESS_KEY": "x"}}, "looks like a secret"),
        ({"env": {"GITHUBTOKEN": "x"}}, "looks like a secret"),
        ({"env": {"AWS_SESSION_TOKEN": "x"}}, "looks like a secret"),
        ({"env": {"wandb_api_key": "x"}}, "looks like a secret"),
        ({"env": {"WANDB_KEY": "x"}}, "looks like a secret"),
        ({"env": {"DB_DSN": "x"}}, "looks like a secret"),
        ({"env": {"PGPASS": "x"}}, "looks like a secret"),
        ({"env": {"SSH_PASSPHRASE": "x"}}, "looks like a secret"),
        ({"env": {"HF_HUB_AUTH": "x"}}, "looks like a secret"),
        ({"env": {"AUTHORIZATION": "x"}}, "looks like a secret"),
        ({"env": {"PROXY": "http://me:planted@proxy"}}, "a URL with credentials"),
        ({"env": {"RAY_AUTH_MODE": "disabled"}}, "is set by interp or by KubeRay"),
        ({"env": {"INTERP_RUN": "x"}}, "is set by interp or by KubeRay"),
        ({"env": {"A-B": "x"}}, "cannot be a variable's name"),
        ({"labels": {"interp.dev/run": "x"}}, "is set by interp, KubeRay or Kueue"),
        ({"labels": {"team": "a b"}}, "cannot be a label's value"),
        ({"annotations": {"a b": "x"}}, "cannot be a key"),
        ({"namespace": "Interp"}, "a lower-case letter first"),
        ({"queue": "my queue"}, "cannot be a name"),
        ({"cache": {"claim": "Cache"}}, "cannot be a name"),
        ({"workers": []}, "a list of at least 1"),
        ({"workers": [{"name": "a", "cpus": 1, "memory": "1G", "max": 0}]}, "at least 1"),
        ({"workers": [{"name": "a", "cpus": 1, "memory": "1G", "min": 2, "max": 1}]}, "min 2 is more than max 1"),
        ({"workers": [{"name": "head", "cpus": 1, "memory": "1G", "max": 1}]}, "the head is no worker group"),
        ({"workers": [{"name": "a", "cpus": 1, "memory": "1G", "max": 1, "shm": "2G"}]}, "is more than memory"),
        ({"workers": [{"name": "a", "cpus": 8, "memory": "1G", "max": 1, "gpus": 1}]}, "gpu is missing"),
        (
            {"workers": [{"name": "a", "cpus": 2, "memory": "1G", "max": 1, "gpus": 4, "gpu": "l4-24g"}]},
            "cpus 2 are fewer than gpus 4",
        ),
        ({"workers": [{"name": "a", "cpus": 1, "memory": "1G", "max": 1}] * 2}, "two worker groups have one name"),
        ({"head": {"tolerations": [{"effect": "NoSchedule"}]}}, "key is missing"),
        ({"head": {"tolerations": [{"key": "a b", "operator": "Exists"}]}}, "cannot be a taint's key"),
        ({"head": {"tolerations": [{"key": "a", "value": "b c"}]}}, "cannot be a taint's value"),
        ({"head": {"tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]}}, "takes no value"),
        ({"head": {"tolerations": [{"key": "a", "tolerationSeconds": 5}]}}, "goes with effect NoExecute"),
        ({"head": {"node_selector": {"a b": "c"}}}, "cannot be a label's key"),
        ({"head": {"node_selector": {"pool": "c d"}}}, "cannot be a label's value"),
        (
            {"workers": [{"name": "a", "cpus": 1, "memory": "1G", "max": 1, "node_selector": {"a b": "c d"}}]},
            "cannot be a label's key",
        ),
        ({"limits": {"idle": 0}}, "at least 1"),
        ({"retries": {"driver": 21}}, "at most 20"),
        ({"kind": "Study"}, "expected: Profile"),
    ],
)
def test_what_a_profile_may_not_say(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(profiles.ProfileFileError) as caught:
        profiles.profile_of({**PROFILES["cpu"], **changes}, "lab")
    assert told in str(caught.value) and "planted" not in str(caught.value)


def test_names_that_only_look_like_secrets() -> None:
    env = {"TOKENIZERS_PARALLELISM": "false", "HTTPS_PROXY": "http://proxy:3128", "AWS_DEFAULT_REGION": "us-east-1"}
    env |= dict.fromkeys(("GIT_AUTHOR_NAME", "NUMPY_BYPASS", "KEYMAP", "MONKEY", "COMPASSION", "PASSES"), "x")
    assert profile(env=env).env == env


def test_tolerations_and_selectors_that_kubernetes_takes() -> None:
    tolerations = [
        {"operator": "Exists"},
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
        {"key": "pool", "value": "gpu", "effect": "NoExecute", "tolerationSeconds": 60},
        {"key": "pool"},
    ]
    made = profile(head={"tolerations": tolerations, "node_selector": {"cloud.example/pool": "a-1", "spot": ""}})
    assert len(made.head.tolerations) == 4


@pytest.mark.parametrize("name", PROFILES)
def test_what_is_recorded_of_a_profile_is_read_back(name: str) -> None:
    of = profile(name)
    recorded = json.loads(json.dumps(of.model_dump_file()))
    assert profiles.profile_of(recorded, "run.json") == of
    assert profiles.parse_profile(yaml.safe_dump(recorded)) == of


# -- the command


def test_init_writes_a_profile_once(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("init", "lab", "--image", "registry.example/interp:0.1.0") == 0
    path = config / "lab.yaml"
    assert str(path) in capsys.readouterr().out
    written = path.read_text()
    made = profiles.parse_profile(written)
    assert made.metadata.name == "lab" and made.image == "registry.example/interp:0.1.0"
    path.write_text(written + "# mine\n")
    assert run("init", "lab") == 2
    assert "there already" in capsys.readouterr().err and path.read_text().endswith("# mine\n")


def test_every_setting_that_init_explains_is_one(config: Path) -> None:
    """Uncommented, they make a profile in which everything is set."""
    text = profiles.init("lab", "registry.example/interp:0.1.0").read_text()
    setting = re.compile(r"^( *)# ( *(?:- )?[A-Za-z_]+: .*)$")
    lines = [setting.sub(r"\1\2", line) for line in text.splitlines()]
    # The cache is written in two ways, of which one can be had.
    made = profiles.parse_profile("\n".join(line for line in lines if not line.startswith("cache: {size")))
    assert made.context == "my-cluster" and made.queue == "team" and made.priority_class == "batch"
    assert made.image_pull_secrets == ("registry",) and made.labels == {"team": "interpretability"}
    assert made.env["AWS_ENDPOINT_URL"] and made.cache.claim == "interp-cache"
    gpu = made.workers[1]
    assert gpu.kind is not None and gpu.shm == 40 * 10**9 and gpu.tolerations and gpu.node_selector
    untold = (
        set(Profile.model_fields) - {"apiVersion", "kind"} - set(re.findall(r"^([A-Za-z_]+):", "\n".join(lines), re.M))
    )
    assert not untold


@pytest.mark.parametrize(
    "arguments", [("Lab",), ("9lives",), ("lab", "--image", "interp:latest"), ("lab", "--image", "a b")]
)
def test_init_refuses(arguments: tuple[str, ...], config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("init", *arguments) == 2
    assert not config.exists() and capsys.readouterr().err


def test_list_and_show(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list") == 0 and "interp profile init" in capsys.readouterr().out
    write(config, "lab", queue="team")
    (config / "broken.yaml").write_text("kind: Profile\n")
    assert run("list") == 0
    out = capsys.readouterr().out
    assert "team" in out and "not valid: interp profile show broken" in out
    assert run("list", "--json") == 0
    listed = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert listed["lab"]["valid"] and listed["lab"]["groups"] == ["cpu"] and not listed["broken"]["valid"]
    assert run("show", "lab") == 0
    shown = capsys.readouterr().out
    assert Profile.model_validate(yaml.safe_load(shown)) == profiles.load_profile("lab")
    assert run("show", "lab", "--json") == 0
    assert Profile.model_validate(json.loads(capsys.readouterr().out)) == profiles.load_profile("lab")
    assert run("show", "broken") == 2 and "workers" in capsys.readouterr().err


def test_show_has_no_secret(config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-aws")
    monkeypatch.setenv("HF_TOKEN", "planted-hub")
    write(config, "lab")
    assert run("show") == 0 and run("list") == 0
    assert "planted" not in capsys.readouterr().out


# -- check


class Fake:
    """A cluster that has some things, lets one do some things, and does not say of others."""

    def __init__(self, there: set[tuple[str, str]], may: set[tuple[str, str]], hidden: set[str] = frozenset()):  # type: ignore[assignment]
        self.there, self.may, self.hidden = there, may, hidden

    def can(self, verb: str, resource: str, group: str = "") -> bool:
        return (verb, resource) in self.may

    def exists(self, kind: Any, name: str) -> bool:
        if kind in self.hidden:
            raise Forbidden(f"you may not look at {kind}")
        return (kind, name) in self.there


FULL = profile("gpu-queued", cache={"claim": "cache"}, image_pull_secrets=["registry"])
THERE = {
    ("Namespace", "research"),
    ("CustomResourceDefinition", "rayjobs.ray.io"),
    ("ServiceAccount", "interp-worker"),
    ("Secret", "interp-s3"),
    ("Secret", "hub-token"),
    ("Secret", "registry"),
    ("PersistentVolumeClaim", "cache"),
    ("LocalQueue", "team"),
}
MAY = {
    *(((verb, "rayjobs")) for verb in ("create", "get", "list", "delete")),
    *((("get", "pods"), ("list", "pods"), ("get", "pods/log"), ("list", "events"), ("list", "workloads"))),
}


def states(found: list[Check]) -> dict[str, str]:
    return {one.what: one.state for one in found}


def test_all_is_there() -> None:
    assert {one.state for one in checks(FULL, Fake(THERE, MAY))} == {"ok"}


@pytest.mark.parametrize("absent", sorted(THERE))
def test_what_is_absent_is_told_with_a_remedy(absent: tuple[str, str]) -> None:
    found = [one for one in checks(FULL, Fake(THERE - {absent}, MAY)) if one.state != "ok"]
    assert [(one.what, one.state) for one in found] == [(" ".join(absent), "missing")]
    assert found[0].remedy


@pytest.mark.parametrize("refused", sorted(MAY))
def test_what_may_not_be_done(refused: tuple[str, str]) -> None:
    found = [one for one in checks(FULL, Fake(THERE, MAY - {refused})) if one.state != "ok"]
    assert len(found) == 1 and found[0].state == "missing"
    verb, resource = refused
    assert f"ask for a role with {verb} on {resource}" in found[0].remedy and "research" in found[0].remedy


def test_what_may_not_be_looked_at_is_no_failure() -> None:
    found = list(checks(FULL, Fake(THERE, MAY, {"Namespace", "Secret"})))
    unknown = [one for one in found if one.state == "unknown"]
    assert len(unknown) == 4 and not [one for one in found if one.state == "missing"]
    assert unknown[0].remedy == "you may not look at Namespace"


def test_only_what_the_profile_names_is_asked_for() -> None:
    plain = profile(secrets=[])
    asked = {one.what.split()[0] for one in checks(plain, Fake(THERE, MAY))}
    assert asked == {"Namespace", "CustomResourceDefinition", "ServiceAccount", "you"}
    assert not any("workloads" in one.what for one in checks(plain, Fake(THERE, MAY)))


def test_check_against_an_api(kube: KubeApi, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(config, "lab", queue="team", secrets=["interp-s3", "absent"], cache={"claim": "models"})
    kube.put({"kind": "ServiceAccount", "metadata": {"name": "interp-worker"}})
    kube.put({"kind": "Secret", "metadata": {"name": "interp-s3"}, "data": {"AWS_SECRET_ACCESS_KEY": "cGxhbnRlZA=="}})
    kube.put({"kind": "LocalQueue", "metadata": {"name": "team"}, "spec": {"clusterQueue": "all"}})
    assert run("check", "lab") == 1
    lines = capsys.readouterr().out.splitlines()
    wrong = [line for line in lines if not line.startswith("ok ")]
    assert len(wrong) == 2 and len(lines) == 13
    assert wrong[0].startswith("MISSING  Secret absent: kubectl create secret generic absent -n interp")
    assert wrong[1].startswith("MISSING  PersistentVolumeClaim models: ")
    kube.put({"kind": "Secret", "metadata": {"name": "absent"}})
    kube.put({"kind": "PersistentVolumeClaim", "metadata": {"name": "models"}})
    assert run("check", "lab", "--json") == 0
    out = capsys.readouterr().out
    told = json.loads(out)
    assert told["ok"] and told["profile"] == "lab" and {one["state"] for one in told["checks"]} == {"ok"}
    assert "planted" not in out and "cGxhbnRlZA" not in out


def test_check_where_nobody_answers(kube: KubeApi, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(config, "lab")
    write(config, "elsewhere", context="nowhere")
    assert run("check", "elsewhere") == 1
    assert "MISSING  the API server of context nowhere" in capsys.readouterr().out
    kube.stop()
    assert run("check", "lab") == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 and lines[0].startswith("MISSING  the API server of context (current)")


def test_a_cluster_without_kuberay_or_kueue(kube: KubeApi) -> None:
    of = profile(queue="team")
    for resource in ("rayjobs.ray.io", "localqueues.kueue.x-k8s.io"):
        kube.uninstall(resource)
    found = states(list(checks(of, Cluster.open(None, "interp"))))
    assert found["CustomResourceDefinition rayjobs.ray.io"] == found["LocalQueue team"] == "missing"


def test_a_user_with_few_rights(kube: KubeApi) -> None:
    kube.put({"kind": "ServiceAccount", "metadata": {"name": "interp-worker"}})
    for verb, resource in (("get", "secrets"), ("create", "rayjobs.ray.io"), ("get", "pods/log")):
        kube.deny(verb, resource)
    wrong = [one for one in checks(profile(), Cluster.open(None, "interp")) if one.state != "ok"]
    assert [one.state for one in wrong] == ["unknown", "missing", "missing"]
    assert wrong[0].what == "Secret interp-s3"
    assert "create on rayjobs.ray.io" in wrong[1].remedy and "get on pods/log" in wrong[2].remedy
