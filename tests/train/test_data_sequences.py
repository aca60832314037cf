"""Equations, texts, translations and pairs: what follows what, and what counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llqr_sam_ref.train.config import DataConfig
from llqr_sam_ref.train.data import IGNORED, Data, load_data
from llqr_sam_ref.train.data.parallel import BEGIN, END, PADDING, UNKNOWN, ParallelData
from tests.train import files

CPU = torch.device("cpu")


def loaded(data: str, path: Path | None = None, **settings: Any) -> Data:
    return load_data(DataConfig(data=data, data_path=None if path is None else str(path), **settings), CPU)


@pytest.mark.parametrize("operation", ["add", "subtract", "multiply", "divide"])
def test_equations_hold(operation: str) -> None:
    p = 11
    data = loaded("modular", data_args=(f"p={p}", f"operation={operation}", "fraction=0.6"))
    size = p * (p - 1) if operation == "divide" else p * p
    assert data.train_size + data.test_size == size
    assert data.train_size == round(0.6 * size)
    tokens, targets = data.train_batch(torch.arange(data.train_size), torch.empty(data.train_size, 0))
    test_tokens, test_targets = next(data.test_batches(1000))
    assert len(torch.cat((tokens, test_tokens)).unique(dim=0)) == size
    for (a, b, equals), (*before, c) in zip(
        torch.cat((tokens, test_tokens)).tolist(), torch.cat((targets, test_targets)).tolist(), strict=True
    ):
        assert (equals, before) == (p, [IGNORED, IGNORED])
        if operation == "divide":
            assert b * c % p == a
        else:
            assert c == {"add": a + b, "subtract": a - b, "multiply": a * b}[operation] % p


def test_the_target_of_a_character_is_the_next_one(tmp_path: Path) -> None:
    text = "the quick brown fox jumps over the lazy dog " * 20
    path = tmp_path / "text.txt"
    path.write_text(text)
    data = loaded("text", path, data_args=("context=8",))
    assert data.shape == {"vocabulary": len(set(text)), "context": 8}
    characters = sorted(set(text))
    cut = len(text) * 9 // 10
    windows, following = data.train_batch(
        torch.tensor([0, 5, data.train_size - 1]), torch.tensor([[0.0], [0.5], [0.99]])
    )
    for start, w, f in zip((0, 5 * 8 + 4, cut - 9), windows.tolist(), following.tolist(), strict=True):
        assert "".join(characters[i] for i in w) == text[start : start + 8]
        assert "".join(characters[i] for i in f) == text[start + 1 : start + 9]
    tested = torch.cat([w.flatten() for w, _ in data.test_batches(3)])
    assert "".join(characters[i] for i in tested.tolist()) == text[cut : cut + len(tested)]


def test_text_by_token_numbers(tmp_path: Path) -> None:
    np.save(tmp_path / "train.npy", np.arange(100, dtype=np.uint16) % 50)
    np.save(tmp_path / "valid.npy", np.arange(40, dtype=np.uint16) % 50)
    data = loaded("text", tmp_path, data_args=("context=9",))
    assert data.shape["vocabulary"] == 50
    assert (data.train_size, data.test_size) == (11, 4)


@pytest.mark.parametrize(
    ("train", "word"),
    [
        (np.zeros((3, 3), dtype=int), "shape"),
        (np.zeros(100), "float64"),
        (np.full(100, -1), "from 0"),
        (None, "missing"),
    ],
)
def test_bad_token_numbers_are_named(tmp_path: Path, train: Any, word: str) -> None:
    if train is not None:
        np.save(tmp_path / "train.npy", train)
    np.save(tmp_path / "valid.npy", np.arange(40))
    with pytest.raises(ValueError, match=word):
        loaded("text", tmp_path, data_args=("context=9",))


def test_bad_texts_are_named(tmp_path: Path) -> None:
    short, binary = tmp_path / "short.txt", tmp_path / "binary.txt"
    short.write_text("abc")
    binary.write_bytes(b"\xff\xfe\x00" * 100)
    with pytest.raises(ValueError, match="context=128"):
        loaded("text", short)
    with pytest.raises(ValueError, match="UTF-8"):
        loaded("text", binary)


# Translation.


def corpus(tmp_path: Path, **settings: Any) -> ParallelData:
    files.parallel(tmp_path)
    data = loaded("parallel", tmp_path, **settings)
    assert isinstance(data, ParallelData)
    return data


def test_sentences_begin_and_end(tmp_path: Path) -> None:
    data = corpus(tmp_path)
    (source, before), after = data.train_batch(torch.arange(5), torch.empty(5, 0))
    for i in range(5):
        s, t = data.pairs[i]
        m, n = len(s), len(t)
        assert source[i, : m + 1].tolist() == [*s.tolist(), END]
        assert (source[i, m + 1 :] == PADDING).all()
        assert before[i, : n + 1].tolist() == [BEGIN, *t.tolist()]
        assert after[i, : n + 1].tolist() == [*t.tolist(), END]
        assert (after[i, n + 1 :] == IGNORED).all()
        assert data.terms(torch.tensor([i])) == n + 1


def test_batches_hold_so_many_tokens_and_every_pair_once(tmp_path: Path) -> None:
    data = corpus(tmp_path, data_args=("buckets=3",))
    counts = set()
    for seed in range(5):
        batches = data.batches(40, torch.Generator().manual_seed(seed))
        counts.add(len(batches))
        assert sorted(torch.cat(batches).tolist()) == list(range(data.train_size))
        for batch in batches:
            _, after = data.train_batch(batch, torch.empty(len(batch), 0))
            assert after.numel() <= 40
    assert len(counts) == 1
    with pytest.raises(ValueError, match="batch_size=5"):
        data.batches(5, torch.Generator())


def test_rare_words_and_odd_lengths(tmp_path: Path) -> None:
    files.parallel(tmp_path)
    (tmp_path / "train.de").write_text("d1 d2\nd1\nd1 d2 d3 d4\n\n")
    (tmp_path / "train.en").write_text("e1 e2\ne1 e2 e3 e4\ne1 e2 e3\ne1\n")
    (tmp_path / "valid.de").write_text("d9\n")
    (tmp_path / "valid.en").write_text("e1\n")
    data = loaded("parallel", tmp_path)
    assert isinstance(data, ParallelData)
    assert [(len(s), len(t)) for s, t in data.pairs] == [(2, 2), (4, 3)]  # ratio 1.5 at most, nothing empty
    assert data.test[0][0].tolist() == [UNKNOWN]


def test_files_of_different_length_are_refused(tmp_path: Path) -> None:
    files.parallel(tmp_path)
    (tmp_path / "train.en").write_text("e1\n")
    with pytest.raises(ValueError, match=r"train\.de has 40 lines but \.en has 1"):
        loaded("parallel", tmp_path)


# Pairs.


def test_captions_tell_digit_ink_and_place() -> None:
    data = loaded("pairs")
    (images, captions), targets = data.train_batch(
        torch.arange(data.train_size), torch.empty(data.train_size, 0)
    )
    assert torch.equal(targets, torch.arange(data.train_size))
    digits = loaded("digits")
    _, labels = digits.train_batch(torch.arange(data.train_size), torch.full((data.train_size, 6), 0.5))
    assert torch.equal(captions[:, 0], labels)
    for word in (1, 2):
        counts = torch.bincount(captions[:, word] - (7 + 3 * word))
        assert float((counts - data.train_size / 3).abs().max()) < 0.03 * data.train_size
    (_, everything), numbers = next(data.test_batches(1000))
    assert len(everything) <= 90
    assert int(numbers.max()) < len(everything)


def test_wrong_captions() -> None:
    right, wrong = loaded("pairs"), loaded("pairs", label_noise=0.4)
    everything = torch.arange(right.train_size)
    (_, a), _ = right.train_batch(everything, torch.empty(0))
    (_, b), _ = wrong.train_batch(everything, torch.empty(0))
    assert float((a != b).any(1).double().mean()) == pytest.approx(0.4, abs=0.05)
    with pytest.raises(ValueError, match="label_smoothing"):
        right.loss(0.1)
