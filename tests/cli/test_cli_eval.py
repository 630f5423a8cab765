"""`interp eval`: dictionaries of any kind on the same tokens, cached, named, marked; in this process."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file
from tiny_study import artifact, make_inputs, make_study, make_transcoders, run

from interp.cli.comparison import overlaps, table_of
from interp.cli.eval_names import unique_names
from interp.cli.main import main
from interp.spec.loading import load_study

METRICS = ["--metrics", "fvu,l0,dead,similarity"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("eval")
    make_inputs(path)
    make_transcoders(path)
    make_foreign(path)
    run(make_study(path, trace=None, corpus={"tokens": 512}))
    return path


def make_foreign(folder: Path) -> None:
    """The transcoders as circuit-tracer has them, with decoders of half the size."""
    target = folder / "theirs" / "transcoders"
    target.mkdir(parents=True)
    for layer in range(2):
        weights = load_file(folder / f"transcoders/layers.{layer}.mlp/weights.safetensors")
        kept = {name: weights[name] for name in ("W_enc", "b_enc", "b_dec")}
        save_file({**kept, "W_dec": weights["W_dec"] / 2}, target / f"layer_{layer}.safetensors")
    hooks = {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "mlp.hook_out"}
    config = {
        "model_kind": "transcoder_set",
        "model_name": "tiny",
        "transcoders": ["layer_0.safetensors", "layer_1.safetensors"],
        **hooks,
    }
    (target / "config.yaml").write_text(yaml.safe_dump(config))


def interp(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of `interp eval` with the tiny model and corpus."""
    fixed = ["--model", folder / "model", "--corpus", folder / "corpus.jsonl", "--context", "16", "--tokens", "160"]
    fixed += ["--engine", "inprocess", "--store", folder / "store"]
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in ("eval", *fixed, *arguments)])
    out, err = capsys.readouterr()
    return int(left.value.code or 0), out, err


