"""A likelihood is held against its loss on the first batch: its class axis is the loss's, or it is refused in words."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian, jacobian
from torch.func import functional_call
from torch.nn import functional

from llqr_sam_ref.config import LLQRConfig
from llqr_sam_ref.nets.towers import contrastive_loss
from llqr_sam_ref.optim import LLQR
from llqr_sam_ref.optim.curvature import Linearization
from llqr_sam_ref.optim.likelihood import Bernoulli, Categorical, Gaussian, Likelihood
from tests.optim._models import flat, random_vector

N, CLASSES, LENGTHS = 4, 5, (1, 3, 5)  # with as many tokens as classes no shape tells the axis
DIAGONAL = LLQRConfig.sampled(structure="diagonal", probes=2, curvature_memory=1.0)


class Tokens(nn.Module):
    """Logits (n, t, c), or (n, c, t)."""

    def __init__(self, *, classes_last: bool = True) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(CLASSES, 3), nn.Linear(3, CLASSES)
        self.classes_last = classes_last

    def forward(self, tokens: Tensor) -> Tensor:
        z: Tensor = self.head(self.embedding(tokens).cumsum(1))
        return z if self.classes_last else z.mT


def flattened(z: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(z.flatten(0, -2), y.flatten())


def moved(z: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(z.movedim(-1, 1), y, reduction="sum")


def tokens(length: int) -> tuple[Tokens, Tensor, Tensor]:
    torch.manual_seed(length)
    return (
        Tokens().double().eval(),
        torch.randint(CLASSES, (N, length)),
        torch.randint(CLASSES, (N, length)),
    )


def gauss_newton(module: nn.Module, loss_fn: Callable[..., Tensor], x: Any, y: Any) -> Tensor:
    """J^T l''(z) J, from dense matrices."""
    names, params = zip(*module.named_parameters(), strict=True)

    def outputs(*w: Tensor) -> Tensor:
        z: Tensor = functional_call(module, dict(zip(names, w, strict=True)), (x,))
        return z

    z = outputs(*(p.detach() for p in params))
    parts = jacobian(outputs, tuple(p.detach() for p in params))  # type: ignore[no-untyped-call]
    J = torch.cat([part.reshape(z.numel(), -1) for part in parts], 1)
    H: Tensor = hessian(lambda z: loss_fn(z, y), z).reshape(z.numel(), -1)  # type: ignore[no-untyped-call]
    return J.T @ H @ J


@pytest.mark.parametrize("loss_fn", [flattened, moved])
@pytest.mark.parametrize("length", LENGTHS)
def test_the_class_axis_is_the_losss(length: int, loss_fn: Callable[..., Tensor]) -> None:
    module, x, y = tokens(length)
    here = Linearization(module, loss_fn, x, y, likelihood=Categorical())
    v = random_vector(module)
    expected = gauss_newton(module, loss_fn, x, y) @ flat(v)
    assert torch.allclose(flat(here.fisher(v)), expected, rtol=1e-11, atol=1e-13)
    assert torch.allclose(flat(here.ggn(v)), expected, rtol=1e-11, atol=1e-13)
    assert here.likelihood == Categorical(class_axis=2, reduction="sum" if loss_fn is moved else "mean")


@pytest.mark.parametrize("length", LENGTHS)
def test_classes_on_the_first_axis_stay_there(length: int) -> None:
    module, x, y = tokens(length)
    module.classes_last = False
    here = Linearization(module, nn.CrossEntropyLoss(), x, y)
    v = random_vector(module)
    expected = gauss_newton(module, functional.cross_entropy, x, y) @ flat(v)
    assert torch.allclose(flat(here.fisher(v)), expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("given", [True, False], ids=["labels", "no labels"])
@pytest.mark.parametrize("length", LENGTHS)
def test_a_refit_samples_along_the_losss_axis(length: int, given: bool) -> None:
    module, x, y = tokens(length)
    opt = LLQR(
        torch.optim.SGD(module.parameters(), lr=0.1), module, flattened, DIAGONAL, likelihood=Categorical()
    )
    u = torch.rand(N, length, dtype=torch.float64)
    opt.refit(x, y if given else None, uniforms=u)
    z = module(x).detach()
    drawn = (u.unsqueeze(-1) >= z.softmax(-1).cumsum(-1)).sum(-1).clamp(max=CLASSES - 1)
    for name, parameter in module.named_parameters():
        square = torch.zeros_like(parameter)
        for part in (
            slice(0, N // 2),
            slice(N // 2, N),
        ):  # (1/n) sum_j (sum of the terms' gradients in part j)^2
            (slope,) = torch.autograd.grad(flattened(module(x[part]), drawn[part]), parameter)
            square += (slope * (N // 2) * length) ** 2 / (N * length)
        assert torch.allclose(opt.own[parameter]["c"], square.view_as(opt.own[parameter]["c"])), name


class Weighted(nn.Module):
    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(z, y, weight=torch.arange(1.0, 4.0).to(z))


def focal(z: Tensor, y: Tensor) -> Tensor:
    pi = z.softmax(1).gather(1, y.unsqueeze(1))
    return -((1 - pi) ** 2 * pi.log()).mean()


def tempered(z: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(2 * z, y)


def yes(y: Tensor) -> Tensor:
    return functional.one_hot(y.clamp(min=0), 3).double()


WRONG: dict[str, tuple[Callable[..., Tensor], Likelihood]] = {
    "a Gaussian for classes": (functional.cross_entropy, Gaussian(labels=yes)),
    "classes for squares": (lambda z, y: functional.mse_loss(z, yes(y)), Categorical()),
    "yes or no for classes": (functional.cross_entropy, Bernoulli(labels=yes)),
    "weights of classes": (Weighted(), Categorical()),
    "another ignored label": (partial(functional.cross_entropy, ignore_index=0), Categorical()),
    "another smoothing": (partial(functional.cross_entropy, label_smoothing=0.3), Categorical()),
    "focal": (focal, Categorical()),
    "tempered": (tempered, Categorical()),
    "the other sign": (lambda z, y: -functional.cross_entropy(z, y), Categorical()),
    "independent of the outputs": (lambda z, y: z.sum() * 0, Categorical()),
}
CONFIGS: dict[str, LLQRConfig] = {
    "closed form": DIAGONAL,
    "inner loop": LLQRConfig.published(divergence="fisher", probe_vector="gradient", steps=2),
    "both": LLQRConfig.published(divergence="fisher", probe_vector="sampled", probes=2, steps=2),
}


def rows() -> tuple[nn.Linear, Tensor, Tensor]:
    torch.manual_seed(0)
    return nn.Linear(4, 3).double(), torch.randn(8, 4).double(), torch.arange(8) % 3


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", WRONG)
def test_a_likelihood_of_another_loss_is_refused_with_both_values(name: str, config: str) -> None:
    loss_fn, likelihood = WRONG[name]
    module, x, y = rows()
    opt = LLQR(
        torch.optim.SGD(module.parameters(), lr=0.1), module, loss_fn, CONFIGS[config], likelihood=likelihood
    )
    opt.preconditioned_gradients()  # U is there
    before = [{n: torch.as_tensor(t).clone() for n, t in kept.items()} for kept in opt.own.values()]
    with pytest.raises(ValueError, match=r"does not belong to loss_fn=.* Pass likelihood=") as caught:
        opt.refit(x, y)
    numbers = re.search(
        r"norm (\S+) and that of the likelihood (\S+); at \((.*?)\) they are (\S+) and (\S+)\. ",
        str(caught.value),
    )
    assert numbers is not None
    part = slice(0, 8 // CONFIGS[config].probes if CONFIGS[config].probe_vector == "sampled" else 8)
    z = module(x[part]).detach().requires_grad_()
    assert opt.loss_fn is not None
    (slope,) = torch.autograd.grad(opt.loss_fn(z, y[part]), z, allow_unused=True)
    labels = likelihood.read_labels(y[part])
    assert labels is not None
    ours = likelihood.slope(z.detach(), labels) / likelihood.divisor(z.detach(), labels)
    position = tuple(int(i) for i in numbers[3].split(","))
    shown = [float(numbers[i]) for i in (1, 2, 4, 5)]
    expected = [slope.norm(), ours.norm(), slope[position], ours[position]]
    assert shown == pytest.approx([float(value) for value in expected], rel=1e-5, abs=1e-12)
    assert opt.refit_due
    for kept, old in zip(opt.own.values(), before, strict=True):
        assert all(torch.equal(torch.as_tensor(kept[n]), t) for n, t in old.items())


@pytest.mark.parametrize("length", LENGTHS)
def test_an_axis_given_wrong_is_refused(length: int) -> None:
    module, x, y = tokens(length)
    with pytest.raises(
        ValueError, match=r"does not (belong to|fit) loss_fn=.*axis|does not belong to loss_fn="
    ):
        Linearization(module, flattened, x, y, likelihood=Categorical(class_axis=1)).fisher(
            random_vector(module)
        )


class Paired(nn.Module):
    """Each row against each, (n, n)."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.left(x) @ self.right(x).T
        return z


