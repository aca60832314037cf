"""Part 4, LLQR: a network as a control system and its exact step, each result with its mutation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from llqr_sam_ref.exact import curvature, lqr
from llqr_sam_ref.exact._arrays import Array
from llqr_sam_ref.exact.network import Network, layerwise_lqr, two_weight_network
from tests.exact.numerical import relative
from tests.theorems.catalogue import mutation, require

WIDTHS = (4, 6, 5, 3)


def _norm(v: Array) -> float:
    return float(np.linalg.norm(v))


def _example(
    seed: int, loss: str, activation: str = "tanh", n: int = 3
) -> tuple[Network, Array, Array, Array]:
    """A random network with its weights (biases too), batch and targets."""
    rng = np.random.default_rng(seed)
    network = Network(WIDTHS, activation, loss)
    w = network.random_weights(rng) + 0.1 * rng.standard_normal(network.dimension)
    x = rng.standard_normal((n, WIDTHS[0]))
    y = rng.standard_normal((n, WIDTHS[-1])) if loss == "squared-error" else rng.integers(0, WIDTHS[-1], n)
    return network, w, x, y


def _loss_of(network: Network, x: Array, y: Array) -> Callable[[Array], Array]:
    return lambda v: np.atleast_1d(network.end.value(network.states(v, x)[-1], network.targets(x, y)))


def _without_cross_terms(problem: lqr.Problem) -> lqr.Problem:
    return replace(problem, M=tuple(np.zeros_like(M) for M in problem.M))


def _assemble(problem: lqr.Problem) -> Array:
    return lqr.dense(problem)[0]


@mutation("costates are pulled back without the transpose of A", transpose=False)
def test_thm_backprop_costate(transpose: bool = True) -> None:
    """lambda_i = A_i' lambda_{i+1} and g_i = B_i' lambda_{i+1} give the gradient of a complex step."""
    for loss in ("cross-entropy", "squared-error"):
        network, w, x, y = _example(400, loss)
        rng = np.random.default_rng(400)
        problem = layerwise_lqr(network, w, x, y)
        costate, parts = problem.q[-1], []
        for A, B in zip(reversed(problem.A), reversed(problem.B), strict=True):
            parts.append(B.T @ costate)
            costate = A.T @ costate if transpose else rng.permutation(A.T @ costate)
        gradient = np.concatenate(parts[::-1])
        reference = curvature.complex_step(_loss_of(network, x, y), w).ravel()
        assert relative(gradient, reference) < 1e-12


@mutation("the cross costs M are dropped", assemble=lambda problem: _assemble(_without_cross_terms(problem)))
def test_thm_second_variation(assemble: Callable[[lqr.Problem], Array] = _assemble) -> None:
    """The Hessian from stage costs against backpropagation differentiated by a complex step."""
    for loss in ("cross-entropy", "negative-log-likelihood", "squared-error"):
        network, w, x, y = _example(401, loss)
        problem = layerwise_lqr(network, w, x, y)
        H = curvature.hessian(network, w, x, y, route="complex-step")
        assert relative(assemble(problem), H) < 1e-12
        J = curvature.jacobian(network, w, x, route="complex-step")
        assert relative(J.T @ problem.q[-1], network.gradient(w, x, y)) < 1e-13


@mutation("an identity where the activation bends", activation="identity")
@mutation("activations bend in the cross direction, dense stages in the state", weighted=False)
@mutation("ReLU bends as tanh does", straight="tanh")
def test_prop_bilinear_stage(activation: str = "tanh", weighted: bool = True, straight: str = "relu") -> None:
    """Dense stages bend only in the cross direction, activations only in the state, ReLU not at all."""
    network, w, x, y = _example(402, "cross-entropy", activation)
    problem = layerwise_lqr(network, w, x, y)
    dense = [i for i, B in enumerate(problem.B) if bool(B.shape[1]) == weighted]
    passive = [i for i, B in enumerate(problem.B) if bool(B.shape[1]) != weighted]
    assert all(not problem.Q[i].any() and not problem.R[i].any() for i in dense)
    assert max(np.max(np.abs(problem.M[i])) for i in dense) > 1e-3
    assert passive
    for i in passive:
        assert np.max(np.abs(problem.Q[i])) > 1e-3
        assert not (problem.Q[i] - np.diag(np.diag(problem.Q[i]))).any()
    network, w, x, y = _example(402, "cross-entropy", straight)
    problem = layerwise_lqr(network, w, x, y)
    assert not any(problem.Q[i].any() for i in range(problem.horizon))


def _divergence_slope(network: Network, w: Array, x: Array, y: Array, loss: str) -> Callable[[Array], Array]:
    """The gradient by v of the loss at v without its tangent at the outputs of w."""

    def towards(outputs: Array) -> Array:  # the loss's slope in the outputs
        if loss == "squared-error":
            return 2 * (outputs - y)
        weights = np.exp(outputs)
        return weights / weights.sum(1, keepdims=True) - np.eye(outputs.shape[1])[y]

    here = towards(network.states(w, x)[-1])

    def slope(v: Array) -> Array:
        states = network.states(v, x)
        return network.pull(v, states, (towards(states[-1]) - here) / len(x))[1]

    return slope


@mutation("the loss itself as the terminal function", gauss_newton="newton")
def test_cor_ggn_terminal(gauss_newton: str = "gauss-newton") -> None:
    """For the divergence from the present outputs only the terminal cost is left: its Hessian."""
    for loss, kinds in (("cross-entropy", (gauss_newton, "fisher")), ("squared-error", (gauss_newton,))):
        network, w, x, y = _example(403, loss)
        slope = _divergence_slope(network, w, x, y, loss)
        assert np.abs(slope(w)).max() < 1e-15
        for divergence in kinds:
            problem = layerwise_lqr(network, w, x, y, divergence=divergence)
            entries = [*problem.Q[:-1], *problem.R, *problem.M]
            assert max(np.max(np.abs(entry), initial=0) for entry in entries) < 1e-15
            assert relative(_assemble(problem), curvature.complex_step(slope, w)) < 1e-12


def _same(problem: lqr.Problem) -> lqr.Problem:
    return problem


def _without_last_state_cost(problem: lqr.Problem) -> lqr.Problem:
    """Drop the curvature of the log-softmax stage, the last one before the end."""
    Q = list(problem.Q)
    Q[-2] = np.zeros_like(Q[-2])
    return replace(problem, Q=tuple(Q))


@mutation("the log-softmax stage's own curvature is dropped", read=_without_last_state_cost)
def test_thm_fisher_log_prob(read: Callable[[lqr.Problem], lqr.Problem] = _same) -> None:
    """Logits or log-probabilities: another bookkeeping, the same Fisher matrix."""
    logits, w, x, y = _example(404, "cross-entropy")
    log_probs = Network(WIDTHS, "tanh", "negative-log-likelihood")
    problem = read(layerwise_lqr(log_probs, w, x, y, divergence="fisher"))
    F = _assemble(layerwise_lqr(logits, w, x, y, divergence="fisher"))
    assert not problem.Q[-1].any()
    assert relative(_assemble(problem), F) < 1e-12
    z = logits.states(w, x)[-1]
    pi = np.exp(z - z.max(1, keepdims=True))
    pi /= pi.sum(1, keepdims=True)
    for b, row in enumerate(pi):
        block = problem.Q[-2][3 * b : 3 * b + 3, 3 * b : 3 * b + 3]
        assert np.max(np.abs(block - (np.diag(row) - np.outer(row, row)) / len(x))) < 1e-14


@mutation("one layer's metric is left out", counted=slice(1, None))
def test_cor_intermediate_metric(counted: slice = slice(None)) -> None:
    """Costs on changes of hidden states add J_i' S_i J_i, and the same sweeps solve the problem."""
    network, w, x, y = _example(405, "cross-entropy")
    rng = np.random.default_rng(405)
    metrics = {}
    for i, state in enumerate(network.states(w, x)[1:-1], start=1):
        root = rng.standard_normal((state.size, state.size)) / np.sqrt(state.size)
        metrics[i] = root @ root.T
    added = np.zeros((network.dimension, network.dimension))
    for i in list(metrics)[counted]:
        J = curvature.jacobian(network, w, x, state=i, route="complex-step")
        added += J.T @ metrics[i] @ J
    problem = layerwise_lqr(network, w, x, y, divergence="gauss-newton", damping=1e-2, intermediate=metrics)
    without = layerwise_lqr(network, w, x, y, divergence="gauss-newton", damping=1e-2)
    assert relative(_assemble(problem) - _assemble(without), added) < 1e-12
    assert np.min(np.linalg.eigvalsh(added)) > -1e-12 * np.max(np.abs(added))
    step = lqr.solve(problem).step
    assert relative(step, -np.linalg.solve(_assemble(problem), network.gradient(w, x, y))) < 1e-10


