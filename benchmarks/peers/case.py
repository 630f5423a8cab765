"""A piece of work for two programs: a Llama with a tokenizer, transcoders for its MLPs, and a prompt, as plain files.

    model/         Hugging Face layout, float32, weights random by a fixed seed
    transcoders/   as circuit-tracer has them: config.yaml and layer_{i}.safetensors, or W_enc_{i} and W_dec_{i}
    case.json      the prompt's token ids (BOS first), and what the files do not say

Encoders are random, with as many active latents as trained ones have. Decoders are fitted to the MLPs by ridge
regression on the prompt and other random tokens, so that errors are moderate and reconstructions carry the signal:

    y_j ~ b_j + sum_i W_dec[i -> j]^T a_i,    W_dec[i -> j] = A_i (K_j + r I)^-1 (Y_j - b_j),    K_j = sum_i A_i^T A_i

with the sum over i <= j for a cross-layer transcoder, and i = j alone for the others. Solved in the space of tokens,
which are fewer than latents.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

RIDGE = 0.8
"""Of the mean squared norm of a token's activations."""
_LOGIT_SCALE = 6.0
"""Makes a random model's prediction as peaked as a trained one's."""
_ACTIVE_FROM = 2.2
"""Pre-activations are about standard normal: 1.4 % exceed this."""


@dataclass(frozen=True)
class Shape:
    """A model and the latents of each of its MLPs' transcoders."""

    layers: int
    d_model: int
    d_mlp: int
    heads: int
    vocabulary: int
    latents: int
    tokens: int
    fit_rows: int


@dataclass(frozen=True)
class Case:
    """One kind of transcoders on one model."""

    shape: Shape
    activation: str
    k: int = 0
    skip: bool = False
    cross_layer: bool = False


@torch.no_grad()
def make(case: Case, folder: Path) -> dict[str, Any]:
    """Write the files of a case; what is in case.json."""
    torch.manual_seed(0)
    shape = case.shape
    model = _model(shape)
    model.save_pretrained(folder / "model")
    _write_tokenizer(shape.vocabulary, folder / "model")
    ids = torch.randint(2, shape.vocabulary, (shape.fit_rows, shape.tokens))
    ids[:, 0] = 0
    read, written = _mlps(model, ids)
    del model
    (folder / "transcoders").mkdir()
    unexplained = _transcoders(case, read, written, folder / "transcoders")
    content = {**asdict(case), "ids": ids[0].tolist(), "fvu": [round(each, 3) for each in unexplained]}
    (folder / "transcoders" / "config.yaml").write_text(_set_config(case), "utf-8")
    (folder / "case.json").write_text(json.dumps(content), "utf-8")
    return content


def _model(shape: Shape) -> LlamaForCausalLM:
    config = LlamaConfig(
        hidden_size=shape.d_model,
        intermediate_size=shape.d_mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        vocab_size=shape.vocabulary,
        max_position_embeddings=1024,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).eval()
    model.lm_head.weight.mul_(_LOGIT_SCALE)
    return model


def _write_tokenizer(vocabulary: int, folder: Path) -> None:
    """By hand: newer releases of transformers write a class that older ones do not know."""
    words = ["<s>", "</s>", *(f"t{index}" for index in range(2, vocabulary))]
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="</s>"))
    tokenizer.add_special_tokens(words[:2])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "</s>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")


def _mlps(model: LlamaForCausalLM, ids: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """What each MLP reads and writes, [tokens, d_model]."""
    read: list[Tensor] = []
    written: list[Tensor] = []

    def keep(_: Any, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        read.append(arguments[0].flatten(0, 1))
        written.append(output.flatten(0, 1))

    handles = [layer.mlp.register_forward_hook(keep) for layer in model.model.layers]
    model.model(ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return read, written


def _transcoders(case: Case, read: list[Tensor], written: list[Tensor], folder: Path) -> list[float]:
    """Write the transcoders; the fraction of variance that each MLP's reconstruction of the prompt leaves."""
    shape, encoders, activations, skips = case.shape, [], [], []
    for x in read:
        W_enc = torch.randn(shape.latents, shape.d_model) * shape.d_model**-0.5
        encoders.append(W_enc)
        activations.append(_active(case, x @ W_enc.T))
        skips.append(torch.randn(shape.d_model, shape.d_model) * 0.1 * shape.d_model**-0.5 if case.skip else None)
    grams = [a @ a.T for a in activations]
    fvu = []
    decoders: dict[tuple[int, int], Tensor] = {}
    biases = []
    for j, y in enumerate(written):
        y = y if skips[j] is None else y - read[j] @ skips[j].T
        biases.append(y.mean(0))
        sources = range(j + 1) if case.cross_layer else range(j, j + 1)
        gram = torch.stack([grams[i] for i in sources]).sum(0)
        ridge = RIDGE * gram.diagonal().mean() * torch.eye(len(gram))
        dual = torch.linalg.solve(gram + ridge, y - biases[j])
        for i in sources:
            decoders[i, j] = activations[i].T @ dual
        missed = ((y - biases[j]) - gram @ dual)[1 : shape.tokens]
        fvu.append(float(missed.square().sum() / (y - biases[j])[1 : shape.tokens].square().sum()))
    for i in range(shape.layers):
        _save(case, folder, i, encoders[i], [decoders[key] for key in sorted(decoders) if key[0] == i], biases, skips)
    return fvu


def _set_config(case: Case) -> str:
    kind = "cross_layer_transcoder" if case.cross_layer else "transcoder_set"
    lines = [f"model_kind: {kind}", "feature_input_hook: mlp.hook_in", "feature_output_hook: hook_mlp_out"]
    lines += ["activation: topk", f"k: {case.k}"] if case.activation == "topk" else []
    return "\n".join(["model_name: benchmark", *lines]) + "\n"


def _active(case: Case, pre: Tensor) -> Tensor:
    match case.activation:
        case "topk":
            values, indices = pre.topk(case.k, dim=-1)
            return torch.zeros_like(pre).scatter(-1, indices, values.relu())
        case "jumprelu":
            return pre * (pre > _ACTIVE_FROM)
    return (pre - _ACTIVE_FROM).relu()


def _save(
    case: Case,
    folder: Path,
    layer: int,
    W_enc: Tensor,
    decoders: list[Tensor],
    b_dec: list[Tensor],
    skips: list[Tensor | None],
) -> None:
    latents = case.shape.latents
    b_enc = torch.full((latents,), -_ACTIVE_FROM if case.activation == "relu" else 0.0)
    threshold = torch.full((latents,), _ACTIVE_FROM)
    jump = case.activation == "jumprelu"
    if case.cross_layer:
        encoder = {f"W_enc_{layer}": W_enc, f"b_enc_{layer}": b_enc, f"b_dec_{layer}": b_dec[layer]}
        save_file(encoder | ({f"threshold_{layer}": threshold} if jump else {}), folder / f"W_enc_{layer}.safetensors")
        save_file({f"W_dec_{layer}": torch.stack(decoders, dim=1)}, folder / f"W_dec_{layer}.safetensors")
        return
    tensors = {"W_enc": W_enc, "W_dec": decoders[0], "b_enc": b_enc, "b_dec": b_dec[layer]}
    tensors |= {"activation_function.threshold": threshold} if jump else {}
    skip = skips[layer]
    tensors |= {} if skip is None else {"W_skip": skip}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / f"layer_{layer}.safetensors")
