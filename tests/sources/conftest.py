"""Sources are looked up with a cache of their own: nothing of the user's is read or written."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 64,
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("INTERP_CACHE_DIR", str(folder))
    return folder


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint directory as far as planning looks into one."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "README.md").write_text("words")
    return folder


@pytest.fixture
def aged() -> Callable[[Path], None]:
    """Makes a file look as if nobody had written to it for a while, which is when its digest is remembered."""

    def age(path: Path) -> None:
        then = time.time_ns() - 10_000_000_000
        os.utime(path, ns=(then, then))

    return age


@pytest.fixture
def llama() -> dict[str, Any]:
    return dict(LLAMA)
