"""Gradients of every loss against plain dense autograd in float64, and the published estimates of the thresholds."""

from __future__ import annotations

import pytest
import torch
from dictionary_cases import EVERY, data, make
from torch import Tensor
from torch.autograd import gradcheck

from interp.dictionaries import SparseDictionary, decoder_norm, kernels
from interp.dictionaries.activations import _JumpReLU, _Step
from interp.dictionaries.kernels import Pattern
from interp.dictionaries.losses import LossScales, aux_k, losses

VARIANCE = 3.7


def dense_loss(dictionary: SparseDictionary, x: Tensor, y: Tensor) -> Tensor:
    """The loss as its papers write it, with nothing of the package's but the parameters."""
    W_enc, b_enc, W_dec, b_dec = dictionary.W_enc, dictionary.b_enc, dictionary.W_dec, dictionary.b_dec
    spec, kind = dictionary.config.activation, dictionary.config.kind
    projection = (x - b_dec if kind == "sae" else x) @ W_enc.T
    pre, norms = projection + b_enc, W_dec.norm(dim=1)
    offset, frozen_offset = b_dec, b_dec.detach()
    if dictionary.W_skip is not None:
        offset = b_dec + x @ dictionary.W_skip.T
        frozen_offset = offset.detach()
    penalty = torch.zeros((), dtype=x.dtype)
    if spec.type == "topk":
        chosen = torch.zeros_like(pre).scatter(1, pre.topk(spec.k, dim=1).indices, 1.0)
        activations = pre.relu() * chosen
    elif spec.type == "batchtopk":
        chosen = torch.zeros(pre.numel(), dtype=x.dtype)
        chosen[pre.flatten().topk(spec.k * len(x)).indices] = 1.0
        activations = pre.relu() * chosen.view_as(pre)
    elif spec.type == "relu":
        activations = pre.relu()
        penalty = spec.l1 * (activations * norms).sum() / VARIANCE
    elif spec.type == "gated":
        gate = pre.relu()
        extra = dictionary.activation
        activations = (extra.r_mag.exp() * projection + extra.b_mag).relu() * (pre > 0)
        frozen = gate @ W_dec.detach() + frozen_offset
        penalty = (spec.l1 * (gate * norms).sum() + (y - frozen).square().sum()) / VARIANCE
    else:
        raise AssertionError(spec)
    return (y - activations @ W_dec - offset).square().sum() / VARIANCE + penalty


@pytest.mark.parametrize(("kind", "activation"), [case for case in EVERY if case[1] != "jumprelu"])
def test_the_loss_and_its_gradients_are_those_of_dense_autograd(kind: str, activation: str) -> None:
    dictionary, x = make(kind, activation), data(12)
    with torch.no_grad():
        dictionary.b_enc.sub_(0.4)  # so that some of the k largest pre-activations are negative
    y = x if kind == "sae" else data(12, 5, seed=8)
    parameters = dict(dictionary.named_parameters())
    expected = dense_loss(dictionary, x, y)
    wanted = dict(zip(parameters, torch.autograd.grad(expected, parameters.values()), strict=True))
    found = losses(dictionary, x, y, LossScales(VARIANCE))
    found.total.backward()
    torch.testing.assert_close(found.total, expected)
    for name, parameter in parameters.items():
        assert wanted[name].abs().max() > 0, f"{name} is not tested"
        torch.testing.assert_close(parameter.grad, wanted[name], msg=name)


def test_a_negative_one_of_the_k_largest_gets_no_gradient() -> None:
    dictionary, x = make("transcoder", "topk"), data(12)
    with torch.no_grad():
        dictionary.b_enc.fill_(-100.0)
    losses(dictionary, x, data(12, 5), LossScales(VARIANCE)).total.backward()
    assert dictionary.W_enc.grad is not None
    assert dictionary.W_enc.grad.abs().max() == 0
    assert dictionary.b_enc.grad.abs().max() == 0


