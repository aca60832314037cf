"""Each curvature matrix by two routes, against the golden numbers, and as what it is the second order of."""

from __future__ import annotations

import numpy as np
import pytest

from llqr_sam_ref.exact import curvature, landscapes
from llqr_sam_ref.exact._arrays import Array
from llqr_sam_ref.exact.losses import LOSSES
from llqr_sam_ref.exact.network import Network, two_weight_network
from tests.exact import golden

ACTIVATIONS: list[str | tuple[str, ...]] = ["tanh", "softplus", "relu", ("softplus", "identity", "tanh")]


def example(
    rng: np.random.Generator, loss: str, activation: str | tuple[str, ...] = "tanh"
) -> tuple[Network, Array, Array, Array]:
    smoothing = 0.0 if loss == "squared-error" else 0.1
    network = Network((3, 4, 5, 3), activation, loss, label_smoothing=smoothing)
    w, x = 0.6 * rng.standard_normal(network.dimension), rng.standard_normal((5, 3))
    return network, w, x, rng.standard_normal((5, 3)) if loss == "squared-error" else rng.integers(0, 3, 5)


def apart(one: Array, other: Array) -> float:
    return float(np.abs(one - other).max() / max(np.abs(other).max(), 1e-300))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_two_routes_agree(loss: str, activation: str | tuple[str, ...], rng: np.random.Generator) -> None:
    network, w, x, y = example(rng, loss, activation)
    for state in range(-1, len(network.stages) + 1):
        by_stages = curvature.jacobian(network, w, x, state=state)
        assert (
            np.abs(by_stages - curvature.jacobian(network, w, x, state=state, route="complex-step")).max()
            < 1e-13
        )
    hessian = curvature.hessian(network, w, x, y)
    assert apart(hessian, curvature.hessian(network, w, x, y, route="complex-step")) < 1e-12
    fisher = curvature.fisher(network, w, x)
    assert apart(fisher, curvature.fisher(network, w, x, route="scores")) < 1e-12
    ggn = curvature.ggn(network, w, x, y)
    assert np.abs(ggn - curvature.ggn(network, w, x, y, route="complex-step")).max() < 1e-13
    for matrix in (fisher, ggn):
        assert np.linalg.eigvalsh(matrix)[0] > -1e-13
        assert apart(matrix, matrix.T) == 0.0 or not matrix.any()


@pytest.mark.parametrize("loss", ["cross-entropy", "squared-error"])
def test_fisher_is_gauss_newton_and_newton_is_not(loss: str, rng: np.random.Generator) -> None:
    network, w, x, y = example(rng, loss)
    ggn = curvature.ggn(network, w, x, y)
    assert apart(curvature.fisher(network, w, x), ggn) < 1e-13
    assert apart(curvature.hessian(network, w, x, y), ggn) > 0.02


def test_where_the_network_ends_changes_gauss_newton_but_not_fisher_or_newton(
    rng: np.random.Generator,
) -> None:
    logits, w, x, y = example(rng, "cross-entropy")
    logs = Network(logits.widths, loss="negative-log-likelihood", label_smoothing=0.1)
    assert apart(curvature.fisher(logs, w, x), curvature.fisher(logits, w, x)) < 1e-12
    assert apart(curvature.hessian(logs, w, x, y), curvature.hessian(logits, w, x, y)) < 1e-12
    assert not curvature.ggn(logs, w, x, y).any()  # the loss is linear in log-probabilities
    assert curvature.ggn(logits, w, x, y).any()


@pytest.mark.parametrize("loss", LOSSES)
def test_fisher_is_the_second_order_of_the_divergence(loss: str, rng: np.random.Generator) -> None:
    """Central second differences of KL, with Richardson's step to remove the next order."""
    network, w, x, _ = example(rng, loss)
    F = curvature.fisher(network, w, x)
    for direction in rng.standard_normal((3, w.size)):
        direction /= np.linalg.norm(direction)

        def bend(t: float, direction: Array = direction) -> float:
            ahead, behind = (curvature.kl_divergence(network, w, w + s * t * direction, x) for s in (1, -1))
            return (ahead + behind) / t**2

        assert curvature.kl_divergence(network, w, w, x) == 0.0
        assert abs((4 * bend(1e-3) - bend(2e-3)) / 3 - direction @ F @ direction) < 1e-8


def test_fisher_of_a_squared_error_is_the_covariance_of_gaussian_scores(rng: np.random.Generator) -> None:
    """Sampled outputs instead of the finite law that the route "scores" uses."""
    network, w, x, _ = example(rng, "squared-error")
    mean = network.states(w, x)[-1]
    J = curvature.jacobian(network, w, x).reshape(*mean.shape, -1)
    draws = mean + np.sqrt(0.5) * rng.standard_normal((40_000, *mean.shape))
    scores = np.einsum("mbk,bkd->mbd", 2 * (mean - draws), J)
    sampled = np.einsum("mbi,mbj->ij", scores, scores) / (len(draws) * len(x))
    assert apart(sampled, curvature.fisher(network, w, x)) < 0.02


def test_two_weight_network_by_hand(rng: np.random.Generator) -> None:
    network, x, y = two_weight_network()
    for w, hessian, ggn in (
        ((2.0, 1.0), [[2, 6], [6, 8]], [[2, 4], [4, 8]]),
        ((1.0, 3.0), [[18, 10], [10, 2]], [[18, 6], [6, 2]]),
    ):
        np.testing.assert_array_equal(curvature.hessian(network, w, x, y), hessian)
        np.testing.assert_array_equal(curvature.ggn(network, w, x, y), ggn)
    for w in rng.standard_normal((10, 2)):
        np.testing.assert_allclose(
            curvature.hessian(network, w, x, y), landscapes.banana().hessian(w), atol=1e-13
        )


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_golden_hessian_and_fisher(activation: str) -> None:
    numbers = golden.numbers()
    network = Network(golden.WIDTHS, activation=activation)
    w, x, y = golden.ours(numbers[f"{activation}/theta"]), numbers["x"], numbers["y"]
    F = golden.ours_matrix(numbers[f"{activation}/Fmean"])
    np.testing.assert_allclose(
        curvature.hessian(network, w, x, y), golden.ours_matrix(numbers[f"{activation}/H"]), atol=1e-13
    )
    for matrix in (
        curvature.fisher(network, w, x),
        curvature.fisher(network, w, x, route="scores"),
        curvature.ggn(network, w, x, y),
    ):
        np.testing.assert_allclose(matrix, F, atol=1e-13)
    np.testing.assert_allclose(len(x) * F, golden.ours_matrix(numbers[f"{activation}/Fsum"]), atol=1e-13)
