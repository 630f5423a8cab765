"""Train the model that ships with the package: a SplitLlama of a few million parameters that reads Python.

    1. A byte-level BPE tokenizer is trained on the standard library's documents that are not held out.
    2. The model trains on windows of two kinds, each a BOS and then 256 tokens. Most are cut from the packed corpus.
       The rest are constructors of the same documents, cut from their files, with their parameters mostly renamed at
       random: a name that cannot be remembered must be copied, which is the circuit that the quickstart looks for.
    3. Hidden matrices learn by Muon, the embedding, the head and the norms by AdamW. The learning rate falls linearly
       to zero at the end of the wall-clock budget, so a slow machine makes fewer steps but still ends its schedule.
    4. What is shipped is measured: the exported bfloat16 weights, in float32, on held-out documents.

Every batch is a function of (seed, step), so a run that resumes from its last checkpoint sees the data that it would
have seen. Checkpoints are safetensors and JSON. Units: losses in nats per token, bits per byte of source text.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import logging
import math
import platform
import re
import sysconfig
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from interp.models.split_llama import SplitLlama, SplitLlamaConfig
from interp.sources.builtin import (
    CopyPrompt,
    constructors,
    copied_parameters,
    copy_prompts,
    dedented,
    held_out,
    stdlib_documents,
)

log = logging.getLogger("train_tiny_model")

ROOT = Path(__file__).resolve().parent.parent
BOS = "<|endoftext|>"
VOCAB_SIZE = 4096
CONTEXT = 256
BATCH = 24
CONSTRUCTOR_ROWS = 6
RENAMED_SHARE = 0.7
MUON_LR, ADAM_LR, WARMUP_STEPS = 0.02, 3e-3, 60

# An identifier is one word with its underscores, and takes the space before it; line breaks take their indentation.
WORDS = Regex(r" ?[\p{L}_]+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}_]+|\s+(?!\S)|\s+")

# --- what is measured ------------------------------------------------------------------------------------------------


@torch.no_grad()
def copy_accuracy(model: SplitLlama, tokenizer: Tokenizer, prompts: list[tuple[str, str]], batch: int = 16) -> float:
    """Share of (prompt, name) whose greedy continuation is ` name` and then something that ends the identifier.

    A prompt longer than the context loses its beginning.
    """
    bos, ends = bos_id(tokenizer), _ends_identifier(tokenizer)
    rows = []
    for prompt, name in prompts:
        answer = tokenizer.encode(f" {name}").ids
        rows.append(([bos, *tokenizer.encode(prompt).ids[-(CONTEXT - 1 - len(answer)) :], *answer], answer))
    # In batches of similar length little is padding.
    rows.sort(key=lambda row: len(row[0]))
    right = 0
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        # The answer is given: greedy decoding makes it if and only if each of its tokens is the best one in turn.
        greedy = model(_padded([row for row, _ in part], bos), use_cache=False).logits.argmax(-1)
        for best, (row, answer) in zip(greedy.tolist(), part, strict=True):
            *copied, after = best[len(row) - len(answer) - 1 : len(row)]
            right += copied == answer and ends[after]
    return right / len(rows)


def _ends_identifier(tokenizer: Tokenizer) -> list[bool]:
    texts = [tokenizer.decode([i], skip_special_tokens=False) for i in range(tokenizer.get_vocab_size())]
    return [not (text[:1].isalnum() or text[:1] == "_") for text in texts]


def _padded(rows: list[list[int]], filling: int) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [filling] * (width - len(row)) for row in rows])


@torch.no_grad()
def bits_per_byte(model: SplitLlama, tokenizer: Tokenizer, texts: Iterable[str], batch: int = 16) -> float:
    """Each text in chunks of CONTEXT - 1 tokens behind a BOS, so that every token is predicted exactly once."""
    bos, width = bos_id(tokenizer), CONTEXT - 1
    chunks: list[list[int]] = []
    size = 0
    for text in texts:
        ids = tokenizer.encode(text).ids
        size += len(text.encode("utf-8"))
        chunks += [[bos, *ids[i : i + width]] for i in range(0, len(ids), width)]
    chunks.sort(key=len)
    nats = 0.0
    for start in range(0, len(chunks), batch):
        tokens = _padded(chunks[start : start + batch], -100)
        logits = model(tokens[:, :-1].clamp(min=0), use_cache=False).logits.float()
        nats += F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum").item()
    return nats / math.log(2) / size


def quick_texts(held: list[str]) -> list[str]:
    """The beginnings of every fourth held-out document: bits per byte in seconds, for the log and the tests."""
    return [text[:4000] for text in held[::4]]


def unseen_prompts(seen: set[str], count: int) -> list[CopyPrompt]:
    """One prompt from each of `count` files of the installed packages, in an order that is drawn by hash."""
    root = Path(sysconfig.get_paths()["purelib"])
    paths = sorted(root.rglob("*.py"), key=lambda path: hashlib.sha256(str(path.relative_to(root)).encode()).digest())
    texts = (path.read_text(encoding="utf-8", errors="replace") for path in paths)
    return list(islice((p for text in texts if text not in seen for p in islice(copy_prompts(text), 1)), count))


# --- data ------------------------------------------------------------------------------------------------------------


def bos_id(tokenizer: Tokenizer) -> int:
    found = tokenizer.token_to_id(BOS)
    if found is None:
        raise ValueError(f"the tokenizer has no {BOS}")
    return found


def train_tokenizer(texts: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(WORDS, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=[BOS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


class Windows:
    """Batches of windows; the batch of a step depends on (seed, step) and nothing else."""

    def __init__(self, texts: list[str], tokenizer: Tokenizer, seed: int):
        self.tokenizer, self.seed = tokenizer, seed
        self.bos = bos_id(tokenizer)
        encoded = tokenizer.encode_batch_fast(texts)
        self.stream = np.concatenate([np.array([self.bos, *doc.ids], dtype=np.int32) for doc in encoded])
        self.per_epoch = len(self.stream) // CONTEXT - 1
        self.constructors: list[tuple[str, list[str]]] = []
        names: set[str] = set()
        for text in texts:
            for function, parameters in constructors(text):
                names |= parameters
                if any(copied_parameters(function, parameters)):
                    source = ast.get_source_segment(text, function) or ""
                    self.constructors.append((dedented(source, function), sorted(parameters)))
        self.names = sorted(names)
        self._epoch, self._phase, self._order = -1, 0, np.empty(0, dtype=np.int64)

    def batch(self, step: int) -> Tensor:
        rng = np.random.default_rng((self.seed, step))
        first = step * (BATCH - CONSTRUCTOR_ROWS)
        rows = [self._corpus_window(first + i) for i in range(BATCH - CONSTRUCTOR_ROWS)]
        rows += [self._constructor_window(rng) for _ in range(CONSTRUCTOR_ROWS)]
        return torch.from_numpy(np.stack(rows)).long()

    def _corpus_window(self, index: int) -> np.ndarray:
        """Without replacement within an epoch; each epoch cuts the stream at other places."""
        epoch, position = divmod(index, self.per_epoch)
        if self._epoch != epoch:
            rng = np.random.default_rng((self.seed, 1 << 40, epoch))
            self._epoch, self._phase = epoch, int(rng.integers(CONTEXT))
            self._order = rng.permutation(self.per_epoch)
        start = self._phase + int(self._order[position]) * CONTEXT
        start += int(self.stream[start] == self.bos)
        return np.concatenate([[self.bos], self.stream[start : start + CONTEXT]])

    def _constructor_window(self, rng: np.random.Generator) -> np.ndarray:
        ids: list[int] = []
        while len(ids) <= CONTEXT:
            source, parameters = self.constructors[rng.integers(len(self.constructors))]
            if rng.random() < RENAMED_SHARE:
                source = self._renamed(source, parameters, rng)
            ids += [self.bos, *self.tokenizer.encode(source + "\n").ids]
        return np.array(ids[: CONTEXT + 1], dtype=np.int32)

    def _renamed(self, source: str, parameters: list[str], rng: np.random.Generator) -> str:
        """Other parameter names of the corpus in place of these, wherever the word stands in the function."""
        others = [self.names[i] for i in rng.choice(len(self.names), len(parameters), replace=False)]
        new = {old: other for old, other in zip(parameters, others, strict=True) if other not in source}
        return re.sub(r"[^\W\d]\w*", lambda word: new.get(word.group(), word.group()), source)


# --- model and optimizers --------------------------------------------------------------------------------------------


def configuration() -> SplitLlamaConfig:
    shared = {
        "vocab_size": VOCAB_SIZE,
        "max_position_embeddings": 2 * CONTEXT,
        "num_hidden_layers": 3,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    first = {"hidden_size": 128, "intermediate_size": 384, "num_attention_heads": 4, "num_key_value_heads": 4}
    last = {"hidden_size": 256, "intermediate_size": 768, "num_attention_heads": 8, "num_key_value_heads": 4}
    return SplitLlamaConfig.from_llamas(shared | first, shared | last, n_first=3, n_last=3, dtype="float32")


def optimizers(model: SplitLlama) -> list[torch.optim.Optimizer]:
    hidden = [p for n, p in model.named_parameters() if p.ndim == 2 and not n.startswith(("embed_tokens", "lm_head"))]
    chosen = {id(p) for p in hidden}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(hidden, lr=MUON_LR, momentum=0.95, weight_decay=0.05),
        torch.optim.AdamW(others, lr=ADAM_LR, betas=(0.9, 0.95), weight_decay=0.01),
    ]


def learning_rate_scale(step: int, budget_used: float) -> float:
    return min(1.0, (step + 1) / WARMUP_STEPS) * max(0.0, 1.0 - budget_used)


# --- the run ---------------------------------------------------------------------------------------------------------


class Run:
    """A training run: its model, its optimizers, and how far it has come."""

    def __init__(self, work: Path, minutes: float, seed: int):
        self.work, self.budget_s, self.seed = work, 60.0 * minutes, seed
        self.step, self.used_s = 0, 0.0
        torch.manual_seed(seed)
        documents = [text for _, text in stdlib_documents(include_tests=True)]
        self.held = [text for text in documents if held_out(text)]
        self.seen = [text for text in documents if not held_out(text)]
        self.tokenizer = self._tokenizer()
        self.windows = Windows(self.seen, self.tokenizer, seed)
        self.model = SplitLlama(configuration()).train()
        self.optimizers = optimizers(self.model)
        self.prompts = [prompt for text in self.held for prompt in copy_prompts(text)]
        log.info("%s", json.dumps(self.facts()))

    def facts(self) -> dict[str, Any]:
        return {
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "train_documents": len(self.seen),
            "train_bytes": sum(len(text.encode()) for text in self.seen),
            "train_tokens": len(self.windows.stream),
            "train_constructors": len(self.windows.constructors),
            "held_out_documents": len(self.held),
            "copy_prompts": len(self.prompts),
        }

    def _tokenizer(self) -> Tokenizer:
        path = self.work / "tokenizer.json"
        if not path.is_file():
            train_tokenizer(self.seen).save(str(path))
        return Tokenizer.from_file(str(path))

    def train(self, export_every_s: float) -> None:
        next_export = self.used_s + min(150.0, export_every_s)
        clock = time.monotonic() - self.used_s
        since, last_log = self.step, self.used_s
        while self.used_s < self.budget_s:
            loss, scale = self._train_step()
            self.used_s = time.monotonic() - clock
            if self.step % 25 == 0:
                rate = (self.step - since) * BATCH * CONTEXT / (self.used_s - last_log)
                self._record(step=self.step, tokens=self.step * BATCH * CONTEXT, seconds=round(self.used_s),
                             loss=round(loss, 4), lr=round(MUON_LR * scale, 6), tokens_per_s=round(rate))  # fmt: skip
                since, last_log = self.step, self.used_s
            if self.used_s >= next_export:
                next_export = self.used_s + export_every_s
                self._record(step=self.step, **self.figures(self.model, quick=True))
                self.save_checkpoint()
                self.export(self.work / "export")

    def _train_step(self) -> tuple[float, float]:
        scale = learning_rate_scale(self.step, self.used_s / self.budget_s)
        for optimizer, base in zip(self.optimizers, (MUON_LR, ADAM_LR), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = base * scale
        ids = self.windows.batch(self.step)
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.model(ids[:, :-1], use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        return loss.item(), scale

    def _record(self, **entry: Any) -> None:
        log.info("%s", json.dumps(entry))
        with (self.work / "training_log.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def figures(self, model: SplitLlama, quick: bool = False) -> dict[str, float]:
        model.eval()
        found = {"bits_per_byte": bits_per_byte(model, self.tokenizer, quick_texts(self.held) if quick else self.held)}
        found |= self.copy_figures(model, self.prompts)
        model.train()
        return {name: round(value, 4) for name, value in found.items()}

    def copy_figures(self, model: SplitLlama, prompts: list[CopyPrompt]) -> dict[str, float]:
        return {
            "copy_bare": copy_accuracy(model, self.tokenizer, [(p.bare, p.name) for p in prompts]),
            "copy_in_file": copy_accuracy(model, self.tokenizer, [(p.in_file, p.name) for p in prompts]),
        }

    def save_checkpoint(self) -> None:
        tensors = {f"model.{n}": p.detach() for n, p in self.model.named_parameters()}
        for i, optimizer in enumerate(self.optimizers):
            for index, state in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{i}.{index}.{key}": value for key, value in state.items()}
        progress = {"step": self.step, "used_s": self.used_s, "seed": self.seed}
        path = self.work / "checkpoint.safetensors"
        partial = path.with_suffix(".partial")
        save_file(tensors, partial, metadata={"progress": json.dumps(progress)})
        partial.replace(path)

    def resume(self) -> None:
        """Go on from the last checkpoint, if there is one."""
        path = self.work / "checkpoint.safetensors"
        if not path.is_file():
            return
        with safe_open(path, framework="pt") as file:
            progress = json.loads(file.metadata()["progress"])
        if progress["seed"] != self.seed:
            raise SystemExit(f"{path} was made with seed {progress['seed']}: give that seed, or another --work folder")
        tensors = load_file(path)
        self.model.load_state_dict({n: tensors[f"model.{n}"] for n, _ in self.model.named_parameters()}, strict=True)
        for i, optimizer in enumerate(self.optimizers):
            states: dict[int, dict[str, Tensor]] = {}
            for name, tensor in tensors.items():
                if name.startswith(f"optimizer.{i}."):
                    _, _, index, key = name.split(".")
                    states.setdefault(int(index), {})[key] = tensor
            optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
        self.step, self.used_s = progress["step"], progress["used_s"]

    def export(self, directory: Path) -> SplitLlama:
        """Write weights in bfloat16 and the tokenizer; return what a reader of them gets, in float32."""
        model = SplitLlama(configuration())
        model.load_state_dict(self.model.state_dict())
        model.to(torch.bfloat16).save_pretrained(directory)
        PreTrainedTokenizerFast(
            tokenizer_object=self.tokenizer, bos_token=BOS, eos_token=BOS, model_max_length=CONTEXT
        ).save_pretrained(directory)
        for path in directory.iterdir():
            # Weights are written readable by their owner alone; an installed package is read by others.
            path.chmod(0o644)
        return SplitLlama.from_pretrained(directory).float().eval()


CARD = """# tiny-split-llama

