"""The loss of cross-layer transcoders against dense autograd in float64, their AuxK, and their folding."""

from __future__ import annotations

import pytest
import torch
from dictionary_cases import ACTIVATIONS, data, make_cross_layer
from test_dictionary_cross_layer import inputs, per_layer
from torch import Tensor

from interp.dictionaries import CrossLayerTranscoder, fold_cross_layer
from interp.dictionaries.cross_layer_losses import CrossLayerScales, cross_layer_aux_k, cross_layer_losses
from interp.dictionaries.folding import Standardisation
from interp.dictionaries.losses import LossScales, aux_k, losses

VARIANCES = (3.7, 0.6, 11.0)
SCALES = CrossLayerScales(VARIANCES, VARIANCES)
EACH = pytest.mark.parametrize("activation", ACTIVATIONS)


def targets(clt: CrossLayerTranscoder, n: int = 12) -> list[Tensor]:
    return [data(n, place.d_out, seed=50 + j, dtype=clt.dtype) for j, place in enumerate(clt.config.places)]


def dense_loss(clt: CrossLayerTranscoder, xs: list[Tensor], ys: list[Tensor]) -> Tensor:
    """From the formulas, with nothing of the package's but the parameters."""
    spec, n = clt.config.activation, clt.n_places
    active, gates, penalty = [], [], torch.zeros((), dtype=xs[0].dtype)
    for i, x in enumerate(xs):
        projection = x @ clt.encoder(i).T
        pre = projection + clt.b_enc[i]
        norms = torch.cat([clt.decoder(i, j) for j in range(i, n)], dim=1).norm(dim=1)
        if spec.type == "topk":
            active.append(pre.relu() * torch.zeros_like(pre).scatter(1, pre.topk(spec.k, dim=1).indices, 1.0))
        elif spec.type == "batchtopk":
            chosen = torch.zeros(pre.numel(), dtype=x.dtype)
            chosen[pre.flatten().topk(spec.k * len(x)).indices] = 1.0
            active.append(pre.relu() * chosen.view_as(pre))
        elif spec.type == "relu":
            active.append(pre.relu())
            penalty = penalty + spec.l1 * (active[i] * norms).sum() / VARIANCES[i]
        else:
            assert spec.type == "gated"
            extra = clt.activation(i)
            active.append((extra.r_mag.exp() * projection + extra.b_mag).relu() * (pre > 0))
            gates.append(pre.relu())
            penalty = penalty + spec.l1 * (gates[i] * norms).sum() / VARIANCES[i]
    total = penalty
    for j, y in enumerate(ys):
        y_hat = sum(active[i] @ clt.decoder(i, j) for i in range(j + 1)) + clt.b_dec(j)
        total = total + (y - y_hat).square().sum() / VARIANCES[j]
        if gates:
            frozen = sum(gates[i] @ clt.decoder(i, j).detach() for i in range(j + 1)) + clt.b_dec(j).detach()
            total = total + (y - frozen).square().sum() / VARIANCES[j]
    return total / n


@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name != "jumprelu"])
def test_the_loss_and_its_gradients_are_those_of_dense_autograd(activation: str) -> None:
    clt = make_cross_layer(activation)
    with torch.no_grad():
        for bias in clt.b_enc:
            bias.sub_(0.4)  # so that some of the k largest pre-activations are negative
    xs, ys, parameters = inputs(clt, 12), targets(clt), dict(clt.named_parameters())
    expected = dense_loss(clt, xs, ys)
    wanted = dict(zip(parameters, torch.autograd.grad(expected, parameters.values()), strict=True))
    found = cross_layer_losses(clt, xs, ys, SCALES)
    found.total.backward()
    torch.testing.assert_close(found.total, expected)
    for name, parameter in parameters.items():
        assert wanted[name].abs().max() > 0, f"{name} is not tested"
        torch.testing.assert_close(parameter.grad, wanted[name], msg=name)


def test_jumprelu_gradients_are_those_of_the_paper() -> None:
    """Equations 11 to 13 of arXiv:2407.14435, where the gradient of an activation is summed over places."""
    clt = make_cross_layer("jumprelu")
    xs, ys, spec = inputs(clt, 60), targets(clt, 60), clt.config.activation
    cross_layer_losses(clt, xs, ys, SCALES).total.backward()
    errors = [y - y_hat.detach() for y, y_hat in zip(ys, clt(xs), strict=True)]
    for i, x in enumerate(xs):
        pre, theta = clt.pre_activations(i, x).detach(), clt.activation(i).threshold.detach()
        d_activation = sum(
            -2 / VARIANCES[j] / 3 * errors[j] @ clt.decoder(i, j).detach().T for j in range(i, clt.n_places)
        )
        kernel = (((pre - theta) / spec.bandwidth).abs() < 0.5).double()
        assert kernel.sum() > 10
        d_theta = (d_activation * -(theta / spec.bandwidth) * kernel - spec.l0 / spec.bandwidth / 3 * kernel).sum(0)
        torch.testing.assert_close(clt.activation(i).threshold.grad, d_theta)
        torch.testing.assert_close(clt.encoder(i).grad, (d_activation * (pre > theta)).T @ x)


