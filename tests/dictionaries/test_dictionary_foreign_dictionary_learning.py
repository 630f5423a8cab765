"""dictionary_learning: every class of dictionary, where it stands, and a pickle that is more than tensors."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign_cases import D, F, claim, inputs, same
from peer_cases import DL_SHAPES, K, dl_output, made, output, write_dl

from interp.dictionaries.foreign import read_dictionaries, recognise, writable
from interp.errors import DictionaryError

EXPECTED = {
    "AutoEncoder": "relu",
    "AutoEncoderNew": "relu",
    "AutoEncoderTopK": "topk",
    "BatchTopKSAE": "batchtopk",
    "MatryoshkaBatchTopKSAE": "batchtopk",
    "JumpReluAutoEncoder": "jumprelu",
    "GatedAutoEncoder": "gated",
}


def only(folder: Path, name: str = "llama") -> Any:
    (found,) = read_dictionaries(folder, claim(name)).values()
    return found


@pytest.mark.parametrize("name", EXPECTED)
def test_each_class_computes_what_it_does_there(name: str, tmp_path: Path) -> None:
    tensors, x = made(**DL_SHAPES[name]), inputs()
    write_dl(tmp_path / "trainer_0", name, tensors)
    assert recognise(tmp_path) == "dictionary-learning"
    found = only(tmp_path)
    assert (found.config.at, found.config.activation.type) == ("layers.1.resid_post", EXPECTED[name])
    assert getattr(found.config.activation, "k", K) == K
    expected = dl_output(name, tensors, x)
    assert expected.std(0).min() > 0.05  # latents are active
    same(output(found), expected, 1e-5)
    assert found.config.matryoshka == ((0.25, 1.0) if "Matryoshka" in name else ())
    assert "dictionary-learning" not in writable()


@pytest.mark.parametrize("name", ["BatchTopKSAE", "JumpReluAutoEncoder", "MatryoshkaBatchTopKSAE"])
def test_thresholds_below_0_are_0(name: str, tmp_path: Path) -> None:
    """-1 says that training has not come to a threshold: then a ReLU is all that there is."""
    tensors, x = made(**DL_SHAPES[name]), inputs()
    tensors["threshold"] = np.full_like(tensors["threshold"], -1.0)
    found = only(write_dl(tmp_path / "trainer_0", name, tensors))
    same(output(found), dl_output(name, tensors, x), 1e-5)
    assert float(found.activation.threshold.detach().min()) == 0


@pytest.mark.parametrize(
    ("said", "model", "at"),
    [
        ({"submodule_name": "resid_post_layer_2", "layer": 2}, "llama", "layers.2.resid_post"),
        ({"submodule_name": "resid_out_layer2", "layer": 2}, "llama", "layers.2.resid_post"),
        ({"submodule_name": "mlp_out"}, "llama", "layers.1.mlp_out"),
        ({"submodule_name": "attn_out_layer_0", "layer": 0}, "gemma2", "attn"),
        ({"submodule_name": "resid_pre"}, "llama", "layers.1.resid_pre"),
        ({"submodule_name": "model.layers.2.mlp"}, "llama", "layers.2.mlp_out"),
        ({"submodule_name": "layers.2.mlp", "buffer": {"io": "in"}}, "llama", "layers.2.mlp_in"),
        ({"submodule_name": "transformer.h.0", "buffer": {}}, "gpt2", "layers.0.resid_post"),
    ],
)
def test_where_it_stands(said: dict[str, Any], model: str, at: str, tmp_path: Path) -> None:
    folder = write_dl(tmp_path / "trainer_0", "AutoEncoder", **said)
    if at == "attn":
        with pytest.raises(DictionaryError, match="a norm stands behind this module"):
            only(folder, model)
        return
    assert only(folder, model).config.at == at


@pytest.mark.parametrize(
    ("name", "said", "told"),
    [
        ("AutoEncoder", {"submodule_name": None}, "older releases do not say"),
        ("AutoEncoder", {"submodule_name": "somewhere"}, "whose output is no hook point"),
        ("AutoEncoder", {"submodule_name": "layers.9"}, "submodule_name is not as it should be"),
        ("AutoEncoder", {"layer": 2}, "layer is not as it should be"),
        ("AutoEncoder", {"submodule_name": "resid_post", "layer": 9}, "0 to 2, the layers of org/tiny"),
        ("AutoEncoder", {"submodule_name": "resid_post", "layer": None}, "the layer's number"),
        ("AutoEncoder", {"buffer": {"io": "in_and_out"}}, "transcoders of dictionary_learning are not read"),
        ("AutoEncoder", {"dict_class": "IdentityDict"}, "nothing that computes the same"),
        ("AutoEncoder", {"dict_class": None}, "a text"),
        ("AutoEncoder", {"dict_class": "AutoEncoderTopK"}, "missing b_dec"),
        ("AutoEncoder", {"dict_size": F + 1}, f"{F}, as the weights have"),
        ("AutoEncoderTopK", {"k": K + 1}, "do not go together"),
        ("AutoEncoderTopK", {"k": 0}, "at least 1"),
    ],
)
def test_what_is_refused(name: str, said: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(DictionaryError, match=told) as caught:
        only(write_dl(tmp_path / "trainer_0", name, **said))
    assert "trainer_0" in str(caught.value)


def test_topk_without_k(tmp_path: Path) -> None:
    folder = write_dl(tmp_path / "trainer_0", "AutoEncoderTopK", k=None)
    assert only(folder).config.activation.k == K  # the weights have it
    state = torch.load(folder / "ae.pt", weights_only=True)
    torch.save({key: value for key, value in state.items() if key != "k"}, folder / "ae.pt")
    with pytest.raises(DictionaryError, match="without k the activations are unknown"):
        only(folder)
    torch.save({**state, "k": torch.tensor(F + 1)}, folder / "ae.pt")
    with pytest.raises(DictionaryError, match="do not go together"):
        only(folder)


class _Mischief:
    def __init__(self, witness: str):
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.witness,)


def test_a_pickle_that_is_more_than_tensors_is_refused(tmp_path: Path) -> None:
    folder, witness = write_dl(tmp_path / "trainer_0", "AutoEncoder"), tmp_path / "ran"
    torch.save({"encoder.weight": _Mischief(str(witness))}, folder / "ae.pt")
    with pytest.raises(DictionaryError, match="never unpickled"):
        only(folder)
    assert not witness.exists()
    torch.save([torch.zeros(2)], folder / "ae.pt")
    with pytest.raises(DictionaryError, match="no state of tensors"):
        only(folder)


def test_files_that_are_not_whole(tmp_path: Path) -> None:
    folder = write_dl(tmp_path / "trainer_0", "BatchTopKSAE")
    weights = folder / "ae.pt"
    whole = weights.read_bytes()
    for cut in (0, 10, len(whole) // 2):
        weights.write_bytes(whole[:cut])
        with pytest.raises(DictionaryError, match=r"not readable: .*ae\.pt"):
            only(folder)
    tensors = made(**DL_SHAPES["BatchTopKSAE"])
    write_dl(folder, "BatchTopKSAE", {**tensors, "decoder.weight": tensors["encoder.weight"]})
    with pytest.raises(DictionaryError, match=r"tensor decoder.weight has another shape"):
        only(folder)
    write_dl(folder, "BatchTopKSAE", {**tensors, "b_dec": np.full(D, np.nan, np.float32)})
    with pytest.raises(DictionaryError, match="not finite"):
        only(folder)
    weights.write_bytes(whole)
    (folder / "config.json").unlink()
    with pytest.raises(DictionaryError, match=r"dictionary_learning writes config\.json"):
        only(folder)


def test_groups_that_do_not_add_up(tmp_path: Path) -> None:
    folder = write_dl(tmp_path / "trainer_0", "MatryoshkaBatchTopKSAE")
    state = torch.load(folder / "ae.pt", weights_only=True)
    torch.save({**state, "group_sizes": torch.tensor([3, 4])}, folder / "ae.pt")
    with pytest.raises(DictionaryError, match="group_sizes do not add up"):
        only(folder)


def test_several_trainers_at_one_place(tmp_path: Path) -> None:
    for i in range(2):
        write_dl(tmp_path / f"trainer_{i}", "AutoEncoder")
    with pytest.raises(DictionaryError, match="name the folder of one trainer"):
        read_dictionaries(tmp_path, claim())
    assert json.loads((tmp_path / "trainer_0" / "config.json").read_text())["trainer"]["layer"] == 1
