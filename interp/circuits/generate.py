"""Generation with interventions on: features are held while the model goes on with a prompt.

Every step runs the prompt and what was generated so far, unchanged and with the interventions, side by side:

    before   the model's own logits on these very tokens
    after    its logits with the interventions; the next token is chosen by them

so that a step is `intervene` on the tokens up to it. Attention is iterated: a frozen pattern has no place for new
tokens. Cost: two forward passes a step, without a cache of keys and values, which interventions on earlier positions
would change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.circuits.edits import MlpResponse
from interp.circuits.intervene import (
    AttentionResponse,
    FeatureChange,
    Intervention,
    edits_of,
    held,
    iterated,
    mlp_response,
)
from interp.circuits.replacement_model import ReplacementModel
from interp.errors import PromptError, SpecError


@dataclass(frozen=True, eq=False)
class Generation:
    """A prompt and how the model goes on with it.

    Attributes:
        ids: the prompt's tokens and the new ones.
        text: of the new tokens, if the model has a tokenizer.
        before, after: at each step the head's raw output for the next token, before a soft cap.
        features: every feature that was held in the last step.
    """

    n_prompt: int
    ids: Int[Tensor, "pos"]
    text: str | None
    before: Float[Tensor, "step d_vocab"]
    after: Float[Tensor, "step d_vocab"]
    features: tuple[FeatureChange, ...]

    @property
    def new(self) -> Int[Tensor, "step"]:
        """The new tokens."""
        return self.ids[self.n_prompt :]


@torch.no_grad()
def generate(
    rm: ReplacementModel,
    ids: Int[Tensor, "pos"] | Sequence[int],
    interventions: Sequence[Intervention],
    max_new_tokens: int,
    *,
    attention: AttentionResponse = "iterated",
    mlps: MlpResponse | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    stop_at_eos: bool = True,
) -> Generation:
    """Go on with a prompt, the interventions on at their positions throughout ("all": at new tokens too).

    Args:
        mlps: how MLPs respond (`interp.circuits.edits`); by default the model's own.
        temperature: 0: the most probable token; above it, tokens are drawn, by `seed`.

    Raises:
        SpecError, DictionaryError, PromptError: as `intervene`; a prompt that would grow longer than the model reads.
    """
    _check(attention, max_new_tokens, temperature)
    mlps, so_far = mlp_response(attention, mlps), rm.checked(torch.as_tensor(ids))
    n_prompt, n_most = len(so_far), len(so_far) + max_new_tokens
    _check_length(rm, n_prompt, max_new_tokens)
    generator = torch.Generator().manual_seed(seed)
    end = _end_of_text(rm) if stop_at_eos else set[int]()
    befores, afters, features = list[Tensor](), list[Tensor](), tuple[FeatureChange, ...]()
    while len(so_far) < n_most:
        constant = rm.constant_positions(so_far)
        edits = edits_of(rm, interventions, len(so_far), constant.tolist(), n_prompt=n_prompt, n_most=n_most)
        before, after, response = iterated(rm, so_far, constant, edits, mlps, [len(so_far) - 1])
        befores.append(before.cpu())
        afters.append(after.cpu())
        features = held(edits, response)
        token = _next(afters[-1][0], rm.hooked.topology.logit_softcap, temperature, generator)
        so_far = torch.cat([so_far, torch.tensor([token])])
        if token in end:
            break
    tokenizer = rm.hooked.tokenizer
    text = None if tokenizer is None else str(tokenizer.decode(so_far[n_prompt:].tolist()))
    return Generation(n_prompt, so_far, text, torch.cat(befores), torch.cat(afters), features)


def _next(
    logits: Float[Tensor, "d_vocab"], softcap: float | None, temperature: float, generator: torch.Generator
) -> int:
    if temperature == 0:
        return int(logits.argmax())
    logits = logits if softcap is None else torch.tanh(logits / softcap) * softcap
    return int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator))


def _check(attention: AttentionResponse, max_new_tokens: int, temperature: float) -> None:
    if attention == "frozen":
        raise SpecError(
            "with frozen attention nothing can be generated: a frozen pattern has no place for new tokens",
            value="attention: frozen",
            expected="iterated",
        )
    if max_new_tokens < 1:
        raise SpecError("at least one token is generated", value=max_new_tokens, expected="1 or more")
    if not 0 <= temperature < float("inf"):
        raise SpecError("there is no such temperature", value=temperature, expected="0 or more")


def _check_length(rm: ReplacementModel, n_prompt: int, new: int) -> None:
    limits = [limit for limit in (rm.max_tokens, rm.hooked.topology.max_positions) if limit is not None]
    # The last token is generated, and not read.
    if limits and n_prompt + new - 1 > min(limits):
        raise PromptError(
            "the prompt would grow longer than the model reads",
            value=f"{n_prompt} tokens and {new} new ones",
            expected=f"at most {min(limits)} in all",
            remedy="generate fewer tokens, or shorten the prompt",
        )


def _end_of_text(rm: ReplacementModel) -> set[int]:
    tokenizer, config = rm.hooked.tokenizer, rm.hooked.model.config
    found = getattr(config, "eos_token_id", None) if tokenizer is None else tokenizer.eos_token_id
    return {found} if isinstance(found, int) else set(found or ())