@EACH
def test_without_cross_layer_decoders_the_loss_is_the_mean_of_transcoders(activation: str) -> None:
    clt = make_cross_layer(activation)
    with torch.no_grad():
        for i, j in ((0, 1), (0, 2), (1, 2)):
            clt.decoder(i, j).zero_()
    xs, ys = inputs(clt, 12), targets(clt)
    dead = [torch.tensor([1, 2, 5]), torch.tensor([], dtype=torch.int64), torch.tensor([0, 7])]
    found = cross_layer_losses(clt, xs, ys, CrossLayerScales(VARIANCES, (1.0, 2.0, 3.0), 0.5, 0.1, dead))
    parts = [
        losses(one, xs[i], ys[i], LossScales(VARIANCES[i], (1.0, 2.0, 3.0)[i], 0.5, 0.1, dead[i]))
        for i, one in enumerate(per_layer(clt))
    ]
    for name in ("total", "penalty", "aux"):
        torch.testing.assert_close(getattr(found, name), sum(getattr(part, name) for part in parts) / 3, msg=name)
    torch.testing.assert_close(found.squared_errors, torch.stack([part.squared_error for part in parts]))


def test_new_decoders_of_zero_have_finite_gradients() -> None:
    for activation in ACTIVATIONS:
        clt = CrossLayerTranscoder(make_cross_layer(activation).config)
        cross_layer_losses(clt, inputs(clt, 12), targets(clt), SCALES).total.backward()
        assert all(torch.isfinite(p.grad).all() for p in clt.parameters() if p.grad is not None)
        assert clt.decoder(0, 2).grad.abs().max() > 0


# --- AuxK


def test_dead_latents_predict_the_errors_of_the_places_that_they_write_to() -> None:
    clt = make_cross_layer("topk")
    xs, errors, variances = inputs(clt, 40), targets(clt, 40), (2.0, 5.0, 0.5)
    dead = [torch.arange(3, 12), torch.tensor([], dtype=torch.int64), torch.tensor([4])]
    expected, predicted = torch.zeros(()).double(), [0, 0, 0]
    for i in (0, 2):
        pre = clt.pre_activations(i, xs[i])[:, dead[i]]
        k_aux = min(clt.config.places[i].d_out // 2, len(dead[i]))
        kept = pre.relu() * torch.zeros_like(pre).scatter(1, pre.topk(k_aux, dim=1).indices, 1.0)
        for j in range(i, 3):
            predicted[j] = predicted[j] + kept @ clt.decoder(i, j)[dead[i]]
    for j in range(3):
        expected = expected + (errors[j] - predicted[j]).square().sum() / variances[j] / 3
    found = cross_layer_aux_k(clt, xs, errors, dead, variances)
    torch.testing.assert_close(found, expected)
    parameters = [clt.encoder(0), clt.b_enc[0], *clt.decoders(0), clt.decoder(2, 2)]
    wanted = torch.autograd.grad(expected, parameters)
    for parameter, ours, theirs in zip(parameters, torch.autograd.grad(found, parameters), wanted, strict=True):
        torch.testing.assert_close(ours, theirs)
        alive = torch.ones(len(parameter), dtype=torch.bool)
        alive[dead[2 if len(parameter) == 20 else 0]] = False
        assert ours[alive].abs().max() == 0 and ours[~alive].abs().max() > 0


def test_aux_k_of_one_place_is_a_transcoders() -> None:
    clt = make_cross_layer("topk")
    dead = [torch.tensor([], dtype=torch.int64)] * 2 + [torch.arange(9)]
    xs, errors = inputs(clt, 40), targets(clt, 40)
    found = cross_layer_aux_k(clt, xs, errors, dead, (1.0, 1.0, 1.0))
    last = aux_k(per_layer(clt)[2], xs[2], errors[2], dead[2])
    torch.testing.assert_close(3 * found, errors[0].square().sum() + errors[1].square().sum() + last)


# --- folding


@EACH
def test_folding_is_exact(activation: str) -> None:
    clt = make_cross_layer(activation)
    places = clt.config.places
    sources = [Standardisation(data(1, p.d_in, seed=20 + i)[0], 0.37 + i) for i, p in enumerate(places)]
    goals = [Standardisation(data(1, p.d_out, seed=30 + i)[0], 5.3 - 2 * i) for i, p in enumerate(places)]
    before = {name: tensor.clone() for name, tensor in clt.state_dict().items()}
    folded = fold_cross_layer(clt, sources, goals)
    assert all(torch.equal(before[name], tensor) for name, tensor in clt.state_dict().items())
    seen = inputs(clt, 50)
    raw = [x / source.scale + source.mean for x, source in zip(seen, sources, strict=True)]
    for j, (found, trained) in enumerate(zip(folded(raw), clt(seen), strict=True)):
        torch.testing.assert_close(found, trained / goals[j].scale + goals[j].mean)
        torch.testing.assert_close(folded.encode(j, raw[j]), clt.encode(j, seen[j]) / goals[j].scale)
        torch.testing.assert_close(folded.decoder(j, j), clt.decoder(j, j), msg="own rows keep their norm")
        W, b = folded.linear_encoder(j, torch.arange(places[j].n_latents))
        active = folded.encode(j, raw[j]) > 0
        torch.testing.assert_close(folded.encode(j, raw[j])[active], (raw[j] @ W.T + b)[active])
    assert [n.scale_out for n in folded.config.normalization] == [goal.scale for goal in goals]
