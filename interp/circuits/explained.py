"""Which targets a graph explains: from what a study says to read-outs, names and weights.

    salient       the most probable next tokens, until they add up to `mass`, at most `max`
    last-token    these, and the token that stood there: it is the prompt's last and was cut off
    tokens        the logits of given tokens
    difference    one token's logit less another's
    direction     what the head reads, or the residual stream has, along a vector
    features      pre-activations of features, active or not

Influence starts at the targets, with a weight for each: its probability for a token; equal shares for anything else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.circuits.directions import read_direction
from interp.circuits.replacement_model import ReplacementModel
from interp.circuits.state import ReplacementState
from interp.circuits.targets import FeatureTargets, HeadTargets, StreamTarget, Targets
from interp.errors import DictionaryError, HookError, PromptError, SpecError
from interp.spec.hookpoints import parse
from interp.spec.trace import (
    Column,
    DifferenceTarget,
    DirectionTarget,
    FeaturePlace,
    FeaturesTarget,
    LogitsSpec,
    TargetSpec,
    TargetToken,
    TokensTarget,
)


@dataclass(frozen=True, eq=False)
class Explained:
    """The end points of a graph.

    Attributes:
        tokens: vocabulary index of each; -1, -2, .. for targets that are no token's logit.
        position: where they are read.
        weights: what influence starts with.
        labels: their text.
    """

    targets: Targets
    tokens: Int[Tensor, "targets"]
    position: int
    weights: Float[Tensor, "targets"]
    labels: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Question:
    """What is asked of one prompt.

    Attributes:
        last_token: of `last-token`: the token that was cut off the prompt.
        row: what the prompt's row says in other columns.
        text: the text of a token.
    """

    rm: ReplacementModel
    state: ReplacementState
    logits: LogitsSpec
    last_token: int | None
    row: Mapping[str, Any]
    text: Callable[[int], str]

    def at(self, position: int) -> int:
        """A position of the prompt, counted from its begin."""
        n_pos = self.state.n_pos
        if not -n_pos <= position < n_pos:
            raise PromptError(
                "the target's position is not in the prompt", value=position, expected=f"{-n_pos} .. {n_pos - 1}"
            )
        return position % n_pos


def explain(spec: TargetSpec, question: Question) -> Explained:
    """The end points that a study asks for.

    Raises:
        PromptError: a token or position that this prompt does not have.
        SpecError, HookError, DictionaryError: a direction or a feature that this model does not have.
    """
    if isinstance(spec, str):
        return _salient(spec, question)
    return _EXPLAINERS[type(spec)](spec, question)


def salient_logits(probabilities: Float[Tensor, "d_vocab"], spec: LogitsSpec) -> Int[Tensor, "logits"]:
    """The most probable tokens, until they add up to `spec.mass` or are `spec.max`; ties by token id."""
    order = probabilities.cpu().argsort(descending=True, stable=True)[: spec.max]
    cumulative = probabilities.cpu()[order].double().cumsum(0)
    enough = int(torch.searchsorted(cumulative, spec.mass))
    return order[: enough + 1]


def _salient(name: str, question: Question) -> Explained:
    position = question.state.n_pos - 1
    tokens = salient_logits(question.state.head.probabilities(position), question.logits)
    if name == "last-token":
        if question.last_token is None:
            raise PromptError(
                "the token that the prompt ended with is not known",
                value="target: last-token",
                remedy="cut it off the prompt and give it as last_token=",
            )
        last = token_id(question.last_token, question)
        if last not in tokens:
            tokens = torch.cat([tokens, torch.tensor([last])])
    return _of_tokens(tokens, position, question)


def _of_tokens(tokens: Int[Tensor, "targets"], position: int, question: Question) -> Explained:
    state = question.state
    return Explained(
        targets=HeadTargets.logits(state, tokens, position),
        tokens=tokens,
        position=position,
        weights=state.head.probabilities(position)[tokens.to(state.device)].cpu(),
        labels=tuple(question.text(int(token)) for token in tokens),
    )


def _given_tokens(spec: TokensTarget, question: Question) -> Explained:
    tokens = torch.tensor([token_id(token, question) for token in spec.tokens])
    if len(tokens.unique()) < len(tokens):
        raise PromptError("a target token is given twice", value=list(spec.tokens))
    explained = _of_tokens(tokens, question.at(spec.position), question)
    if not bool(explained.weights.any()):
        raise PromptError(
            "the model gives the target tokens a probability of 0, and influence has nothing to start with",
            value=", ".join(explained.labels),
            expected="a token whose probability is a float32",
            remedy="explain the difference of two tokens: it has a weight of its own",
        )
    return explained


def _difference(spec: DifferenceTarget, question: Question) -> Explained:
    first, second = (token_id(token, question) for token in spec.difference)
    if first == second:
        raise PromptError("the two tokens of a difference are the same", value=question.text(first))
    position = question.at(spec.position)
    label = f"{question.text(first)} -{question.text(second)}"
    return _other(HeadTargets.difference(question.state, first, second, position), position, (label,))


def _direction(spec: DirectionTarget, question: Question) -> Explained:
    position, state, hooked = question.at(spec.position), question.state, question.rm.hooked
    name = hooked.topology.point(spec.at).name
    height = None if name == "final_norm" else _height(name, question)
    vector = read_direction(spec.direction, hooked.topology.width(name))
    if height is None:
        return _other(HeadTargets.direction(state, vector, position), position, (spec.name,))
    stream = question.rm.stream(state.ids, name)[position]
    value = float(stream.double() @ vector.to(stream.device).double())
    return _other(StreamTarget(state, vector, value, height, position), position, (spec.name,))


def _height(name: str, question: Question) -> int:
    state, point = question.state, parse(name)
    if point.layer is None or point.site not in ("resid_pre", "resid_mid", "resid_post"):
        raise HookError(
            "a direction is read from the residual stream or by the head",
            value=name,
            expected="final_norm, or the resid_pre, resid_mid or resid_post of a layer",
        )
    layer = question.rm.hooked.topology.layer_of(name)
    height = 2 * layer + {"resid_pre": 0, "resid_mid": 1, "resid_post": 2}[point.site]
    if state.adapter is not None and point.site == "resid_post" and height == 2 * state.adapter.before:
        after = question.rm.hooked.topology.block_name(state.adapter.before)
        raise HookError("the stream before the adapter cannot be a target", value=name, remedy=f"use {after}.resid_pre")
    return height


def _features(spec: FeaturesTarget, question: Question) -> Explained:
    position = question.at(spec.position)
    layers = [_layer_of(place, question) for place in spec.features]
    index = torch.tensor([[n, position, place.latent] for n, place in zip(layers, spec.features, strict=True)])
    if bool(question.state.constant[position]):
        raise PromptError(
            "at this position MLPs are held constant, and there are no features",
            value=position,
            remedy="set trace.bos to keep, or choose another position",
        )
    if len(index.unique(dim=0)) < len(index):
        raise PromptError("a target feature is given twice", value=[f"{p.at}/{p.latent}" for p in spec.features])
    labels = tuple(f"{place.at}/{place.latent}" for place in spec.features)
    return _other(FeatureTargets(question.state, index), position, labels)


def _layer_of(place: FeaturePlace, question: Question) -> int:
    rm = question.rm
    layer = rm.layer_of(place.at)
    n_latents = rm.replacement.n_latents(layer)
    if not 0 <= place.latent < n_latents:
        raise DictionaryError(
            "there is no such feature", value=f"{place.at}/{place.latent}", expected=f"a latent of 0 .. {n_latents - 1}"
        )
    return layer


def _other(targets: Targets, position: int, labels: tuple[str, ...]) -> Explained:
    n = len(labels)
    return Explained(targets, -1 - torch.arange(n), position, torch.full((n,), 1.0 / n), labels)


_EXPLAINERS: Mapping[type, Callable[[Any, Question], Explained]] = {
    TokensTarget: _given_tokens,
    DifferenceTarget: _difference,
    DirectionTarget: _direction,
    FeaturesTarget: _features,
}


def token_id(token: TargetToken, question: Question) -> int:
    """The vocabulary index of a token that is given by id, by text, or by the prompt's row.

    Raises:
        PromptError: it is no single token of the vocabulary, or the row does not say.
    """
    if isinstance(token, Column):
        said = question.row.get(token.column)
        if isinstance(said, bool) or not isinstance(said, int | str):
            what = f"the prompt's row names no token in column {token.column!r}"
            raise PromptError(what, value="nothing" if said is None else said, expected="a text or a token id")
        token = said
    hooked = question.rm.hooked
    if isinstance(token, str):
        return _token_of_text(hooked.tokenizer, token)
    if not 0 <= token < hooked.topology.d_vocab:
        raise PromptError("the model has no such token", value=token, expected=f"0 .. {hooked.topology.d_vocab - 1}")
    return token


def _token_of_text(tokenizer: Any, text: str) -> int:
    if tokenizer is None:
        raise SpecError("the model has no tokenizer to read a token with", value=text, remedy="give the token's id")
    ids: Sequence[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        pieces = [tokenizer.decode([i]) for i in ids]
        raise PromptError(
            "a target is one token, and this text is not",
            value=repr(text),
            expected="one token; many begin with a space",
            remedy=f"the tokenizer makes {pieces} of it: give one of these, or a token id",
        )
    return int(ids[0])
