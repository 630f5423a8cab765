"""circuit-tracer's transcoder sets: what they compute, round trips, and every refusal."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from foreign_cases import (
    MLPS,
    D,
    F,
    arrays,
    claim,
    hooked,
    inputs,
    layers,
    reconstruction,
    same,
    tensor,
    write_config,
    write_set,
)
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch

from interp.dictionaries import Transcoder
from interp.dictionaries.foreign import Claim, read_dictionaries, recognise, write_circuit_tracer
from interp.errors import DictionaryError
from interp.sources.dictionaries import dictionary_revision

CASES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "relu": ({}, {}, "relu"),
    "said to be relu": ({}, {"activation": "relu"}, "relu"),
    "jumprelu": ({"thresholds": True}, {}, "jumprelu"),
    "topk": ({}, {"activation": "topk", "k": 5}, "topk"),
    "topk, by its k alone": ({}, {"k": 5}, "topk"),
    "relu and skip": ({"skip": True}, {}, "relu"),
    "jumprelu and skip": ({"thresholds": True, "skip": True}, {"activation": "jump_relu"}, "jumprelu"),
    "topk and skip": ({"skip": True}, {"activation": "topk", "k": 5}, "topk"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_set_computes_what_the_format_says(name: str, tmp_path: Path) -> None:
    options, said, activation = CASES[name]
    written = layers(**options)
    found = read_dictionaries(write_set(tmp_path / "set", written, **said), claim())
    assert list(found) == [f"layers.{i}.mlp" for i in range(3)]
    x = inputs()
    for layer, transcoder in zip(written, found.values(), strict=True):
        assert isinstance(transcoder, Transcoder)
        assert transcoder.config.activation.type == activation
        assert transcoder.skip == ("W_skip" in layer)
        with torch.no_grad():
            same(transcoder(tensor(x)), reconstruction(layer, x, said.get("k")))


@pytest.mark.parametrize("name", CASES)
def test_a_set_survives_the_way_there_and_back(name: str, tmp_path: Path) -> None:
    options, said, _ = CASES[name]
    first = read_dictionaries(write_set(tmp_path / "set", layers(**options), **said), claim())
    write_circuit_tracer(first, tmp_path / "again", mlps=MLPS, model_name="org/tiny", scan="org/scan")  # type: ignore[arg-type]
    for i in range(3):  # what we write has the same tensors under the same names
        before, after = (load_file(tmp_path / place / f"layer_{i}.safetensors") for place in ("set", "again"))
        assert before.keys() == after.keys()
        assert all(np.array_equal(before[key], after[key]) for key in before)
    second = read_dictionaries(tmp_path / "again", claim())
    x = tensor(inputs())
    for at in first:
        assert second[at].config == first[at].config
        assert torch.equal(second[at](x), first[at](x))
    config = yaml.safe_load((tmp_path / "again" / "config.yaml").read_text())
    assert (config["model_name"], config["scan"]) == ("org/tiny", "org/scan")
    assert config["feature_input_hook"] == "mlp.hook_in"


def test_what_was_read_is_vouched_for_and_not_proved(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_set(tmp_path / "set", layers(), model_name="meta-llama/Llama-3.2-1B")
    with caplog.at_level(logging.WARNING):
        found = read_dictionaries(folder, claim())
    identity = found["layers.0.mlp"].config.model
    assert identity is not None
    assert (identity.source, identity.fingerprint, identity.family) == ("org/tiny", hooked().fingerprint, "llama")
    assert identity.foreign == "circuit-tracer"
    assert "meta-llama/Llama-3.2-1B" in caplog.text and "org/tiny" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        read_dictionaries(write_set(tmp_path / "named", layers(), model_name="other/Tiny"), claim())
    assert caplog.text == ""
    found["layers.0.mlp"].save(tmp_path / "ours")  # and ours still says so
    assert Transcoder.load(tmp_path / "ours", model=hooked()).config.model == identity


def test_the_type_of_the_file_is_kept_unless_another_is_asked_for(tmp_path: Path) -> None:
    write_config(tmp_path)
    for i, layer in enumerate(layers()):
        save_torch({k: tensor(v).bfloat16() for k, v in layer.items()}, tmp_path / f"layer_{i}.safetensors")
    found = read_dictionaries(tmp_path, claim())["layers.1.mlp"]
    assert found.config.dtype == "bfloat16" and {p.dtype for p in found.parameters()} == {torch.bfloat16}  # type: ignore[union-attr]
    asked = read_dictionaries(tmp_path, claim(dtype="float32"))["layers.1.mlp"]
    assert asked.config.dtype == "float32" and {p.dtype for p in asked.parameters()} == {torch.float32}  # type: ignore[union-attr]


def test_mixed_types_become_the_one_that_holds_all_of_them(tmp_path: Path) -> None:
    write_config(tmp_path)
    for i, layer in enumerate(layers(thresholds=True)):
        mixed = {k: tensor(v) if "threshold" in k else tensor(v).bfloat16() for k, v in layer.items()}
        save_torch(mixed, tmp_path / f"layer_{i}.safetensors")
    found = read_dictionaries(tmp_path, claim())["layers.0.mlp"]
    assert found.config.dtype == "float32"
    assert torch.equal(found.activation.threshold, tensor(arrays(0, thresholds=True)["activation_function.threshold"]))  # type: ignore[union-attr, arg-type]


@pytest.mark.parametrize("hook_in", ["mlp.hook_in", "blocks.{layer}.mlp.hook_in", "mlp_in"])
@pytest.mark.parametrize("hook_out", ["mlp.hook_out", "hook_mlp_out", "blocks.{layer}.hook_mlp_out", "mlp_out"])
def test_names_that_mean_the_mlp(hook_in: str, hook_out: str, tmp_path: Path) -> None:
    said = {"feature_input_hook": hook_in, "feature_output_hook": hook_out}
    written = layers()
    found = read_dictionaries(write_set(tmp_path, written, **said), claim())
    same(found["layers.2.mlp"](tensor(inputs())), reconstruction(written[2], inputs()))


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox"])
def test_what_a_layer_norm_gives_is_of_two_meanings(name: str, tmp_path: Path) -> None:
    """TransformerLens' hook_normalized of a LayerNorm moved from behind gain and bias to before them with 3.0."""
    said = {"feature_input_hook": "ln2.hook_normalized", "feature_output_hook": "hook_mlp_out"}
    with pytest.raises(DictionaryError, match=r"before gain and bias, or with them[^$]*mlp\.hook_in"):
        read_dictionaries(write_set(tmp_path, layers(), **said), claim(name))


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_what_is_normalised_is_read_before_the_gain(name: str, tmp_path: Path) -> None:
    """ln2.hook_normalized is x / rms(x): the MLP's input is that times the gain."""
    written = layers(thresholds=True, skip=True)
    said = {"feature_input_hook": "ln2.hook_normalized", "feature_output_hook": "hook_mlp_out"}
    found = read_dictionaries(write_set(tmp_path, written, **said), claim(name))
    model = hooked(name)
    ids = torch.randint(2, 90, (1, 7), generator=torch.Generator().manual_seed(0))
    cache = model.run_with_cache(ids, ["layers.1.resid_mid", "layers.1.mlp_in"])
    resid = cache["layers.1.resid_mid"][0].numpy()
    eps = model.frozen.blocks[1].mlp_norm.eps
    normalised = resid / np.sqrt((resid**2).mean(-1, keepdims=True) + eps)
    with torch.no_grad():
        same(found["layers.1.mlp"](cache["layers.1.mlp_in"][0]), reconstruction(written[1], normalised), 2e-5)


