"""What other trainers of dictionaries were found to get wrong, each as a test of this one.

Here: an AuxK, or a loss of several prefixes, that leaves the encoder without a gradient; a resume that is a step off,
or a checkpoint that nothing reads; defaults that do not run; sparse activations that need a GPU; transcoders that load
but do not train. Elsewhere: the ReLU's mask in the sparse backward (`test_dictionary_gradients`, also
`test_a_negative_one_of_the_k_largest_gets_no_gradient`), workers that train different things (`test_training_step`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from training_cases import MODEL, plan_of, planted, run, target

from interp.dictionaries import SparseDictionary, build_dictionary
from interp.dictionaries.losses import LossScales, losses
from interp.spec.study import Study
from interp.training import FitPlan, InMemorySession, fit_loop, fit_plan
from interp.training.session import Activations

ACTS = planted(20_000)
KEPT = ("topk", "batchtopk")
SHARES = (0.25, 0.5, 1.0)
VARIANCE, ERROR, AUX = 3.7, 2.1, 0.5
DEAD = torch.arange(20, 30)


# --- encoders without a gradient


def dense_loss(dictionary: SparseDictionary, x: Tensor, ends: Sequence[int]) -> Tensor:
    """The loss of an SAE as the papers write it: prefixes, and AuxK by the dead latents' own top d / 2."""
    W_dec, b_dec = dictionary.W_dec, dictionary.b_dec
    pre = (x - b_dec) @ dictionary.W_enc.T + dictionary.b_enc
    k = dictionary.config.activation.k
    chosen = torch.zeros_like(pre)
    if dictionary.config.activation.type == "topk":
        chosen.scatter_(1, pre.topk(k, dim=1).indices, 1.0)
    else:
        chosen.view(-1)[pre.flatten().topk(k * len(x)).indices] = 1.0
    activations = pre.relu() * chosen
    errors = [x - b_dec - activations[:, :end] @ W_dec[:end] for end in ends]
    own = pre[:, DEAD]
    kept = torch.zeros_like(own).scatter(1, own.topk(x.shape[1] // 2, dim=1).indices, 1.0)
    left = errors[-1].detach() - (own.relu() * kept) @ W_dec[DEAD]
    main = torch.stack([error.square().sum() for error in errors]).mean() / VARIANCE
    return main + AUX * left.square().sum() / ERROR


@pytest.mark.parametrize("shares", [(), SHARES])
@pytest.mark.parametrize("activation", KEPT)
def test_aux_k_and_prefixes_give_the_encoder_its_gradient(activation: str, shares: tuple[float, ...]) -> None:
    """sparsify leaves it at exactly 0, of AuxK and of MultiTopK."""
    config = target("sae", {"type": activation, "k": 3}).config
    config = config.model_copy(update={"dtype": "float64", "matryoshka": shares})
    dictionary = build_dictionary(config, seed=1)
    with torch.no_grad():
        dictionary.W_dec.copy_(torch.randn(32, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64))
        dictionary.b_enc[DEAD] = -1.0
        dictionary.b_dec.fill_(0.3)
    x = torch.randn(300, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    fired = dictionary.codes(x).fired()
    assert fired[DEAD].sum() < fired.sum() / 10, "what reaches the dead latents must be AuxK's"
    parameters = dict(dictionary.named_parameters())
    expected = dense_loss(dictionary, x, (8, 16, 32) if shares else (32,))
    wanted = dict(zip(parameters, torch.autograd.grad(expected, parameters.values()), strict=True))
    found = losses(dictionary, x, x, LossScales(VARIANCE, ERROR, aux=AUX, dead=DEAD))
    found.total.backward()
    torch.testing.assert_close(found.total, expected)
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter.grad, wanted[name], msg=name)
    assert dictionary.W_enc.grad is not None
    assert (dictionary.W_enc.grad.abs().amax(1) > 0).all(), "of the dead and of the living"


# --- resumes and checkpoints


class Killed(Exception):
    """Stands for SIGKILL."""


class KilledSession(InMemorySession):
    """Dies when step `at` is about to begin, and remembers which step was its first."""

    at: int | None = None
    first: int | None = None

    def batches(self, start_step: int) -> Iterator[tuple[int, Sequence[Activations]]]:
        self.first = start_step
        for step, micros in super().batches(start_step):
            if step == self.at:
                raise Killed
            yield step, micros


@pytest.mark.parametrize("optimizer", ["adam", "signum"])
@pytest.mark.parametrize("at", [3, 5, 9])
def test_a_resume_is_the_uninterrupted_run_bit_for_bit(optimizer: str, at: int, tmp_path: Path) -> None:
    """sparsify's is off by a step; dictionary_learning's checkpoints are never read.

    AuxK is at work, and k is still on its way down at the first two resumes.
    """
    targets = [
        target("sae", {"type": "topk", "k": 3}, name="a"),
        target("skip-transcoder", {"type": "batchtopk", "k": 3}, name="b"),
        target("cross-layer-transcoder", {"type": "topk", "k": 3}, name="c"),
    ]
    nested = targets[0].config.model_copy(update={"matryoshka": SHARES})
    targets.append(targets[0].model_copy(update={"name": "d", "config": nested}))
    plan = plan_of(
        *targets, total=700, optimizer=optimizer, lr=0.01, k_warmup=0.6, dead_after=64, checkpoint_every=128, decay=0.2
    )
    whole = InMemorySession(plan, ACTS, tmp_path / "whole")
    assert fit_loop(whole, plan)
    assert any(metrics.dictionaries[one.key].aux > 0 for metrics in whole.reports for one in targets)
    resumed = KilledSession(plan, ACTS, tmp_path / "resumed")
    resumed.at = at
    with pytest.raises(Killed):
        fit_loop(resumed, plan)
    resumed.at = None
    assert fit_loop(resumed, plan)
    assert resumed.first == at - at % 2, "it goes on from the last checkpoint, one every two steps"
    files = [path.relative_to(whole.output) for path in whole.output.rglob("*.safetensors")]
    assert len(files) == len(targets)
    for file in files:
        ours, theirs = load_file(resumed.output / file), load_file(whole.output / file)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), file


def test_k_falls_in_training_alone(tmp_path: Path) -> None:
    one = target("sae", {"type": "topk", "k": 3})
    plan = plan_of(one, total=640, k_warmup=0.5)
    session = InMemorySession(plan, ACTS, tmp_path / "out")
    assert fit_loop(session, plan)
    l0 = [metrics.dictionaries[one.key].l0 for metrics in session.reports]
    trainer, _ = run(plan, ACTS, steps=1)
    dictionary = trainer.dictionaries.members[0].dictionary
    assert trainer.dictionaries.members[0].activation(0).k == 8, "training begins with as many as the input is wide"
    assert (dictionary.encode(torch.randn(50, 8)) > 0).sum(1).max() <= 3
    assert l0[0] > 2 * l0[-1]
    assert max(l0[5:]) <= 3


# --- defaults, transcoders, sparse activations on a CPU

HOOKS = ("layers.0.resid_post", "layers.0.mlp_in", "layers.0.mlp_out", "layers.1.mlp_in", "layers.1.mlp_out")


def plan_of_defaults(kind: str, activation: dict[str, Any]) -> FitPlan:
    """Only what a study must say."""
    study = Study.model_validate(
        {
            "apiVersion": "interp/v1",
            "kind": "Study",
            "metadata": {"name": "s"},
            "model": {"source": "builtin://tiny-split-llama"},
            "corpus": {"source": "builtin://python-stdlib", "context": 8, "tokens": 20_000},
            "dictionaries": [
                {
                    "name": "d",
                    "kind": kind,
                    "at": {"sae": HOOKS[0], "cross-layer-transcoder": "layers.*.mlp"}.get(kind, "layers.0.mlp"),
                    "activation": activation,
                    "latents": 32,
                }
            ],
            "fit": {"batch_tokens": 1024},
            "store": "memory://s",
        }
    )
    return fit_plan(study, hook_names=HOOKS, width=lambda hook: 8, model=MODEL)


@pytest.mark.parametrize("kind", ["sae", "transcoder", "skip-transcoder", "cross-layer-transcoder"])
@pytest.mark.parametrize("activation", ["topk", "batchtopk", "relu", "jumprelu", "gated"])
def test_defaults_train_every_activation_of_every_kind(activation: str, kind: str, tmp_path: Path) -> None:
    """SAELens' own configuration fails, its sparse activations fail without a GPU, and its transcoders cannot train."""
    given = {"type": activation, **({"k": 3} if activation in KEPT else {})}
    plan = plan_of_defaults(kind, given)
    session = InMemorySession(plan, ACTS, tmp_path / "out")
    assert fit_loop(session, plan)
    for one in plan.targets:
        fvu = [metrics.dictionaries[one.key].fvu for metrics in session.reports]
        assert fvu[-1] < fvu[0] / 1.5, fvu
    trainer, _ = run(plan, ACTS, steps=1)
    if activation in KEPT and kind != "cross-layer-transcoder":
        dictionary = trainer.dictionaries.members[0].dictionary
        assert dictionary.codes(torch.randn(20, 8)).pattern is not None
