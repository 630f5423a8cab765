"""`interp intervene`, on a study that takes seconds, in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_study import make_inputs, make_study, make_transcoders

from interp.circuits.intervene import Intervention
from interp.circuits.replacement_model import ReplacementModel
from interp.cli.intervene import parse_feature
from interp.cli.main import main
from interp.dictionaries import UNCHECKED, load_dictionaries
from interp.errors import SpecError
from interp.models.loading import load_model
from interp.spec.study import ModelSpec
from interp.wrapper import HookedModel

PROMPT = "import os"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("intervene")
    make_inputs(path)
    return path


@pytest.fixture(scope="module")
def study(folder: Path) -> Path:
    """A study of transcoders that are there already."""
    borrowed = [{"name": "mlp", "from": str(make_transcoders(folder))}]
    return write_study(folder, "borrowed", corpus=None, fit=None, dictionaries=borrowed, trace={"prompts": ["a"]})


@pytest.fixture(scope="module")
def rm(folder: Path) -> ReplacementModel:
    hooked = HookedModel(load_model(ModelSpec(source=str(folder / "model")), attention="eager"))
    found: Any = load_dictionaries(folder / "transcoders", model=UNCHECKED)
    return ReplacementModel(hooked, found)


def write_study(folder: Path, name: str, **changes: Any) -> Path:
    study = make_study(folder, **changes)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(study.model_dump(mode="json", by_alias=True, exclude_unset=True)))
    return path


def interp(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of a command."""
    with pytest.raises(SystemExit) as left:
        main(["intervene", *(str(argument) for argument in arguments)])
    out, err = capsys.readouterr()
    return int(left.value.code or 0), out, err


def some_feature(rm: ReplacementModel) -> tuple[list[int], tuple[int, int, int]]:
    """The prompt's tokens and (layer, pos, latent) of a feature that is active."""
    ids = rm.hooked.tokenize(PROMPT, bos=True)[0]
    state = rm.build(ids)
    strongest = int(state.features.activations.argmax())
    layer, pos, latent = state.features.index[strongest].tolist()
    return ids.tolist(), (layer, pos, latent)


