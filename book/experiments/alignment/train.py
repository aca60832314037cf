"""Many pairs of towers in training at once, along a leading axis, and how well each aligns in the end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from book.experiments.alignment import data
from book.experiments.alignment.captions import FEATURES
from book.experiments.alignment.data import Data, Part
from llqr_sam_ref.nets.mlp import mlp
from llqr_sam_ref.nets.towers import TwoTowers

WIDTHS = (196, 128, 64)  # of the tower for pictures; the last is the common space
BATCH = 64
BETAS, EPSILON = (0.9, 0.999), 1e-8  # of AdamW
NEIGHBORS, DRAWS = 10, 5  # of the mutual neighbors; sets of one picture per content
FAR = 1e4  # a loss beyond it, or none, is a run that diverged


class Setting(NamedTuple):
    """What is tuned; rho = 0 asks nothing, monge = 1 is M-SAM's radius and 0 is SAM's."""

    lr: float
    wd: float
    rho: float = 0.0
    monge: float = 0.0


class Result(NamedTuple):
    """What R runs end with, all (R,).

    Attributes:
        alignment: share of a picture's nearest pictures that are its caption's nearest captions' too.
        recall_1: share of pictures whose caption is the nearest of all 270.
        recall_5: or among the five nearest.
        loss: mean training loss of the last tenth of the steps.
        radius: mean length of the perturbation.
        slope: mean length of the gradient.
    """

    alignment: Tensor
    recall_1: Tensor
    recall_5: Tensor
    loss: Tensor
    radius: Tensor
    slope: Tensor


def towers() -> TwoTowers:
    """The network: a small one for pictures, a linear map for the vectors of captions."""
    return TwoTowers(mlp(WIDTHS), torch.nn.Linear(FEATURES, WIDTHS[-1]))


def initial_weights(seed: int) -> list[Tensor]:
    """What torch initializes the towers with under this seed: logarithm of the scale, pictures', captions'."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return [p.detach() for p in towers().parameters()]


