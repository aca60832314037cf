"""The seam in PyTorch: lengths, directions, equality with `exact`, and what must not matter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llqr_sam_ref.exact import geometry
from llqr_sam_ref.optim.distributed.shards import inner_products, widen
from llqr_sam_ref.optim.metric import (
    Adaptive,
    Ascent,
    Euclidean,
    Fisher,
    Metric,
    Monge,
    Preconditioned,
    perturbation,
)
from tests.optim._training import same

NAMES = ("body.weight", "body.bias", "norm.weight")
SHAPES = ((4, 3), (4,), (5,))
U = [torch.rand(shape, generator=torch.Generator().manual_seed(5)).double() + 0.1 for shape in SHAPES]
METRICS: dict[str, Metric] = {
    "euclidean": Euclidean(),
    "adaptive": Adaptive(eta=0.01),
    "adaptive-all": Adaptive(eta=0.0, biases=True),
    "fisher": Fisher(eta=0.1),
    "monge": Monge(),
    "monge-0.3": Monge(alpha=0.3),
    "preconditioned": Preconditioned(
        lambda v, parameters: [u.to(x.dtype) * x for u, x in zip(U, v, strict=True)]
    ),
}
metrics = pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
norms = pytest.mark.parametrize("norm", ["dual", "euclidean"])


def tensors(seed: int, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype) for shape in SHAPES
    ]


def flat(parts: Sequence[Tensor]) -> np.ndarray:
    return torch.cat([part.reshape(-1) for part in parts]).double().numpy()


class Step(NamedTuple):
    """What a perturbation did to weights of zero."""

    tensors: list[Tensor]
    length: Tensor
    finite: Tensor


def take(
    metric: Metric,
    gradients: list[Tensor],
    vectors: list[Tensor] | None = None,
    rho: Sequence[Tensor | float] = (0.1, 0.1, 0.1),
    norm: str | None = None,
    layerwise: bool = False,
    loss_scale: float = 1.0,
    foreach: bool = True,
    weights: list[Tensor] | None = None,
) -> Step:
    """The perturbation of gradients that are multiplied by a loss scale, at weights ``tensors(0)``."""
    v = gradients if vectors is None else vectors
    ascent = Ascent(tensors(0) if weights is None else weights, v, gradients, NAMES, loss_scale, foreach)
    epsilon = perturbation(ascent, rho, metric, norm, layerwise)
    steps = [torch.zeros_like(x) for x in v]
    epsilon.add_to(steps, foreach)
    assert same(steps, epsilon.tensors())
    return Step(steps, epsilon.length, epsilon.finite)


def exact_metric(metric: Metric, gradients: list[Tensor]) -> geometry.Metric:
    """The same metric in `exact`."""
    match metric:
        case Adaptive(eta=eta, biases=everything):
            bias = np.concatenate([
                np.full(part.numel(), "weight" not in name) for part, name in zip(U, NAMES, strict=True)
            ])
            return geometry.Adaptive(flat(tensors(0)), eta, None if everything else bias)
        case Fisher(eta=eta):
            return geometry.Fisher(flat(gradients) ** 2, eta)
        case Monge(alpha=alpha):
            return geometry.Monge(flat(gradients), alpha)
        case Preconditioned():
            return geometry.Preconditioned(flat(U))
    return geometry.Euclidean()


@metrics
@norms
@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("own_vector", [False, True], ids=["gradient", "other-vector"])
def test_equals_exact(metric: Metric, norm: str, foreach: bool, own_vector: bool) -> None:
    g = tensors(1)
    v = tensors(2) if own_vector else None
    step = take(metric, g, v, norm=norm, foreach=foreach)
    expected = geometry.ascent_step(flat(v or g), 0.1, exact_metric(metric, g), norm)
    np.testing.assert_allclose(flat(step.tensors), expected, rtol=1e-12, atol=1e-15)
    assert float(step.length) == pytest.approx(np.linalg.norm(expected), rel=1e-12)
    assert bool(step.finite)


@metrics
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), exponent=st.floats(-6, 4), rho=st.floats(1e-3, 10))
def test_the_step_has_length_rho_in_its_metric(
    metric: Metric, seed: int, exponent: float, rho: float
) -> None:
    g = tensors(seed, 10.0**exponent)
    dual = flat(take(metric, g, rho=[rho] * 3, norm="dual").tensors)
    assert float(geometry.metric_length(dual, exact_metric(metric, g))) == pytest.approx(rho, rel=1e-9)
    euclidean = take(metric, g, rho=[rho] * 3, norm="euclidean")
    assert np.linalg.norm(flat(euclidean.tensors)) == pytest.approx(rho, rel=1e-12)
    assert float(euclidean.length) == pytest.approx(rho, rel=1e-12)


@metrics
@norms
def test_the_two_paths_agree(metric: Metric, norm: str) -> None:
    for layerwise in (False, True):
        for rho in ([0.1] * 3, [0.1, 0.2, -0.1]):
            loop, fast = (
                take(metric, tensors(3), rho=rho, norm=norm, layerwise=layerwise, foreach=f)
                for f in (False, True)
            )
            np.testing.assert_allclose(flat(loop.tensors), flat(fast.tensors), rtol=1e-14)
            assert float(loop.length) == pytest.approx(float(fast.length), rel=1e-14)


def test_monge_is_sam_shrunk_by_the_slope() -> None:
    g = tensors(1)
    s = float(np.linalg.norm(flat(g)))
    for alpha in (0.0, 0.3, 1.0, 30.0):
        length = float(take(Monge(alpha), g).length)
        assert length == pytest.approx(0.1 / np.sqrt(1 + alpha**2 * s**2), rel=1e-13)


def test_default_norms() -> None:
    g = tensors(1)
    assert float(take(METRICS["preconditioned"], g).length) == pytest.approx(0.1, rel=1e-13)
    assert float(take(METRICS["monge"], g).length) < 0.05


@metrics
@norms
def test_the_loss_scale_does_not_matter(metric: Metric, norm: str) -> None:
    g, v = tensors(1), tensors(2)
    scaled = [65536.0 * x for x in g]
    same = take(metric, g, norm=norm)
    np.testing.assert_allclose(
        flat(take(metric, scaled, norm=norm, loss_scale=65536.0).tensors), flat(same.tensors), rtol=1e-13
    )
    mixed = take(metric, g, v, norm=norm)
    scaled_v = [65536.0 * x for x in v]
    np.testing.assert_allclose(
        flat(take(metric, scaled, scaled_v, norm=norm, loss_scale=65536.0).tensors),
        flat(mixed.tensors),
        rtol=1e-13,
    )


def test_the_scale_of_u_does_not_matter_in_the_euclidean_norm() -> None:
    larger = Preconditioned(lambda v, parameters: [27.0 * u * x for u, x in zip(U, v, strict=True)])
    g = tensors(1)
    np.testing.assert_allclose(
        flat(take(larger, g).tensors), flat(take(METRICS["preconditioned"], g).tensors), rtol=1e-14
    )


def test_one_norm_for_all_tensors_and_a_radius_for_each() -> None:
    g = tensors(1)
    norm = float(np.linalg.norm(flat(g)))
    rho: list[Tensor | float] = [0.1, torch.tensor(0.3), -0.2]
    for foreach in (False, True):
        step = take(Euclidean(), g, rho=rho, foreach=foreach)
        for part, gradient, r in zip(step.tensors, g, (0.1, 0.3, -0.2), strict=True):
            np.testing.assert_allclose(part, r * gradient / norm, rtol=1e-7)  # 0.3 is a float32
        assert float(step.length) == pytest.approx(np.linalg.norm(flat(step.tensors)), rel=1e-12)


@metrics
def test_layerwise_gives_every_tensor_the_same_length(metric: Metric) -> None:
    g = tensors(1)
    step = take(metric, g, norm="euclidean", layerwise=True)
    for part in step.tensors:
        assert float(part.norm()) == pytest.approx(0.1 / np.sqrt(3), rel=1e-13)
    assert float(step.length) == pytest.approx(0.1, rel=1e-13)


def test_layerwise_dual_is_the_seam_of_every_tensor() -> None:
    g = tensors(1)
    step = take(Fisher(eta=0.1), g, norm="dual", layerwise=True)
    for part, gradient in zip(step.tensors, g, strict=True):
        x = gradient.reshape(-1).numpy()
        expected = geometry.ascent_step(x, 0.1 / np.sqrt(3), geometry.Fisher(x**2, 0.1))
        np.testing.assert_allclose(part.reshape(-1), expected, rtol=1e-12)


@metrics
@norms
@pytest.mark.parametrize("layerwise", [False, True])
@pytest.mark.parametrize("foreach", [False, True])
def test_zero_gives_zero(metric: Metric, norm: str, layerwise: bool, foreach: bool) -> None:
    zero = [torch.zeros_like(x) for x in tensors(0)]
    step = take(metric, zero, norm=norm, layerwise=layerwise, foreach=foreach)
    assert all(not part.any() for part in step.tensors)
    assert float(step.length) == 0.0
    assert bool(step.finite)


@metrics
@norms
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("layerwise", [False, True])
@pytest.mark.parametrize("foreach", [False, True])
def test_nan_or_inf_gives_zero_and_says_so(
    metric: Metric, norm: str, bad: float, layerwise: bool, foreach: bool
) -> None:
    g = tensors(1)
    g[0][1, 2] = bad
    step = take(metric, g, norm=norm, layerwise=layerwise, foreach=foreach)
    assert all(torch.equal(part, torch.zeros_like(part)) for part in step.tensors)
    assert float(step.length) == 0.0
    assert not bool(step.finite)


def test_an_indefinite_u_has_no_dual_step() -> None:
    negative = Preconditioned(lambda v, parameters: [-x for x in v])
    assert not bool(take(negative, tensors(1), norm="dual").finite)
    assert bool(take(negative, tensors(1), norm="euclidean").finite)


def test_norms_are_summed_in_float32_or_better() -> None:
    half = [torch.full((100,), 30.0, dtype=torch.float16)]
    assert (half[0] * half[0]).sum().isinf()  # 90,000 is no float16
    for foreach in (False, True):
        wide = widen(half)
        assert float(inner_products(wide, wide, wide, foreach)[0]) == 90_000
        assert float(inner_products(wide, widen(half), wide, foreach)[0]) == 90_000
    many = [torch.full((1,), 1e-4, dtype=torch.float32) for _ in range(1000)] + [torch.ones(1)]
    total = inner_products(many, many, many).sum()
    assert total.dtype is torch.float64
    assert float(total) == pytest.approx(1 + 1000 * 1e-8, rel=1e-7)


def test_the_bias_rule_goes_by_name_and_without_names_by_dimension() -> None:
    rule = Adaptive()
    matrix, vector = torch.ones(2, 2), torch.ones(2)
    assert [
        rule.rescales(x, n) for x, n in ((matrix, "a.weight"), (vector, "n.weight"), (vector, "a.bias"))
    ] == [
        True,
        True,
        False,
    ]
    assert not rule.rescales(matrix, "embedding.table")
    assert rule.rescales(matrix, None)
    assert not rule.rescales(vector, None)
    assert Adaptive(biases=True).rescales(vector, "a.bias")


def test_adaptive_follows_positive_rescaling_of_the_weights() -> None:
    """w = A w', A positive and diagonal: epsilon = A epsilon' (eta = 0, everything rescaled)."""
    A = [x.abs() + 0.1 for x in tensors(7)]
    g, w = tensors(1), tensors(0)
    other_w = [x / a for x, a in zip(w, A, strict=True)]
    other_g = [x * a for x, a in zip(g, A, strict=True)]
    metric = Adaptive(eta=0.0, biases=True)
    there = take(metric, other_g, weights=other_w)
    back = [a * x for a, x in zip(A, there.tensors, strict=True)]
    np.testing.assert_allclose(flat(back), flat(take(metric, g).tensors), rtol=1e-12)
