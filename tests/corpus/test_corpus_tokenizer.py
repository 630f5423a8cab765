"""Tokenising: whole documents, no added tokens, no forged boundaries."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import pytest

from interp.corpus import Document, TokenizeWorker
from interp.corpus import tokenizer as module
from interp.corpus.tokenizer import Separator
from interp.errors import CorpusError, SourceError
from interp.spec.study import ModelSpec


def worker(path: Path) -> TokenizeWorker:
    return TokenizeWorker(ModelSpec(source=str(path)))


def ids_of(path: Path, *texts: str) -> list[list[int]]:
    batch = worker(path).start()([Document(str(i), text) for i, text in enumerate(texts)])
    return [ids.tolist() for _, ids in batch.documents()]


def test_a_document_is_neither_cut_nor_given_special_tokens(byte_tokenizer_path: Path) -> None:
    [ids] = ids_of(byte_tokenizer_path, "abc" * 100)
    assert len(ids) == 300 and min(ids) > 1


def test_text_that_spells_a_special_token_stays_text(byte_tokenizer_path: Path) -> None:
    [ids] = ids_of(byte_tokenizer_path, "a</s>b")
    assert len(ids) == 6 and 1 not in ids


def test_blank_documents_have_no_tokens(byte_tokenizer_path: Path) -> None:
    assert ids_of(byte_tokenizer_path, "", " \n\t", "a")[:2] == [[], []]


def test_ids_do_not_depend_on_the_batch(byte_tokenizer_path: Path) -> None:
    texts = ["one", "", "zwei\n", "三"]
    assert ids_of(byte_tokenizer_path, *texts) == [ids_of(byte_tokenizer_path, text)[0] for text in texts]


def test_long_documents_are_cut_after_lines(byte_tokenizer_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "line one\nline two\n" + "x" * 50 + "\nend"
    whole = ids_of(byte_tokenizer_path, text)
    monkeypatch.setattr(module, "PIECE_CHARACTERS", 20)
    assert list(module._pieces(text)) == ["line one\nline two\n", "x" * 20, "x" * 20, "x" * 10 + "\nend"]
    assert ids_of(byte_tokenizer_path, text) == whole


def test_digest_is_the_text_s(byte_tokenizer_path: Path) -> None:
    batch = worker(byte_tokenizer_path).start()([Document("a", "same"), Document("b", "same")])
    assert set(batch.digests) == {hashlib.sha256(b"same").digest()}


def test_worker_travels(byte_tokenizer_path: Path) -> None:
    batch = pickle.loads(pickle.dumps(worker(byte_tokenizer_path))).start()([Document("a", "x")])
    assert pickle.loads(pickle.dumps(batch)).ids.tolist() == batch.ids.tolist()


def test_missing_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=str(tmp_path)):
        worker(tmp_path).start()


class _Tokens:
    name_or_path = "a tokenizer"

    def __init__(self, bos: int | None, eos: int | None):
        self.bos_token_id, self.eos_token_id = bos, eos


def test_separator_is_bos_or_else_eos() -> None:
    assert Separator.of(_Tokens(5, 6)) == Separator(id=5, kind="bos", pad_id=6)
    assert Separator.of(_Tokens(None, 6)) == Separator(id=6, kind="eos", pad_id=6)
    assert Separator.of(_Tokens(0, None)) == Separator(id=0, kind="bos", pad_id=0)
    with pytest.raises(CorpusError, match="a tokenizer"):
        Separator.of(_Tokens(None, None))