def test_ours_and_theirs_and_an_artifact_side_by_side(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit = artifact(make_study(folder, trace=None, corpus={"tokens": 512}), "fit")
    given = (folder / "transcoders", folder / "theirs/transcoders", f"artifact://{fit.key[:12]}")
    out = folder / "out"
    code, text, _ = interp(capsys, folder, *given, "--json", "--out", out)
    assert code == 0
    told = json.loads(text)
    names = [one["name"] for one in told["dictionaries"]]
    # Two folders of one name differ by the folder before; an artifact's sets have their own names.
    assert names == [f"{folder.name}-transcoders", "theirs-transcoders", "mlp", "resid"]
    ours, theirs = names[:2]
    rows = {(row["dictionary"], row["at"]): row for row in told["rows"]}
    assert {at for name, at in rows if name == theirs} == {"layers.0.mlp", "layers.1.mlp", "all"}
    assert {at for name, at in rows if name == "resid"} == {"layers.0.resid_post"}
    assert all(row["tokens"] == 160 for row in told["rows"])
    assert rows[ours, "layers.0.mlp"]["ce_zero_ablated"] == rows["mlp", "layers.0.mlp"]["ce_zero_ablated"]
    [same] = [row for row in told["overlaps"] if (row["dictionary"], row["in"]) == (theirs, ours)]
    assert same["mmcs"] == pytest.approx(1, abs=1e-5) and same["places"] == 2  # half the decoder: the same directions
    made = {Path(path).name for path in told["written"]}
    pictures = {
        f"{name}.{form}" for name in ("pareto", "pareto-ce", "density", "comparison") for form in ("svg", "png")
    }
    assert made == pictures | {"evaluation.json", "similarity.json", "comparison.md", "comparison.csv", "study.yaml"}
    assert {path.name for path in out.iterdir()} == made
    assert json.loads((out / "evaluation.json").read_text()) == told["rows"]
    table = list(csv.DictReader((out / "comparison.csv").read_text().splitlines()))
    written = next(row for row in table if (row["dictionary"], row["at"]) == (theirs, "layers.1.mlp"))
    assert float(written["fvu"]) == rows[theirs, "layers.1.mlp"]["fvu"]
    assert [stage["stage"] for stage in told["stages"]] == ["corpus", "evaluate"]
    assert ">mlp<" in (out / "pareto.svg").read_text()

    code, text, _ = interp(capsys, folder, *given, "--json")
    again = json.loads(text)
    assert code == 0 and all(stage["cached"] for stage in again["stages"]) and again["rows"] == told["rows"]

    study = load_study(out / "study.yaml")  # what was done is a study like any other
    assert [one.name for one in study.borrowed] == names and study.borrowed[1].content


def test_the_table_marks_what_is_best_at_a_place(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = (folder / "transcoders", folder / "theirs/transcoders", "--name", "ours", "--name", "half", *METRICS)
    code, text, err = interp(capsys, folder, *given)
    assert code == 0 and "evaluate: done" in err
    lines = [line.split() for line in text.splitlines() if line.strip().startswith(("layers.", "mean"))]
    assert [line[:2] for line in lines[:4]] == [
        ["layers.0.mlp", "ours"], ["layers.0.mlp", "half"], ["layers.1.mlp", "ours"], ["layers.1.mlp", "half"],
    ]  # fmt: skip
    for ours, half in (lines[0:2], lines[2:4]):
        fvus = [float(line[2].rstrip("*")) for line in (ours, half)]
        assert [line[2].endswith("*") for line in (ours, half)] == [fvu == min(fvus) for fvu in fvus]
        assert not any(line[3].endswith("*") for line in (ours, half))  # no L0 is better than another
    assert "160 tokens of" in text and "MMCS" in text and "CE recovered" not in text and "KL" not in text


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["transcoders", "--metrics", "fvu,l2"], 2, "evaluate.metrics[1]"),
        (["transcoders", "--metrics", ","], 2, "evaluate.metrics"),
        (["transcoders", "--tokens", "some"], 2, "corpus.holdout"),
        (["transcoders", "--context", "1"], 2, "corpus.context"),
        (["transcoders", "--dtype", "int8"], 2, "model.dtype"),
        (["transcoders", "--format", "onnx"], 2, "dictionaries[0].format"),
        (["transcoders", "--format", "gemma-scope"], 1, "no dictionaries of the format gemma-scope"),
        (["transcoders", "theirs/transcoders", "--name", "one"], 2, "1 names for 2 sets"),
        (
            ["transcoders", "theirs/transcoders", "--name", "one", "--name", "one"],
            2,
            "two dictionaries are named 'one'",
        ),
        (["transcoders", "--name", "One"], 2, "dictionaries[0].name"),
        (["a", "b", "c", "--format", "auto", "--format", "auto"], 2, "2 for 3"),
        (["nowhere"], 1, "there is no such folder"),
        (["model"], 1, "no dictionaries here"),
        (["s3://bucket/x"], 2, "cannot come from there"),
        (["artifact://0123456789ab"], 1, "0123456789ab"),
        (["artifact://fit/0123456789ab"], 1, "0123456789ab"),
        (["artifact://activations/0123456789ab"], 2, "an artifact of the stage fit"),
        (["transcoders", "--out", "corpus.jsonl"], 2, "--out cannot be written"),
    ],
)
def test_errors_say_what_must_change(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, told: str
) -> None:
    given = [
        word if word.startswith("--") or "://" in word or not (folder / word).exists() else str(folder / word)
        for word in arguments
    ]
    found, out, err = interp(capsys, folder, *given)
    assert found == code and told in err and "Traceback" not in err and out == ""


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_measured(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("interp.stages.runner.run_plan", lambda *_: pytest.fail("measured all the same"))
    out = folder / "corpus.jsonl" / "below"
    code, text, err = interp(capsys, folder, folder / "transcoders", *METRICS, "--out", out)
    assert (code, text) == (2, "") and "--out cannot be written" in err and str(out) in err


def test_a_folder_that_fails_at_the_end_leaves_the_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "taken"
    (out / "comparison.md").mkdir(parents=True)
    code, text, err = interp(capsys, folder, folder / "transcoders", *METRICS, "--out", out)
    assert code == 2 and "--out cannot be written" in err and "Traceback" not in err and "layers.0.mlp" in text


def test_errors_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = interp(capsys, folder, folder / "transcoders", "--metrics", "cosin", "--json")
    [problem] = json.loads(text)["error"]["problems"]
    assert code == 2 and problem["path"] == "evaluate.metrics[0]" and "did you mean cosine?" in problem["remedy"]


def test_sets_of_an_artifact(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = artifact(make_study(folder, trace=None, corpus={"tokens": 512}), "fit").key
    code, text, _ = interp(capsys, folder, f"artifact://{key}/resid", f"artifact://{key}/mlp", *METRICS, "--json")
    assert code == 0 and {row["dictionary"] for row in json.loads(text)["rows"]} == {"resid", "mlp"}
    code, _, err = interp(capsys, folder, f"artifact://{key}/other", *METRICS)
    assert code == 2 and "one of mlp, resid" in err
    # Under another name it is read from its folder in the store.
    code, text, _ = interp(capsys, folder, f"artifact://{key}/resid", "--name", "same", *METRICS, "--json")
    assert code == 0 and [row["dictionary"] for row in json.loads(text)["rows"]] == ["same"]


def test_dictionaries_of_another_model_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    shutil.copytree(folder / "model", tmp_path / "model")
    weights = load_file(folder / "model/model.safetensors")
    save_file(
        {name: tensor + 1e-3 for name, tensor in weights.items()},
        tmp_path / "model/model.safetensors",
        {"format": "pt"},
    )
    code, _, _ = interp(capsys, folder, folder / "transcoders", *METRICS, "--model", folder / "model")
    assert code == 0
    fixed = ["--corpus", str(folder / "corpus.jsonl"), "--context", "16", "--tokens", "160", "--engine", "inprocess"]
    with pytest.raises(SystemExit) as left:
        main(
            ["eval", str(folder / "transcoders"), "--model", str(tmp_path / "model"), *fixed, "--store", str(tmp_path)]
        )
    assert left.value.code == 1 and "was trained on another model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["runs/a/mlp", "runs/b/mlp"], ["a-mlp", "b-mlp"]),
        (["a/dictionaries/mlp", "b/dictionaries/mlp", "c/other"], ["a-mlp", "b-mlp", "other"]),
        (["x/My SAEs (v2)", "x/_", "org/Name.v1"], ["my-saes-v2", "set", "name-v1"]),
        (["a/mlp", "a/mlp", "b/mlp"], ["mlp", "mlp-2", "mlp-3"]),
        (["mlp", "a/mlp"], ["mlp", "mlp-2"]),
        (["q/mlp-2", "mlp", "mlp"], ["mlp-2", "mlp", "mlp-3"]),
    ],
)
def test_names_are_those_of_folders_made_unique(paths: list[str], expected: list[str]) -> None:
    assert unique_names([tuple(path.split("/")) for path in paths]) == expected


