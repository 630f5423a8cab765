"""The model that ships does what its card says, on documents of this interpreter's library that it never saw."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from interp.errors import SourceError
from interp.models.split_llama import SplitLlama
from interp.sources.builtin import (
    CopyPrompt,
    builtin_model_path,
    copy_prompts,
    held_out,
    stdlib_documents,
    stdlib_files,
)

DIRECTORY = builtin_model_path("tiny-split-llama")
ROOT = Path(__file__).resolve().parents[2]
BITS_PER_BYTE_BELOW = 1.25
COPY_AT_LEAST = 0.60


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def tool() -> ModuleType:
    """The training script: what measured the figures of the card measures them here."""
    spec = importlib.util.spec_from_file_location("train_tiny_model", ROOT / "tools" / "train_tiny_model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def model() -> SplitLlama:
    return SplitLlama.from_pretrained(DIRECTORY).float().eval()


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(DIRECTORY / "tokenizer.json"))


@cache
def held_out_texts() -> list[str]:
    return [text for _, text in stdlib_documents(include_tests=True) if held_out(text)]


@cache
def prompts() -> list[CopyPrompt]:
    return [prompt for text in held_out_texts() for prompt in copy_prompts(text)]


@cache
def claims() -> dict[str, Any]:
    """The last line of the training log: the figures that the card was written from."""
    return json.loads((DIRECTORY / "training_log.jsonl").read_text().splitlines()[-1])["shipped"]


# --- the model -------------------------------------------------------------------------------------------------------


def test_it_copies_names_in_held_out_constructors() -> None:
    assert len(prompts()) >= 30
    accuracy = tool().copy_accuracy(model(), tokenizer(), [(p.bare, p.name) for p in prompts()])
    assert accuracy >= COPY_AT_LEAST


def test_it_copies_names_behind_the_text_of_their_file() -> None:
    accuracy = tool().copy_accuracy(model(), tokenizer(), [(p.in_file, p.name) for p in prompts()])
    assert accuracy >= COPY_AT_LEAST


def test_it_predicts_held_out_source() -> None:
    assert tool().bits_per_byte(model(), tokenizer(), tool().quick_texts(held_out_texts())) < BITS_PER_BYTE_BELOW


def test_copying_is_what_generation_does() -> None:
    """The measure gives the answer and looks at each best token; decoding token by token says the same."""
    tokens = AutoTokenizer.from_pretrained(DIRECTORY)
    for name in ("timeout", "parent"):
        prompt = f"def __init__(self, {name}, other=None):\n    self.{name} ="
        ids = torch.tensor([[tokens.bos_token_id, *tokens(prompt)["input_ids"]]])
        made = model().generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, pad_token_id=0
        )
        continuation = tokens.decode(made[0, ids.shape[1] :])
        measured = tool().copy_accuracy(model(), tokenizer(), [(prompt, name)])
        ending = continuation.removeprefix(f" {name}")
        assert measured == (ending != continuation and not (ending[:1].isalnum() or ending[:1] == "_"))


def test_the_card_says_what_was_measured() -> None:
    card = (DIRECTORY / "README.md").read_text()
    for figure in (
        f"{claims()['parameters']:,} parameters",
        f"{claims()['bits_per_byte']:.3f}",
        f"{claims()['copy_bare']:.1%}",
        f"{claims()['copy_in_file']:.1%}",
        f"{claims()['tokens_seen']:,} tokens",
    ):
        assert figure in card
    assert claims()["copy_bare"] >= COPY_AT_LEAST


# --- its files -------------------------------------------------------------------------------------------------------


def test_it_ships_as_one_small_safetensors_file() -> None:
    names = {path.name for path in DIRECTORY.iterdir()}
    assert names == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "training_log.jsonl",
    }
    assert (DIRECTORY / "model.safetensors").stat().st_size < 12e6
    assert (DIRECTORY / "training_log.jsonl").stat().st_size < 300e3
    with safe_open(DIRECTORY / "model.safetensors", framework="pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118


def test_it_loads_as_any_model_does() -> None:
    loaded = AutoModelForCausalLM.from_pretrained(DIRECTORY)
    tokens = AutoTokenizer.from_pretrained(DIRECTORY)
    assert isinstance(loaded, SplitLlama)
    assert loaded.dtype == torch.bfloat16
    assert 3e6 < sum(p.numel() for p in loaded.parameters()) == claims()["parameters"] < 8e6
    assert loaded.config.first.hidden_size != loaded.config.last.hidden_size
    assert len(tokens) == loaded.config.vocab_size == 4096
    assert tokens.bos_token_id == tokens.eos_token_id == loaded.config.bos_token_id == 0


def test_its_tokenizer_loses_nothing() -> None:
    text = "class Größe:\n\tdef __init__(self, x_1=0.25):  # → naïve\r\n        self.x_1 = x_1\n\n\n"
    assert tokenizer().decode(tokenizer().encode(text).ids) == text


# --- its corpus ------------------------------------------------------------------------------------------------------


def test_the_split_is_a_property_of_the_text() -> None:
    assert [held_out(f"document {i}") for i in range(8)] == [held_out(f"document {i}") for i in range(8)]
    share = sum(held_out(f"document {i}") for i in range(4000)) / 4000
    assert 0.04 < share < 0.06


def test_the_library_is_read_in_order_and_without_tests_unless_asked() -> None:
    names = [name for name, _ in stdlib_documents()]
    assert names == sorted(names)
    assert len(names) == len(set(names)) == len(stdlib_files())
    assert "argparse.py" in names
    assert not any("site-packages" in name or "/tests/" in f"/{name}" for name in names)
    assert set(names) <= {name for name, _ in stdlib_documents(include_tests=True)}


def test_prompts_end_where_the_name_is_to_be_copied() -> None:
    text = (
        "class A:\n    def __init__(self, first, *, zweite='ä'):\n        'ä'; self.zweite = zweite\n"
        "        if first:\n            self.first = first\n        self.other = first\n"
    )
    found = {prompt.name: prompt for prompt in copy_prompts(text)}
    assert set(found) == {"first", "zweite"}
    assert found["zweite"].bare == "def __init__(self, first, *, zweite='ä'):\n    'ä'; self.zweite ="
    assert found["first"].in_file == text[: text.index(" first\n        self.other")]
    assert all(text.startswith(f"{prompt.in_file} {prompt.name}\n") for prompt in found.values())


def test_an_unknown_model_is_an_error_with_a_remedy() -> None:
    with pytest.raises(SourceError, match="tiny-split-llama"):
        builtin_model_path("huge-split-llama")


def test_the_sources_need_no_torch() -> None:
    code = "import sys, interp.sources.builtin; sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
