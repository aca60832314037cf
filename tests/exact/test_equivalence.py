"""The layerwise LQR step against the dense solve, for every divergence; the certificate; the golden steps."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest

from llqr_sam_ref.exact import curvature, lqr
from llqr_sam_ref.exact._arrays import Array
from llqr_sam_ref.exact.network import Network, layerwise_lqr, two_weight_network
from tests.exact import golden
from tests.exact.numerical import relative

LOSSES = ("cross-entropy", "squared-error")
MODELS = ("newton", "gauss-newton", "fisher", "intermediate")


def random_networks(loss: str) -> Iterator[tuple[Network, Array, Array, Array]]:
    """Twenty networks of two to four layers with mixed activations."""
    rng = np.random.default_rng(314)
    for _ in range(20):
        widths = tuple(int(width) for width in rng.integers(2, 6, rng.integers(3, 6)))
        names = tuple(str(name) for name in rng.choice(["tanh", "softplus", "relu"], len(widths) - 2))
        smoothing = 0.1 if loss == "cross-entropy" and rng.random() < 0.5 else 0.0
        network = Network(widths, (*names, "identity"), loss, smoothing, bias=bool(rng.random() < 0.7))
        n = int(rng.integers(2, 7))
        w, x = rng.standard_normal(network.dimension), rng.standard_normal((n, widths[0]))
        target = rng.standard_normal((n, widths[-1]))
        yield network, w, x, target if loss == "squared-error" else rng.integers(0, widths[-1], n)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("model", MODELS)
def test_step_equals_the_dense_cholesky_solve(model: str, loss: str) -> None:
    """G by the route that knows nothing of stage costs, g by backpropagation, the solve by Cholesky."""
    rng = np.random.default_rng(2718)
    for network, w, x, y in random_networks(loss):
        damping, intermediate, divergence = 1e-2, {}, model
        if model == "newton":
            G = curvature.hessian(network, w, x, y, route="complex-step")
            damping = max(0.0, -float(np.linalg.eigvalsh(G)[0])) + 0.05
        elif model == "fisher":
            G = curvature.fisher(network, w, x, route="scores")
        else:
            divergence = "gauss-newton"
            G = curvature.ggn(network, w, x, y, route="complex-step")
        if model == "intermediate":
            for i in range(1, len(network.stages) + 1):
                J = curvature.jacobian(network, w, x, state=i, route="complex-step")
                root = rng.standard_normal((len(J), len(J))) / np.sqrt(len(J))
                intermediate[i] = root @ root.T
                G = G + J.T @ intermediate[i] @ J
        problem = layerwise_lqr(
            network, w, x, y, divergence=divergence, damping=damping, intermediate=intermediate
        )
        solution = lqr.solve(problem)
        damped = G + damping * np.eye(len(G))
        L = np.linalg.cholesky((damped + damped.T) / 2)
        g = network.gradient(w, x, y)
        assert relative(solution.step, -np.linalg.solve(L.T, np.linalg.solve(L, g))) < 1e-10
        assert lqr.kkt_residual(problem, solution) < 1e-10
        assert solution.is_minimum
        assert min(solution.stage_eigenvalues) > 0
        assert relative(lqr.dense(problem)[1], g) < 1e-13
        assert relative(lqr.dense(problem)[0], damped) < 1e-13
        assert abs(solution.value - 0.5 * g @ solution.step) < 1e-10 * abs(solution.value)


@pytest.mark.parametrize("loss", LOSSES)
def test_inertia_adds_over_stages_and_an_indefinite_model_is_refused(loss: str) -> None:
    indefinite = 0
    for network, w, x, y in random_networks(loss):
        problem = layerwise_lqr(network, w, x, y, damping=1e-3)
        solution = lqr.stationary_point(problem)
        G, g = lqr.dense(problem)
        eigenvalues = np.linalg.eigvalsh(G)
        assert list(solution.inertia) == [(eigenvalues < 0).sum(), (eigenvalues > 0).sum()]
        assert np.linalg.norm(G @ solution.step + g) < 1e-8 * np.linalg.norm(g)
        if solution.inertia.negative:
            indefinite += 1
            with pytest.raises(ValueError, match="is indefinite: the smallest eigenvalue of its R~ is -"):
                lqr.solve(problem)
    assert indefinite >= 10


def test_number_metrics_mean_multiples_of_the_identity(rng: np.random.Generator) -> None:
    network = Network((2, 3, 2))
    w, x, y = rng.standard_normal(network.dimension), rng.standard_normal((4, 2)), np.array([0, 1, 1, 0])
    by_number = layerwise_lqr(network, w, x, y, intermediate={1: 0.5, 3: 2})
    by_matrix = layerwise_lqr(network, w, x, y, intermediate={1: 0.5 * np.eye(12), 3: 2 * np.eye(8)})
    np.testing.assert_array_equal(lqr.dense(by_number)[0], lqr.dense(by_matrix)[0])


def test_pencil_sweep_of_the_two_weight_network() -> None:
    network, x, y = two_weight_network()
    w = (2.0, 1.0)
    newton = lqr.solve(layerwise_lqr(network, w, x, y, damping=2.0))
    np.testing.assert_allclose(newton.step, [1, -1], rtol=1e-14)
    np.testing.assert_allclose(newton.stage_eigenvalues, [0.4, 10], rtol=1e-14)
    last = [newton.M_tilde[1], newton.K[1], newton.k[1], newton.P[1], newton.p[1]]
    np.testing.assert_allclose([value.item() for value in last], [6, -0.6, -0.4, -1.6, -0.4], rtol=1e-14)
    for damping, step, stages in ((1.0, (-2 / 11, -4 / 11), (11 / 9, 9)), (2.0, (-1 / 6, -1 / 3), (2.4, 10))):
        problem = layerwise_lqr(network, w, x, y, divergence="gauss-newton", damping=damping)
        np.testing.assert_allclose(lqr.solve(problem).step, step, rtol=1e-14)
        np.testing.assert_allclose(lqr.solve(problem).stage_eigenvalues, stages, rtol=1e-14)
    saddle = lqr.stationary_point(layerwise_lqr(network, w, x, y, damping=1.0))
    np.testing.assert_allclose(saddle.stage_eigenvalues, [-1, 9], rtol=1e-14)
    np.testing.assert_allclose(saddle.step, [-2 / 3, 0], atol=1e-15)
    assert list(saddle.inertia) == [1, 1]
    undamped = lqr.stationary_point(layerwise_lqr(network, w, x, y))
    np.testing.assert_allclose(undamped.stage_eigenvalues, [-2.5, 8], rtol=1e-14)
    np.testing.assert_allclose(np.add(w, undamped.step), [1.6, 0.8], rtol=1e-14)
    ten = lqr.riccati(layerwise_lqr(network, w, x, y, damping=10.0))
    assert abs(ten.P[1].item()) < 1e-15
    for damping in (2.0, 10.0, 100.0, 1000.0):
        slope = lqr.riccati(layerwise_lqr(network, w, x, y, damping=damping)).p[1].item()
        assert abs(slope - (2 - 24 / (damping + 8))) < 1e-15 * 4


def test_certificate_changes_sign_where_the_model_becomes_convex() -> None:
    """The first stage crosses zero at mu = sqrt(45) - 5 = 1.7082, minus the Hessian's smallest eigenvalue."""
    network, x, y = two_weight_network()
    w = (2.0, 1.0)
    crossing = np.sqrt(45.0) - 5.0
    assert abs(crossing + np.linalg.eigvalsh(curvature.hessian(network, w, x, y))[0]) < 1e-14
    for damping, stage in ((1.7, -0.0113), (1.8, 0.1265)):
        sweep = lqr.riccati(layerwise_lqr(network, w, x, y, damping=damping))
        assert abs(sweep.stage_eigenvalues[0] - stage) < 5e-5
    for side in (-1, 1):
        sweep = lqr.riccati(layerwise_lqr(network, w, x, y, damping=crossing + side * 1e-9))
        assert sweep.is_minimum == (side > 0)
    with pytest.raises(ValueError, match="stage 0 of 2 is singular"):
        lqr.riccati(layerwise_lqr(network, w, x, y, damping=crossing))


