"""Interventions: hold features at other values and see what the model says.

    intervene(rm, ids, [Intervention("layers.3.mlp", 41, positions=5)])            ablates it there
    intervene(rm, ids, [Intervention(3, 41, "all", mode="scale", value=2.0)], attention="iterated")

An intervention sets an activation to 0 (ablate), to a value (set), or to so many times what it is on the unchanged
prompt (scale); the feature is held there whatever is done elsewhere. The rest of the model responds in one of two ways:

    frozen     attention patterns and norm denominators stay at their values on the prompt (`interp.circuits.replay`)
    iterated   they are computed anew, by the model itself (`interp.circuits.rerun`)

and MLPs by one of three (`interp.circuits.edits`): `replacement` (features respond, errors are constant), `frozen` (the
direct effect alone: an edge of the graph), or `model` (with attention iterated: what the underlying model does).
(The field's names: Ameisen et al. 2025, "Circuit Tracing"; Marks et al. 2024, arXiv:2403.19647.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from interp.circuits.edits import Edits, MlpResponse, Response
from interp.circuits.replacement_model import ReplacementModel
from interp.circuits.replay import Replay
from interp.circuits.rerun import Rerun
from interp.circuits.state import ReplacementState
from interp.errors import DictionaryError, PromptError, SpecError

AttentionResponse = Literal["frozen", "iterated"]
Mode = Literal["ablate", "set", "scale"]
Positions = int | Sequence[int] | slice | Literal["all"]

_VOCAB_AT_ONCE = 16384


@dataclass(frozen=True)
class Intervention:
    """What to do to one feature.

    Attributes:
        layer: its layer over the whole model, or its MLP, such as `layers.3.mlp`.
        positions: of the prompt's tokens, BOS included; negative ones count from the prompt's end. "all" and open
            slices go on through new tokens, and leave out positions where MLPs are held constant (BOS).
        value: of `set`, the activation; of `scale`, the factor.
    """

    layer: int | str
    latent: int
    positions: Positions = "all"
    mode: Mode = "ablate"
    value: float | None = None

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise SpecError("there is no such intervention", value=self.mode, expected=", ".join(get_args(Mode)))
        if self.mode == "ablate" and self.value is not None:
            raise SpecError("to ablate takes no value", value=self.value, remedy="use set or scale")
        if self.mode != "ablate" and (self.value is None or not isfinite(self.value)):
            raise SpecError(f"to {self.mode} a feature takes a number", value=self.value, expected="a finite number")

    @property
    def factor(self) -> float:
        """Of the activation on the unchanged prompt."""
        return float(self.value or 0.0) if self.mode == "scale" else 0.0

    @property
    def shift(self) -> float:
        """What is added to that."""
        return float(self.value or 0.0) if self.mode == "set" else 0.0


@dataclass(frozen=True)
class FeatureChange:
    """A feature at one position: its activation on the unchanged prompt, and the value at which it was held."""

    layer: int
    pos: int
    latent: int
    before: float
    after: float

    @property
    def unchanged(self) -> bool:
        """Whether the intervention left it what it was, as when a feature that is not active is ablated."""
        return self.before == self.after


@dataclass(frozen=True, eq=False)
class InterventionResult:
    """What the model says before and after.

    Attributes:
        positions: where logits were read.
        before, after: the head's raw output there, before a soft cap.
        features: every feature that was held, in the order of the interventions.
        softcap: c of c * tanh(logits / c), if the model has one.
    """

    positions: tuple[int, ...]
    before: Float[Tensor, "read d_vocab"]
    after: Float[Tensor, "read d_vocab"]
    features: tuple[FeatureChange, ...]
    softcap: float | None = None

    @property
    def unchanged(self) -> tuple[FeatureChange, ...]:
        """The interventions that changed nothing: above all, features ablated or scaled where they are not active."""
        return tuple(feature for feature in self.features if feature.unchanged)

    def probabilities(self) -> tuple[Float[Tensor, "read d_vocab"], Float[Tensor, "read d_vocab"]]:
        """What the model predicts, before and after."""
        before, after = (predicted(logits, self.softcap) for logits in (self.before, self.after))
        return before, after


@torch.no_grad()
def intervene(
    rm: ReplacementModel,
    prompt: ReplacementState | Int[Tensor, "pos"] | Sequence[int],
    interventions: Sequence[Intervention],
    *,
    attention: AttentionResponse = "frozen",
    mlps: MlpResponse | None = None,
    read: Sequence[int] | Literal["last", "all"] = "last",
) -> InterventionResult:
    """Logits of a prompt with these interventions, and without.

    Args:
        prompt: token ids, or the state that `rm.build` made of them.
        attention, mlps: how the model responds (see the module); by default MLPs are the replacement model's with
            frozen attention, and the model's own with iterated attention.
        read: at which positions logits are returned.

    Raises:
        DictionaryError: there is no such feature.
        PromptError: a position that the prompt does not have, or where there are no features.
        SpecError: a way to respond that does not exist, or a feature that is held twice.
    """
    mlps = mlp_response(attention, mlps)
    if attention == "frozen":
        state = prompt if isinstance(prompt, ReplacementState) else rm.build(prompt)
        ids, constant = state.ids, state.constant
    else:
        ids = prompt.ids if isinstance(prompt, ReplacementState) else rm.checked(torch.as_tensor(prompt))
        constant = rm.constant_positions(ids)
    places = _read_at(read, len(ids))
    edits = edits_of(rm, interventions, len(ids), constant.tolist())
    if attention == "frozen":
        before, after, response = _frozen(state, edits, mlps, places)
    else:
        before, after, response = iterated(rm, ids, constant, edits, mlps, places)
    softcap = rm.hooked.topology.logit_softcap
    return InterventionResult(tuple(places), before, after, held(edits, response), softcap)


def mlp_response(attention: AttentionResponse, mlps: MlpResponse | None) -> MlpResponse:
    """How MLPs respond: as was said, or else by how attention does.

    Raises:
        SpecError: the two do not go together, or one does not exist.
    """
    if attention not in get_args(AttentionResponse):
        raise SpecError("attention cannot respond so", value=attention, expected="frozen or iterated")
    if mlps is None:
        return "replacement" if attention == "frozen" else "model"
    if mlps not in get_args(MlpResponse):
        raise SpecError("MLPs cannot respond so", value=mlps, expected=", ".join(get_args(MlpResponse)))
    if attention == "frozen" and mlps == "model":
        raise SpecError(
            "with frozen attention the model's own MLPs do not run",
            value="mlps: model",
            expected="replacement or frozen",
            remedy="use attention: iterated",
        )
    return mlps


def edits_of(
    rm: ReplacementModel,
    interventions: Sequence[Intervention],
    n_pos: int,
    constant: Sequence[bool],
    *,
    n_prompt: int | None = None,
    n_most: int | None = None,
) -> Edits:
    """Interventions on a prompt of `n_pos` tokens as edits, in one row.

    Args:
        constant: positions where MLPs are held constant.
        n_prompt: tokens that the prompt began with, when more have been generated since.
        n_most: tokens that there may be when all are generated.
    """
    index: list[tuple[int, int, int, int]] = []
    factors, shifts = [], []
    for intervention in interventions:
        layer = _layer_of(rm, intervention)
        for pos in _positions(intervention.positions, n_pos, constant, n_prompt or n_pos, n_most or n_pos):
            index.append((0, layer, pos, intervention.latent))
            factors.append(intervention.factor)
            shifts.append(intervention.shift)
    if len(set(index)) < len(index):
        _, layer, pos, latent = next(place for place in index if index.count(place) > 1)
        what = "two interventions hold the same feature at the same position"
        raise SpecError(what, value=f"layer {layer}, latent {latent}, position {pos}", expected="one of them")
    return Edits.of(1, torch.tensor(index, dtype=torch.long).view(-1, 4), torch.tensor(factors), torch.tensor(shifts))


def iterated(
    rm: ReplacementModel, ids: Tensor, constant: Tensor, edits: Edits, mlps: MlpResponse, places: Sequence[int]
) -> tuple[Float[Tensor, "read d_vocab"], Float[Tensor, "read d_vocab"], Response]:
    """(logits before, logits after, what features did) by a run of the model."""
    done = Rerun(rm, ids, constant, edits, mlps).run(["final_norm"])
    head, normed = rm.hooked.frozen.unembed, done.activations["final_norm"][:, torch.as_tensor(places)]
    before, after = (F.linear(row, head.W_U, head.bias).float() for row in normed)
    return before, after, done.response


def predicted(logits: Float[Tensor, "*batch d_vocab"], softcap: float | None) -> Float[Tensor, "*batch d_vocab"]:
    """Probabilities, of the head's raw output."""
    return (logits if softcap is None else torch.tanh(logits / softcap) * softcap).softmax(-1)


