"""`interp run`, `interp trace` and the commands with flags, on a study that takes seconds, in this process."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_study import make_inputs, make_study, make_transcoders

from interp.cli import thin
from interp.cli.main import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run")
    make_inputs(path)
    return path


def write_study(folder: Path, name: str, **changes: Any) -> Path:
    study = make_study(folder, **{"evaluate": {"metrics": ["fvu", "l0", "ce_recovered"]}, **changes})
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(study.model_dump(mode="json", by_alias=True, exclude_unset=True)))
    return path


def interp(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of a command."""
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return int(left.value.code or 0), out, err


def test_a_study_runs_and_the_second_time_is_cached(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study, out = write_study(folder, "study"), folder / "out"
    code, text, _ = interp(capsys, "run", study, "--engine", "inprocess", "--json", "--out", out)
    assert code == 0
    first = {stage["stage"]: stage for stage in json.loads(text)["stages"]}
    assert list(first) == ["corpus", "fit", "evaluate", "trace"]
    assert not any(stage["cached"] for stage in first.values())
    assert first["corpus"]["figures"] == {"tokens": 4000, "holdout": 320}
    assert first["trace"]["figures"]["graphs"] == 5
    assert first["trace"]["figures"]["residual"] <= 1e-4
    assert len(list((out / "graphs").glob("p0*.json"))) == 5
    assert (out / "dictionaries/mlp/layers.1.mlp/weights.safetensors").is_file()
    assert {row["dictionary"] for row in json.loads((out / "evaluation.json").read_text())} == {"mlp", "resid"}

    code, text, _ = interp(capsys, "run", study, "--engine", "inprocess", "--json")
    second = {stage["stage"]: stage for stage in json.loads(text)["stages"]}
    assert code == 0 and all(stage["cached"] for stage in second.values())
    assert {name: stage["key"] for name, stage in second.items()} == {n: s["key"] for n, s in first.items()}
    assert second["fit"]["figures"] == first["fit"]["figures"]

    code, text, err = interp(capsys, "run", study, "--engine", "inprocess")
    assert code == 0 and "Where to look" in text and "trace: cached" in err


def test_trace_needs_dictionaries_that_are_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = write_study(folder, "unfitted", seed=5)
    code, _, err = interp(capsys, "trace", study, "--prompt", "import os")
    assert code == 2 and "not fitted yet" in err and "interp run" in err


def test_trace_of_other_prompts_uses_the_study_s_dictionaries(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = write_study(folder, "study")
    interp(capsys, "run", study, "--engine", "inprocess", "--json")
    code, text, _ = interp(
        capsys, "trace", study, "--prompt", "x = self", "--prompt", "", "--engine", "inprocess", "--json"
    )
    stages = {stage["stage"]: stage for stage in json.loads(text)["stages"]}
    assert code == 0 and stages["fit"]["cached"] and not stages["trace"]["cached"]
    assert (stages["trace"]["figures"]["graphs"], stages["trace"]["figures"]["failed"]) == (1, 1)


def test_trace_takes_a_folder_and_the_last_token(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = write_study(folder, "borrowed", dictionaries=[{"name": "mlp", "from": str(make_transcoders(folder))}])
    (tmp_path / "prompts").mkdir()
    for name, text in (("one.txt", "import os\n"), ("two.txt", "a\n")):
        (tmp_path / "prompts" / name).write_text(text)
    command = ["trace", study, "--prompts", tmp_path / "prompts", "--target", "last-token", "--max-features", 40]
    command += ["--memory", "1G", "--engine", "inprocess", "--store", tmp_path / "store", "--out", tmp_path / "out"]
    code, text, _ = interp(capsys, *command)
    assert code == 0 and "Features of the greatest influence" in text and "layers.0.mlp/" in text
    (graph,) = (tmp_path / "out/graphs").glob("one-*.json")
    assert json.loads(graph.read_text())["metadata"]["generation_settings"]["max_feature_nodes"] == 40
    assert graph.with_suffix(".safetensors").is_file()
    made = {path.name for path in (tmp_path / "out/graphs").iterdir()}
    assert {"index.jsonl", "index.parquet", "features.parquet", "failed.jsonl", "layers.json"} <= made
    code, text, _ = interp(capsys, *command, "--json")
    (stage,) = json.loads(text)["stages"]
    assert stage["cached"] and (stage["figures"]["graphs"], stage["figures"]["failed"]) == (1, 1)
    assert len(stage["figures"]["top_features"]) == 10 and stage["figures"]["top_features"][0]["prompts"] == 1


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--target", "last_token"], "did you mean last-token?"),
        (["--target", "{difference: [' a']}"], "a list of at least 2"),
        (["--target", "{difference: ['"], "neither a word nor YAML"),
        (["--memory", "8GB"], "trace.memory"),
        (["--max-features", "0"], "at least 1"),
        (["--prompt", "a", "--prompts", "b"], "both given"),
    ],
)
def test_what_does_not_fit_is_told_in_the_study_s_terms(
    folder: Path, capsys: pytest.CaptureFixture[str], flags: list[str], told: str
) -> None:
    code, _, err = interp(capsys, "trace", write_study(folder, "study"), *flags)
    assert code == 2 and told in err and "Traceback" not in err


def test_interp_trace_with_flags_needs_no_corpus(folder: Path) -> None:
    transcoders, out = make_transcoders(folder), folder / "thin"
    flags = ["--model_path", str(folder / "model"), "--transcoder_dir", str(transcoders), "--engine", "inprocess"]
    thin.trace([*flags, "--prompt", "import os", "a = 1", "--output_dir", str(out)])
    study = yaml.safe_load((out / "study.yaml").read_text())
    assert "corpus" not in study and study["trace"]["prompts"] == ["import os", "a = 1"]
    rows = [json.loads(line) for line in (out / "graphs/index.jsonl").read_text().splitlines()]
    assert [row["status"] for row in rows] == ["ok", "ok"]
    (out / "p.txt").write_text("import os\n")
    prompts = ["--prompts", str(out / "*.txt"), "--target", "last-token", "--memory", "1G"]
    thin.trace([*flags, *prompts, "--output_dir", str(out / "two")])
    (row,) = [json.loads(line) for line in (out / "two/graphs/index.jsonl").read_text().splitlines()]
    assert (row["prompt"], row["target"]) == ("import o", "s")


def test_training_with_flags_builds_and_runs_a_study(folder: Path) -> None:
    common = ["--model_path", str(folder / "model"), "--dataset_name", str(folder / "corpus.jsonl")]
    common += ["--context", "16", "--total_tokens", "2K", "--batch_tokens", "1024", "--engine", "inprocess"]
    out = folder / "transcoders-by-flags"
    thin.train_transcoders(
        [*common, "--train_all", "--expansion_factor", "2", "--k", "4", "--checkpoint_dir", str(out)]
    )
    config = json.loads((out / "dictionaries/transcoders/layers.1.mlp/config.json").read_text())
    assert (config["kind"], config["n_latents"], config["activation"]) == (
        "skip-transcoder",
        64,
        {"type": "topk", "k": 4},
    )

    out = folder / "saes-by-flags"
    thin.train_saes(
        [
            *common,
            "--hook_names",
            "layers.*.resid_post",
            "--num_latents",
            "48",
            "--activation_fn",
            "relu",
            "--checkpoint_dir",
            str(out),
        ]
    )
    assert sorted(path.name for path in (out / "dictionaries/saes").iterdir()) == [
        "layers.0.resid_post",
        "layers.1.resid_post",
    ]


def test_a_wrong_flag_is_an_error_of_the_study_and_exits_2(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model_path", str(folder / "model"), "--dataset_name", str(folder / "corpus.jsonl")]
    with pytest.raises(SystemExit) as left:
        thin.train_saes([*flags, "--hook_names", "layers.9.resid_post", "--checkpoint_dir", str(folder / "wrong")])
    assert left.value.code == 2
    assert "layers.9.resid_post" in capsys.readouterr().err


def test_a_changed_file_of_an_artifact_is_found_before_it_is_used(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = write_study(folder, "damaged", seed=6)
    _, text, _ = interp(capsys, "run", study, "--engine", "inprocess", "--json")
    fit = next(stage for stage in json.loads(text)["stages"] if stage["stage"] == "fit")
    weights = next((folder / "store/fit" / fit["key"]).rglob("weights.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])
    code, _, err = interp(capsys, "trace", study, "--prompt", "while True", "--engine", "inprocess")
    assert code == 1
    assert "weights.safetensors" in err and "Traceback" not in err


def test_a_full_disk_is_a_clear_error_and_leaves_nothing_that_counts_as_done(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root can mount a small disk")
    try:
        study = write_study(folder, "full", seed=7)
        code, _, err = interp(capsys, "run", study, "--engine", "inprocess", "--store", tmp_path / "store")
        assert code == 1 and "no space" in err.lower() and "Traceback" not in err
        done = {path.parent.parent.name for path in tmp_path.rglob("manifest.json")}
        assert done <= {"corpus"}
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.s3
def test_a_wrong_s3_secret_is_a_clear_error_without_the_secret(folder: Path, s3_server: Any, s3_url: str) -> None:
    study = write_study(folder, "secret", store=f"{s3_url}/wrong")
    secret = "not-the-secret-at-all"
    command = [sys.executable, "-m", "interp.cli.main", "run", str(study), "--engine", "inprocess"]
    environment = {**os.environ, **s3_server.env(), "AWS_SECRET_ACCESS_KEY": secret}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "AWS_" in done.stderr and secret not in done.stderr + done.stdout and "Traceback" not in done.stderr


def test_failures_that_can_be_tried_again_are_said_with_the_command_that_does_it(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = write_study(folder, "borrowed", dictionaries=[{"name": "mlp", "from": str(make_transcoders(folder))}])
    long = "it's " + "self" * 40
    command = ["trace", study, "--prompt", "import os", "--prompt", long, "--prompt", "", "--max-features", 20]
    where = ["--engine", "inprocess", "--store", tmp_path / "store", "--out", tmp_path / "out"]
    code, text, _ = interp(capsys, *command, "--memory", "600K", *where)
    assert code == 0 and "1 prompt failed by no fault of their own" in text
    (again,) = [line.strip() for line in text.splitlines() if line.endswith("--retry-failed")]
    said = shlex.split(again)
    given = [str(word) for word in (*command, "--memory", "600K", *where, "--retry-failed")]
    assert said[:2] == ["interp", "trace"] and sorted(said[1:]) == sorted(given)
    failed = [json.loads(line) for line in (tmp_path / "out/graphs/failed.jsonl").read_text().splitlines()]
    assert [row["retry"] for row in failed] == [True, False]
    assert not (tmp_path / "out/graphs/sums").exists()

    code, text, _ = interp(capsys, *command, "--memory", "1G", *where)
    assert "cached" in text and "--retry-failed" in text
    code, text, _ = interp(capsys, *command, "--memory", "1G", *where, "--retry-failed", "--json")
    (stage,) = json.loads(text)["stages"]
    assert code == 0 and not stage["cached"] and stage["figures"]["graphs"] == 2 and stage["figures"]["retry"] == 0
    code, text, _ = interp(capsys, *command, *where, "--retry-failed")
    assert "cached" in text and "To try them again" not in text


def test_run_retries_too(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    borrowed = [{"name": "mlp", "from": str(make_transcoders(folder))}]
    trace = {"prompts": ["import os", "self" * 40], "memory": 600_000, "max_features": 20}
    name = "retried"
    study = write_study(folder, name, dictionaries=borrowed, trace=trace, store=str(tmp_path / "store"), evaluate=None)
    code, text, _ = interp(capsys, "run", study, "--engine", "inprocess")
    assert code == 0 and f"interp run {study} --engine inprocess --retry-failed" in text
    study = write_study(
        folder,
        name,
        dictionaries=borrowed,
        trace={**trace, "memory": 10**9},
        store=str(tmp_path / "store"),
        evaluate=None,
    )
    code, text, _ = interp(capsys, "run", study, "--engine", "inprocess", "--retry-failed", "--json")
    assert code == 0 and json.loads(text)["stages"][-1]["figures"]["graphs"] == 2


def test_graphs_of_an_earlier_run_do_not_stay_beside_an_index_without_them(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = write_study(folder, "borrowed", dictionaries=[{"name": "mlp", "from": str(make_transcoders(folder))}])
    out = tmp_path / "out"
    command = ["trace", study, "--engine", "inprocess", "--store", tmp_path / "store", "--out", out, "--json"]
    interp(capsys, *command, "--prompt", "import os", "--prompt", "a = 1")
    (out / "graphs/mine.json").write_text("{}")
    before = {path.name for path in (out / "graphs").iterdir()}
    code, _, _ = interp(capsys, *command, "--prompt", "import os")
    slugs = {json.loads(line)["slug"] for line in (out / "graphs/index.jsonl").read_text().splitlines()}
    left = {path.name for path in (out / "graphs").iterdir()}
    assert code == 0 and len(slugs) == 1
    assert {path.stem for path in (out / "graphs").glob("p0*")} == slugs
    assert before - left and not left - before and "mine.json" in left
    code, _, _ = interp(capsys, *command, "--prompt", " ")
    assert not list((out / "graphs").glob("p0*")) and not (out / "graphs/features.parquet").exists()
    (out / "graphs/index.jsonl").write_text("no index")
    code, text, _ = interp(capsys, *command, "--prompt", "import os")
    assert code == 1 and "index of graphs that cannot be read" in json.loads(text)["error"]["message"]
    assert (out / "graphs/mine.json").exists()