@pytest.mark.parametrize("divergence", ["newton", "gauss-newton", "fisher"])
def test_infinite_damping_is_backpropagation(divergence: str, rng: np.random.Generator) -> None:
    """Price slopes tend to the costates and mu times the step to -g, at the rate 1 / mu."""
    network = Network((3, 4, 3))
    w, x, y = rng.standard_normal(network.dimension), rng.standard_normal((5, 3)), rng.integers(0, 3, 5)
    errors = []
    for damping in (1e4, 1e5, 1e6):
        solution = lqr.solve(layerwise_lqr(network, w, x, y, divergence=divergence, damping=damping))
        costates = network.costates(w, x, y)
        prices = max(
            relative(p, costate.ravel())
            for p, costate in zip(solution.p, costates, strict=True)
            if costate.any()
        )
        errors.append((prices, relative(damping * solution.step, -network.gradient(w, x, y))))
    for one, next_one in pairwise(errors):
        np.testing.assert_allclose(np.divide(one, next_one), 10, rtol=0.02)
    assert max(errors[-1]) < 1e-4


def test_sum_of_fishers_is_the_mean_with_another_damping(rng: np.random.Generator) -> None:
    """(n F + mu I)^{-1} g = (F + mu/n I)^{-1} g / n: the authors' pairing in our mean convention."""
    numbers = golden.numbers()
    network = Network(golden.WIDTHS)
    w, x, y = golden.ours(numbers["tanh/theta"]), numbers["x"], numbers["y"]
    n = len(x)
    for mu in ("0.01", "0.1", "1"):
        truth = golden.ours(numbers[f"A_tanh/dense_solve/ngd_Fsum/lam{mu}"])
        problem = layerwise_lqr(network, w, x, y, divergence="fisher", damping=float(mu) / n)
        assert relative(-lqr.solve(problem).step / n, truth) < 1e-9


