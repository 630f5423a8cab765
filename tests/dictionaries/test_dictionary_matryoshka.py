"""Nested dictionaries: every prefix reconstructs the target, at the cost of one reconstruction."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from dictionary_cases import MODEL, data, make
from pydantic import ValidationError
from torch import Tensor

from interp.dictionaries import SparseDictionary, build_dictionary, kernels, load_dictionaries
from interp.dictionaries.losses import LossScales, losses
from interp.dictionaries.matryoshka import split

VARIANCE = 3.7
SHARES = (0.25, 0.5, 1.0)
KINDS = ("sae", "transcoder", "skip-transcoder")


def nested(kind: str, activation: str, shares: tuple[float, ...] = SHARES) -> tuple[SparseDictionary, SparseDictionary]:
    """A nested dictionary, and a plain one of the same weights."""
    plain = make(kind, activation)
    with torch.no_grad():
        plain.b_enc.sub_(0.9)  # so that some of the k largest pre-activations are negative
    made = build_dictionary(plain.config.model_copy(update={"matryoshka": shares}))
    made.load_state_dict(plain.state_dict())
    return made, plain


def target_of(kind: str, x: Tensor) -> Tensor:
    return x if kind == "sae" else data(len(x), 5, seed=8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", ["topk", "batchtopk"])
def test_the_loss_is_the_mean_of_the_prefixes_with_the_gradients_of_dense_autograd(kind: str, activation: str) -> None:
    dictionary, _ = nested(kind, activation)
    x = data(12)
    y = target_of(kind, x)
    projection = (x - dictionary.b_dec if kind == "sae" else x) @ dictionary.W_enc.T
    pre = projection + dictionary.b_enc
    chosen = torch.zeros_like(pre)
    if activation == "topk":
        chosen.scatter_(1, pre.topk(4, dim=1).indices, 1.0)
    else:
        chosen.view(-1)[pre.flatten().topk(4 * 12).indices] = 1.0
    activations = pre.relu() * chosen
    assert ((chosen > 0) & (pre < 0)).any(), "the ReLU must matter"
    affine = dictionary.b_dec + (0 if dictionary.W_skip is None else x @ dictionary.W_skip.T)
    prefixes = [y - activations[:, :n] @ dictionary.W_dec[:n] - affine for n in (6, 12, 24)]
    expected = torch.stack([error.square().sum() for error in prefixes]).mean() / VARIANCE
    parameters = dict(dictionary.named_parameters())
    wanted = dict(zip(parameters, torch.autograd.grad(expected, parameters.values()), strict=True))
    found = losses(dictionary, x, y, LossScales(VARIANCE))
    found.total.backward()
    torch.testing.assert_close(found.total, expected)
    torch.testing.assert_close(found.squared_error, prefixes[-1].square().sum())
    for name, parameter in parameters.items():
        assert wanted[name].abs().max() > 0, f"{name} is not tested"
        torch.testing.assert_close(parameter.grad, wanted[name], msg=name)


@pytest.mark.parametrize("activation", ["topk", "batchtopk"])
def test_one_prefix_of_all_latents_is_no_nesting(activation: str) -> None:
    dictionary, plain = nested("skip-transcoder", activation, (1.0,))
    x = data(12)
    y = target_of("skip-transcoder", x)
    for one in (dictionary, plain):
        losses(one, x, y, LossScales(VARIANCE)).total.backward()
    for (name, ours), theirs in zip(dictionary.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=name)


def test_aux_k_predicts_what_all_latents_leave() -> None:
    dictionary, plain = nested("sae", "topk")
    x, dead = data(400), torch.arange(2, 9)
    scales = LossScales(VARIANCE, 2.0, aux=0.5, dead=dead)
    found, wanted = (losses(one, x, x, scales) for one in (dictionary, plain))
    torch.testing.assert_close(found.aux, wanted.aux)
    assert found.aux > 0
    found.total.backward()
    assert dictionary.W_enc.grad is not None
    assert (dictionary.W_enc.grad[dead].abs().amax(1) > 0).all()


def test_every_entry_is_in_one_group_of_its_own_token() -> None:
    dictionary, _ = nested("sae", "batchtopk")
    codes = dictionary.codes(data(12))
    dense = torch.zeros(12, 24, dtype=torch.float64)
    dense[codes.pattern.tokens.long(), codes.pattern.latents.long()] = codes.values.detach()
    parts = split(codes, (6, 6, 12))
    for part, expected in zip(parts, dense.split([6, 6, 12], dim=1), strict=True):
        identity = torch.eye(part.pattern.n_latents, dtype=torch.float64)
        torch.testing.assert_close(part.decode(identity), expected)
    assert sum(len(part.values) for part in parts) == len(codes.values)


def test_a_reconstruction_of_all_prefixes_takes_the_products_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each entry is decoded once, however many prefixes there are."""
    decoded = []
    decode = kernels.decode

    def counting(values: Tensor, *args: object) -> Tensor:
        decoded.append(len(values))
        return decode(values, *args)

    monkeypatch.setattr(kernels, "decode", counting)
    for shares in ((), SHARES):
        dictionary, _ = nested("sae", "topk", shares)
        decoded.clear()
        losses(dictionary, data(12), data(12), LossScales(VARIANCE))
        assert sum(decoded) == 12 * 4


def test_inference_is_that_of_the_plain_one() -> None:
    dictionary, plain = nested("skip-transcoder", "topk")
    x = data(30)
    assert torch.equal(dictionary.encode(x), plain.encode(x))
    assert torch.equal(dictionary(x), plain(x))


def test_the_prefixes_are_kept_with_the_weights(tmp_path: Path) -> None:
    dictionary, _ = nested("sae", "batchtopk")
    dictionary.save(tmp_path / "d")
    (found,) = load_dictionaries(tmp_path / "d", model=MODEL.fingerprint).values()
    assert found.config.matryoshka == SHARES
    assert found.config.group_sizes == (6, 6, 12)


@pytest.mark.parametrize("shares", [(0.5,), (0.5, 0.25, 1.0), (0.5, 0.51, 1.0), (0.01, 1.0), (0.0, 1.0)])
def test_prefixes_that_are_none_are_refused(shares: tuple[float, ...]) -> None:
    config = make("sae", "topk").config
    with pytest.raises(ValidationError, match="matryoshka"):
        type(config)(**{**config.model_dump(), "matryoshka": shares})
