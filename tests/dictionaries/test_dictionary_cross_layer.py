"""Cross-layer transcoders: what they compute, against dense sums in float64, and what they are on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from dictionary_cases import ACTIVATIONS, MODEL, data, make_cross_layer
from safetensors.torch import load_file, save_file
from torch import Tensor

from interp.dictionaries import (
    CrossLayerConfig,
    CrossLayerTranscoder,
    DictionaryConfig,
    SparseAutoencoder,
    Transcoder,
    build_dictionary,
    load_dictionaries,
)
from interp.dictionaries.dictionary import Dictionary
from interp.errors import DictionaryError, ModelMismatch
from interp.spec.dictionary import TopK

EACH = pytest.mark.parametrize("activation", ACTIVATIONS)


def inputs(clt: CrossLayerTranscoder, n: int = 40) -> list[Tensor]:
    return [data(n, place.d_in, seed=i, dtype=clt.dtype) for i, place in enumerate(clt.config.places)]


@EACH
def test_each_place_is_the_sum_of_what_it_and_earlier_ones_write(activation: str) -> None:
    clt = make_cross_layer(activation)
    xs = inputs(clt)
    active = [clt.encode(i, x) for i, x in enumerate(xs)]
    for j, found in enumerate(clt(xs)):
        expected = clt.b_dec(j) + sum(torch.einsum("tn,nd->td", active[i], clt.decoder(i, j)) for i in range(j + 1))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        assert not torch.allclose(found, clt.b_dec(j) + active[j] @ clt.decoder(j, j)) or j == 0


@pytest.mark.parametrize("shape", [(40,), (4, 10)])
@pytest.mark.parametrize("k", [1, 4])
@EACH
def test_sums_of_what_each_place_adds_are_the_reconstruction(activation: str, k: int, shape: tuple[int, ...]) -> None:
    """At k = 1 the products are sparse, at 4 dense."""
    clt = make_cross_layer(activation)
    for i in range(3 if activation == "topk" else 0):
        clt.activation(i).spec = TopK(type="topk", k=k)
    xs = [x.unflatten(0, shape) for x in inputs(clt)]
    expected = clt(xs)
    found = [torch.zeros_like(y) for y in expected]
    for i, x in enumerate(xs):
        for j, added in enumerate(clt.decode_from(i, clt.encode_at(i, x), x), start=i):
            found[j] = found[j] + added
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("activation", ["topk", "relu"])
def test_one_vector_is_a_batch_too(activation: str) -> None:
    clt = make_cross_layer(activation)
    x = inputs(clt)[0]
    together = clt.decode_from(0, clt.encode_at(0, x), x)
    alone = clt.decode_from(0, clt.encode_at(0, x[3]), x[3])
    assert [y.shape for y in alone] == [(5,), (6,), (4,)]
    for one, all_of_them in zip(alone, together, strict=True):
        torch.testing.assert_close(one, all_of_them[3])


def test_sums_over_places_are_not_rounded_at_each_of_them() -> None:
    """What many places add is small against what is there already, and half precision would drop it."""
    clt = make_cross_layer("relu", dtype="bfloat16")
    with torch.no_grad():
        for i in range(3):
            clt.decoder(i, 2).fill_(2.0**-5)
        clt.b_dec(2).fill_(1)
    ones = [torch.eye(1, place.n_latents, dtype=torch.bfloat16) * 0.11 for place in clt.config.places]
    exact = (1 + 3 * (torch.tensor(0.11).bfloat16() * 2.0**-5)).bfloat16()
    found = clt.decode(ones)[2]
    assert found.dtype == torch.bfloat16
    assert exact != 1 and torch.equal(found, exact.expand(1, 4))
    xs = [torch.zeros(1, place.d_in, dtype=torch.bfloat16) for place in clt.config.places]
    added = [clt.decode_from(i, a, x)[2 - i] for i, (a, x) in enumerate(zip(ones, xs, strict=True))]
    assert torch.equal(sum(added).bfloat16(), found)


@EACH
def test_an_active_latent_is_its_linear_encoder(activation: str) -> None:
    clt = make_cross_layer(activation)
    for i, x in enumerate(inputs(clt)):
        latents = torch.arange(clt.config.places[i].n_latents).flip(0)
        W, b = clt.linear_encoder(i, latents)
        found = clt.encode(i, x)[:, latents]
        assert 0 < (found > 0).sum() < found.numel()
        torch.testing.assert_close(found[found > 0], (x @ W.T + b)[found > 0])


def test_k_latents_are_kept_of_each_place() -> None:
    clt = make_cross_layer("topk")
    with torch.no_grad():
        clt.b_enc[0].add_(10)
    for i, x in enumerate(inputs(clt)):
        counts = (clt.encode(i, x) > 0).sum(1)
        assert (counts <= 4).all()
        assert (counts == 4).all() or i > 0
        assert counts.max() == 4


def per_layer(clt: CrossLayerTranscoder) -> list[Transcoder]:
    """The transcoders of the same weights, without what goes from one place to another."""
    found = []
    for i, place in enumerate(clt.config.places):
        fields = {**place.model_dump(), "activation": clt.config.activation, "dtype": clt.config.dtype, "model": MODEL}
        one = build_dictionary(DictionaryConfig(kind="transcoder", **fields))
        weights = {"W_enc": clt.encoder(i), "b_enc": clt.b_enc[i], "W_dec": clt.decoder(i, i), "b_dec": clt.b_dec(i)}
        weights |= {f"activation.{name}": value for name, value in clt.activation(i).state_dict().items()}
        one.load_state_dict(weights)
        assert isinstance(one, Transcoder)
        found.append(one)
    return found


@EACH
def test_without_cross_layer_decoders_it_is_a_transcoder_of_each_layer(activation: str) -> None:
    clt = make_cross_layer(activation)
    with torch.no_grad():
        for i in range(3):
            for j in range(i + 1, 3):
                clt.decoder(i, j).zero_()
    xs = inputs(clt)
    for i, (one, found) in enumerate(zip(per_layer(clt), clt(xs), strict=True)):
        torch.testing.assert_close(found, one(xs[i]))


def test_new_ones_have_random_unit_encoders_and_decoders_of_zero() -> None:
    config = make_cross_layer("topk").config
    torch.manual_seed(0)
    first = CrossLayerTranscoder(config, seed=3)
    torch.manual_seed(1)
    again, other = CrossLayerTranscoder(config, seed=3), CrossLayerTranscoder(config, seed=4)
    for i in range(3):
        assert torch.equal(first.encoder(i), again.encoder(i))
        assert not torch.equal(first.encoder(i), other.encoder(i))
        torch.testing.assert_close(first.encoder(i).norm(dim=1), torch.ones(len(first.encoder(i))).double())
        assert all(decoder.abs().max() == 0 for decoder in first.decoders(i))
    assert not torch.equal(first.encoder(0), first.encoder(1)), "places of one shape are not alike"


# --- on disk


@EACH
def test_what_is_saved_is_loaded(activation: str, tmp_path: Path) -> None:
    clt = make_cross_layer(activation, dtype="float32")
    clt.save(tmp_path / "cross-layer")
    loaded = CrossLayerTranscoder.load(tmp_path / "cross-layer", model="abc123")
    assert loaded.config == clt.config
    for ours, theirs in zip(loaded(inputs(clt)), clt(inputs(clt)), strict=True):
        assert torch.equal(ours, theirs)
    (found,) = load_dictionaries(tmp_path, model="abc123").items()
    assert found[0] == "cross-layer" and isinstance(found[1], CrossLayerTranscoder)


def test_no_other_weights_are_made_to_load_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may take half of the memory that there is."""
    clt = make_cross_layer("jumprelu")
    clt.save(tmp_path)
    made: list[str] = []

    def rows(n: int, d: int, generator: torch.Generator) -> Tensor:
        made.append(torch.empty(0).device.type)
        return torch.empty(n, d)

    monkeypatch.setattr("interp.dictionaries.cross_layer.unit_rows", rows)
    loaded = CrossLayerTranscoder.load(tmp_path, model="abc123")
    assert made == ["meta"] * 3
    assert all(torch.equal(tensor, clt.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_tensors_are_stored_under_the_names_of_the_field(tmp_path: Path) -> None:
    extra = {"batchtopk": {"threshold"}, "jumprelu": {"threshold"}, "gated": {"r_mag", "b_mag"}, "topk": set()}
    for activation, names in extra.items():
        make_cross_layer(activation).save(tmp_path / activation)
        expected = {f"{name}.{i}" for name in {"W_enc", "b_enc", "b_dec"} | names for i in range(3)}
        expected |= {f"W_dec.{i}.{j}" for i in range(3) for j in range(i, 3)}
        stored = load_file(tmp_path / activation / "weights.safetensors")
        assert set(stored) == expected
        assert stored["W_dec.0.2"].shape == (24, 4)


def test_it_belongs_to_its_model_and_class(tmp_path: Path) -> None:
    make_cross_layer("topk").save(tmp_path)
    with pytest.raises(ModelMismatch, match="cross-layer-transcoder at cross-layer was trained on another model"):
        Dictionary.load(tmp_path, model="fff")
    with pytest.raises(DictionaryError, match="holds no SparseAutoencoder"):
        SparseAutoencoder.load(tmp_path, model="abc123")
    with pytest.raises(DictionaryError, match="CrossLayerTranscoder cannot be of this kind"):
        CrossLayerTranscoder(per_layer(make_cross_layer("topk"))[0].config)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"W_enc.1": torch.zeros(24, 7).double()}, r"W_enc.1.*\n.*\(24, 7\)"),
        ({"W_dec.0.2": torch.zeros(24, 4)}, "W_dec.0.2.*\n.*float32"),
        ({"W_dec.1.2": None}, r"missing \['W_dec.1.2'\]"),
        ({"W_dec.2.1": torch.zeros(20, 6).double()}, r"unknown \['W_dec.2.1'\]"),
        ({"b_dec.1": torch.full((6,), torch.nan).double()}, "b_dec.1 has values that are not finite"),
    ],
)
def test_wrong_weights_are_refused(tmp_path: Path, tensors: dict[str, Tensor | None], message: str) -> None:
    make_cross_layer("topk").save(tmp_path)
    weights = load_file(tmp_path / "weights.safetensors") | tensors
    save_file({name: t for name, t in weights.items() if t is not None}, tmp_path / "weights.safetensors")
    with pytest.raises(DictionaryError, match=message):
        CrossLayerTranscoder.load(tmp_path, model="abc123")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(places=c["places"][::-1]), "not in execution order"),
        (lambda c: c.update(places=[]), "places"),
        (lambda c: c["places"][1].update(n_latents=3), "more than the 3 latents"),
        (lambda c: c["places"][1].update(hook_out="layers.1.mlp_in"), "another hook point than it reads"),
        (lambda c: c["places"][1].update(hook_in="layers.x.mlp_in"), "layers.x.mlp_in"),
        (lambda c: c.update(hook_in="layers.0.mlp_in"), "hook_in"),
        (lambda c: c.update(normalization=[{}]), "not one for each"),
        (lambda c: c.update(kind="crosscoder"), "kind"),
    ],
)
def test_wrong_configs_are_refused(tmp_path: Path, change: object, message: str) -> None:
    make_cross_layer("topk").save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    change(config)  # type: ignore[operator]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(DictionaryError, match=message):
        CrossLayerTranscoder.load(tmp_path, model="abc123")


def test_a_config_survives_json() -> None:
    config = make_cross_layer("gated").config
    assert CrossLayerConfig.model_validate_json(config.model_dump_json()) == config
    assert config.at == "cross-layer"
    assert [place.at for place in config.places] == [f"layers.{i}.mlp" for i in range(3)]
    assert config.widths == {
        "layers.0.mlp_in": 6,
        "layers.0.mlp_out": 5,
        "layers.1.mlp_in": 6,
        "layers.1.mlp_out": 6,
        "layers.2.mlp_in": 4,
        "layers.2.mlp_out": 4,
    }