def _frozen(
    state: ReplacementState, edits: Edits, mlps: MlpResponse, places: Sequence[int]
) -> tuple[Float[Tensor, "read d_vocab"], Float[Tensor, "read d_vocab"], Response]:
    top, head, at = 2 * state.n_layers, state.head, torch.as_tensor(places)
    done = Replay(state, edits, mlps).run([top])
    moved = head.norm.linear(done.changes[top][0, at], head.denominator[at])
    before = F.linear(head.normed[at], head.W_U, head.bias).float()
    # A vocabulary in float32 can be larger than the model's layers.
    change = torch.cat([moved @ rows.float().T for rows in head.W_U.split(_VOCAB_AT_ONCE)], dim=-1)
    return before, before + change, done.response


def held(edits: Edits, response: Response) -> tuple[FeatureChange, ...]:
    """Every feature that edits in one row held."""
    before, after = response.before.tolist(), response.after.tolist()
    places = edits.index[:, 1:].tolist()
    return tuple(FeatureChange(*place, *values) for place, *values in zip(places, before, after, strict=True))


def _layer_of(rm: ReplacementModel, intervention: Intervention) -> int:
    if isinstance(intervention.layer, str):
        layer = rm.layer_of(intervention.layer)
    else:
        layer, n_layers = intervention.layer, rm.hooked.topology.n_layers
        if not 0 <= layer < n_layers:
            raise DictionaryError("there is no such layer", value=layer, expected=f"0 .. {n_layers - 1}")
        layer = rm.layer_of(f"{rm.hooked.topology.block_name(layer)}.mlp")
    n_latents = rm.replacement.n_latents(layer)
    if not 0 <= intervention.latent < n_latents:
        raise DictionaryError(
            "there is no such feature",
            value=f"{intervention.layer}/{intervention.latent}",
            expected=f"a latent of 0 .. {n_latents - 1}",
        )
    return layer


