"""`interp validate`, `interp plan` and `interp schema`, as a user calls them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from interp import __version__
from interp.cli.console import human, human_bytes
from interp.cli.main import COMMANDS, main

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "specs" / "quickstart.yaml"

STUDY = """\
apiVersion: interp/v1
kind: Study
metadata: {name: small}
model: {source: "builtin://tiny-split-llama"}
corpus: {source: "%(corpus)s", context: 128, tokens: 10K, holdout: 1K}
dictionaries:
  - {name: mlp, kind: transcoder, at: "layers_*.*.mlp", activation: {type: topk, k: 4}, latents: 64}
fit: {batch_tokens: 1024}
evaluate: {}
trace: {prompts: ["def f(", ""]}
store: %(store)s
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INTERP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "120")
    return tmp_path


@pytest.fixture
def study(tmp_path: Path) -> Path:
    (tmp_path / "corpus.txt").write_text("import this\n")
    path = tmp_path / "study.yaml"
    path.write_text(STUDY % {"corpus": tmp_path / "corpus.txt", "store": tmp_path / "store"})
    return path


def interp(*arguments: object) -> int:
    """Run a command in this process; its exit code."""
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


def test_validate(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert interp("validate", study) == 0
    told = capsys.readouterr()
    assert "valid; stages corpus, fit, evaluate, trace" in told.out
    assert "mlp: 6 at layers_first.0.mlp" in told.out
    assert told.err == ""


def test_validate_tells_every_problem_of_every_file(
    study: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = place / "bad.yaml"
    bad.write_text(study.read_text().replace("tokens: 10K", "toknes: 10K").replace("kind: Study", "kind: S"))
    assert interp("validate", bad, study, place / "missing.yaml") == 2
    told = capsys.readouterr()
    assert f"{bad}:5: corpus.toknes: unknown key" in told.err
    assert f"{bad}:2: kind: this is not allowed" in told.err
    assert "missing.yaml cannot be read" in told.err
    assert f"{study}: valid" in told.out


def test_validate_as_json(study: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = place / "bad.yaml"
    bad.write_text(study.read_text().replace("tokens: 10K", "toknes: 10K"))
    assert interp("validate", "--json", study, bad) == 2
    told = capsys.readouterr()
    good, wrong = json.loads(told.out)
    assert good["valid"] and good["family"] == "split-llama" and len(good["dictionaries"]["mlp"]) == 6
    assert not wrong["valid"]
    assert wrong["error"]["problems"][0] | {"value": None, "expected": None} == {
        "file": str(bad),
        "line": 5,
        "path": "corpus.tokens",
        "what": "this key is required",
        "value": None,
        "expected": None,
        "remedy": "add the key tokens",
    }
    assert told.err == ""


def test_a_hook_point_that_the_model_does_not_have(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study.write_text(study.read_text().replace("layers_*.*.mlp", "layer_first.*.mlp"))
    for command in ("validate", "plan"):
        assert interp(command, study) == 2
        assert "did you mean layers_first.*.mlp?" in capsys.readouterr().err
    assert interp("validate", "--format-only", study) == 0


def test_plan_prints_a_row_for_every_stage(study: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert interp("plan", study) == 0
    told = capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in told.splitlines() if line.strip() and line[0] != "─"}
    assert interp("plan", "--json", study) == 0
    stages = {stage["stage"]: stage for stage in json.loads(capsys.readouterr().out)["stages"]}
    assert list(stages) == ["corpus", "fit", "evaluate", "trace"]
    for name, stage in stages.items():
        assert rows[name][1] == stage["key"][:12]
    assert rows["fit"][2:5] == ["corpus", "to", "do"]
    assert "10K" in rows["fit"]
    assert not (place / "store").exists()  # a plan writes nothing


def test_what_is_cached_is_told(study: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from interp.plan import make_plan
    from interp.spec.loading import load_study
    from interp.store import Store

    store = Store.open(place / "store")
    for stage in make_plan(load_study(study), store).stages:
        with store.create(stage.stage, stage.key, spec=stage.spec, inputs=stage.inputs) as writer:
            writer.write("x", b"1")
    assert interp("plan", study) == 0
    told = capsys.readouterr().out
    assert told.count(" cached ") == 4 and "everything is cached" and "to do" not in told


def test_keys_do_not_depend_on_the_store(study: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert interp("plan", "--json", study) == 0
    before = json.loads(capsys.readouterr().out)
    study.write_text(study.read_text().replace(str(place / "store"), str(place / "elsewhere")))
    assert interp("plan", "--json", study) == 0
    after = json.loads(capsys.readouterr().out)
    assert [s["key"] for s in after["stages"]] == [s["key"] for s in before["stages"]]
    assert after["study"]["store"] != before["study"]["store"]


def test_the_json_of_a_plan_is_the_plan(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from interp.plan import Plan

    assert interp("plan", "--json", study) == 0
    made = Plan.from_json(capsys.readouterr().out)
    assert [stage.stage for stage in made.stages] == ["corpus", "fit", "evaluate", "trace"]


def test_failures_that_are_not_the_study_s_fault_have_another_code(
    study: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "corpus.txt").unlink()
    assert interp("plan", study) == 1
    told = capsys.readouterr()
    assert told.err.startswith("error: there is no such file or folder\n  found:")
    assert "Traceback" not in told.err and told.out == ""
    assert interp("plan", "--json", study) == 1
    told = capsys.readouterr()
    assert json.loads(told.out)["error"]["kind"] == "SourceError"


def test_schema(capsys: pytest.CaptureFixture[str]) -> None:
    from interp.spec.schema import study_schema

    assert interp("schema") == 0
    assert json.loads(capsys.readouterr().out) == study_schema()


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert interp("--version") == 0
    assert capsys.readouterr().out == f"interp {__version__}\n"
    assert interp("--help") == 0
    told = capsys.readouterr().out
    assert all(name in told for name in COMMANDS)
    assert interp("plan", "--help") == 0
    assert "--json" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["plan"], ["plan", "--no-such-option", "x"], ["vaildate"], ["run", "--nope"]])
def test_a_wrong_command_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert interp(*arguments) == 2
    assert "Usage" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_can_be_loaded(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert interp(name, "--help") == 0
    assert f"interp {name}" in capsys.readouterr().out


def loaded_by(*arguments: object) -> set[str]:
    """The modules that a command loads, in a process of its own; it must succeed."""
    code = f"""
import json, sys
from interp.cli.main import main
try:
    main({[str(argument) for argument in arguments]!r})
except SystemExit as left:
    assert not left.code, left.code
print("MODULES", json.dumps(sorted(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(json.loads(done.stdout.rpartition("MODULES ")[2]))


HEAVY = {
    "torch",
    "ray",
    "transformers",
    "nnsight",
    "datasets",
    "pyarrow",
    "tokenizers",
    "kubernetes",
    "huggingface_hub",
}


@pytest.mark.parametrize("command", [["validate", QUICKSTART], ["plan", QUICKSTART], ["schema"], ["--help"]], ids=str)
def test_light_commands_load_nothing_heavy(command: list[Any]) -> None:
    assert not HEAVY & loaded_by(*command)


def test_a_command_loads_no_other_command() -> None:
    loaded = loaded_by("validate", "--format-only", QUICKSTART)
    assert "interp.cli.study" in loaded
    assert not {"interp.plan", "interp.store", "interp.cli.artifacts", "interp.cli.run", "fsspec"} & loaded


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, interp; sys.exit(bool({'torch', 'ray', 'pydantic', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("count", "text", "in_bytes"),
    [
        (0, "-", "-"),
        (5, "5", "5 B"),
        (1000, "1K", "0.977 KiB"),
        (999_999, "1M", "977 KiB"),
        (1.5e18, "1.5E", "1.3 EiB"),
    ],
)
def test_numbers_for_people(count: float, text: str, in_bytes: str) -> None:
    assert human(count) == text
    assert human_bytes(count) == in_bytes


def test_plan_tells_what_a_fit_takes_on_gpus(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert interp("plan", study, "--gpu", "h100-80g", "--workers", "2") == 0
    told = capsys.readouterr().out
    assert "fit on h100-80g, 35% of its peak" in told and "2 workers in 2 shards" in told  # of one micro-batch a step
    assert interp("plan", "--json", study, "--gpu", "l40s-48g", "--utilisation", "0.5") == 0
    made = json.loads(capsys.readouterr().out)
    assert made["fit"]["gpu"]["name"] == "l40s-48g" and made["fit"]["utilisation"] == 0.5 and made["fit"]["gpus"] == 1
    assert [stage["stage"] for stage in made["stages"]] == ["corpus", "fit", "evaluate", "trace"]
    assert interp("plan", study, "--gpu", "abacus") == 2
    assert "h200-141g" in capsys.readouterr().err


def test_plan_from_a_configuration_alone(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    """A study whose model, corpus and store are out of reach."""
    cluster, config = ROOT / "specs" / "split-llama-cluster.yaml", ROOT / "docs" / "split-llama-8b-70b.json"
    assert interp("plan", cluster, "--config", config, "--gpu", "h200-141g") == 0
    told = capsys.readouterr().out
    assert "41" in told and "40 shards" in told and "slowest: products of the dictionaries" in told
    assert interp("plan", "--json", cluster, "--config", config, "--gpu", "h100-80g") == 0
    made = json.loads(capsys.readouterr().out)
    assert [stage["stage"] for stage in made["stages"]] == ["corpus", "fit", "evaluate"]
    assert "does not fit" in made["fit"]["why_not"]
    assert interp("plan", cluster, "--config", place / "absent.json") == 1
    assert not HEAVY & loaded_by("plan", cluster, "--config", config, "--gpu", "h200-141g")