@pytest.mark.parametrize("kind", ["sae", "transcoder", "skip-transcoder"])
def test_jumprelu_gradients_are_those_of_the_paper(kind: str) -> None:
    """Equations 11 to 13 of arXiv:2407.14435 with the rectangle kernel, written out per entry."""
    dictionary, x = make(kind, "jumprelu"), data(60)
    y = x if kind == "sae" else data(60, 5, seed=8)
    spec, activation = dictionary.config.activation, dictionary.activation
    losses(dictionary, x, y, LossScales(VARIANCE)).total.backward()
    pre, theta, width = dictionary.pre_activations(x).detach(), activation.threshold.detach(), spec.bandwidth
    error = y - dictionary(x).detach()
    d_activation = -2 / VARIANCE * error @ dictionary.W_dec.detach().T
    kernel = (((pre - theta) / width).abs() < 0.5).double()
    assert kernel.sum() > 10
    d_theta = (d_activation * -(theta / width) * kernel + spec.l0 * -(1 / width) * kernel).sum(0)
    torch.testing.assert_close(activation.threshold.grad, d_theta)
    d_pre = d_activation * (pre > theta)
    centred = x - dictionary.b_dec.detach() if kind == "sae" else x
    torch.testing.assert_close(dictionary.W_enc.grad, d_pre.T @ centred)
    torch.testing.assert_close(dictionary.b_enc.grad, d_pre.sum(0))


def test_the_straight_through_functions_return_what_they_approximate() -> None:
    pre, theta = torch.tensor([[0.1, 0.5], [0.3, -1.0]]), torch.tensor([0.2, 0.2])
    assert torch.equal(_JumpReLU.apply(pre, theta, 0.1), torch.tensor([[0.0, 0.5], [0.3, 0.0]]))
    assert torch.equal(_Step.apply(pre, theta, 0.1), torch.tensor([[0.0, 1.0], [1.0, 0.0]]))


def test_gated_reconstruction_does_not_move_the_gate() -> None:
    dictionary, x = make("transcoder", "gated"), data(30)
    dictionary.activation.penalty = lambda codes, inputs: None
    dictionary.activation.gate = lambda codes: None  # reconstruction alone
    losses(dictionary, x, data(30, 5), LossScales(VARIANCE)).total.backward()
    torch.testing.assert_close(dictionary.b_enc.grad, torch.zeros(24, dtype=x.dtype), atol=1e-14, rtol=0)
    assert dictionary.activation.b_mag.grad.abs().max() > 0


# --- kernels


def ragged() -> Pattern:
    """Five tokens with 3, 0, 2, 1 and 4 active latents of 7; latent 6 is never active."""
    flat = torch.tensor([0, 2, 5, 2 * 7 + 1, 2 * 7 + 4, 3 * 7 + 2, 4 * 7, 4 * 7 + 1, 4 * 7 + 2, 4 * 7 + 5])
    return Pattern.of_flat(flat, 5, 7)


@pytest.mark.parametrize("pattern", [ragged(), Pattern.of_indices(torch.tensor([[1, 4], [6, 0], [4, 2]]), 7)])
def test_sparse_products_pass_gradcheck(pattern: Pattern) -> None:
    torch.manual_seed(0)
    n, active = pattern.batch, len(pattern.latents)
    x = torch.randn(n, 3, dtype=torch.float64, requires_grad=True)
    W = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    b = torch.randn(7, dtype=torch.float64, requires_grad=True)
    values = torch.randn(active, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda v, w: kernels.decode(v, pattern, w), (values, W))
    dense = torch.zeros(n, 7, dtype=torch.float64).index_put((pattern.tokens, pattern.latents), values)
    torch.testing.assert_close(kernels.decode(values, pattern, W), dense @ W)

    def entries(x: Tensor, W: Tensor, b: Tensor) -> Tensor:
        pre = x @ W.T + b
        return kernels.encode(x, W, b, pre[pattern.tokens, pattern.latents].detach(), pattern)

    def reference(x: Tensor, W: Tensor, b: Tensor) -> Tensor:
        return (x @ W.T + b)[pattern.tokens, pattern.latents]

    direction = torch.randn(active, dtype=torch.float64)
    found = torch.autograd.grad((entries(x, W, b) * direction).sum(), (x, W, b))
    wanted = torch.autograd.grad((reference(x, W, b) * direction).sum(), (x, W, b))
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_batch_without_active_latents_decodes_to_zero() -> None:
    pattern = Pattern.of_flat(torch.zeros(0, dtype=torch.int64), 3, 7)
    W = torch.randn(7, 2, requires_grad=True)
    out = kernels.decode(torch.zeros(0, requires_grad=True), pattern, W)
    out.sum().backward()
    assert torch.equal(out, torch.zeros(3, 2))
    assert torch.equal(W.grad, torch.zeros(7, 2))


