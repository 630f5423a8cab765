"""Gemma Scope's transcoders: what they compute, which layer a file is for, and every refusal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign_cases import D, F, activations, arrays, claim, hooked, inputs, same, tensor, write_config
from numpy import ndarray
from safetensors.numpy import save_file

from interp.dictionaries.foreign import read_dictionaries, recognise, writable
from interp.errors import DictionaryError
from interp.sources.dictionaries import dictionary_revision

HOOKS = {
    "hf_hook_point_in": "model.layers.1.pre_feedforward_layernorm.output",
    "hf_hook_point_out": "model.layers.1.post_feedforward_layernorm.output",
}


def scope(seed: int, d: int = D) -> dict[str, ndarray]:
    """params.npz: W_enc is [d, F]."""
    made = arrays(seed, thresholds=True, d=d)
    return {
        "W_enc": np.ascontiguousarray(made["W_enc"].T),
        "W_dec": made["W_dec"],
        "b_enc": made["b_enc"],
        "b_dec": made["b_dec"],
        "threshold": made["activation_function.threshold"],
    }


def save_npz(folder: Path, layer: int, content: dict[str, Any], l0: int = 20) -> Path:
    path = folder / f"layer_{layer}" / "width_16k" / f"average_l0_{l0}" / "params.npz"
    path.parent.mkdir(parents=True)
    np.savez(path, **content)
    return path


def expected(content: dict[str, ndarray], x: ndarray) -> ndarray:
    pre = x @ content["W_enc"] + content["b_enc"]
    return activations(pre, threshold=content["threshold"]) @ content["W_dec"] + content["b_dec"]


def gain(layer: int) -> torch.Tensor:
    """Gemma's norms multiply by 1 + w."""
    block = hooked("gemma2").model.model.layers[layer]
    weight: torch.Tensor = 1 + block.pre_feedforward_layernorm.weight.detach()
    return weight


def test_they_read_the_normalised_input_without_the_gain(tmp_path: Path) -> None:
    contents = {layer: scope(layer) for layer in (0, 2)}
    for layer, content in contents.items():
        save_npz(tmp_path, layer, content)
    assert recognise(tmp_path) == "gemma-scope"
    found = read_dictionaries(tmp_path, claim("gemma2"))
    assert list(found) == ["layers.0.mlp", "layers.2.mlp"]  # some layers are enough
    for layer, content in contents.items():
        transcoder = found[f"layers.{layer}.mlp"]
        assert transcoder.config.activation.type == "jumprelu"  # type: ignore[union-attr]
        assert transcoder.config.model is not None and transcoder.config.model.foreign == "gemma-scope"
        with torch.no_grad():
            same(transcoder(tensor(inputs()) * gain(layer)), expected(content, inputs()), 2e-5)


@pytest.mark.parametrize("skip", [False, True])
def test_gemma_scope_2_reads_what_the_mlp_reads(skip: bool, tmp_path: Path) -> None:
    content = scope(1)
    stored = {"w_enc": content["W_enc"], "w_dec": content["W_dec"]}
    stored |= {name: content[name] for name in ("b_enc", "b_dec", "threshold")}
    wanted = expected(content, inputs())
    if skip:
        affine = np.random.default_rng(3).normal(size=(D, D)).astype(np.float32) / D
        stored["affine_skip_connection"] = affine
        wanted = wanted + inputs() @ affine
    folder = tmp_path / "layer_1_width_16k_l0_small_affine"
    folder.mkdir()
    save_file(stored, folder / "params.safetensors")
    said = {**HOOKS, "architecture": "jump_relu", "affine_connection": skip}
    (folder / "config.json").write_text(json.dumps(said))
    for place in (tmp_path, folder, folder / "params.safetensors"):  # a folder of layers, of one, a file
        found = read_dictionaries(place, claim("gemma3"))
        assert list(found) == ["layers.1.mlp"]
        with torch.no_grad():
            same(found["layers.1.mlp"](tensor(inputs())), wanted)
        if place != folder / "params.safetensors":
            assert recognise(place) == "gemma-scope"


def test_a_single_file_is_a_layer_that_its_path_tells(tmp_path: Path) -> None:
    content = scope(5)
    path = save_npz(tmp_path, 1, content)
    assert list(read_dictionaries(path, claim("gemma2"))) == ["layers.1.mlp"]
    assert list(read_dictionaries(path.parent, claim("gemma2"))) == ["layers.1.mlp"]
    plain = tmp_path / "params.npz"
    plain.write_bytes(path.read_bytes())
    with pytest.raises(DictionaryError, match="does not tell which layer"):
        read_dictionaries(plain, claim("gemma2"))
    # The layer is no part of the content, and of the key it must be one.
    other = save_npz(tmp_path, 2, content)
    other.write_bytes(path.read_bytes())
    assert dictionary_revision(str(other)) != dictionary_revision(str(path))
    assert dictionary_revision(str(other.parent)) != dictionary_revision(str(path.parent))


def test_several_of_one_layer_are_listed(tmp_path: Path) -> None:
    paths = [save_npz(tmp_path, 1, scope(1), l0) for l0 in (10, 80)]
    with pytest.raises(DictionaryError, match="layer 1 has several") as caught:
        read_dictionaries(tmp_path, claim("gemma2"))
    assert all(str(path) in str(caught.value) for path in paths)
    assert "name one of these" in str(caught.value)


