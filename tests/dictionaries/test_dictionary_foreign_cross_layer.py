"""circuit-tracer's cross-layer transcoders: what they compute, round trips, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign_cases import (
    MLPS,
    D,
    F,
    claim,
    cross_layer,
    cross_layer_reconstruction,
    hooked,
    inputs,
    same,
    tensor,
    write_cross_layer,
)
from safetensors.numpy import load_file, save_file

from interp.dictionaries import CrossLayerConfig, CrossLayerTranscoder
from interp.dictionaries.foreign import read_dictionaries, write_circuit_tracer
from interp.errors import DictionaryError

CASES: dict[str, tuple[bool, dict[str, Any]]] = {
    "relu": (False, {}),
    "jumprelu": (True, {}),
    "topk": (False, {"activation": "topk", "k": 6}),
}


def xs() -> list[np.ndarray]:
    return [inputs() * (i + 1) for i in range(3)]


def read(folder: Path, model: str = "llama") -> CrossLayerTranscoder:
    loaded = read_dictionaries(folder, claim(model))
    assert list(loaded) == ["cross-layer"]
    found = loaded["cross-layer"]
    assert isinstance(found, CrossLayerTranscoder)
    return found


@pytest.mark.parametrize("name", CASES)
def test_it_computes_what_the_format_says(name: str, tmp_path: Path) -> None:
    thresholds, said = CASES[name]
    written = cross_layer(thresholds=thresholds)
    found = read(write_cross_layer(tmp_path, written, **said))
    assert found.config.activation.type == name
    assert [place.at for place in found.config.places] == [f"layers.{i}.mlp" for i in range(3)]
    assert found.config.model is not None and found.config.model.foreign == "circuit-tracer"
    expected = cross_layer_reconstruction(written, xs(), said.get("k"))
    with torch.no_grad():
        for y, wanted in zip(found([tensor(x) for x in xs()]), expected, strict=True):
            same(y, wanted, 2e-6)


@pytest.mark.parametrize("name", CASES)
def test_it_survives_the_way_there_and_back(name: str, tmp_path: Path) -> None:
    thresholds, said = CASES[name]
    first = read(write_cross_layer(tmp_path / "a", cross_layer(thresholds=thresholds), **said))
    write_circuit_tracer(first, tmp_path / "b", mlps=MLPS, model_name="org/tiny")
    names = [f"W_{end}_{i}.safetensors" for i in range(3) for end in ("enc", "dec")]
    for file in names:
        before, after = load_file(tmp_path / "a" / file), load_file(tmp_path / "b" / file)
        assert before.keys() == after.keys()
        assert all(np.array_equal(before[key], after[key]) for key in before)
    second = read(tmp_path / "b")
    assert second.config == first.config
    first.save(tmp_path / "ours")
    assert CrossLayerTranscoder.load(tmp_path / "ours", model=hooked()).config == first.config


def test_batchtopk_becomes_thresholds(tmp_path: Path) -> None:
    relu = read(write_cross_layer(tmp_path / "a", cross_layer()))
    said = relu.config.model_dump() | {"activation": {"type": "batchtopk", "k": 3}}
    made = CrossLayerTranscoder(CrossLayerConfig.model_validate(said))
    made.load_state_dict(relu.state_dict(), strict=False)
    for i in range(3):
        made.activation(i).threshold.fill_(0.3 + i)  # type: ignore[operator, union-attr]
    write_circuit_tracer(made, tmp_path / "b", mlps=MLPS, model_name="m")
    assert np.all(load_file(tmp_path / "b" / "W_enc_1.safetensors")["threshold_1"] == np.float32(1.3))
    found = read(tmp_path / "b")
    ins = [tensor(x) for x in xs()]
    for a, b in zip(made(ins), found(ins), strict=True):
        assert torch.equal(a, b)


def test_before_the_gain(tmp_path: Path) -> None:
    written = cross_layer()
    found = read(write_cross_layer(tmp_path, written, feature_input_hook="ln2.hook_normalized"))
    gains = [block.mlp_norm.weight.detach() for block in hooked().frozen.blocks]
    expected = cross_layer_reconstruction(written, xs())
    ins = [tensor(x) * gain for x, gain in zip(xs(), gains, strict=True)]
    with torch.no_grad():
        for y, wanted in zip(found(ins), expected, strict=True):
            same(y, wanted, 2e-5)


def refused(folder: Path, *told: str, model: str = "llama") -> None:
    with pytest.raises(DictionaryError) as caught:
        read(folder, model)
    for part in told:
        assert part in str(caught.value)


def test_decoders_of_another_shape(tmp_path: Path) -> None:
    write_cross_layer(tmp_path, cross_layer())
    save_file({"W_dec_1": np.zeros((F, 3, D), np.float32)}, tmp_path / "W_dec_1.safetensors")
    refused(tmp_path, "W_dec_1.safetensors", f"({F}, 3, {D})", f"(F={F}, layers=2, d_out={D})")
    save_file({"W_dec": np.zeros((F, 2, D), np.float32)}, tmp_path / "W_dec_1.safetensors")
    refused(tmp_path, "missing W_dec_1", "unknown W_dec")
    (tmp_path / "W_dec_1.safetensors").unlink()
    refused(tmp_path, "a file of the dictionaries is missing", "W_dec_1.safetensors")


def test_another_depth_and_missing_layers(tmp_path: Path) -> None:
    refused(write_cross_layer(tmp_path / "a", cross_layer(2)), "another depth", "2 layers")
    write_cross_layer(tmp_path / "b", cross_layer())
    (tmp_path / "b" / "W_enc_1.safetensors").unlink()
    refused(tmp_path / "b", "no W_enc_1.safetensors")


def test_thresholds_in_some_layers_only(tmp_path: Path) -> None:
    layers = cross_layer(thresholds=True)
    del layers[2]["activation_function.threshold"]
    refused(write_cross_layer(tmp_path, layers), "different activations", "W_enc_2.safetensors relu")


def test_widths_that_the_format_cannot_have(tmp_path: Path) -> None:
    from interp.dictionaries import CrossLayerPlace

    hooks = [(f"{at}.mlp_in", f"{at}.mlp_out", d) for at, d in (("layers_first.0", 32), ("layers_last.0", 48))]
    places = tuple(CrossLayerPlace(hook_in=i, hook_out=o, d_in=d, d_out=d, n_latents=F) for i, o, d in hooks)
    wide = CrossLayerTranscoder(CrossLayerConfig(places=places, activation={"type": "relu"}))  # type: ignore[arg-type, call-arg]
    with pytest.raises(DictionaryError, match="models of one width only"):
        write_circuit_tracer(wide, tmp_path / "out", mlps=[place.at for place in places], model_name="m")
    assert not (tmp_path / "out" / "config.yaml").exists()
    refused(write_cross_layer(tmp_path, cross_layer(4)), "models of one width only", "32, 48", model="split_llama")
    write_cross_layer(tmp_path / "listed", cross_layer(), transcoders=["a"])
    refused(tmp_path / "listed", "are not listed")
