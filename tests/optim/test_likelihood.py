"""Likelihoods against derivatives of the losses they stand for, and labels against their probabilities."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian
from torch.nn import functional

from llqr_sam_ref.exact.probes import sample_labels
from llqr_sam_ref.optim.likelihood import Bernoulli, Categorical, Gaussian, Likelihood, infer_likelihood


def outputs(*shape: int) -> Tensor:
    torch.manual_seed(3)
    return torch.randn(*shape, dtype=torch.float64)


ROWS = torch.tensor([0, 2, -1, 1])
GRID = torch.tensor([[1, -1, 0], [2, 2, -1], [0, 1, 2], [-1, -1, 0]])
YES = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0], [1.0, 1.0, 1.0], [0.0, 1.0, 0.0]]).double()
SUMMED = partial(functional.cross_entropy, reduction="sum")
LOSSES: list[tuple[Any, Likelihood, Tensor, tuple[int, ...]]] = [
    (nn.CrossEntropyLoss(ignore_index=-1), Categorical("mean", -1), ROWS, (4, 3)),
    (nn.CrossEntropyLoss(ignore_index=-1, reduction="sum"), Categorical("sum", -1), GRID, (4, 3, 3)),
    (nn.CrossEntropyLoss(label_smoothing=0.2), Categorical(), ROWS.abs(), (4, 3)),
    (functional.cross_entropy, Categorical(), torch.full((4, 3), 1 / 3, dtype=torch.float64), (4, 3)),
    (partial(SUMMED, ignore_index=-1), Categorical("sum", -1), ROWS, (4, 3)),
    (nn.BCEWithLogitsLoss(), Bernoulli(), YES, (4, 3)),
    (partial(functional.binary_cross_entropy_with_logits, reduction="sum"), Bernoulli("sum"), YES, (4, 3)),
    (nn.MSELoss(), Gaussian(), YES, (4, 3)),
    (partial(functional.mse_loss, reduction="sum"), Gaussian("sum"), YES, (4, 3)),
]  # fmt: skip


@pytest.mark.parametrize(("loss_fn", "likelihood", "targets", "shape"), LOSSES)
def test_the_likelihood_of_a_loss_has_its_curvature_and_slope(
    loss_fn: Any, likelihood: Likelihood, targets: Tensor, shape: tuple[int, ...]
) -> None:
    assert infer_likelihood(loss_fn) == likelihood
    z, v = outputs(*shape), outputs(*shape).flip(0)
    n = likelihood.terms(z, targets) if likelihood.reduction == "mean" else 1
    H: Tensor = hessian(lambda z: loss_fn(z, targets), z).reshape(z.numel(), -1)  # type: ignore[no-untyped-call]
    expected = (H @ v.reshape(-1)).reshape(shape)
    assert torch.allclose(likelihood.curvature(z, targets, v) / n, expected, rtol=0, atol=1e-14)
    if targets.shape == likelihood.uniforms_shape(shape) and not getattr(loss_fn, "label_smoothing", 0):
        z.requires_grad_()
        (slope,) = torch.autograd.grad(loss_fn(z, targets), z)
        assert torch.allclose(likelihood.score(z.detach(), targets) / n, slope, rtol=0, atol=1e-14)


def test_log_probabilities_have_the_fisher_matrix_of_their_logits() -> None:
    assert infer_likelihood(nn.NLLLoss(ignore_index=2)) == Categorical("mean", 2)
    z, v = outputs(4, 3), outputs(4, 3).flip(0)
    likelihood = Categorical()
    in_logits = likelihood.curvature(z, None, v)
    # chain rule through log-softmax: J = I - 1 pi^T in every row, symmetric curvature on both sides
    J = torch.eye(3).double() - z.softmax(1).unsqueeze(1)
    change = (J @ v.unsqueeze(-1)).squeeze(-1)
    in_logs = likelihood.curvature(z.log_softmax(1), None, change)
    back = (J.mT @ in_logs.unsqueeze(-1)).squeeze(-1)
    assert torch.allclose(back, in_logits, rtol=0, atol=1e-14)


def every_label(likelihood: Likelihood, z: Tensor, uniforms: int) -> Tensor:
    """Labels at equally spaced uniforms: each label as often as its probability says, to 1/uniforms."""
    many = z.expand(uniforms, *z.shape)
    u = (torch.arange(uniforms, dtype=torch.float64) + 0.5) / uniforms
    flat = many.reshape(-1, *z.shape[1:])
    shape = likelihood.uniforms_shape(tuple(flat.shape))
    grid = u.repeat_interleave(len(z)).reshape(-1, *(1 for _ in shape[1:])).expand(shape)
    return likelihood.sample(flat, None, grid).reshape(uniforms, len(z), *shape[1:])


@pytest.mark.parametrize("likelihood", [Categorical(), Bernoulli(), Gaussian(variance=0.3)])
def test_scores_of_sampled_labels_have_mean_zero_and_the_fisher_matrix_as_covariance(
    likelihood: Likelihood,
) -> None:
    z = outputs(2, 3)
    labels = every_label(likelihood, z, 40_000)
    scores = torch.stack([
        likelihood.score(z[i : i + 1].expand(len(labels), 3), labels[:, i]) for i in range(2)
    ])
    assert float(scores.mean(1).abs().max()) < 1e-3
    if isinstance(likelihood, Categorical):  # one uniform a row drives all entries of the score
        covariance = scores.mT @ scores / len(labels)
    else:  # the same uniforms drove all entries: independence is not seen, variances are
        covariance = torch.diag_embed(scores.square().mean(1))
    for i in range(2):
        Q = torch.stack([
            likelihood.curvature(z[i : i + 1], None, e)[0] for e in torch.eye(3).double().unsqueeze(1)
        ])
        assert torch.allclose(covariance[i], Q, rtol=0, atol=2e-3)


def test_labels_equal_the_exact_layer_and_ignored_ones_stay() -> None:
    z = outputs(200, 4)
    u = torch.rand(200, dtype=torch.float64)
    found = Categorical().sample(z, None, u)
    assert np.array_equal(found.numpy(), sample_labels(z.softmax(1).numpy(), u.numpy()))
    targets = torch.arange(200) % 5 - 1
    kept = Categorical(ignore_index=-1).sample(z, targets, u)
    assert torch.equal(kept, found.where(targets != -1, -1))
    assert float(Categorical(ignore_index=-1).terms(z, targets)) == 160
    assert float(Categorical(ignore_index=-1).score(z, kept)[targets == -1].abs().max()) == 0


def test_extreme_uniforms_give_finite_labels() -> None:
    z = outputs(2, 3).float()
    for u in (0.0, 1.0):
        for likelihood in (Categorical(), Bernoulli(), Gaussian()):
            uniforms = torch.full(likelihood.uniforms_shape((2, 3)), u, dtype=torch.float64)
            labels = likelihood.sample(z, None, uniforms)
            assert bool(torch.isfinite(labels).all())
            if isinstance(likelihood, Categorical):
                assert bool((labels == 2 * u).all())


@pytest.mark.parametrize(
    ("loss_fn", "message"),
    [
        (nn.CrossEntropyLoss(weight=torch.ones(3)), "weights its classes"),
        (nn.BCEWithLogitsLoss(pos_weight=torch.ones(3)), "weights its classes"),
        (nn.CrossEntropyLoss(reduction="none"), "reduction='none'"),
        (nn.L1Loss(), "likelihood=Categorical"),
        (lambda z, y: z.sum(), 'probe_vector="gradient"'),
    ],
)
def test_what_is_no_likelihood_is_refused_with_a_remedy(loss_fn: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        infer_likelihood(loss_fn)


def test_bad_likelihoods_are_refused() -> None:
    with pytest.raises(ValueError, match="variance=0"):
        Gaussian(variance=0.0)
    with pytest.raises(ValueError, match="'mean'"):
        Bernoulli("average")