def _swept_product(problem: lqr.Problem, u: Array, cross: float = 1.0) -> Array:
    """One rollout, one backward sweep, written out."""
    cuts = np.cumsum([B.shape[1] for B in problem.B])[:-1]
    controls = np.split(u, cuts)
    x = lqr.rollout(problem, controls)
    price = problem.Q[-1] @ x[-1]
    parts = []
    for i in reversed(range(problem.horizon)):
        parts.append(problem.B[i].T @ price + problem.M[i] @ x[i] + problem.R[i] @ controls[i])
        price = problem.A[i].T @ price + problem.Q[i] @ x[i] + cross * problem.M[i].T @ controls[i]
    return np.concatenate(parts[::-1])


@mutation("M' u is left out of the backward sweep", cross=0.0)
def test_thm_curvature_product(cross: float = 1.0) -> None:
    network, w, x, y = _example(406, "cross-entropy")
    rng = np.random.default_rng(406)
    u = rng.standard_normal(network.dimension)
    problem = layerwise_lqr(network, w, x, y)
    product = _swept_product(problem, u, cross)
    assert relative(product, curvature.hessian(network, w, x, y, route="complex-step") @ u) < 1e-12
    np.testing.assert_allclose(lqr.curvature_product(problem, u), product, rtol=1e-12, atol=1e-14)
    random = lqr.random_problem(5, 3, 2, rng, definite=False)
    v = rng.standard_normal(10)
    assert relative(_swept_product(random, v, cross), _assemble(random) @ v) < 1e-13


