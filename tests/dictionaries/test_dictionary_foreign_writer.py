"""Writing transcoders as a circuit-tracer set: exact translations, and what the format cannot say."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from dictionary_cases import make as make_dictionary
from foreign_cases import (
    MLPS,
    D,
    F,
    arrays,
    claim,
    inputs,
    layers,
    tensor,
    write_set,
)

from interp.dictionaries import DictionaryConfig, build_dictionary
from interp.dictionaries.foreign import read_dictionaries, write_circuit_tracer
from interp.errors import DictionaryError


def test_batchtopk_is_written_as_the_jumprelu_that_it_is_at_inference(tmp_path: Path) -> None:
    made = {}
    for i in range(3):
        config = DictionaryConfig(
            kind="transcoder",
            hook_in=f"layers.{i}.mlp_in",
            hook_out=f"layers.{i}.mlp_out",
            d_in=D,
            d_out=D,
            n_latents=F,
            activation={"type": "batchtopk", "k": 4},  # type: ignore[arg-type]
            model=claim().identity("test"),
        )
        made[config.at] = transcoder = build_dictionary(config, seed=i)
        transcoder.W_dec.data.normal_(generator=torch.Generator().manual_seed(i))
        transcoder.activation.threshold.fill_(0.7)  # type: ignore[operator, union-attr]
    write_circuit_tracer(dict(reversed(made.items())), tmp_path, mlps=MLPS, model_name="m")  # type: ignore[arg-type]
    found = read_dictionaries(tmp_path, claim())
    x = tensor(inputs())
    for at, transcoder in made.items():
        assert found[at].config.activation.type == "jumprelu"  # type: ignore[union-attr]
        a, b = transcoder.encode(x), found[at].encode(x)  # type: ignore[operator]
        assert 0 < (a > 0).sum() < a.numel() and torch.equal(a, b)
        assert torch.equal(transcoder(x), found[at](x))


def test_what_the_format_cannot_say(tmp_path: Path) -> None:
    def refused(told: str, made: dict[str, Any]) -> None:
        with pytest.raises(DictionaryError, match=told):
            write_circuit_tracer(made, tmp_path / "out", mlps=MLPS, model_name="m")
        assert not (tmp_path / "out" / "config.yaml").exists()

    refused("there is another dictionary at layers.2", {"layers.2.resid_post": make_dictionary("sae", "topk")})
    refused("none for layers.0.mlp, layers.1.mlp;", {"layers.2.mlp": make_dictionary("transcoder", "topk")})
    refused("no transcoders", {})
    gated = make_dictionary("transcoder", "gated", dtype="float32")
    gated.config = gated.config.model_copy(update={"hook_in": "layers.0.mlp_in", "hook_out": "layers.0.mlp_out"})
    with pytest.raises(DictionaryError, match="no transcoders of this activation"):
        write_circuit_tracer({"layers.0.mlp": gated}, tmp_path / "out", mlps=MLPS[:1], model_name="m")  # type: ignore[dict-item]
    first = read_dictionaries(write_set(tmp_path / "a", layers()), claim())
    second = read_dictionaries(write_set(tmp_path / "b", layers(n=24)), claim())
    refused("several numbers of latents", {**first, "layers.1.mlp": second["layers.1.mlp"]})
    third = read_dictionaries(write_set(tmp_path / "c", layers(), k=3), claim())
    refused("several activations", {**first, "layers.1.mlp": third["layers.1.mlp"]})
    refused("none for layers.1.mlp;", {at: first[at] for at in ("layers.0.mlp", "layers.2.mlp")})
    refused("none for layers.1.mlp, layers.2.mlp;", {"layers.0.mlp": first["layers.0.mlp"]})
    last = {}  # one group of a model that has two
    for i, transcoder in enumerate(first.values()):
        hooks = {"hook_in": f"layers_last.{i}.mlp_in", "hook_out": f"layers_last.{i}.mlp_out"}
        transcoder.config = transcoder.config.model_copy(update=hooks)
        last[transcoder.config.at] = transcoder
    refused("not of the model: layers_last.0.mlp", last)


def test_a_topk_set_is_written_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = read_dictionaries(write_set(tmp_path / "a", layers(), k=3), claim())
    with caplog.at_level(logging.WARNING):
        write_circuit_tracer(found, tmp_path / "b", mlps=MLPS, model_name="m")  # type: ignore[arg-type]
    assert "TopK(3)" in caplog.text


def test_what_a_set_leaves_behind_is_not_taken_for_a_part_of_the_next(tmp_path: Path) -> None:
    found = read_dictionaries(write_set(tmp_path / "a", layers()), claim())
    write_set(tmp_path / "b", [arrays(seed) for seed in range(5)])
    (tmp_path / "b" / "notes.txt").write_text("mine")
    write_circuit_tracer(found, tmp_path / "b", mlps=MLPS, model_name="m")  # type: ignore[arg-type]
    assert list(read_dictionaries(tmp_path / "b", claim())) == list(found)
    assert (tmp_path / "b" / "notes.txt").exists()