def batches(seed: int, steps: int) -> Tensor:
    """Indices of the pairs of every step, (steps, BATCH); an epoch has no incomplete batch."""
    generator = torch.Generator().manual_seed(seed)
    per_epoch = data.TRAIN // BATCH
    epochs = [
        torch.randperm(data.TRAIN, generator=generator)[: per_epoch * BATCH].view(per_epoch, BATCH)
        for _ in range(-(-steps // per_epoch))
    ]
    return torch.cat(epochs)[:steps]


def learning_rate(step: int, steps: int) -> float:
    """The cosine schedule, as a factor of the learning rate."""
    return (1 + math.cos(math.pi * step / steps)) / 2


def embedded(weights: Sequence[Tensor], pictures: Tensor, captions: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors (R, n, 64) of pictures (R, n, 196) and (R, m, 64) of captions (R, m, 384)."""
    _, *layers, text, text_bias = weights
    pairs = list(zip(layers[::2], layers[1::2], strict=True))
    for i, (matrix, bias) in enumerate(pairs):
        pictures = torch.baddbmm(bias[:, None], pictures, matrix.mT)
        pictures = pictures if i == len(pairs) - 1 else pictures.relu()
    captions = torch.baddbmm(text_bias[:, None], captions, text.mT)
    return normalize(pictures, dim=2), normalize(captions, dim=2)


def losses(weights: Sequence[Tensor], pictures: Tensor, captions: Tensor) -> Tensor:
    """The symmetric contrastive loss of every run's batch of pairs, (R,)."""
    x, y = embedded(weights, pictures, captions)
    logits = weights[0].exp()[:, None, None] * x @ y.mT
    own = torch.arange(logits.shape[1], device=logits.device).expand(logits.shape[:2])
    both = [cross_entropy(way.mT, own, reduction="none").mean(1) for way in (logits, logits.mT)]
    return (both[0] + both[1]) / 2


def gradients(
    weights: Sequence[Tensor], pictures: Tensor, captions: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The losses, and the gradient of each in the shapes of the weights."""
    leaves = [w.detach().requires_grad_() for w in weights]
    values = losses(leaves, pictures, captions)
    return values.detach(), torch.autograd.grad(values.sum(), leaves)


def over_runs(values: Tensor, like: Tensor) -> Tensor:
    """One number per run, shaped to multiply a tensor with a leading run axis."""
    return values.view(-1, *[1] * (like.ndim - 1))


def train(
    runs: Sequence[tuple[Setting, int]], share: float, steps: int, all_data: Data, device: str = "cpu"
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """Train one pair of towers for each setting and seed, all at once; matrices decay, beside the step.

    Args:
        runs: settings and seeds.
        share: of pairs that do not belong together.
        steps: how many.
        all_data: pictures and captions; their type is that of the weights.
        device: where.

    Returns:
        The weights, and per run the mean loss of the last tenth, the mean radius and the mean slope.
    """
    pictures, vectors = all_data.train.pictures, all_data.vectors
    lr, wd, rho, monge = torch.tensor([s for s, _ in runs], dtype=pictures.dtype, device=device).T
    seeds = [seed for _, seed in runs]
    order = torch.stack([batches(seed, steps) for seed in seeds]).to(device)
    said = torch.stack([data.mismatched(all_data.train.contents, share, seed) for seed in seeds])
    wording = torch.stack([data.wordings(data.TRAIN, seed) for seed in seeds])
    sentence = (said * vectors.shape[1] + wording).to(device)
    pictures, sentences = pictures.to(device), vectors.flatten(0, 1).to(device)
    weights = [
        torch.stack(tensors).to(pictures) for tensors in zip(*map(initial_weights, seeds), strict=True)
    ]
    first, second = ([torch.zeros_like(w) for w in weights] for _ in range(2))
    total, radius, slope = (torch.zeros_like(lr) for _ in range(3))
    for step in range(steps):
        chosen = order[:, step]
        batch = pictures[chosen], sentences[sentence.gather(1, chosen)]
        value, g = gradients(weights, *batch)
        length = torch.stack([x.reshape(len(x), -1).norm(dim=1) for x in g]).norm(dim=0)
        r = rho / (1 + monge * length**2).sqrt()
        if step >= steps - steps // 10:
            total += value / (steps // 10)
        radius += r / steps
        slope += length / steps
        if rho.any():
            scale = r / length
            w_there = [w + over_runs(scale, x) * x for w, x in zip(weights, g, strict=True)]
            _, g = gradients(w_there, *batch)
        rate = lr * learning_rate(step, steps)
        for w, x, m, v in zip(weights, g, first, second, strict=True):
            if w.ndim == 3:
                w.mul_(1 - over_runs(rate * wd, w))
            m.lerp_(x, 1 - BETAS[0])
            v.mul_(BETAS[1]).addcmul_(x, x, value=1 - BETAS[1])
            size = v.sqrt() / math.sqrt(1 - BETAS[1] ** (step + 1)) + EPSILON
            w.sub_(over_runs(rate, w) / (1 - BETAS[0] ** (step + 1)) * m / size)
    return weights, total, radius, slope


def recall(x: Tensor, captions: Tensor, contents: Tensor, among: int) -> Tensor:
    """Share of pictures (R, n, d) whose caption is among so many nearest of all captions (R, m, d), (R,)."""
    nearest = (x @ captions.mT).topk(among, dim=2).indices
    return (nearest == contents[:, None]).any(2).double().mean(1)


def neighbors(x: Tensor, k: int) -> Tensor:
    """Which are the k nearest of each of unit vectors (R, n, d), itself not counted: (R, n, n), true or false."""
    near = x @ x.mT
    near.diagonal(dim1=1, dim2=2).fill_(-math.inf)
    chosen = near.topk(k, dim=2).indices
    return torch.zeros_like(near, dtype=torch.bool).scatter_(2, chosen, value=True)


def mutual(x: Tensor, y: Tensor, k: int = NEIGHBORS) -> Tensor:
    """Mutual nearest neighbors: the mean share of the k nearest that two sets of vectors have in common, (R,).

    Source: Huh et al. 2024 (arXiv 2405.07987), section 2.
    """
    return (neighbors(x, k) & neighbors(y, k)).double().sum(2).mean(1) / k


def measured(weights: Sequence[Tensor], part: Part, vectors: Tensor) -> dict[str, Tensor]:
    """Alignment and recall of every run on a part, captions in the first wording."""
    like = weights[1]
    captions, pictures = vectors[:, 0].to(like), part.pictures.to(like)
    contents = part.contents.to(like.device)
    x, y = embedded(weights, pictures.expand(len(like), -1, -1), captions.expand(len(like), -1, -1))
    shared = torch.zeros(len(like), dtype=torch.float64, device=like.device)
    for draw in range(DRAWS):
        chosen = data.one_each(part.contents, draw).to(like.device)
        shared += mutual(x[:, chosen], y[:, contents[chosen]]) / DRAWS
    return {
        "alignment": shared,
        "recall_1": recall(x, y, contents, 1),
        "recall_5": recall(x, y, contents, 5),
    }


def results(
    runs: Sequence[tuple[Setting, int]],
    share: float,
    steps: int,
    all_data: Data,
    *,
    test: bool,
    device: str = "cpu",
) -> Result:
    """Train, and look at the validation pictures, or at the test pictures; a run that diverged aligns nothing."""
    weights, loss, radius, slope = train(runs, share, steps, all_data, device)
    found = measured(weights, all_data.test if test else all_data.validation, all_data.vectors)
    broken = ~(loss < FAR)
    values = {name: value.masked_fill(broken, 0.0) for name, value in found.items()}
    return Result(**values, loss=loss, radius=radius, slope=slope)