def _positions(given: Positions, n_pos: int, constant: Sequence[bool], n_prompt: int, n_most: int) -> list[int]:
    """Positions that there are so far, from the begin of the prompt."""
    free = [pos for pos in range(n_pos) if not constant[pos]]
    if isinstance(given, str) and given != "all":
        raise SpecError("these are no positions", value=given, expected='numbers, a slice, or "all"')
    if isinstance(given, str | slice):
        span = slice(None) if isinstance(given, str) else given
        # Bounds are those of the prompt; only an open end goes on through new tokens.
        start, stop, step = span.indices(n_prompt)
        if step <= 0:
            raise SpecError("positions are counted upwards", value=str(span), expected="a step of at least 1")
        if not range(start, n_most if span.stop is None else stop, step):
            raise PromptError("the slice has no position of the prompt", value=str(span), expected=f"{n_prompt} tokens")
        chosen = range(start, n_pos if span.stop is None else stop, step)
        return [pos for pos in chosen if pos in free]
    found = []
    for pos in [given] if isinstance(given, int) else given:
        if not -n_prompt <= pos < n_most:
            expected = f"{-n_prompt} .. {n_most - 1}"
            raise PromptError("an intervention's position is not in the prompt", value=pos, expected=expected)
        pos = pos + n_prompt if pos < 0 else pos
        if pos < n_pos and constant[pos]:
            raise PromptError(
                "at this position MLPs are held constant, and there are no features",
                value=pos,
                remedy='choose another position, or bos="keep"',
            )
        found.append(pos)
    return [pos for pos in found if pos < n_pos]


def _read_at(read: Sequence[int] | Literal["last", "all"], n_pos: int) -> list[int]:
    if isinstance(read, str):
        return [n_pos - 1] if read == "last" else list(range(n_pos))
    for pos in read:
        if not -n_pos <= pos < n_pos:
            raise PromptError("no logits can be read there", value=pos, expected=f"{-n_pos} .. {n_pos - 1}")
    return [pos % n_pos for pos in read]