# --- AuxK


@pytest.mark.parametrize("kind", ["sae", "transcoder", "skip-transcoder"])
@pytest.mark.parametrize("n_dead", [2, 9])
def test_aux_k_reaches_the_encoder_of_dead_latents_and_of_no_others(kind: str, n_dead: int) -> None:
    dictionary, x = make(kind, "topk"), data(400)
    dead = torch.arange(3, 3 + n_dead)
    error = data(400, dictionary.config.d_out, seed=9)
    aux_k(dictionary, x, error, dead).backward()
    alive = [latent for latent in range(24) if latent not in dead.tolist()]
    for gradient in (dictionary.W_enc.grad, dictionary.W_dec.grad, dictionary.b_enc.grad):
        assert (gradient[dead].reshape(n_dead, -1).abs().amax(1) > 0).all()
        assert gradient[alive].abs().max() == 0


@pytest.mark.parametrize("n_dead", [2, 9])
def test_aux_k_is_the_error_left_by_the_top_dead_latents(n_dead: int) -> None:
    dictionary, x = make("transcoder", "topk"), data(40)
    dead, error = torch.arange(3, 3 + n_dead), data(40, 5, seed=9)
    pre = dictionary.pre_activations(x)[:, dead]
    k_aux = min(5 // 2, n_dead)
    kept = torch.zeros_like(pre).scatter(1, pre.topk(k_aux, dim=1).indices, 1.0)
    expected = (error - (pre.relu() * kept) @ dictionary.W_dec[dead]).square().sum()
    torch.testing.assert_close(aux_k(dictionary, x, error, dead), expected)
    parameters = (dictionary.W_enc, dictionary.b_enc, dictionary.W_dec)
    wanted = torch.autograd.grad(expected, parameters)
    found = torch.autograd.grad(aux_k(dictionary, x, error, dead), parameters)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_aux_k_is_off_without_dead_latents_and_normalised_by_the_last_error() -> None:
    dictionary, x = make("sae", "topk"), data(12)
    assert losses(dictionary, x, x, LossScales(VARIANCE, aux=1.0)).aux == 0
    dead = torch.tensor([1, 2])
    once = losses(dictionary, x, x, LossScales(VARIANCE, 2.0, aux=1.0, dead=dead))
    twice = losses(dictionary, x, x, LossScales(VARIANCE, 1.0, aux=1.0, dead=dead))
    torch.testing.assert_close(2 * once.aux, twice.aux)
    torch.testing.assert_close(once.total, once.squared_error / VARIANCE + once.aux)


# --- decoder norm


def test_a_projected_gradient_is_orthogonal_to_the_rows_and_loses_nothing_else() -> None:
    rows, gradient = data(10, 6), data(10, 6, seed=2)
    decoder_norm.normalise_(rows)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(10, dtype=torch.float64))
    projected = gradient.clone()
    decoder_norm.project_out_(projected, rows)
    torch.testing.assert_close((projected * rows).sum(1), torch.zeros(10, dtype=torch.float64), atol=1e-14, rtol=0)
    removed = gradient - projected
    torch.testing.assert_close(removed, (removed * rows).sum(1, keepdim=True) * rows)
