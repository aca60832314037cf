"""Micro-batches weigh what their labels count: ignored, padded, weighted and smoothed ones, whichever way they lie."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from llqr_sam_ref.config import LLQRConfig
from llqr_sam_ref.optim import LLQR
from llqr_sam_ref.optim.distributed.ranks import Ranks
from llqr_sam_ref.optim.likelihood import Bernoulli, Categorical, Likelihood, infer_likelihood
from llqr_sam_ref.optim.probes.batch import ProbeBatch
from tests.optim.test_belonging import gauss_newton

CLASSES, IGNORED = 3, -100
WEIGHT = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)
CONFIG = LLQRConfig.sampled(structure="diagonal", probes=2, curvature_memory=1.0)

LOSSES: dict[str, tuple[Callable[..., Tensor], Likelihood | None]] = {
    "ignored": (nn.CrossEntropyLoss(), None),
    "summed": (nn.CrossEntropyLoss(reduction="sum"), None),
    "smoothed": (nn.CrossEntropyLoss(label_smoothing=0.3), None),
    "weighted": (nn.CrossEntropyLoss(weight=WEIGHT), Categorical(weight=WEIGHT)),
    "weighted and summed": (
        nn.CrossEntropyLoss(weight=WEIGHT, reduction="sum"),
        Categorical("sum", weight=WEIGHT),
    ),
    "weighted and smoothed": (
        nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=0.3),
        Categorical(weight=WEIGHT, label_smoothing=0.3),
    ),
    "log-probabilities": (
        lambda z, y: functional.nll_loss(z.log_softmax(1), y, weight=WEIGHT),
        Categorical(weight=WEIGHT),
    ),
}
# Which of six labels count: micro-batches of three.
COUNTED: dict[str, list[int]] = {
    "one and two": [0, 3, 4],
    "one and three": [1, 3, 4, 5],
    "none and three": [3, 4, 5],
    "none and one": [4],
    "three and none": [0, 1, 2],
}


def optimizer(module: nn.Module, name: str, config: LLQRConfig = CONFIG) -> LLQR:
    loss_fn, likelihood = LOSSES[name]
    return LLQR(torch.optim.SGD(module.parameters(), lr=0.1), module, loss_fn, config, likelihood=likelihood)


def rows(counted: list[int]) -> tuple[nn.Linear, Tensor, Tensor]:
    torch.manual_seed(0)
    module, x = nn.Linear(2, CLASSES).double(), torch.randn(6, 2).double()
    y = torch.full((6,), IGNORED)
    y[counted] = torch.tensor([0, 1, 2, 1, 2, 0])[counted]
    return module, x, y


def remembered(opt: LLQR) -> Tensor:
    """The curvature, entry by entry, in the order of the parameters."""
    return torch.cat([opt.own[p]["c"].flatten() for group in opt.param_groups for p in group["params"]])


@pytest.mark.parametrize(
    ("lie", "reduction"),
    [*((lie, "mean") for lie in COUNTED), ("one and two", "sum"), ("none and one", "sum")],
)
@pytest.mark.parametrize("name", LOSSES)
def test_the_expected_curvature_is_the_mean_losss_however_the_labels_lie(
    name: str, lie: str, reduction: str
) -> None:
    """The expectation is exact: over all labels that can be sampled, each as probable as it is."""
    counted = COUNTED[lie]
    module, x, y = rows(counted)
    opt = optimizer(module, name, CONFIG.replace(reduction=reduction))
    pi = module(x).detach().softmax(1)
    middles = pi.cumsum(1) - pi / 2  # uniforms that mean each class
    total = torch.zeros(9, dtype=torch.float64)
    for labels in itertools.product(range(CLASSES), repeat=len(counted)):
        u = torch.full((6,), 0.5, dtype=torch.float64)
        u[counted] = middles[counted, list(labels)]
        opt.refit(x, y, uniforms=u)
        total += float(pi[counted, list(labels)].prod()) * remembered(opt)
    loss_fn, likelihood = LOSSES[name]
    n = float((likelihood or infer_likelihood(loss_fn)).terms(module(x), y))
    expected = gauss_newton(module, loss_fn, x, y).diagonal()
    expected = expected / n if "summed" in name else expected
    assert torch.allclose(total, expected * (n if reduction == "sum" else 1), rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("probes", [1, 2, 3])
@pytest.mark.parametrize("lie", COUNTED)
@pytest.mark.parametrize("name", LOSSES)
def test_the_probes_mean_is_the_gradient_of_the_mean_loss(name: str, lie: str, probes: int) -> None:
    module, x, y = rows(COUNTED[lie])
    loss_fn, likelihood = LOSSES[name]
    batch = ProbeBatch(module, loss_fn, likelihood, x, y, probes, Ranks())
    V = batch.gradients("gradient", torch.rand)
    loss = loss_fn(module(x), y) / (batch.total if "summed" in name else 1)
    for (n, p), slope in zip(
        module.named_parameters(), torch.autograd.grad(loss, list(module.parameters())), strict=True
    ):
        assert V[n].shape == (probes, *p.shape)
        assert torch.allclose(V[n].mean(0), slope, rtol=1e-11, atol=1e-14)


INNER = LLQRConfig.published(steps=4, lr=0.05)
SOLVERS: dict[str, LLQRConfig] = {
    "closed form": CONFIG.replace(probes=1),
    "closed form, true labels": CONFIG.replace(probes=1, probe_vector="gradient"),
    "fisher": INNER.replace(divergence="fisher", probe_vector="sampled"),
    "gauss-newton": INNER.replace(divergence="gauss-newton"),
    "newton, summed": INNER.replace(divergence="newton", reduction="sum"),
}


@pytest.mark.parametrize("config", SOLVERS)
@pytest.mark.parametrize("name", LOSSES)
def test_an_ignored_label_is_one_that_is_not_there(name: str, config: str) -> None:
    counted = COUNTED["one and three"]
    u = torch.rand(6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    learned = []
    for keep in (list(range(6)), counted):
        module, x, y = rows(counted)
        opt = optimizer(module, name, SOLVERS[config])
        sampled = SOLVERS[config].probe_vector == "sampled"
        opt.refit(x[keep], y[keep], **({"uniforms": u[keep]} if sampled else {}))
        learned.append([opt.own[p][n] for p in opt.own for n in opt.own[p] if n in {"d", "c"}])
    assert learned[0]
    for ours, theirs in zip(*learned, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-11, atol=1e-14)


class Sentences(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(5, 2), nn.Linear(2, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        z: Tensor = self.head(self.embedding(tokens))
        return z


def padded(z: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(z.flatten(0, 1), y.flatten(), ignore_index=0)


@pytest.mark.parametrize("lengths", [(4, 4, 4, 4), (1, 4, 2, 3), (0, 0, 4, 1), (0, 3, 0, 0)])
@pytest.mark.parametrize("length", [4, 5])
def test_padded_sentences_weigh_their_words(length: int, lengths: tuple[int, ...]) -> None:
    """Five classes and five words: no shape tells the class axis."""
    torch.manual_seed(2)
    module = Sentences().double()
    x, y = torch.randint(5, (4, length)), torch.randint(1, 5, (4, length))
    for row, size in enumerate(lengths):
        y[row, size:] = 0
    u = torch.rand(4, length, dtype=torch.float64)
    opt = LLQR(
        torch.optim.SGD(module.parameters(), lr=0.1),
        module,
        padded,
        CONFIG,
        likelihood=Categorical(ignore_index=0),
    )
    opt.refit(x, y, uniforms=u)
    z = module(x)
    drawn = (u.unsqueeze(-1) >= z.softmax(-1).cumsum(-1)).sum(-1).clamp(max=4).where(y != 0, -1)
    terms = functional.cross_entropy(z.movedim(-1, 1), drawn, ignore_index=-1, reduction="none")
    for parameter in module.parameters():
        square = torch.zeros_like(parameter)
        for part in (slice(0, 2), slice(2, 4)):
            (slope,) = torch.autograd.grad(terms[part].sum(), parameter, retain_graph=True)
            square += slope.square() / sum(lengths)
        assert torch.allclose(opt.own[parameter]["c"], square, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("probes", [1, 2, 3])
@pytest.mark.parametrize("config", ["closed form", "gauss-newton"])
def test_a_batch_without_any_counted_label_is_refused(config: str, probes: int) -> None:
    module, x, y = rows([])
    opt = optimizer(module, "ignored", SOLVERS[config].replace(probes=probes))
    with pytest.raises(ValueError, match="no label of the probe batch counts: all are ignored"):
        opt.refit(x, y)
    assert opt.refit_due


def test_a_yes_weighs_what_the_loss_says() -> None:
    """E[c] with ``pos_weight``: variances of independent labels, from many uniforms."""
    torch.manual_seed(3)
    module, x = nn.Linear(2, 1).double(), torch.randn(2, 2).double()
    y, p = torch.tensor([[1.0], [0.0]]).double(), torch.tensor([4.0]).double()
    opt = LLQR(
        torch.optim.SGD(module.parameters(), lr=0.1),
        module,
        nn.BCEWithLogitsLoss(pos_weight=p),
        CONFIG,
        likelihood=Bernoulli(pos_weight=p),
    )
    no = torch.sigmoid(-module(x).detach()).flatten()
    total: Any = 0.0
    for labels in itertools.product((0, 1), repeat=2):
        chosen = torch.tensor(labels, dtype=torch.float64)
        opt.refit(x, y, uniforms=torch.where(chosen > 0, (1 + no) / 2, no / 2).unsqueeze(1))
        total = total + float(torch.where(chosen > 0, 1 - no, no).prod()) * remembered(opt)
    loss_fn = partial(functional.binary_cross_entropy_with_logits, pos_weight=p)
    assert torch.allclose(total, gauss_newton(module, loss_fn, x, y).diagonal(), rtol=1e-11)