def both_ways(z: Tensor) -> Tensor:
    return torch.cat((z, z.T))


def test_a_contrastive_loss_has_terms_along_rows_and_columns() -> None:
    torch.manual_seed(0)
    module, x, y = Paired().double().eval(), torch.randn(5, 4, dtype=torch.float64), torch.arange(5)
    one_way = Categorical()
    with pytest.raises(ValueError, match="does not belong"):
        Linearization(module, contrastive_loss, x, y, likelihood=one_way).fisher(random_vector(module))
    law = Categorical(outputs=both_ways, labels=lambda y: torch.cat((y, y)))
    here = Linearization(module, contrastive_loss, x, y, likelihood=law)
    v = random_vector(module)
    assert torch.allclose(
        flat(here.fisher(v)), gauss_newton(module, contrastive_loss, x, y) @ flat(v), rtol=1e-11
    )
    opt = LLQR(
        torch.optim.SGD(module.parameters(), lr=0.1), module, contrastive_loss, DIAGONAL, likelihood=law
    )
    opt.refit(x[:4], y[:4])


@pytest.mark.parametrize(
    ("loss_fn", "given", "reduction"),
    [
        (nn.CrossEntropyLoss(reduction="sum"), Categorical(), "sum"),
        (nn.CrossEntropyLoss(), Categorical("sum"), "mean"),
        (lambda z, y: functional.cross_entropy(z, y, reduction="sum") / len(z), Categorical(), "mean"),
        (
            lambda z, y: functional.mse_loss(z, yes(y), reduction="sum") / len(z),
            Gaussian(labels=yes),
            "batchmean",
        ),
    ],
)
def test_the_reduction_is_the_losss(loss_fn: Any, given: Likelihood, reduction: str) -> None:
    module, x, y = rows()
    here = Linearization(module, loss_fn, x, y, likelihood=given)
    v = random_vector(module)
    assert torch.allclose(flat(here.fisher(v)), gauss_newton(module, loss_fn, x, y) @ flat(v), rtol=1e-11)
    assert here.likelihood.reduction == reduction


