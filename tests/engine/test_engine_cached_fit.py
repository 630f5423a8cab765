"""A fit from kept activations: no model is loaded, and the dictionaries are the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_study import artifact, make_study, run

from interp.engine import sources
from interp.spec.study import Study


def fitted(study: Study) -> dict[str, torch.Tensor]:
    made = artifact(study, "fit")
    files = [name for name in made.names() if name.endswith(".safetensors")]
    assert len(files) == 3
    return {f"{file}:{name}": value for file in files for name, value in load_file(made.local(file)).items()}


def test_a_fit_from_kept_activations_is_the_same_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"corpus": {"tokens": 1300}, "trace": None}
    mixing = {"shuffle_tokens": 3 * 128}
    plain = make_study(tmp_path, **small, fit=mixing)
    run(plain)

    def fails(*_: object) -> None:
        raise AssertionError("the fit would load the model")

    monkeypatch.setattr(sources, "Harvested", fails)
    kept = make_study(tmp_path, **small, fit={**mixing, "cache": "model"}, store=str(tmp_path / "other"))
    run(kept)
    found, expected = fitted(kept), fitted(plain)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
