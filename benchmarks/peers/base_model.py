"""The model and the tokens that all trainers of dictionaries are given: a plain Llama that reads Python, and token ids.

    model/          Hugging Face layout, float32 safetensors, with the tokenizer that ships with the package
    train.npy       int32 [contexts, 128], shuffled whole contexts: what dictionaries are trained on, in this order
    holdout.npy     int32 [contexts, 128], of documents that neither the model nor a dictionary sees in training
    base.json       sizes, steps, losses

Text is the standard library of the running interpreter, a BOS before each document, packed into contexts. The model
learns by AdamW for a given time on two threads or so; its learning rate falls linearly to zero with the time that is
left, so that a slow machine makes fewer steps but ends its schedule. A folder with base.json is left as it is.

    python -m benchmarks.peers.base_model FOLDER [--minutes 5] [--threads 2]
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from interp.corpus.documents import documents
from interp.corpus.packing import BlockFile
from interp.sources.builtin import builtin_model_path, held_out
from interp.spec.study import CorpusSpec

CONTEXT, D_MODEL, LAYERS, HEADS, D_MLP, VOCABULARY = 128, 256, 4, 4, 704, 4096
TRAIN_ROWS, HOLDOUT_ROWS = 8704, 512
"""Contexts that are written down: 1,114,112 tokens to train dictionaries on, 65,536 held out."""
BATCH, LEARNING_RATE, WARMUP_STEPS = 8, 2e-3, 60
BOS = "<|endoftext|>"


def make(folder: Path, *, minutes: float, threads: int, seed: int = 0) -> dict[str, Any]:
    """Train the model and write all files, unless they are there; what is in base.json."""
    if (folder / "base.json").exists():
        content: dict[str, Any] = json.loads((folder / "base.json").read_bytes())
        return content
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    rows, holdout = _tokens(seed)
    model = _model()
    steps, losses = _train(model, rows, minutes * 60, seed)
    folder.mkdir(parents=True, exist_ok=True)
    model.eval().save_pretrained(folder / "model")
    _write_tokenizer(folder / "model")
    np.save(folder / "train.npy", rows[:TRAIN_ROWS])
    np.save(folder / "holdout.npy", holdout)
    content = {
        "layers": LAYERS,
        "d_model": D_MODEL,
        "d_mlp": D_MLP,
        "heads": HEADS,
        "vocabulary": VOCABULARY,
        "context": CONTEXT,
        "parameters": sum(p.numel() for p in model.parameters()),
        "corpus_tokens": rows.size,
        "seed": seed,
        "minutes": minutes,
        "threads": threads,
        "steps": steps,
        "tokens_seen": steps * BATCH * CONTEXT,
        "last_training_loss": round(float(np.mean(losses[-20:])), 4),
        "held_out_loss": round(_loss(model, holdout), 4),
    }
    (folder / "base.json").write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    return content


def _model() -> LlamaForCausalLM:
    config = LlamaConfig(
        hidden_size=D_MODEL,
        intermediate_size=D_MLP,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        vocab_size=VOCABULARY,
        max_position_embeddings=CONTEXT,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config)


def _tokens(seed: int) -> tuple[ndarray, ndarray]:
    """All training contexts, shuffled, and the held-out ones."""
    tokenizer = Tokenizer.from_file(str(builtin_model_path() / "tokenizer.json"))
    texts = [document.text for document in documents(CorpusSpec(source="builtin://python-stdlib", tokens=1))]
    parts: dict[bool, list[ndarray]] = {True: [], False: []}
    for text, encoded in zip(texts, tokenizer.encode_batch_fast(texts), strict=True):
        parts[held_out(text)].append(np.array([0, *encoded.ids], np.int32))
    rows = {part: _packed(np.concatenate(ids), None if part else seed) for part, ids in parts.items()}
    if len(rows[False]) < TRAIN_ROWS or len(rows[True]) < HOLDOUT_ROWS:
        raise SystemExit(f"the standard library here is too small: {[len(each) for each in rows.values()]} contexts")
    return rows[False], rows[True][:HOLDOUT_ROWS]


def _packed(ids: ndarray, seed: int | None) -> ndarray:
    """Whole contexts in the order that a corpus of a study would have them."""
    with tempfile.TemporaryDirectory() as folder:
        file = BlockFile(Path(folder) / "rows.i32", len(ids) // CONTEXT * CONTEXT, CONTEXT, 0, seed=seed)
        file.append(ids)
        return np.array(file.rows())


def _train(model: LlamaForCausalLM, rows: ndarray, seconds: float, seed: int) -> tuple[int, list[float]]:
    """Steps made until the time is over, and the loss of each."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1)
    rng, started, losses = np.random.default_rng(seed), time.monotonic(), []
    while (left := 1 - (time.monotonic() - started) / seconds) > 0:
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * left * min(1.0, (len(losses) + 1) / WARMUP_STEPS)
        ids = torch.from_numpy(rows[rng.integers(len(rows), size=BATCH)]).long()
        loss = model(ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if len(losses) % 100 == 0:
            print(
                f"step {len(losses)}, loss {np.mean(losses[-100:]):.3f}, {100 * left:.0f} % of the time left",
                flush=True,
            )
    return len(losses), losses


@torch.no_grad()
def _loss(model: LlamaForCausalLM, rows: ndarray) -> float:
    batches: tuple[Tensor, ...] = torch.from_numpy(rows).long().split(BATCH)
    return float(np.mean([model(ids, labels=ids, use_cache=False).loss.item() for ids in batches]))


def _write_tokenizer(folder: Path) -> None:
    """By hand: newer releases of transformers write a class that older ones do not know."""
    shutil.copyfile(builtin_model_path() / "tokenizer.json", folder / "tokenizer.json")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": BOS,
        "pad_token": BOS,
        "model_max_length": CONTEXT,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = vars(parser.parse_args())
    print(json.dumps(make(arguments.pop("folder"), **arguments), indent=2))


if __name__ == "__main__":
    main()