@mutation("the cross terms M are ignored", read=_without_cross_terms)
def test_thm_lqr_equivalence(read: Callable[[lqr.Problem], lqr.Problem] = _same) -> None:
    """One sweep back, one forth: the Newton, Gauss-Newton, Fisher and intermediate-metric steps."""
    for seed in (407, 408, 409):
        for loss in ("cross-entropy", "negative-log-likelihood", "squared-error"):
            network, w, x, y = _example(seed, loss)
            g = network.gradient(w, x, y)
            H = curvature.hessian(network, w, x, y, route="complex-step")
            G = curvature.ggn(network, w, x, y, route="complex-step")
            newton = -float(np.linalg.eigvalsh(H)[0]) + 0.05
            cases: list[tuple[str, float, dict[int, Any], Array]] = [
                ("newton", newton, {}, H),
                ("fisher", 1e-2, {}, curvature.fisher(network, w, x, route="scores")),
            ]
            if loss != "negative-log-likelihood":  # there the curvature sits in the log-softmax stage
                J = curvature.jacobian(network, w, x, state=1, route="complex-step")
                cases += [("gauss-newton", 1e-2, {}, G), ("gauss-newton", 1e-2, {1: 0.7}, G + 0.7 * J.T @ J)]
            for divergence, mu, metrics, matrix in cases:
                problem = layerwise_lqr(
                    network, w, x, y, divergence=divergence, damping=mu, intermediate=metrics
                )
                solution = lqr.stationary_point(read(problem))
                dense = -np.linalg.solve(matrix + mu * np.eye(len(g)), g)
                assert relative(solution.step, dense) < 1e-10
                assert solution.is_minimum


@mutation("R is tested instead of R~", stages=lambda sweep, problem: problem.R)
def test_thm_positivity_certificate(
    stages: Callable[[lqr.Sweep, lqr.Problem], Any] = lambda sweep, problem: sweep.R_tilde,
) -> None:
    rng = np.random.default_rng(411)
    wrong, definite = 0, 0
    for _ in range(200):
        problem = lqr.damped(lqr.random_problem(4, 3, 2, rng, definite=False), float(rng.uniform(0, 6)))
        truth = np.linalg.eigvalsh(lqr.dense(problem)[0])[0] > 0
        certified = all(np.linalg.eigvalsh(R)[0] > 0 for R in stages(lqr.riccati(problem), problem))
        wrong += certified != truth
        definite += truth
    assert wrong == 0
    require(20 <= definite <= 180, "both kinds occur")


@mutation("the sweep ignores M", sweep=_without_cross_terms)
def test_thm_inertia_additivity(sweep: Callable[[lqr.Problem], lqr.Problem] = _same) -> None:
    rng = np.random.default_rng(412)
    problems = [lqr.random_problem(5, 3, 2, rng, definite=False) for _ in range(100)]
    problems += [layerwise_lqr(*_example(seed, "cross-entropy"), damping=1e-3) for seed in range(413, 417)]
    for problem in problems:
        eigenvalues = np.linalg.eigvalsh(lqr.dense(problem)[0])
        inertia = lqr.riccati(sweep(problem)).inertia
        assert inertia.negative == np.sum(eigenvalues < 0)
        assert inertia.positive == np.sum(eigenvalues > 0)


@mutation("enough damping", mu=2.0)
def test_cex_riccati_indefinite(mu: float = 1.0) -> None:
    """Two weights: the sweep solves an indefinite model exactly, and the model falls from there."""
    network, x, y = two_weight_network()
    problem = layerwise_lqr(network, np.array([2.0, 1.0]), x, y, damping=mu)
    solution = lqr.stationary_point(problem)
    assert solution.step == pytest.approx([-2 / 3, 0.0], abs=1e-14)
    assert [stage.item() for stage in solution.R_tilde] == pytest.approx([-1.0, 9.0], abs=1e-14)
    assert lqr.kkt_residual(problem, solution) < 1e-14
    matrix, slope = lqr.dense(problem)

    def model(u: Array) -> float:
        return float(slope @ u + 0.5 * u @ matrix @ u)

    for t in (0.1, 1.0, 10.0):
        change = model(solution.step + t * np.array([2.0, -1.0])) - model(solution.step)
        assert change == pytest.approx(-1.5 * t * t)
    with pytest.raises(ValueError, match="indefinite"):
        lqr.solve(problem)


