"""dictionary_learning's `trainSAE` over its `ActivationBuffer` and nnsight. Runs in dictionary_learning's environment.

    python -m benchmarks.peers.dictionary_learning_side BASE REQUEST.json OUT

Its buffer reads texts, which nnsight tokenises; here it is given rows of token ids, which nnsight takes as they are.
The forward pass stops after the hooked block. Defaults throughout (learning rate by its rule, AuxK 1/32, clipping),
but a warm-up shorter than the run, without which it refuses to start, and a buffer of 256 contexts: the default of
30,000 is more than the run has. The buffer ends with up to all of itself left over, and as many contexts more are there
for it to read.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from itertools import chain
from pathlib import Path

import torch

if importlib.util.find_spec("torchvision"):
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        # nnsight asks for torchvision, which is of another torch here; without it transformers does not try to load it.
        sys.modules["torchvision"] = None  # type: ignore[assignment]

from dictionary_learning.buffer import ActivationBuffer
from dictionary_learning.trainers.top_k import AutoEncoderTopK, TopKTrainer
from dictionary_learning.training import trainSAE
from nnsight import LanguageModel

from benchmarks.peers.training import Clock, Request, arguments, finish, token_rows, write_plain

CONTEXTS_IN_BUFFER = 256


def main() -> None:
    work, asked, out = arguments()
    (layer,) = asked.layers
    clock = Clock()
    buffer = activation_buffer(work, asked)
    trainer = {
        "trainer": TopKTrainer,
        "dict_class": AutoEncoderTopK,
        "steps": asked.steps,
        "activation_dim": asked.options["d_model"],
        "dict_size": asked.latents,
        "k": asked.k,
        "layer": layer,
        "lm_name": os.fspath(work / "model"),
        "warmup_steps": asked.warmup,
        "seed": asked.seed,
        "device": "cpu",
    }
    clock.start()
    trainSAE(buffer, [trainer], steps=asked.steps, save_dir=os.fspath(out / "own"), device="cpu")
    figures = clock.figures(asked)
    write(out, layer, asked.k)
    settings = {
        "optimizer": "adam",
        "lr": 2e-4 / (asked.latents / 2**14) ** 0.5,
        "schedule": f"{asked.warmup} warm-up steps, then constant",
        "auxk": 1 / 32,
        "n_ctxs": buffer.n_ctxs,
        "model": "nnsight, stopped after the hooked block",
    }
    finish(out, figures, settings, ("dictionary-learning", "nnsight"))


def activation_buffer(work: Path, asked: Request) -> ActivationBuffer:
    """The model, and the buffer that fills itself by it."""
    rows = token_rows(work, asked)
    ids, context = rows.tolist(), rows.shape[1]
    (layer,) = asked.layers
    # Without `patch_llama_scan=False` it takes every Llama for one with scaled rotary frequencies.
    loading = {"device_map": "cpu", "torch_dtype": torch.float32, "dispatch": True, "patch_llama_scan": False}
    model = LanguageModel(os.fspath(work / "model"), **loading)
    # The buffer asks for truncation, which nnsight hands to `pad` where it is given ids; these rows need none.
    pad = model.tokenizer.pad
    model.tokenizer.pad = lambda ids, *, truncation=None, max_length=None, **more: pad(ids, **more)
    return ActivationBuffer(
        chain(ids, ids[: 2 * CONTEXTS_IN_BUFFER]),
        model,
        model.model.layers[layer],
        d_submodule=asked.options["d_model"],
        n_ctxs=asked.options.get("n_ctxs", CONTEXTS_IN_BUFFER),
        ctx_len=context,
        refresh_batch_size=asked.batch_tokens // context,
        out_batch_size=asked.batch_tokens,
        device="cpu",
    )


def write(out: Path, layer: int, k: int) -> None:
    """What it has saved, as plain tensors."""
    saved = torch.load(out / "own" / "trainer_0" / "ae.pt", weights_only=True)
    write_plain(
        out,
        layer,
        AutoEncoderTopK.from_pretrained(out / "own" / "trainer_0" / "ae.pt"),
        w_enc=saved["encoder.weight"],
        b_enc=saved["encoder.bias"],
        w_dec=saved["decoder.weight"].T,
        b_dec=saved["b_dec"],
        k=k,
        pre_bias=True,
    )


if __name__ == "__main__":
    main()
