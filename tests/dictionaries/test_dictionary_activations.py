"""What each kind of activation computes, and that it is affine wherever a latent is active."""

from __future__ import annotations

import pytest
import torch
from dictionary_cases import EVERY, KINDS, data, make

from interp.dictionaries import DictionaryConfig, SparseAutoencoder, Transcoder
from interp.errors import DictionaryError


@pytest.mark.parametrize(("kind", "activation"), EVERY)
def test_an_active_latent_is_its_linear_encoder(kind: str, activation: str) -> None:
    dictionary, x = make(kind, activation), data(50)
    W, b = dictionary.linear_encoder(torch.arange(24))
    activations, active = dictionary.encode(x), dictionary.active(x)
    assert 0 < active.sum() < active.numel()
    torch.testing.assert_close(activations[active], (x @ W.T + b)[active], rtol=1e-12, atol=1e-12)
    assert (activations[~active] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_linear_encoder_takes_any_latents_in_any_order(kind: str) -> None:
    dictionary = make(kind, "gated")
    W, b = dictionary.linear_encoder(torch.arange(24))
    chosen = torch.tensor([7, 3, 7])
    some_W, some_b = dictionary.linear_encoder(chosen)
    assert torch.equal(some_W, W[chosen])
    assert torch.equal(some_b, b[chosen])


@pytest.mark.parametrize(("kind", "activation"), EVERY)
def test_reconstruction_is_the_formula(kind: str, activation: str) -> None:
    dictionary, x = make(kind, activation), data(4 * 3).view(4, 3, 6)
    expected = dictionary.encode(x) @ dictionary.W_dec + dictionary.b_dec
    if dictionary.W_skip is not None:
        expected = expected + x @ dictionary.W_skip.T
    torch.testing.assert_close(dictionary(x), expected)


def test_an_sae_subtracts_its_decoder_bias_first() -> None:
    sae, x = make("sae", "relu"), data()
    torch.testing.assert_close(sae.encode(x), ((x - sae.b_dec) @ sae.W_enc.T + sae.b_enc).relu())


def test_topk_keeps_the_k_largest_and_no_negative_one() -> None:
    dictionary, x = make("transcoder", "topk"), data(30)
    with torch.no_grad():
        dictionary.b_enc.sub_(1.2)
    pre, found = dictionary.pre_activations(x), dictionary.encode(x)
    for token in range(30):
        best = pre[token].sort(descending=True).indices[:4]
        expected = torch.zeros(24, dtype=x.dtype)
        expected[best] = pre[token, best].relu()
        assert torch.equal(found[token], expected)
    assert (found > 0).sum(1).min() < 4, "the test must see a token with fewer than k positive pre-activations"


def test_sparse_encoding_is_the_dense_one() -> None:
    dictionary, x = make("sae", "topk"), data(8).view(2, 4, 6)
    values, indices = dictionary.encode_sparse(x)
    assert values.shape == indices.shape == (2, 4, 4)
    dense = torch.zeros(2, 4, 24, dtype=x.dtype).scatter(-1, indices, values)
    assert torch.equal(dense, dictionary.encode(x))


def test_sparse_encoding_is_for_topk_only() -> None:
    with pytest.raises(DictionaryError, match="topk"):
        make("sae", "relu").encode_sparse(data())


def test_batchtopk_keeps_k_times_n_of_a_batch_in_training() -> None:
    dictionary, x = make("sae", "batchtopk"), data(20)
    codes = dictionary.codes(x)
    pre = dictionary.pre_activations(x)
    threshold = pre.flatten().sort(descending=True).values[4 * 20 - 1]
    expected = (pre * (pre >= threshold)).relu()
    torch.testing.assert_close(codes.decode(dictionary.W_dec), expected @ dictionary.W_dec)
    assert torch.equal(codes.fired(), (expected > 0).sum(0))


def test_batchtopk_learns_the_threshold_of_the_smallest_kept_activation() -> None:
    dictionary, x = make("sae", "batchtopk"), data(20)
    activation = dictionary.activation
    codes = dictionary.codes(x)
    smallest = codes.values[codes.values > 0].min()
    seen = activation.observe(codes)
    activation.learn(seen, step=0)
    torch.testing.assert_close(activation.threshold, smallest.detach())
    activation.learn(2 * seen, step=1)
    torch.testing.assert_close(activation.threshold, smallest.detach(), msg="a sum of two counts as their mean")
    activation.learn(torch.zeros(2, dtype=torch.float64), step=2)
    torch.testing.assert_close(
        activation.threshold, smallest.detach(), msg="a step without activations changes nothing"
    )
    assert (dictionary.encode(x) > 0).sum() == (codes.values > 0).sum() - 1


def test_gate_and_magnitude_are_separate() -> None:
    dictionary, x = make("transcoder", "gated"), data(40)
    projection, activation = x @ dictionary.W_enc.T, dictionary.activation
    gate = projection + dictionary.b_enc > 0
    magnitude = (activation.r_mag.exp() * projection + activation.b_mag).relu()
    torch.testing.assert_close(dictionary.encode(x), magnitude * gate)
    assert (gate & (magnitude == 0)).any(), "the test must see an open gate without magnitude"
    assert (~gate & (magnitude > 0)).any(), "and a magnitude behind a closed gate"


def test_a_skip_path_needs_the_input() -> None:
    dictionary = make("skip-transcoder", "topk")
    with pytest.raises(DictionaryError, match="skip path"):
        dictionary.decode(dictionary.encode(data()))
    assert dictionary.skip
    assert not make("transcoder", "topk").skip


def test_configs_that_cannot_be_are_refused() -> None:
    config = make("sae").config
    with pytest.raises(DictionaryError, match="SparseAutoencoder"):
        SparseAutoencoder(make("transcoder").config)
    with pytest.raises(DictionaryError, match="Transcoder"):
        Transcoder(config)
    with pytest.raises(ValueError, match="more than the 3 latents"):
        DictionaryConfig.model_validate(config.model_dump() | {"n_latents": 3})
    with pytest.raises(ValueError, match="reconstructs what it reads"):
        DictionaryConfig.model_validate(config.model_dump() | {"hook_out": "layers.3.resid_post"})


def test_first_weights_depend_on_the_seed_alone() -> None:
    config = make("sae").config
    torch.manual_seed(0)
    first = SparseAutoencoder(config, seed=3)
    torch.manual_seed(1)
    assert torch.equal(first.W_enc, SparseAutoencoder(config, seed=3).W_enc)
    assert not torch.equal(first.W_enc, SparseAutoencoder(config, seed=4).W_enc)
    torch.testing.assert_close(first.W_enc.norm(dim=1), torch.ones(24, dtype=torch.float64))
    torch.testing.assert_close(first.W_dec, 0.1 * first.W_enc)