@mutation("a positive R_1", R1=1.0)
def test_cex_riccati_zero_pivot(R1: float = 0.0) -> None:
    """x_1 = u_0, cost u_1 x_1: a nonsingular, indefinite matrix whose last stage is singular."""
    one, zero = np.ones((1, 1)), np.zeros((1, 1))
    problem = lqr.Problem(
        A=[zero, zero],
        B=[one, zero],
        Q=[zero, zero, zero],
        R=[zero, R1 * one],
        M=[zero, one],
        r=[[1.0], [1.0]],
    )
    assert abs(np.linalg.det(lqr.dense(problem)[0]) + 1) < 1e-15
    try:
        lqr.riccati(problem)
    except ValueError as error:
        singular = "stage 1 of 2 is singular" in str(error)
    else:
        singular = False
    assert singular


class _Counted(np.ndarray):
    """An array that counts the multiplications of matrix products and triangular or Cholesky solves."""

    total = 0.0

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        plain = [value.view(np.ndarray) if isinstance(value, _Counted) else value for value in inputs]
        result = getattr(ufunc, method)(*plain, **kwargs)
        if ufunc is np.matmul:
            a, b = plain
            _Counted.total += a.size * (b.shape[1] if b.ndim == 2 else 1)
        return result.view(_Counted) if isinstance(result, np.ndarray) else result

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        def plain(value: Any) -> Any:
            if isinstance(value, (tuple, list)):
                return type(value)(plain(v) for v in value)
            return value.view(np.ndarray) if isinstance(value, _Counted) else value

        result = func(*plain(args), **{key: plain(value) for key, value in kwargs.items()})
        if func is np.linalg.cholesky:
            _Counted.total += len(args[0]) ** 3 / 6
        if func is np.linalg.solve:  # with a triangular matrix
            _Counted.total += len(args[0]) ** 2 / 2 * (args[1].shape[1] if args[1].ndim == 2 else 1)
        return result.view(_Counted) if isinstance(result, np.ndarray) else result


def _sweep_multiplications(stages: int, dx: int = 6, du: int = 12) -> float:
    rng = np.random.default_rng(419)
    problem = lqr.random_problem(stages, dx, du, rng)
    for letter in "ABQRMqr":
        counted = tuple(array.view(_Counted) for array in getattr(problem, letter))
        object.__setattr__(problem, letter, counted)
    _Counted.total = 0.0
    lqr.riccati(problem)
    return _Counted.total


def _dense_multiplications(stages: int, dx: int = 6, du: int = 12) -> float:
    return (stages * du) ** 3 / 6  # a Cholesky factorization of the assembled matrix


@mutation("the dense factorization is counted", count=_dense_multiplications)
def test_thm_lqr_linear_depth(count: Callable[[int], float] = _sweep_multiplications) -> None:
    """Multiplications counted inside the sweep: exactly proportional to depth, far below the dense count."""
    counts = {stages: count(stages) for stages in (2, 4, 8, 16, 32)}
    for stages, multiplications in counts.items():
        assert multiplications == pytest.approx(stages * counts[2] / 2, rel=1e-12)
    assert _dense_multiplications(32) > 20 * counts[32]


def _price(mu: float) -> float:
    network, x, y = two_weight_network()
    problem = layerwise_lqr(network, np.array([2.0, 1.0]), x, y, damping=mu)
    return float(lqr.riccati(problem).p[1][0])


@mutation("the sweep's price does not depend on damping", price=lambda mu: _price(10.0))
def test_prop_infinite_damping(price: Callable[[float], float] = _price) -> None:
    """As mu grows p_i tends to the costate and mu Delta to -g; with two weights p_1 = 2 - 24/(mu + 8)."""
    for mu in (2.0, 10.0, 100.0, 1000.0):
        assert abs(price(mu) - (2 - 24 / (mu + 8))) < 1e-12
    network, w, x, y = _example(420, "cross-entropy")
    g, errors = network.gradient(w, x, y), []
    for mu in (1e3, 1e4):
        solution = lqr.solve(layerwise_lqr(network, w, x, y, damping=mu))
        costates = np.concatenate([c.ravel() for c in network.costates(w, x, y)])
        errors.append((relative(mu * solution.step, -g), relative(np.concatenate(solution.p), costates)))
    np.testing.assert_allclose(np.divide(errors[0], errors[1]), 10, rtol=0.02)
