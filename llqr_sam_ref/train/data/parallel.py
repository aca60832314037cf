"""A parallel corpus: two text files, line by line each other's translation, tokens separated by spaces.

    PATH/train.de  PATH/train.en  PATH/valid.de  PATH/valid.en        (any two suffixes)

Splitting words into pieces (byte pairs, for IWSLT14) happens before; any tool that writes one sentence a line
will do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from llqr_sam_ref.errors import UserError, check_count, check_number
from llqr_sam_ref.train.config import DataConfig
from llqr_sam_ref.train.data.base import IGNORED, Batch, Data, slices
from llqr_sam_ref.train.data.files import MissingDataError, folder

PADDING, BEGIN, END, UNKNOWN = 0, 1, 2, 3
SPECIAL = 4
Pair = tuple[Tensor, Tensor]


class ParallelData(Data):
    """Sentence pairs, in batches of similar length and about equally many tokens.

    The batch size counts target tokens, padding included. Pairs are sorted into buckets by length; a bucket's
    batches have as many pairs as fit if all were as long as its longest.

    Args:
        config: subsets.
        device: where batches are wanted.
        train: pairs of token numbers.
        test: the same.
        vocabularies: sizes of the two.
        buckets: how many lengths are told apart.

    Raises:
        UserError: there are no pairs.
    """

    unit = "sequences"

    def __init__(
        self,
        config: DataConfig,
        device: torch.device,
        train: list[Pair],
        test: list[Pair],
        vocabularies: tuple[int, int],
        buckets: int = 8,
    ) -> None:
        if not train or not test:
            raise UserError(f"{config.data}: no sentence pairs left; check the files and max_ratio.")
        self.name, self.device = config.data, device
        self.pairs, self.test = train[: config.train_examples], test[: config.test_examples]
        self.train_size, self.test_size = len(self.pairs), len(self.test)
        self.lengths = torch.tensor([max(len(s), len(t) + 1) for s, t in self.pairs])
        by_length = torch.argsort(self.lengths, stable=True)
        self.buckets = [part for part in by_length.chunk(check_count("buckets", buckets)) if len(part)]
        self.shape = {"source_vocabulary": vocabularies[0], "target_vocabulary": vocabularies[1]}

    def batches(self, size: int, generator: torch.Generator) -> list[Tensor]:
        """Batches of at most ``size`` tokens; their number does not depend on the order.

        Args:
            size: target tokens of a batch, padding included.
            generator: the source of the order.

        Returns:
            Index tensors; a bucket's last batch may be smaller.

        Raises:
            UserError: a sentence alone has more tokens.
        """
        longest = int(self.lengths.max())
        if longest > size:
            raise UserError(
                f"batch_size={size} tokens is less than the longest sentence, {longest}; pass at least that."
            )
        batches: list[Tensor] = []
        for bucket in self.buckets:
            shuffled = bucket[torch.randperm(len(bucket), generator=generator)]
            batches.extend(torch.split(shuffled, size // int(self.lengths[bucket].max())))
        order = torch.randperm(len(batches), generator=generator)
        return [batches[i] for i in order.tolist()]

    def train_batch(self, indices: Tensor, uniforms: Tensor) -> Batch:
        """((source, target so far), target)."""
        return self._batch([self.pairs[i] for i in indices.tolist()])

    def test_batches(self, size: int, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """The same of the test pairs, at most ``size`` in a batch."""
        for part in slices(self.test_size, size, rank, world_size):
            yield self._batch(self.test[part])

    def terms(self, indices: Tensor) -> Tensor | None:
        """Target tokens of every pair, the end included."""
        return torch.tensor([len(self.pairs[i][1]) + 1 for i in indices.tolist()])

    def _batch(self, pairs: list[Pair]) -> Batch:
        begin, end = torch.tensor([BEGIN]), torch.tensor([END])
        source = pad_sequence(
            [torch.cat((s, end)) for s, _ in pairs], batch_first=True, padding_value=PADDING
        )
        before = pad_sequence(
            [torch.cat((begin, t)) for _, t in pairs], batch_first=True, padding_value=PADDING
        )
        after = pad_sequence([torch.cat((t, end)) for _, t in pairs], batch_first=True, padding_value=IGNORED)
        return (source.to(self.device), before.to(self.device)), after.to(self.device)


def load(
    config: DataConfig,
    device: torch.device,
    source: str = "de",
    target: str = "en",
    buckets: int = 8,
    max_ratio: float = 1.5,
    max_length: int = 175,
) -> Data:
    """Read the four files; the vocabularies are the training files'.

    Args:
        config: data_path is the folder.
        device: where batches are wanted.
        source: suffix of the language read.
        target: suffix of the language written.
        buckets: how many lengths are told apart.
        max_ratio: training pairs whose lengths differ by more are left out.
        max_length: training pairs with a longer side are left out.

    Returns:
        The data.

    Raises:
        UserError: a file is missing, or two files have different numbers of lines.
    """
    check_number("max_ratio", max_ratio, low=1.0)
    check_count("max_length", max_length)
    root = folder(config, f"train.{source}, train.{target}, valid.{source} and valid.{target}")
    texts = {
        (part, language): _sentences(root / f"{part}.{language}")
        for part in ("train", "valid")
        for language in (source, target)
    }
    vocabulary = {language: _vocabulary(texts["train", language]) for language in (source, target)}
    pairs: dict[str, list[Pair]] = {}
    for part in ("train", "valid"):
        left, right = texts[part, source], texts[part, target]
        if len(left) != len(right):
            raise UserError(
                f"{root}/{part}.{source} has {len(left)} lines but .{target} has {len(right)}; they must be "
                "each other's translation line by line."
            )
        pairs[part] = [
            (_numbers(s, vocabulary[source]), _numbers(t, vocabulary[target]))
            for s, t in zip(left, right, strict=True)
            if part == "valid" or _clean(s, t, max_ratio, max_length)
        ]
    sizes = (len(vocabulary[source]) + SPECIAL, len(vocabulary[target]) + SPECIAL)
    return ParallelData(config, device, pairs["train"], pairs["valid"], sizes, buckets)


def _sentences(path: Path) -> list[list[str]]:
    if not path.exists():
        raise MissingDataError(f"{path} is missing; write one sentence a line, tokens separated by spaces.")
    return [line.split() for line in path.read_text(encoding="utf-8").splitlines()]


def _vocabulary(sentences: list[list[str]]) -> dict[str, int]:
    """Numbers by falling frequency, ties in alphabetical order."""
    counts = Counter(token for sentence in sentences for token in sentence)
    ranked = sorted(counts, key=lambda token: (-counts[token], token))
    return {token: number for number, token in enumerate(ranked, SPECIAL)}


def _numbers(sentence: list[str], vocabulary: dict[str, int]) -> Tensor:
    return torch.tensor([vocabulary.get(token, UNKNOWN) for token in sentence], dtype=torch.long)


def _clean(source: list[str], target: list[str], max_ratio: float, max_length: int) -> bool:
    lengths = sorted((len(source), len(target)))
    return bool(lengths[0]) and lengths[1] <= min(max_length, max_ratio * lengths[0])
