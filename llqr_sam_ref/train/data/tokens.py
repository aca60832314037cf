"""Sequences of tokens in memory: arithmetic modulo a prime, and text by the character or by token number."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Integer
from torch import Tensor

from llqr_sam_ref.errors import UserError, check_choice, check_count, check_number
from llqr_sam_ref.train.config import DataConfig
from llqr_sam_ref.train.data.base import IGNORED, Batch, Data, slices
from llqr_sam_ref.train.data.files import MissingDataError, folder

OPERATIONS = ("add", "subtract", "multiply", "divide")


class TableData(Data):
    """Equations a o b = c modulo p: a part of the table is for training, the rest for the test.

    A sequence is (a, b, =); only what follows "=" counts.

    Args:
        config: subsets.
        device: where batches are wanted.
        p: the modulus; for "divide" a prime.
        operation: "add", "subtract", "multiply" or "divide".
        fraction: share of the table for training.

    Raises:
        UserError: an argument is out of range.

    Source: Power et al. 2022 (arXiv 2201.02177).
    """

    unit = "sequences"

    def __init__(
        self,
        config: DataConfig,
        device: torch.device,
        p: int = 97,
        operation: str = "add",
        fraction: float = 0.5,
    ) -> None:
        check_count("p", p, low=2)
        check_choice("operation", operation, OPERATIONS)
        check_number("fraction", fraction, low=0.0, high=1.0, open_low=True, open_high=True)
        self.name, self.device = config.data, device
        a, b = torch.cartesian_prod(torch.arange(p), torch.arange(p)).T
        if operation == "divide":  # a/b = c is a = b c: b runs over what has an inverse
            if any(p % d == 0 for d in range(2, int(p**0.5) + 1)):
                raise UserError(f"p={p} is not a prime, so not every division has a result; pass a prime.")
            a, b = a[b > 0], b[b > 0]
            inverse = torch.tensor([0] + [pow(value, -1, p) for value in range(1, p)])
            c = a * inverse[b] % p
        else:
            c = {"add": a + b, "subtract": a - b, "multiply": a * b}[operation] % p
        tokens = torch.stack((a, b, torch.full_like(a, p)), dim=1)
        targets = torch.full_like(tokens, IGNORED)
        targets[:, 2] = c
        order = torch.randperm(len(c), generator=torch.Generator().manual_seed(0))
        cut = round(fraction * len(c))
        train, test = order[:cut][: config.train_examples], order[cut:][: config.test_examples]
        self.tokens, self.targets = tokens[train].to(device), targets[train].to(device)
        self.test_tokens, self.test_targets = tokens[test].to(device), targets[test].to(device)
        self.train_size, self.test_size = len(train), len(test)
        self.shape = {"vocabulary": p + 1, "context": 3}

    def train_batch(self, indices: Tensor, uniforms: Tensor) -> Batch:
        """Equations (n, 3) and what follows them."""
        indices = indices.to(self.device)
        return self.tokens[indices], self.targets[indices]

    def test_batches(self, size: int, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """Equations and what follows them."""
        for part in slices(self.test_size, size, rank, world_size):
            yield self.test_tokens[part], self.test_targets[part]


class TextData(Data):
    """Windows of a long sequence; the target of a token is the one that follows it.

    The windows of an epoch lie end to end; each is shifted by a random part of its length.

    Args:
        name: of the data set.
        train: token numbers (n,).
        test: token numbers (m,).
        vocabulary: how many tokens there are.
        config: subsets, counted in windows.
        device: where batches are wanted.
        context: tokens of a window.

    Raises:
        UserError: the text is shorter than a window.
    """

    unit = "sequences"
    draws = 1

    def __init__(
        self,
        name: str,
        train: Integer[Tensor, " n"],
        test: Integer[Tensor, " m"],
        vocabulary: int,
        config: DataConfig,
        device: torch.device,
        context: int = 128,
    ) -> None:
        self.name, self.device, self.context = name, device, check_count("context", context)
        for which, tokens in (("training", train), ("test", test)):
            if len(tokens) <= context:
                raise UserError(
                    f"{name}: {len(tokens)} {which} tokens for context={context}; pass a longer text or less."
                )
        self.train, self.test = train.long().to(device), test.long().to(device)
        self.train_size, self.test_size = ((len(t) - 1) // context for t in (train, test))
        self.train_size = min(self.train_size, config.train_examples or self.train_size)
        self.test_size = min(self.test_size, config.test_examples or self.test_size)
        self.shape = {"vocabulary": vocabulary, "context": context}

    def train_batch(self, indices: Tensor, uniforms: Tensor) -> Batch:
        """Windows (n, context) and the same shifted by one."""
        shifts = (uniforms[:, 0] * self.context).long()
        starts = (indices * self.context + shifts).clamp(max=len(self.train) - 1 - self.context)
        return self._windows(self.train, starts)

    def test_batches(self, size: int, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """Windows end to end and the same shifted by one."""
        for part in slices(self.test_size, size, rank, world_size):
            yield self._windows(self.test, torch.arange(part.start, part.stop) * self.context)

    def _windows(self, tokens: Tensor, starts: Tensor) -> Batch:
        places = starts.to(self.device)[:, None] + torch.arange(self.context + 1, device=self.device)
        windows = tokens[places]
        return windows[:, :-1], windows[:, 1:]


def load_text(config: DataConfig, device: torch.device, context: int = 128) -> Data:
    """A text by its characters, or arrays of token numbers from any tokenizer.

    Args:
        config: data_path is a UTF-8 file, whose last tenth is the test, or a folder with train.npy and valid.npy.
        device: where batches are wanted.
        context: tokens of a window.

    Returns:
        The data.

    Raises:
        UserError: the files are missing, or not text, or not token numbers.
    """
    path = folder(config, "train.npy and valid.npy, or a text file")
    if path.is_dir():
        train, test = (_token_numbers(path / name) for name in ("train.npy", "valid.npy"))
        vocabulary = int(max(train.max(), test.max())) + 1
        return TextData(config.data, train, test, vocabulary, config, device, context)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}; convert it.") from error
    characters = sorted(set(text))
    number = {character: i for i, character in enumerate(characters)}
    tokens = torch.tensor([number[character] for character in text])
    cut = len(tokens) * 9 // 10
    return TextData(config.data, tokens[:cut], tokens[cut:], len(characters), config, device, context)


def _token_numbers(path: Path) -> Tensor:
    if not path.exists():
        raise MissingDataError(f"{path} is missing; a folder of text holds train.npy and valid.npy.")
    try:
        tokens = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer) or (len(tokens) and tokens.min() < 0):
        raise UserError(
            f"{path} has shape {tokens.shape} and type {tokens.dtype}; save one row of token numbers from 0."
        )
    return torch.from_numpy(tokens.astype(np.int64))
