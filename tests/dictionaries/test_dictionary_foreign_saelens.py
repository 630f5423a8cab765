"""SAELens: what its files compute, what is folded and what is refused, and ours through its files and back."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign_cases import D, F, claim, hooked, inputs, same, tensor
from peer_cases import (
    MLPS,
    K,
    ours,
    output,
    saelens_output,
    saelens_tensors,
    write_saelens,
)
from safetensors.numpy import load_file, save_file

from interp.dictionaries.foreign import read_dictionaries, recognise, write_dictionaries
from interp.errors import DictionaryError, ModelMismatch

ARCHITECTURES = {
    "standard": ("sae", "relu"),
    "topk": ("sae", "topk"),
    "jumprelu": ("sae", "jumprelu"),
    "gated": ("sae", "gated"),
    "batchtopk": ("sae", "batchtopk"),
    "matryoshka_batchtopk": ("sae", "batchtopk"),
    "transcoder": ("transcoder", "relu"),
    "skip_transcoder": ("skip-transcoder", "relu"),
    "jumprelu_transcoder": ("transcoder", "jumprelu"),
    "jumprelu_skip_transcoder": ("skip-transcoder", "jumprelu"),
}


def only(folder: Path, name: str = "llama") -> Any:
    (found,) = read_dictionaries(folder, claim(name)).values()
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_architecture_computes_what_it_does_there(architecture: str, tmp_path: Path) -> None:
    tensors, x = saelens_tensors(architecture), inputs()
    found = only(write_saelens(tmp_path / "any", architecture, tensors))
    assert (found.config.kind, found.config.activation.type) == ARCHITECTURES[architecture]
    assert found.config.at == ("layers.1.resid_post" if found.config.kind == "sae" else "layers.1.mlp")
    assert found.config.model is not None and found.config.model.foreign == "saelens"
    expected = saelens_output(architecture, tensors, x)
    assert expected.std(0).min() > 0.05  # latents are active
    same(output(found), expected, 1e-5)


@pytest.mark.parametrize(
    ("architecture", "said"),
    [
        *((name, {"apply_b_dec_to_input": False}) for name in ("standard", "topk", "jumprelu", "gated", "batchtopk")),
        *((name, {"rescale_acts_by_decoder_norm": True}) for name in ("topk", "batchtopk")),
        ("topk", {"apply_b_dec_to_input": False, "rescale_acts_by_decoder_norm": True}),
    ],
)
def test_what_is_said_of_biases_and_norms_is_folded(architecture: str, said: dict[str, Any], tmp_path: Path) -> None:
    tensors, x = saelens_tensors(architecture), inputs()
    found = only(write_saelens(tmp_path / "any", architecture, tensors, **said))
    expected = saelens_output(architecture, tensors, x, **said)
    plain = saelens_output(architecture, tensors, x)
    assert np.abs(expected - plain).max() > 0.01  # it matters
    same(output(found), expected, 1e-5)


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "gated"])
def test_activations_that_were_multiplied_in_training(architecture: str, tmp_path: Path) -> None:
    """A checkpoint of training is of scaled activations; the number lies beside it, and without it nobody knows."""
    tensors, x = saelens_tensors(architecture), inputs()
    said = {"normalize_activations": "expected_average_only_in"}
    folder = write_saelens(tmp_path / "any", architecture, tensors, **said)
    with pytest.raises(DictionaryError, match=r"activation_scaler\.json(.|\n)*fold_activation_norm_scaling_factor"):
        only(folder)
    (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": 2.5, "has_whitening": False}))
    same(output(only(folder)), saelens_output(architecture, tensors, x * 2.5) / 2.5, 1e-5)
    (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": None}))
    with pytest.raises(DictionaryError, match="a number above 0"):
        only(folder)


def test_activations_that_were_whitened_in_training(tmp_path: Path) -> None:
    tensors, x, rng = saelens_tensors("standard"), inputs(), np.random.default_rng(8)
    matrix, mean = rng.normal(size=(D, D)) / D**0.5 + np.eye(D), rng.normal(size=D)
    said = {"normalize_activations": "covariance_whitening", "apply_b_dec_to_input": False}
    folder = write_saelens(tmp_path / "any", "standard", tensors, **said)
    (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": None, "has_whitening": True}))
    inverse = np.linalg.inv(matrix)
    save_file({"mean": mean, "matrix": matrix, "inverse_matrix": inverse}, folder / "activation_whitening.safetensors")
    white = ((x - mean) @ matrix).astype(np.float32)
    expected = saelens_output("standard", tensors, white, apply_b_dec_to_input=False) @ inverse + mean
    same(output(only(folder)), expected, 1e-4)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("architecture", ["jumprelu", "gated", "jumprelu_skip_transcoder"])
def test_what_is_read_before_a_norm_s_gain(name: str, architecture: str, tmp_path: Path) -> None:
    tensors = saelens_tensors(architecture)
    folder = write_saelens(
        tmp_path / "any",
        architecture,
        tensors,
        metadata={
            "hook_name": "blocks.1.ln2.hook_normalized",
            "model_from_pretrained_kwargs": {"fold_ln": True} if name == "gpt2" else {"center_writing_weights": False},
        },
    )
    found, model = only(folder, name), hooked(name)
    norm = model.frozen.blocks[1].mlp_norm
    gain = norm.weight.detach().numpy()
    bias = 0 if norm.bias is None else norm.bias.detach().numpy()
    n = inputs()
    expected = saelens_output(architecture, tensors, n)
    if found.config.kind == "sae":  # it reconstructs what it reads, and we read what the norm gives
        assert found.config.at == "layers.1.mlp_in"
        expected = expected * gain + bias
    same(output(found, (n * gain + bias).astype(np.float32)), expected, 5e-5)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox"])
@pytest.mark.parametrize("site", ["ln1", "ln2"])
@pytest.mark.parametrize("said", [None, {}, {"center_writing_weights": False}, {"fold_ln": False}])
def test_a_layer_norm_that_was_not_folded_is_refused(name: str, site: str, said: Any, tmp_path: Path) -> None:
    """Its hook_normalized has gain and bias before TransformerLens 3.0, and has not from 3.0 on."""
    metadata = {"hook_name": f"blocks.1.{site}.hook_normalized", "model_from_pretrained_kwargs": said}
    with pytest.raises(DictionaryError, match=r"TransformerLens 3\.0[^$]*fold_ln: true"):
        only(write_saelens(tmp_path / "any", "jumprelu", metadata=metadata), name)


@pytest.mark.parametrize(("written", "ours"), [("blocks.1.mlp.hook_in", "mlp_in"), ("blocks.1.attn_in", "attn_in")])
def test_what_a_layer_norm_gives_has_a_name_that_means_one_thing(written: str, ours: str, tmp_path: Path) -> None:
    tensors = saelens_tensors("jumprelu")
    found = only(write_saelens(tmp_path / "any", "jumprelu", tensors, metadata={"hook_name": written}), "gpt2")
    assert found.config.at.endswith(f".1.{ours}")
    same(output(found), saelens_output("jumprelu", tensors, inputs()), 5e-5)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"metadata": {"model_name": ["gpt2"]}}, "model_name is not as it should be"),
        ({"metadata": {"interp": {"fingerprint": 3}}}, "fingerprint is not as it should be"),
        ({"matryoshka_widths": 4}, "matryoshka_widths is not as it should be"),
        ({"matryoshka_widths": ["4", 8]}, "matryoshka_widths is not as it should be"),
        ({"metadata": {"model_from_pretrained_kwargs": {"fold_ln": "no"}}}, "fold_ln is not as it should be"),
    ],
)
def test_values_of_another_kind_are_told(said: dict[str, Any], told: str, tmp_path: Path) -> None:
    tensors = saelens_tensors("batchtopk") if "matryoshka_widths" in said else None
    architecture = "matryoshka_batchtopk" if "matryoshka_widths" in said else "jumprelu"
    with pytest.raises(DictionaryError, match=told):
        only(write_saelens(tmp_path / "any", architecture, tensors, **said))


def test_blocks_are_counted_over_all_groups(tmp_path: Path) -> None:
    shapes = {"W_enc": (48, F), "W_dec": (F, 48), "b_dec": (48,), "b_enc": (F,)}
    rng = np.random.default_rng(0)
    tensors = {key: rng.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}
    folder = write_saelens(tmp_path / "any", "standard", tensors, metadata={"hook_name": "blocks.2.hook_resid_post"})
    assert only(folder, "split_llama").config.at == "layers_last.0.resid_post"


def test_files_from_before_6(tmp_path: Path) -> None:
    tensors, x = saelens_tensors("topk"), inputs()
    flat = {"hook_point": "blocks.1.hook_resid_post", "model_name": "org/tiny", "activation_fn_str": "topk"}
    folder = write_saelens(tmp_path / "any", "standard", tensors, activation_fn_kwargs={"k": K}, **flat)
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({key: config[key] for key in config if key != "metadata"}))
    found = only(folder)
    assert found.config.activation.type == "topk"  # and not relu
    same(output(found), saelens_output("topk", tensors, x), 1e-5)
    logged = saelens_tensors("jumprelu")
    older = {**logged, "log_threshold": np.log(logged["threshold"])}
    del older["threshold"]
    folder = write_saelens(tmp_path / "log", "jumprelu", older)
    same(output(only(folder)), saelens_output("jumprelu", logged, x), 1e-5)


def test_a_threshold_below_0_is_0(tmp_path: Path) -> None:
    """There a ReLU stands before it."""
    tensors, x = saelens_tensors("jumprelu"), inputs()
    tensors["threshold"] = tensors["threshold"] - 1.0
    assert tensors["threshold"].min() < 0
    found = only(write_saelens(tmp_path / "any", "jumprelu", tensors))
    same(output(found), saelens_output("jumprelu", tensors, x), 1e-5)


@pytest.mark.parametrize(
    ("architecture", "said", "told"),
    [
        ("standard", {"normalize_activations": "layer_norm"}, "divides each token"),
        ("standard", {"normalize_activations": "constant_norm_rescale"}, "divides each token"),
        ("standard", {"normalize_activations": "other"}, "normalize_activations"),
        ("standard", {"reshape_activations": "hook_z"}, "hook_z"),
        ("standard", {"metadata": {"hook_name": "blocks.1.attn.hook_z"}}, r"no hook point for: .*cfg\.json"),
        ("standard", {"metadata": {"hook_name": "blocks.7.hook_resid_post"}}, r"no hook point for: .*cfg\.json"),
        ("standard", {"metadata": {"hook_name": "blocks.1.hook_mlp_in"}}, "before the norm"),
        ("standard", {"metadata": {"hook_name": "blocks.1.attn.hook_pattern"}}, "has no width"),
        ("standard", {"metadata": {"hook_name": None}}, "hook_point is not as it should be"),
        ("standard", {"metadata": {"hook_head_index": 2}}, "one head's activations"),
        (
            "standard",
            {"metadata": {"model_from_pretrained_kwargs": {"center_writing_weights": True}}},
            "their mean taken away",
        ),
        ("standard", {"activation_fn": "tanh-relu"}, "this activation is not known"),
        ("standard", {"d_sae": F + 1}, f"{F}, as the weights have"),
        ("topk", {"k": None}, "k is not as it should be"),
        ("topk", {"k": F + 1}, f"at most {F}"),
        ("transcoder", {"metadata": {"hook_name_out": None}}, "hook_name_out"),
        ("transcoder", {"apply_b_dec_to_input": True}, "as of every transcoder"),
        ("transcoder", {"normalize_activations": "expected_average_only_in"}, "normalize_activations"),
        ("abstopk", {}, "interp has nothing that computes the same"),
        ("temporal", {}, "interp has nothing that computes the same"),
    ],
)
def test_what_no_dictionary_of_ours_does(architecture: str, said: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(DictionaryError, match=told) as caught:
        only(write_saelens(tmp_path / "any", architecture, **said))
    assert "cfg.json" in str(caught.value)


def test_a_model_with_a_norm_behind_the_mlp(tmp_path: Path) -> None:
    folder = write_saelens(tmp_path / "any", "standard", metadata={"hook_name": "blocks.1.mlp.hook_out"})
    assert only(folder).config.at == "layers.1.mlp_out"
    with pytest.raises(DictionaryError, match="post-norm"):
        only(folder, "gemma2")


def test_files_that_are_not_whole(tmp_path: Path) -> None:
    folder = write_saelens(tmp_path / "any", "topk")
    weights = folder / "sae_weights.safetensors"
    whole, tensors = weights.read_bytes(), load_file(weights)
    weights.write_bytes(whole[:200])
    with pytest.raises(DictionaryError, match=r"not readable safetensors: .*sae_weights"):
        only(folder)
    save_file({**tensors, "b_dec": np.zeros(D + 1, np.float32)}, weights)
    with pytest.raises(DictionaryError, match=rf"tensor b_dec has another shape(.|\n)*d_out={D}"):
        only(folder)
    save_file({**tensors, "threshold": np.ones(F, np.float32)}, weights)
    with pytest.raises(DictionaryError, match="unknown threshold"):
        only(folder)
    save_file({**tensors, "scaling_factor": np.full(F, 2, np.float32)}, weights)
    with pytest.raises(DictionaryError, match="scaling_factor for finetuning"):
        only(folder)
    weights.write_bytes(whole)
    (folder / "cfg.json").write_text("{")
    with pytest.raises(DictionaryError, match=r"cannot be read: .*cfg\.json"):
        only(folder)
    (folder / "cfg.json").unlink()
    with pytest.raises(DictionaryError, match="no config beside the weights"):
        only(folder)


def test_many_come_in_the_order_of_the_model(tmp_path: Path) -> None:
    for i, hook in enumerate(("blocks.2.hook_resid_post", "blocks.0.hook_mlp_out", "blocks.0.hook_resid_pre")):
        write_saelens(
            tmp_path / f"{i}" / hook, "standard", saelens_tensors("standard", i), metadata={"hook_name": hook}
        )
    found = read_dictionaries(tmp_path, claim())
    assert list(found) == ["layers.0.resid_pre", "layers.0.mlp_out", "layers.2.resid_post"]
    for i, at in enumerate(reversed(found)):  # and each is its own
        same(output(found[at]), saelens_output("standard", saelens_tensors("standard", i), inputs()), 1e-5)


def test_two_at_one_place(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_saelens(tmp_path / name, "standard")
    with pytest.raises(DictionaryError, match=r"several dictionaries at layers\.1\.resid_post"):
        read_dictionaries(tmp_path, claim())


# --- written


@pytest.mark.parametrize("kind", ["sae", "transcoder", "skip-transcoder"])
@pytest.mark.parametrize("activation", ["relu", "jumprelu", "batchtopk", "topk", "gated"])
def test_ours_there_and_back(kind: str, activation: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dictionary = ours(kind, activation)
    loaded = {dictionary.config.at: dictionary}
    if kind != "sae" and activation in ("topk", "gated"):
        with pytest.raises(DictionaryError, match="SAELens has nothing that computes the same"):
            write_dictionaries(loaded, tmp_path / "out", "saelens", mlps=MLPS)
        assert not (tmp_path / "out").exists()
        return
    with caplog.at_level(logging.WARNING):
        write_dictionaries(loaded, tmp_path / "out", "saelens", mlps=MLPS, model_name="org/tiny")
    assert ("k is not in the files" in caplog.text) == (activation == "batchtopk")
    (folder,) = (tmp_path / "out").iterdir()
    assert folder.name == ("blocks.1.hook_resid_post" if kind == "sae" else "blocks.1.mlp")
    config = json.loads((folder / "cfg.json").read_text())
    assert config["metadata"]["sae_lens_version"] == "6.0.0"  # without, SAELens takes it for one from before
    assert recognise(tmp_path / "out") == "saelens"
    found = read_dictionaries(tmp_path / "out", claim())
    (again,) = found.values()
    expected = {"batchtopk": "jumprelu"}.get(activation, activation)
    assert again.config.activation.type == expected and list(found) == list(loaded)  # type: ignore[union-attr]
    assert torch.equal(output(again), output(dictionary))
    by_hand = load_file(folder / "sae_weights.safetensors")
    x = inputs()
    same(output(dictionary), saelens_output(config["architecture"], by_hand, x, **config), 1e-5)


def test_ours_name_their_model(tmp_path: Path) -> None:
    dictionary = ours("sae", "relu")
    write_dictionaries({dictionary.config.at: dictionary}, tmp_path, "saelens", mlps=MLPS)
    with pytest.raises(ModelMismatch, match="trained on another model"):
        read_dictionaries(tmp_path, claim("qwen2"))


def test_a_place_without_a_name_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dictionary = ours("sae", "relu", hooks=("layers.1.attn_in",) * 2)
    with caplog.at_level(logging.WARNING):
        write_dictionaries({dictionary.config.at: dictionary}, tmp_path, "saelens", mlps=MLPS)
    assert "no name for layers.1.attn_in" in caplog.text
    assert torch.equal(output(read_dictionaries(tmp_path, claim())["layers.1.attn_in"]), output(dictionary))


def test_mixed_types(tmp_path: Path) -> None:
    """The threshold of a checkpoint is kept in float64, and does not make the weights so."""
    tensors = saelens_tensors("batchtopk")
    wide = {**tensors, "topk_threshold": tensors["topk_threshold"].astype(np.float64)}
    assert only(write_saelens(tmp_path, "batchtopk", wide)).config.dtype == "float32"
    assert tensor(wide["topk_threshold"]).dtype == torch.float64