A SplitLlama of {parameters:,} parameters that reads Python: 3 layers of width 128, a linear adapter, 3 layers of width
256, a vocabulary of 4096 byte-level BPE tokens. It fits on a laptop and copies names well enough that the copying
circuit is worth tracing. It is no use as an assistant.

Held-out bits per byte of source text: **{bits_per_byte:.3f}**. Greedy accuracy of copying a name (below):

| prompts | constructor alone | file from its beginning |
|---|---|---|
| held-out documents of the standard library, {copy_prompts} prompts | **{copy_bare:.1%}** | {copy_in_file:.1%} |
| other installed packages, {unseen[prompts]} prompts | {unseen[copy_bare]:.1%} | {unseen[copy_in_file]:.1%} |

**The copy task.** A prompt is real source that ends in `self.name =`, in an `__init__` with a parameter `name`; the
document goes on with ` name`. Right is: greedy decoding gives exactly the tokens of ` name`, then one that ends the
identifier. "Constructor alone" starts at its `def`, without indentation. A prompt longer than the context of {context}
tokens loses its beginning. The held-out documents' prompts are all that they hold; of the other packages, one from each
of {unseen[prompts]} files, drawn by hash.

**Data.** The standard library of {python} with its tests: {train_documents:,} documents, {train_bytes:,}
bytes, {train_tokens:,} tokens. Of its documents, {held_out_documents} (chosen by a hash of their text) were never
trained on. Of every {batch} windows, {constructor_rows} hold nothing but constructors of the training
documents, {renamed:.0%} of them with their parameters renamed at random.