def test_a_batch_that_tells_nothing_is_followed_by_one_that_does() -> None:
    module, x, y = rows()
    opt = LLQR(
        torch.optim.SGD(module.parameters(), lr=0.1), module, Weighted(), DIAGONAL, likelihood=Categorical()
    )
    far = nn.Linear(4, 3).double()
    with torch.no_grad():
        far.weight.copy_(module.weight)
        module.weight.zero_()
        module.bias.copy_(torch.tensor([1e4, 0.0, 0.0]))
    opt.refit(x, torch.zeros(8, dtype=torch.long))  # every slope is 0: both agree
    with torch.no_grad():
        module.weight.copy_(far.weight)
        module.bias.zero_()
    with pytest.raises(ValueError, match="does not belong"):
        opt.refit(x, y)


@pytest.mark.parametrize("length", LENGTHS)
def test_labels_that_are_all_predicted_do_not_hide_the_axis(length: int) -> None:
    module, x, _ = tokens(length)
    with torch.no_grad():
        module.head.weight.mul_(1e6)
    y = module(x).argmax(-1)
    here = Linearization(module, flattened, x, y, likelihood=Categorical())
    v = random_vector(module)
    assert float(flat(here.fisher(v)).abs().max()) < 1e-9
    with torch.no_grad():
        module.head.weight.mul_(1e-6)
    here.relinearize(x, y)
    expected = gauss_newton(module, flattened, x, y) @ flat(v)
    assert torch.allclose(flat(here.fisher(v)), expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("config", [*CONFIGS, "published"])
def test_another_loss_is_seen_at_the_next_refit(config: str) -> None:
    settings = {**CONFIGS, "published": LLQRConfig.published(steps=2)}[config]
    module, x, y = rows()
    opt = LLQR(torch.optim.SGD(module.parameters(), lr=0.1), module, functional.cross_entropy, settings)
    opt.refit(x, y)
    opt.forget()
    opt.loss_fn, opt.likelihood = functional.mse_loss, Gaussian()
    opt.refit(x, yes(y))
    fresh = LLQR(torch.optim.SGD(module.parameters(), lr=0.1), module, functional.mse_loss, settings)
    fresh.refit(x, yes(y))
    for p in module.parameters():
        for name, array in fresh.own.get(p, {}).items():
            assert torch.equal(torch.as_tensor(opt.own[p][name]), torch.as_tensor(array)), name
    opt.loss_fn = functional.cross_entropy
    if config != "published":
        with pytest.raises(ValueError, match="does not belong|does not fit"):
            opt.refit(x, yes(y))