def row(name: str, at: str, **figures: Any) -> dict[str, Any]:
    return {"dictionary": name, "at": at, **figures}


def test_groups_of_the_table() -> None:
    rows = [
        row("a", "x", fvu=0.2, kl=0.1), row("a", "y", fvu=0.4, kl=None), row("a", "all", kl=0.7),
        row("b", "x", fvu=0.1, kl=0.1), row("b", "y", fvu=0.6, kl=0.3), row("b", "all", kl=0.6), row("c", "z", fvu=0.9),
    ]  # fmt: skip
    table = table_of(rows)
    assert [(line.at, line.dictionary) for line in table.lines] == [
        ("x", "a"), ("x", "b"), ("y", "a"), ("y", "b"), ("z", "c"),
        ("mean of 2", "a"), ("mean of 2", "b"), ("all at once", "a"), ("all at once", "b"),
    ]  # fmt: skip
    cells = {(line[0], line[1]): line[2:] for line in table.cells()}
    assert table.header == ["place", "dictionary", "FVU", "KL"]
    assert cells["x", "a"] == ["0.2000 ", "0.1000 "] and cells["x", "b"] == ["0.1000*", "0.1000 "]  # equal: no best
    assert cells["y", "a"] == ["0.4000*", " "] and cells["z", "c"] == [
        "0.9000 ",
        " ",
    ]  # alone: nothing to be better than
    assert cells["mean of 2", "b"] == ["0.3500 ", "0.2000 "]  # a has no mean of KL
    assert cells["all at once", "b"] == [" ", "0.6000*"]
    assert "| x | b | **0.1000** | 0.1000 |\n" in table.markdown()
    assert table.notes() == "* the best of those at the same place; KL in nats"
    assert table_of([row("c", "z", fvu=0.9)]).notes() == ""
    assert table.csv().splitlines()[1] == "x,a,0.2,0.1"
    found = [row("a", "x", mmcs=value, **{"in": "b"}) for value in (0.2, 0.4, None)]
    assert overlaps(found) == [{"dictionary": "a", "in": "b", "places": 2, "mmcs": pytest.approx(0.3)}]