**Training.** {tokens_seen:,} tokens in {steps:,} steps, {minutes:.0f} minutes on {threads} CPU cores; Muon for the
hidden matrices, AdamW for the rest; see `training_log.jsonl`. {versions}. {date}.

**Use.** Put `<|endoftext|>` (BOS and EOS, id 0) first: the tokenizer does not add it, and the model never saw a window
without it. Keep to {context} tokens. Weights are bfloat16; the figures were measured on them in float32.

**Limits.** Documents are held out one by one, and some resemble others that were trained on. Under another version of
Python most held-out documents are near copies of trained ones. Made by `make tiny-model` from text under the PSF
License.
"""


def ship(run: Run, out: Path) -> None:
    """Export, measure what was exported, and write its log and its card."""
    shipped = run.export(out)
    figures = run.facts() | run.figures(shipped) | {"steps": run.step, "tokens_seen": run.step * BATCH * CONTEXT}
    unseen = unseen_prompts(set(run.seen), 400)
    figures |= {"unseen": run.copy_figures(shipped.eval(), unseen) | {"prompts": len(unseen)}}
    log.info("%s", json.dumps(figures))
    lines = (run.work / "training_log.jsonl").read_text().splitlines()
    kept = [line for i, line in enumerate(lines) if "bits_per_byte" in line or i % max(1, len(lines) // 1000) == 0]
    (out / "training_log.jsonl").write_text("\n".join([*kept, json.dumps({"shipped": figures})]) + "\n")
    python = f"Python {platform.python_version()}"
    circumstances = {
        "python": python,
        "context": CONTEXT,
        "batch": BATCH,
        "constructor_rows": CONSTRUCTOR_ROWS,
        "renamed": RENAMED_SHARE,
        "minutes": run.used_s / 60,
        "threads": torch.get_num_threads(),
        "versions": f"{python}, torch {torch.__version__}, transformers {transformers.__version__}",
        "date": datetime.now(UTC).date().isoformat(),
    }
    (out / "README.md").write_text(CARD.format(**figures, **circumstances))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "interp/models/builtin/tiny-split-llama", help="the model")
    parser.add_argument("--work", type=Path, default=ROOT / "build/tiny-model", help="checkpoints, log, exports")
    parser.add_argument("--minutes", type=float, default=65.0)
    parser.add_argument("--export-every", type=float, default=4.0, help="minutes")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    run = Run(args.work, args.minutes, args.seed)
    run.resume()
    run.train(60.0 * args.export_every)
    run.save_checkpoint()
    ship(run, args.out)


if __name__ == "__main__":
    main()