@pytest.mark.parametrize("mu", ["0.01", "0.1", "1"])
@pytest.mark.parametrize(("divergence", "name"), [("fisher", "ngd_Fmean"), ("newton", "newton_H")])
def test_golden_exact_steps(divergence: str, name: str, mu: str) -> None:
    numbers = golden.numbers()
    network = Network(golden.WIDTHS)
    w, x, y = golden.ours(numbers["tanh/theta"]), numbers["x"], numbers["y"]
    problem = layerwise_lqr(network, w, x, y, divergence=divergence, damping=float(mu))
    solution = lqr.stationary_point(problem)
    assert relative(-solution.step, golden.ours(numbers[f"A_tanh/dense_solve/{name}/lam{mu}"])) < 1e-9
    smallest = np.linalg.eigvalsh(golden.ours_matrix(numbers["tanh/H"]))[0] + float(mu)
    assert solution.is_minimum == (divergence == "fisher" or smallest > 0)
    if not solution.is_minimum:
        with pytest.raises(ValueError, match="indefinite"):
            lqr.solve(problem)


@pytest.mark.parametrize("loss", LOSSES)
def test_undamped_rank_deficient_gauss_newton_is_refused(loss: str) -> None:
    """Whatever rounding makes of a zero eigenvalue; what rounding hides is still flat to 1e-10."""
    singular = refused = 0
    rng = np.random.default_rng(5)
    for _ in range(150):
        widths = tuple(int(width) for width in rng.integers(2, 5, rng.integers(3, 7)))
        network = Network(widths, loss=loss)
        n = int(rng.integers(2, 12))
        w, x = rng.standard_normal(network.dimension), rng.standard_normal((n, widths[0]))
        y = (
            rng.standard_normal((n, widths[-1]))
            if loss == "squared-error"
            else rng.integers(0, widths[-1], n)
        )
        problem = layerwise_lqr(network, w, x, y, divergence="gauss-newton")
        eigenvalues = np.linalg.eigvalsh(lqr.dense(problem)[0])
        if eigenvalues[0] > 1e-15 * eigenvalues[-1]:
            continue
        singular += 1
        try:
            solution = lqr.solve(problem)
        except ValueError:
            refused += 1
        else:
            assert lqr.kkt_residual(problem, solution) < 1e-10
    assert singular > 50
    assert refused > 0.95 * singular


def test_solve_refuses_what_rounding_has_spoiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llqr_sam_ref.exact.lqr.sweep.TRUSTED", 0.0)
    problem = lqr.random_problem(6, 5, 4, np.random.default_rng(1))
    with pytest.raises(ValueError, match=r"stage \d of 6 is singular to working precision"):
        lqr.solve(problem)
