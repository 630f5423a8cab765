"""Dictionaries on disk: round trips, and every refusal."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from dictionary_cases import EVERY, data, make
from safetensors.torch import load_file, save_file

from interp.dictionaries import (
    DICTIONARIES,
    UNCHECKED,
    SparseAutoencoder,
    SparseDictionary,
    Transcoder,
    load_dictionaries,
)
from interp.errors import DictionaryError, ModelMismatch

FINGERPRINT = "abc123"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    make("sae", "batchtopk", dtype="float32").save(tmp_path / "d")
    return tmp_path / "d"


def change_config(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def change_weights(folder: Path, **tensors: torch.Tensor | None) -> None:
    weights = load_file(folder / "weights.safetensors") | tensors
    save_file({name: tensor for name, tensor in weights.items() if tensor is not None}, folder / "weights.safetensors")


@pytest.mark.parametrize(("kind", "activation"), EVERY)
def test_what_is_saved_is_loaded(kind: str, activation: str, tmp_path: Path) -> None:
    dictionary, x = make(kind, activation, dtype="float32"), data(dtype=torch.float32)
    dictionary.save(tmp_path / "a" / "b")
    loaded = SparseDictionary.load(tmp_path / "a" / "b", model=FINGERPRINT)
    assert type(loaded) is type(dictionary)
    assert loaded.config == dictionary.config
    assert torch.equal(loaded(x), dictionary(x))
    assert torch.equal(loaded.encode(x), dictionary.encode(x))
    assert sorted(p.name for p in (tmp_path / "a" / "b").iterdir()) == ["config.json", "weights.safetensors"]


def test_thresholds_are_stored_under_the_names_of_the_field(tmp_path: Path) -> None:
    expected = {"batchtopk": {"threshold"}, "jumprelu": {"threshold"}, "gated": {"r_mag", "b_mag"}, "topk": set()}
    for activation, extra in expected.items():
        make("skip-transcoder", activation).save(tmp_path / activation)
        names = set(load_file(tmp_path / activation / "weights.safetensors"))
        assert names == {"W_enc", "b_enc", "W_dec", "b_dec", "W_skip"} | extra


def test_another_model_is_refused(saved: Path) -> None:
    with pytest.raises(ModelMismatch, match="trained on another model") as error:
        SparseDictionary.load(saved, model="fff")
    assert "fff" in str(error.value)
    assert FINGERPRINT in str(error.value)
    with pytest.raises(ModelMismatch):
        SparseDictionary.load(saved, model=SimpleNamespace(fingerprint="fff"))
    SparseDictionary.load(saved, model=SimpleNamespace(fingerprint=FINGERPRINT))
    SparseDictionary.load(saved, model=UNCHECKED)


def test_a_model_must_be_named(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        SparseDictionary.load(saved)  # type: ignore[call-arg]
    nameless = SparseAutoencoder(make("sae").config.model_copy(update={"model": None}))
    with pytest.raises(DictionaryError, match="names no model"):
        nameless.save(tmp_path / "x")
    with pytest.raises(ModelMismatch):
        nameless.check_model(FINGERPRINT)


def test_a_class_loads_its_own_kinds_only(saved: Path) -> None:
    assert isinstance(SparseAutoencoder.load(saved, model=FINGERPRINT), SparseAutoencoder)
    with pytest.raises(DictionaryError, match="holds no Transcoder"):
        Transcoder.load(saved, model=FINGERPRINT)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"W_enc": torch.zeros(24, 7)}, r"W_enc.*\n.*\(24, 7\)"),
        ({"W_enc": torch.zeros(24, 6, dtype=torch.float16)}, "float16"),
        ({"b_enc": None}, r"missing \['b_enc'\]"),
        ({"W_skip": torch.zeros(6, 6)}, r"unknown \['W_skip'\]"),
        ({"b_dec": torch.full((6,), torch.nan)}, "b_dec has values that are not finite"),
        ({"W_dec": torch.full((24, 6), torch.inf)}, "W_dec has values that are not finite"),
    ],
)
def test_wrong_weights_are_refused(saved: Path, tensors: dict[str, torch.Tensor | None], message: str) -> None:
    change_weights(saved, **tensors)
    with pytest.raises(DictionaryError, match=message):
        SparseDictionary.load(saved, model=FINGERPRINT)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"format": "interp/dictionary/v9"}, "v9"),
        ({"format": None}, "another format"),
        ({"n_latents": 0}, "n_latents"),
        ({"colour": "red"}, "colour"),
        ({"kind": "crosscoder"}, "kind"),
        ({"activation": {"type": "topk"}}, "activation"),
    ],
)
def test_wrong_configs_are_refused(saved: Path, values: dict[str, object], message: str) -> None:
    change_config(saved, **values)
    with pytest.raises(DictionaryError, match=message):
        SparseDictionary.load(saved, model=FINGERPRINT)


def test_incomplete_folders_are_refused(saved: Path, tmp_path: Path) -> None:
    weights, config = saved / "weights.safetensors", saved / "config.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    with pytest.raises(DictionaryError, match="not readable safetensors"):
        SparseDictionary.load(saved, model=FINGERPRINT)
    weights.unlink()
    with pytest.raises(DictionaryError, match="no weights"):
        SparseDictionary.load(saved, model=FINGERPRINT)
    weights.write_bytes(whole)
    config.write_text("{")
    with pytest.raises(DictionaryError, match="not JSON"):
        SparseDictionary.load(saved, model=FINGERPRINT)
    config.unlink()
    with pytest.raises(DictionaryError, match="no config"):
        SparseDictionary.load(saved, model=FINGERPRINT)
    weights.unlink()
    with pytest.raises(DictionaryError, match="no dictionary in this folder"):
        load_dictionaries(tmp_path, model=FINGERPRINT)


@pytest.mark.parametrize("gone", ["weights.safetensors", "config.json"])
def test_half_a_dictionary_makes_no_smaller_set(gone: str, tmp_path: Path) -> None:
    for layer in range(3):
        make("transcoder", "topk").save(tmp_path / f"layers.{layer}.mlp")
    (tmp_path / "layers.1.mlp" / gone).unlink()
    with pytest.raises(DictionaryError, match=r"layers\.1\.mlp") as caught:
        load_dictionaries(tmp_path, model=FINGERPRINT)
    assert gone in str(caught.value)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "llama"}')  # another program's: none of ours
    shutil.rmtree(tmp_path / "layers.1.mlp")
    assert list(load_dictionaries(tmp_path, model=FINGERPRINT)) == ["layers.0.mlp", "layers.2.mlp"]


def test_what_is_loaded_is_nobody_else_s_memory(saved: Path) -> None:
    """Loaded weights are those of the file then, also when the file is written over in its place."""
    loaded = SparseDictionary.load(saved, model=FINGERPRINT)
    before = {name: tensor.clone() for name, tensor in loaded.state_dict().items()}
    path = saved / "weights.safetensors"
    with path.open("r+b") as file:
        file.seek(-64, 2)
        file.write(b"\1" * 64)
    assert all(torch.equal(tensor, before[name]) for name, tensor in loaded.state_dict().items())
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_an_interrupted_save_leaves_nothing_that_loads(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("interp.dictionaries.storage.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        make("sae", "batchtopk", dtype="float32", seed=2).save(saved)
    with pytest.raises(DictionaryError, match="no config"):
        SparseDictionary.load(saved, model=FINGERPRINT)


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    dictionary = make("sae")
    with torch.no_grad():
        dictionary.W_enc[0, 0] = torch.nan
    with pytest.raises(DictionaryError, match="not finite"):
        dictionary.save(tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_folder_of_many_is_read_in_the_order_of_layers(tmp_path: Path) -> None:
    for name in ("layers.10.mlp", "layers.2.mlp", "layers.0.mlp"):
        make("transcoder", "topk").save(tmp_path / "fit" / "mlp" / name)
    make("sae").save(tmp_path / "fit" / "resid" / "layers.0.resid_post")
    names = ["layers.0.mlp", "layers.2.mlp", "layers.10.mlp"]
    assert list(load_dictionaries(tmp_path / "fit" / "mlp", model=FINGERPRINT)) == names
    everything = load_dictionaries(tmp_path / "fit", model=FINGERPRINT)
    assert list(everything) == [f"mlp/{name}" for name in names] + ["resid/layers.0.resid_post"]
    with pytest.raises(ModelMismatch):
        load_dictionaries(tmp_path / "fit", model="fff")


def test_a_kind_has_one_class() -> None:
    assert set(DICTIONARIES) == {"sae", "transcoder", "skip-transcoder", "cross-layer-transcoder"}
    assert DICTIONARIES["sae"] is SparseAutoencoder
    with pytest.raises(TypeError, match="transcoder is the kind of Transcoder and of Another"):

        class Another(SparseDictionary, registered=True):
            kinds = ("transcoder",)

    assert DICTIONARIES["transcoder"] is Transcoder