@pytest.mark.parametrize("attention", ["frozen", "iterated"])
def test_what_it_says_is_what_the_library_finds(
    study: Path, rm: ReplacementModel, attention: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    from interp.circuits.intervene import intervene

    ids, (layer, pos, latent) = some_feature(rm)
    feature = f"layers.{layer}.mlp/{latent}@{pos}=-3"
    code, out, err = interp(
        capsys, study, "--prompt", PROMPT, "--scale", feature, "--attention", attention, "--json", "--top", 4
    )
    assert code == 0, err
    said = json.loads(out)
    expected = intervene(rm, ids, [Intervention(layer, latent, pos, "scale", -3.0)], attention=attention)
    before, after = expected.probabilities()
    assert said["ids"] == ids and said["tokens"][1:] == list(PROMPT)
    (held,) = said["features"]
    assert (held["at"], held["latent"], held["position"]) == (f"layers.{layer}.mlp", latent, pos)
    assert held["after"] == pytest.approx(-3 * held["before"]) and held["before"] > 0
    assert said["mlps"] == ("replacement" if attention == "frozen" else "model") and said["unchanged"] == 0
    best = set(before[0].topk(4).indices.tolist()) | set(after[0].topk(4).indices.tolist())
    assert {row["id"] for row in said["next"]} == best
    for row in said["next"]:
        assert row["probability_before"] == pytest.approx(float(before[0, row["id"]]), abs=1e-5)
        assert row["probability_after"] == pytest.approx(float(after[0, row["id"]]), abs=1e-5)
    assert [row["probability_after"] for row in said["next"]] == sorted(
        after[0, list(best)].tolist(), reverse=True
    ) or (
        torch.allclose(
            torch.tensor([row["probability_after"] for row in said["next"]]),
            after[0, list(best)].sort(descending=True).values,
        )
    )


def test_tables_for_people(study: Path, rm: ReplacementModel, capsys: pytest.CaptureFixture[str]) -> None:
    _, (layer, pos, latent) = some_feature(rm)
    at = f"layers.{layer}.mlp/{latent}"
    code, out, _ = interp(capsys, study, "--prompt", PROMPT, "--ablate", f"{at}@{pos}", "--set", "layers.0.mlp/1@all=0")
    assert code == 0
    assert "attention: frozen" in out and "next token" in out and at in out and "1 'i'" in out
    assert "changed nothing" in out


def test_generated_text_before_and_after(study: Path, rm: ReplacementModel, capsys: pytest.CaptureFixture[str]) -> None:
    from interp.circuits.generate import generate

    ids, _ = some_feature(rm)
    arguments = [study, "--prompt", PROMPT, "--set", "layers.1.mlp/3=40", "--generate", 5]
    code, out, err = interp(capsys, *arguments, "--json")
    assert code == 0, err
    said = json.loads(out)
    held = [Intervention(1, 3, "all", "set", 40.0)]
    assert said["attention"] == "iterated"
    assert said["generated"]["before"]["ids"] == generate(rm, ids, [], 5).new.tolist()
    assert said["generated"]["after"]["ids"] == generate(rm, ids, held, 5).new.tolist()
    assert said["generated"]["after"]["ids"] != said["generated"]["before"]["ids"]
    code, out, _ = interp(capsys, *arguments)
    assert code == 0 and "without: " in out and "with:    " in out


def test_dictionaries_must_be_fitted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = write_study(folder, "unfitted", seed=5)
    code, _, err = interp(capsys, study, "--prompt", PROMPT, "--ablate", "layers.0.mlp/1")
    assert code == 2 and "not fitted yet" in err and "interp run" in err


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, "nothing to do"),
        (["--ablate", "layers.0.mlp"], 2, "MLP/LATENT[@POSITIONS]"),
        (["--ablate", "layers.0.mlp/1=2"], 2, "--ablate cannot be read"),
        (["--set", "layers.0.mlp/1"], 2, "MLP/LATENT[@POSITIONS]=VALUE"),
        (["--scale", "layers.0.mlp/1@x=2"], 2, "=FACTOR"),
        (["--set", "layers.0.mlp/1=much"], 2, "--set cannot be read"),
        (["--ablate", "layers.7.mlp/1"], 1, "layers.7.mlp"),
        (["--ablate", "layers.0.mlp/999"], 1, "no such feature"),
        (["--ablate", "layers.0.mlp/1@99"], 1, "not in the prompt"),
        (["--ablate", "layers.0.mlp/1@0"], 1, "held constant"),
        (["--ablate", "layers.0.mlp/1", "--attention", "loose"], 2, "frozen or iterated"),
        (["--ablate", "layers.0.mlp/1", "--attention", "frozen", "--mlps", "model"], 2, "iterated"),
        (["--ablate", "layers.0.mlp/1", "--attention", "frozen", "--generate", "3"], 2, "nothing can be generated"),
    ],
)
def test_what_cannot_be_done_is_said(
    study: Path, arguments: list[str], code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found, _, err = interp(capsys, study, "--prompt", PROMPT, *arguments)
    assert found == code and says in err and "Traceback" not in err


def test_help_shows_how_features_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = interp(capsys, "--help")
    assert code == 0
    for word in ("layers.3.mlp/41@5", "--attention", "iterated", "--generate", "BOS"):
        assert word in out


def test_how_features_are_named() -> None:
    for text, mode, expected in (
        ("layers.3.mlp/41@5", "ablate", Intervention("layers.3.mlp", 41, 5)),
        ("layers.3.mlp/41", "ablate", Intervention("layers.3.mlp", 41, "all")),
        ("layers.2.mlp/7@all=3.0", "set", Intervention("layers.2.mlp", 7, "all", "set", 3.0)),
        ("layers_first.0.mlp/7@-1=-2", "scale", Intervention("layers_first.0.mlp", 7, -1, "scale", -2.0)),
        ("layers.2.mlp/7@2,4=1e-1", "scale", Intervention("layers.2.mlp", 7, (2, 4), "scale", 0.1)),
        ("layers.2.mlp/7@2:6=2", "set", Intervention("layers.2.mlp", 7, slice(2, 6), "set", 2.0)),
        ("layers.2.mlp/7@-3:=2", "set", Intervention("layers.2.mlp", 7, slice(-3, None), "set", 2.0)),
    ):
        assert parse_feature(text, mode) == expected  # type: ignore[arg-type]
    for wrong in ("layers.3.mlp/", "/4", "layers.3.mlp/4@", "layers.3.mlp/4@1.5", "layers.3.mlp/4@5@6", "4"):
        with pytest.raises(SpecError, match="cannot be read"):
            parse_feature(wrong, "ablate")
