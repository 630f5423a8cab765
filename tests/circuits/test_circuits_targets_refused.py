"""What cannot be explained is refused, and the reason is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import circuit_cases as cases
import numpy as np
import pytest
import tiny_models
import torch
from interventions import traced
from safetensors.torch import save_file
from target_cases import IDS, direction_files, features, model

from interp.circuits.replacement_model import ReplacementModel
from interp.errors import DictionaryError, HookError, InterpError, PromptError, SourceError, SpecError
from interp.spec.trace import Column, DifferenceTarget, DirectionTarget, TargetSpec, TokensTarget


def wrong_files(folder: Path) -> dict[str, str]:
    np.save(folder / "short.npy", np.zeros(7, dtype=np.float32))
    np.save(folder / "whole.npy", np.zeros(32, dtype=np.int64))
    np.save(folder / "nan.npy", np.full(32, np.nan, dtype=np.float32))
    save_file({"a": torch.zeros(32), "b": torch.zeros(32)}, folder / "two.safetensors")
    np.save(folder / "zeros.npy", np.zeros(32, dtype=np.float32))
    (folder / "text.npy").write_text("no array")
    return {path.stem: str(path) for path in folder.iterdir()} | {"absent": str(folder / "absent.npy")}


REFUSED: dict[str, tuple[Callable[[dict[str, str]], TargetSpec], type[InterpError], str]] = {
    "position": (lambda f: TokensTarget(tokens=(1,), position=6), PromptError, "position is not in the prompt"),
    "negative position": (
        lambda f: TokensTarget(tokens=(1,), position=-7),
        PromptError,
        "position is not in the prompt",
    ),
    "unknown token": (lambda f: TokensTarget(tokens=(tiny_models.VOCAB,)), PromptError, "no such token"),
    "two tokens in a text": (lambda f: TokensTarget(tokens=("t1 t2",)), PromptError, "one token, and this text is not"),
    "no token in a text": (lambda f: TokensTarget(tokens=(" ",)), PromptError, "one token, and this text is not"),
    "token twice": (lambda f: TokensTarget(tokens=("t7", 7)), PromptError, "given twice"),
    "column that is not there": (lambda f: TokensTarget(tokens=(Column(column="x"),)), PromptError, "column 'x'"),
    "no difference": (lambda f: DifferenceTarget(difference=("t7", 7)), PromptError, "the same"),
    "last token unknown": (lambda f: "last-token", PromptError, "not known"),
    "no such hook point": (
        lambda f: DirectionTarget(direction=f["short"], at="layers.9.resid_pre"),
        HookError,
        "layers.9",
    ),
    "no place of the stream": (
        lambda f: DirectionTarget(direction=f["short"], at="layers.1.mlp_in"),
        HookError,
        "residual",
    ),
    "logits": (lambda f: DirectionTarget(direction=f["short"], at="logits"), HookError, "residual"),
    "width": (lambda f: DirectionTarget(direction=f["short"]), SourceError, "does not fit"),
    "whole numbers": (lambda f: DirectionTarget(direction=f["whole"]), SourceError, "does not fit"),
    "not finite": (lambda f: DirectionTarget(direction=f["nan"]), SourceError, "not finite"),
    "zeros": (lambda f: DirectionTarget(direction=f["zeros"]), SourceError, "0 everywhere"),
    "two tensors": (lambda f: DirectionTarget(direction=f["two"]), SourceError, "does not fit"),
    "no array": (lambda f: DirectionTarget(direction=f["text"]), SourceError, "does not begin"),
    "no file": (lambda f: DirectionTarget(direction=f["absent"]), SourceError, "no such file"),
    "no such MLP": (lambda f: features("layers.9.mlp", 1), DictionaryError, "does not have"),
    "no MLP": (lambda f: features("layers.1.resid_post", 1), DictionaryError, "does not have"),
    "no such latent": (lambda f: features("layers.1.mlp", cases.LATENTS), DictionaryError, "no such feature"),
    "feature twice": (lambda f: features("layers.1.mlp", 3, 3), PromptError, "given twice"),
    "constant position": (lambda f: features("layers.1.mlp", 3, position=0), PromptError, "held constant"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_a_target_is_refused_with_its_reason(case: str, tmp_path: Path) -> None:
    make, error, message = REFUSED[case]
    rm = model("llama")
    with pytest.raises(error, match=message):
        traced(rm, IDS, target=make(wrong_files(tmp_path)))


def test_an_mlp_without_features_has_none_to_explain() -> None:
    hooked = cases.hooked_model("llama")
    rm = ReplacementModel(hooked, {"layers.1.mlp": cases.transcoder(hooked, 1)})
    with pytest.raises(DictionaryError, match="no features"):
        traced(rm, IDS, target=features("layers.0.mlp", 1))


def test_a_token_without_any_probability_is_refused_and_a_difference_of_it_is_not() -> None:
    rm = model("llama")
    with torch.no_grad():
        rm.hooked.model.lm_head.weight.mul_(500)
    token = int(rm.build(IDS).head.logits(5).argmin())
    with pytest.raises(PromptError, match="probability of 0"):
        traced(rm, IDS, target=TokensTarget(tokens=(token,)))
    assert traced(rm, IDS, target=DifferenceTarget(difference=(token, 7)))[1].residual <= 1e-4


def test_text_needs_a_tokenizer_and_ids_do_not() -> None:
    rm = cases.replacement_model("llama")
    with pytest.raises(SpecError, match="no tokenizer"):
        traced(rm, IDS, target=TokensTarget(tokens=("word",)))
    assert traced(rm, IDS, target=TokensTarget(tokens=(7,)))[1].logit_tokens == ("<7>",)


def test_the_stream_before_an_adapter_between_groups_is_refused(tmp_path: Path) -> None:
    rm = model("split_llama")
    with pytest.raises(HookError, match="before the adapter"):
        traced(rm, IDS, target=DirectionTarget(direction=direction_files(tmp_path)(32), at="layers_first.1.resid_post"))