@pytest.mark.parametrize(("asked", "expected"), [("float32", "float32"), (None, "float32"), ("bfloat16", "bfloat16")])
@pytest.mark.parametrize("name", ["gemma2", "llama"])
def test_what_the_gain_changes_is_not_rounded_again(
    name: str, asked: str | None, expected: str, tmp_path: Path
) -> None:
    """W / g of a bfloat16 W is no bfloat16 number."""
    write_config(tmp_path, feature_input_hook="ln2.hook_normalized", feature_output_hook="hook_mlp_out")
    stored = {key: tensor(value).bfloat16() for key, value in arrays(1, skip=True).items()}
    for i in range(3):
        save_torch(stored, tmp_path / f"layer_{i}.safetensors")
    found = read_dictionaries(tmp_path, claim(name, dtype=asked))["layers.1.mlp"]
    assert isinstance(found, Transcoder) and found.config.dtype == expected
    norm = hooked(name).frozen.blocks[1].mlp_norm
    wanted = stored["W_enc"].double() / norm.weight.detach().double()
    if expected == "bfloat16":
        assert torch.equal(found.W_enc, wanted.float().bfloat16())
        return
    torch.testing.assert_close(found.W_enc.double(), wanted, rtol=1e-6, atol=0)


def test_a_gain_of_zero_cannot_be_undone(tmp_path: Path) -> None:
    from tiny_models import make

    from interp.wrapper import HookedModel

    model = make("llama")
    model.model.layers[1].post_attention_layernorm.weight.data[3] = 0  # type: ignore[union-attr, index, operator]
    write_set(tmp_path, layers(), feature_input_hook="ln2.hook_normalized")
    with pytest.raises(DictionaryError, match="some gains are 0"):
        read_dictionaries(tmp_path, Claim(HookedModel(model), "org/tiny"))