def test_files_listed_by_a_set_of_circuit_tracer(tmp_path: Path) -> None:
    """As circuit-tracer's own sets of Gemma Scope are: their config tells what is read."""
    contents = [scope(layer) for layer in range(3)]
    listed = [str(save_npz(tmp_path / "scope", i, content)) for i, content in enumerate(contents)]
    hooks = {"feature_input_hook": "ln2.hook_normalized", "feature_output_hook": "hook_mlp_out"}
    write_config(tmp_path / "set", **hooks, transcoders=listed)
    found = read_dictionaries(tmp_path / "set", claim("gemma2"))
    for layer, content in enumerate(contents):
        with torch.no_grad():
            same(found[f"layers.{layer}.mlp"](tensor(inputs()) * gain(layer)), expected(content, inputs()), 2e-5)


def test_files_of_gemma_scope_in_the_folder_of_a_set_are_the_set_s(tmp_path: Path) -> None:
    """Its config.yaml says how they are read; read as Gemma Scope's own they would be others."""
    contents = [scope(layer) for layer in range(3)]
    listed = [save_npz(tmp_path, i, content).relative_to(tmp_path).as_posix() for i, content in enumerate(contents)]
    write_config(tmp_path, feature_output_hook="hook_mlp_out", transcoders=listed)
    assert recognise(tmp_path) == "circuit-tracer"
    for format in (None, "circuit-tracer"):
        found = read_dictionaries(tmp_path, claim("gemma2"), format)
        with torch.no_grad():
            same(found["layers.1.mlp"](tensor(inputs())), expected(contents[1], inputs()), 2e-5)
    with pytest.raises(DictionaryError, match="no dictionaries of the format gemma-scope"):
        read_dictionaries(tmp_path, claim("gemma2"), "gemma-scope")


def test_a_file_of_another_program_is_none_of_gemma_scope_s(tmp_path: Path) -> None:
    """Of a topk set the file alone does not tell that it is one."""
    folder = tmp_path / "layer_1"
    folder.mkdir()
    save_file(arrays(1), folder / "layer_1.safetensors")
    with pytest.raises(DictionaryError, match="no format that is read"):
        read_dictionaries(folder / "layer_1.safetensors", claim("gemma3"))
    save_file(arrays(1), folder / "params.safetensors")
    with pytest.raises(DictionaryError, match="has no thresholds"):
        read_dictionaries(folder / "params.safetensors", claim("gemma3"))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"W_enc": np.zeros((F, D), np.float32)}, ["tensor W_enc", f"({F}, {D})", f"(d_in={D}, F={D})"]),
        ({"threshold": None}, ["missing threshold"]),
        ({"W_skip": np.zeros((D, D), np.float32)}, ["unknown W_skip"]),
        ({"b_dec": np.full(D, np.inf, np.float32)}, ["tensor b_dec", "not finite"]),
        ({"b_dec": np.zeros(D, np.complex64)}, ["tensor b_dec", "complex64", "float32"]),
        ({"b_dec": np.zeros(D, np.int32)}, ["tensor b_dec", "int32", "float32"]),
        ({"b_dec": np.zeros(D, np.longdouble)}, ["tensor b_dec", "float128", "float32"]),
        ({"b_dec": np.zeros(D, "U3")}, ["tensor b_dec", "U3", "float32"]),
        ({"b_dec": np.array([{"a": 1}] * D, object)}, ["never unpickled"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_tensor_that_is_not_as_it_should_be(changes: dict[str, Any], told: list[str], tmp_path: Path) -> None:
    content = {name: array for name, array in {**scope(1), **changes}.items() if array is not None}
    path = save_npz(tmp_path, 1, content)
    with pytest.raises(DictionaryError) as caught:
        read_dictionaries(tmp_path, claim("gemma2"))
    for part in (*told, str(path)):
        assert part in str(caught.value)


def test_a_file_that_is_no_archive(tmp_path: Path) -> None:
    path = save_npz(tmp_path, 1, scope(1))
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DictionaryError, match="not readable npz"):
        read_dictionaries(tmp_path, claim("gemma2"))
    path.write_bytes(b"")
    with pytest.raises(DictionaryError, match="not readable npz"):
        read_dictionaries(tmp_path, claim("gemma2"))


def test_the_order_of_bytes_is_the_file_s_own(tmp_path: Path) -> None:
    content = scope(1)
    save_npz(tmp_path / "a", 1, content)
    save_npz(tmp_path / "b", 1, {name: array.astype(">f4") for name, array in content.items()})
    ours, theirs = (read_dictionaries(tmp_path / name, claim("gemma2"))["layers.1.mlp"] for name in ("a", "b"))
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter, theirs.get_parameter(name))


def test_a_model_of_another_width_or_depth(tmp_path: Path) -> None:
    save_npz(tmp_path / "wide", 1, scope(1, d=48))
    with pytest.raises(DictionaryError, match=r"tensor W_enc(.|\n)*\(48, 40\)(.|\n)*d_in=32"):
        read_dictionaries(tmp_path / "wide", claim("gemma2"))
    save_npz(tmp_path / "deep", 3, scope(1))
    with pytest.raises(DictionaryError, match=r"no layer 3(.|\n)*0 to 2"):
        read_dictionaries(tmp_path / "deep", claim("gemma2"))


@pytest.mark.parametrize(
    "said",
    [
        {"hf_hook_point_in": "model.layers.1.output", "hf_hook_point_out": "model.layers.1.output"},
        {**HOOKS, "hf_hook_point_in": "model.layers.1.mlp.up_proj.output"},
        {**HOOKS, "architecture": "topk"},
    ],
)
def test_what_is_no_transcoder_of_an_mlp(said: dict[str, str], tmp_path: Path) -> None:
    path = save_npz(tmp_path, 1, scope(1))
    path.with_name("config.json").write_text(json.dumps(said))
    with pytest.raises(DictionaryError, match=r"no transcoders of an MLP|architecture"):
        read_dictionaries(tmp_path, claim("gemma2"))


def test_it_is_only_read() -> None:
    assert "gemma-scope" not in writable()
