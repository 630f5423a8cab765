"""Packing: exact budgets, whole held-out documents, and nothing of them in the training part."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from interp.corpus import Budget, Packer, TokenizedBatch
from interp.corpus.packing import places
from interp.corpus.tokenizer import Separator
from interp.errors import CorpusError

BOS, PAD = 0, 1
SEPARATOR = Separator(id=BOS, kind="bos", pad_id=PAD)


def batch(*docs: list[int]) -> TokenizedBatch:
    ids = np.array([i for doc in docs for i in doc], dtype=np.int32)
    return TokenizedBatch(
        ids, tuple(len(doc) for doc in docs), tuple(hashlib.sha256(bytes(doc)).digest() for doc in docs)
    )


def packer(folder: Path, context: int, tokens: int, holdout: int = 0, seed: int | None = None) -> Packer:
    return Packer(Budget(context, tokens, holdout), SEPARATOR, folder, seed=seed)


def corpus(n: int = 40) -> list[list[int]]:
    """Documents of differing lengths; no token occurs in two of them."""
    lengths = [1 + (7 * i) % 11 for i in range(n)]
    ends = np.cumsum(lengths) + 2
    return [list(range(end - length, end)) for end, length in zip(ends.tolist(), lengths, strict=True)]


def test_layout_by_hand(tmp_path: Path) -> None:
    p = packer(tmp_path, context=4, tokens=7, holdout=5)
    p.add(batch([2, 3], [4, 5, 6, 7], [8, 9], [], [10, 11, 12, 13, 14, 15]))
    train, holdout = p.finish()
    # 6 and 7 are the rest of the document that the held-out budget cut: they are in neither part.
    assert holdout.tolist() == [[BOS, 2, 3, BOS], [4, PAD, PAD, PAD]]
    assert train.tolist() == [[BOS, 8, 9, BOS], [10, 11, 12, PAD]]
    assert p.counts == {"train": 2, "holdout": 2, "empty": 1, "duplicates": 0}


@pytest.mark.parametrize("context", [2, 3, 8, 64])
@pytest.mark.parametrize(("tokens", "holdout"), [(1, 0), (8, 8), (100, 30), (64, 1)])
def test_budgets_are_exact(tmp_path: Path, context: int, tokens: int, holdout: int) -> None:
    p = packer(tmp_path, context, tokens, holdout, seed=1)
    p.add(batch(*corpus()))
    train, held = p.finish()
    for part, budget in ((train, tokens), (held, holdout)):
        assert part.shape == (-(-budget // context), context) and part.dtype == np.int32
        flat = part.reshape(-1)
        assert (flat[:budget] != PAD).all() and (flat[budget:] == PAD).all()


def test_no_training_token_comes_from_a_held_out_document(tmp_path: Path) -> None:
    docs = corpus()
    p = packer(tmp_path, 8, 100, 30, seed=3)
    p.add(batch(*docs))
    train, held = p.finish()
    in_train, in_held = set(train.flatten().tolist()), set(held.flatten().tolist())
    touched = {i for doc in docs if in_held & set(doc) for i in doc}
    assert not in_train & touched


def test_copies_of_held_out_documents_are_not_trained_on(tmp_path: Path) -> None:
    p = packer(tmp_path, 4, 8, 4)
    p.add(batch([2, 3, 4], [2, 3, 4], [5, 6, 7], [2, 3, 4], [5, 6, 7]))
    train, _ = p.finish()
    # A document that occurs twice in the training part stays twice.
    assert train.tolist() == [[BOS, 5, 6, 7], [BOS, 5, 6, 7]]
    assert p.counts["duplicates"] == 2


def test_a_copy_of_the_document_that_was_cut_is_dropped_too(tmp_path: Path) -> None:
    p = packer(tmp_path, 4, 3, 2)
    p.add(batch([2, 3, 4], [2, 3, 4], [5, 6]))
    train, holdout = p.finish()
    assert holdout.tolist() == [[BOS, 2, PAD, PAD]] and train.tolist() == [[BOS, 5, 6, PAD]]


def test_result_does_not_depend_on_batches(tmp_path: Path) -> None:
    docs = corpus()
    results = []
    for size in (1, 3, 40):
        (tmp_path / str(size)).mkdir()
        p = packer(tmp_path / str(size), 8, 120, 25, seed=7)
        for start in range(0, len(docs), size):
            p.add(batch(*docs[start : start + size]))
        results.append(([part.tolist() for part in p.finish()], p.counts, p.largest_id))
    assert results[0] == results[1] == results[2]


def test_shuffle_moves_whole_contexts_and_keeps_the_partial_one_last(tmp_path: Path) -> None:
    parts = []
    for name, seed in (("ordered", None), ("one", 1), ("again", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        p = packer(tmp_path / name, 4, 102, 0, seed=seed)
        p.add(batch(*corpus()))
        parts.append(p.finish()[0].tolist())
    ordered, one, again, two = parts
    assert sorted(ordered) == sorted(one) == sorted(two)
    assert one == again != two and one != ordered
    assert ordered[-1] == one[-1] == two[-1] and one[-1][2:] == [PAD, PAD]


def test_the_permutation_is_the_one_that_other_versions_gave() -> None:
    assert places(8, seed=0).tolist() == [2, 4, 3, 6, 5, 0, 1, 7]


def test_too_small_says_how_much_there_was(tmp_path: Path) -> None:
    p = packer(tmp_path, 4, 100, 5)
    p.add(batch([2, 3, 4, 5, 6], [7, 8], []))
    assert not p.full
    with pytest.raises(CorpusError) as caught:
        p.finish()
    for said in ("3 training and 5 held-out tokens", "100 training", "corpus.tokens to at most 3", "1 empty"):
        assert said in str(caught.value)


def test_too_small_for_the_held_out_part(tmp_path: Path) -> None:
    p = packer(tmp_path, 4, 100, 50)
    p.add(batch([2, 3, 4]))
    with pytest.raises(CorpusError, match=r"corpus\.holdout"):
        p.finish()


def test_full_disk_is_a_clear_error(tmp_path: Path) -> None:
    p = packer(tmp_path, 4, 8)
    p._train._file.close()
    p._train._file = Path("/dev/full").open("wb", buffering=0)  # noqa: SIM115
    with pytest.raises(CorpusError, match=r"No space(.|\n)*32 bytes of free space"):
        p.add(batch([2, 3, 4, 5]))