@pytest.mark.parametrize(
    ("model", "said", "told"),
    [
        ("llama", {"feature_input_hook": "hook_resid_mid"}, "the replacement model puts"),
        ("llama", {"feature_input_hook": "hook_mlp_in"}, "do not read what the MLPs read"),
        ("llama", {"feature_output_hook": "hook_resid_post"}, "do not predict what the MLPs add"),
        ("gemma2", {"feature_output_hook": "mlp.hook_out"}, "have a norm after the MLP"),
    ],
)
def test_another_place_is_refused(model: str, said: dict[str, str], told: str, tmp_path: Path) -> None:
    with pytest.raises(DictionaryError, match=told) as caught:
        read_dictionaries(write_set(tmp_path, layers(), **said), claim(model))
    assert next(iter(said.values())) in str(caught.value) and "config.yaml" in str(caught.value)


def test_listed_files_are_taken_from_the_set_s_folder(tmp_path: Path) -> None:
    written = layers()
    for i, layer in enumerate(written):
        save_file(layer, tmp_path / f"some_{i}.safetensors")
    listed = ["../some_2.safetensors", str(tmp_path / "some_0.safetensors"), "../some_1.safetensors"]
    write_config(tmp_path / "set", transcoders=listed)
    found = read_dictionaries(tmp_path / "set", claim())
    for at, i in (("layers.0.mlp", 2), ("layers.1.mlp", 0), ("layers.2.mlp", 1)):
        same(found[at](tensor(inputs())), reconstruction(written[i], inputs()))
    before = dictionary_revision(str(tmp_path / "set"))
    save_file(arrays(9), tmp_path / "some_0.safetensors")  # outside the folder, and yet a part of the content
    assert dictionary_revision(str(tmp_path / "set")) != before


def test_a_listed_file_of_another_layer(tmp_path: Path) -> None:
    for i, layer in enumerate(layers()):
        for place in ("layer_1", f"layer_{i}"):
            (tmp_path / place).mkdir(exist_ok=True)
        save_file(layer, tmp_path / f"layer_{i}" / "t.safetensors")
        save_file(layer, tmp_path / "layer_1" / f"t{i}.safetensors")
    write_config(tmp_path / "set", transcoders=[f"../layer_{i}/t.safetensors" for i in (0, 2, 1)])
    with pytest.raises(DictionaryError, match=r"\.\./layer_2/t\.safetensors at 1, \.\./layer_1/t\.safetensors at 2"):
        read_dictionaries(tmp_path / "set", claim())
    for name in ("../layer_{}/t.safetensors", "../layer_1/t{}.safetensors"):
        listed = [name.format(i) for i in range(3)]
        write_config(tmp_path / "set", transcoders=listed)
        assert list(read_dictionaries(tmp_path / "set", claim())) == list(MLPS)


# --- refusals: each names the file, the tensor, what was found and what was expected


def changed(folder: Path, layer: int = 1, **changes: np.ndarray | torch.Tensor | None) -> Path:
    """A set of which one layer's file is changed; None removes a tensor."""
    write_set(folder, layers(thresholds=True))
    path = folder / f"layer_{layer}.safetensors"
    content = {k: tensor(v) for k, v in arrays(layer, thresholds=True).items()}
    content |= {k: v if isinstance(v, torch.Tensor) else tensor(v) for k, v in changes.items() if v is not None}
    save_torch({k: v.contiguous() for k, v in content.items() if k not in changes or changes[k] is not None}, path)
    return folder


NAN = np.where(np.arange(F) == 3, np.nan, 0).astype(np.float32)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"W_enc": np.zeros((D, F), np.float32)}, ["tensor W_enc", f"({D}, {F})", f"(F={D}, d_in={D})"]),
        ({"W_dec": np.zeros((F - 1, D), np.float32)}, ["tensor W_dec", f"({F - 1}, {D})", f"(F={F}, d_out={D})"]),
        ({"W_dec": np.zeros((F, 16), np.float32)}, ["tensor W_dec", f"({F}, 16)", "d_out=32"]),
        ({"b_dec": np.zeros(F, np.float32)}, ["tensor b_dec", f"({F},)", f"(d_out={D})"]),
        ({"b_enc": np.zeros((1, F), np.float32)}, ["tensor b_enc", f"(1, {F})", f"(F={F})"]),
        ({"b_dec": None}, ["missing b_dec", "unknown none"]),
        ({"log_thresholds": np.zeros(F, np.float32)}, ["missing none", "unknown log_thresholds"]),
        ({"b_enc": NAN}, ["tensor b_enc", "not finite", f"1 of {F}"]),
        ({"b_enc": np.zeros(F, np.int64)}, ["tensor b_enc", "int64", "float32, bfloat16"]),
        ({"W_skip": np.zeros((D, 5), np.float32)}, ["tensor W_skip", f"({D}, 5)", f"(d_out={D}, d_in={D})"]),
        ({"activation_function.threshold": -np.ones(F, np.float32)}, ["threshold is below 0", "-1.0"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_tensor_that_is_not_as_it_should_be(changes: dict[str, Any], told: list[str], tmp_path: Path) -> None:
    with pytest.raises(DictionaryError) as caught:
        read_dictionaries(changed(tmp_path / "set", **changes), claim())
    for part in (*told, "layer_1.safetensors"):
        assert part in str(caught.value)


def test_layers_of_different_activations(tmp_path: Path) -> None:
    folder = changed(tmp_path / "set", **{"activation_function.threshold": None})
    with pytest.raises(DictionaryError, match="different activations"):
        read_dictionaries(folder, claim())
    write_config(folder, activation="jumprelu")
    with pytest.raises(DictionaryError, match=r"not as config.yaml says: .*layer_1"):
        read_dictionaries(folder, claim())


def test_a_file_that_is_missing_or_cut_short(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", layers())
    path = folder / "layer_1.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    with pytest.raises(DictionaryError, match=r"not readable safetensors: .*layer_1"):
        read_dictionaries(folder, claim())
    path.unlink()
    with pytest.raises(DictionaryError, match=r"no layer_1\.safetensors"):
        read_dictionaries(folder, claim())
    (folder / "layer_0.safetensors").unlink()
    (folder / "layer_2.safetensors").unlink()
    with pytest.raises(DictionaryError, match="the set has no files"):
        read_dictionaries(folder, claim())


@pytest.mark.parametrize("n", [2, 4])
def test_a_model_of_another_depth(n: int, tmp_path: Path) -> None:
    write_set(tmp_path, [arrays(seed) for seed in range(n)])
    with pytest.raises(DictionaryError, match=rf"another depth(.|\n)*{n} layers(.|\n)*3 layers, as org/tiny has"):
        read_dictionaries(tmp_path, claim())


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"activation": "gelu"}, "relu, jumprelu or topk"),
        ({"activation": {"type": "topk", "k": 4}}, "relu, jumprelu or topk"),
        ({"activation": ["topk"]}, "relu, jumprelu or topk"),
        ({"top_k": 4}, "the activation is said by activation and k"),
        ({"activation": "topk", "k": 4, "TopK": 8}, "the activation is said by activation and k"),
        ({"activation_fn": "topk"}, "the activation is said by activation and k"),
        ({"activation": "topk"}, "with activation: topk"),
        ({"activation": "relu", "k": 4}, "no k with any other"),
        ({"k": 0}, "at least 1"),
        ({"k": "many"}, "at least 1"),
        ({"activation": "topk", "k": F + 1}, f"at most {F}"),
        ({"activation": "jumprelu"}, "thresholds, for jumprelu"),
        ({"model_kind": "sae_set"}, "transcoder_set or cross_layer_transcoder"),
        ({"feature_input_hook": None}, "feature_input_hook"),
        ({"transcoders": "all"}, "one for each layer"),
        ({"transcoders": ["nowhere.safetensors"] * 3}, "missing"),
    ],
)
def test_a_config_that_says_something_impossible(said: dict[str, Any], told: str, tmp_path: Path) -> None:
    write_set(tmp_path, layers(), **{"kind": said.pop("model_kind", "transcoder_set"), **said})
    with pytest.raises(DictionaryError, match=told):
        read_dictionaries(tmp_path, claim())


def test_topk_with_thresholds_is_a_contradiction(tmp_path: Path) -> None:
    with pytest.raises(DictionaryError, match="topk dictionary has thresholds"):
        read_dictionaries(write_set(tmp_path, layers(thresholds=True), activation="topk", k=4), claim())


def test_a_folder_that_is_nothing_tells_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("words")
    with pytest.raises(DictionaryError) as caught:
        recognise(tmp_path)
    for part in ("config.yaml", "params.npz", "weights.safetensors", str(tmp_path)):
        assert part in str(caught.value)
    with pytest.raises(DictionaryError, match="no dictionaries of the format gemma-scope"):
        read_dictionaries(write_set(tmp_path, layers()), claim(), "gemma-scope")


# --- what is written
