"""Part 4, the regulator: Fibonacci's cart, Riccati by completing squares, costates; each with its mutations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import numpy as np

from llqr_sam_ref.exact import lqr
from llqr_sam_ref.exact._arrays import Array
from tests.exact.numerical import relative
from tests.theorems.catalogue import mutation


def _fibonacci(k: int) -> int:
    a, b = 1, 1
    for _ in range(k - 1):
        a, b = b, a + b
    return a


@mutation("the price is the next ratio", price=lambda F, k: Fraction(F(2 * k + 3), F(2 * k + 2)))
@mutation("the push is half of the distance", push=lambda F, k: Fraction(-1, 2))
@mutation("all pushes together leave 1/F_2N", left=lambda F, N: Fraction(1, F(2 * N)))
@mutation("the price tends to 1.6", limit=1.6)
def test_prop_fibonacci_prices(
    price: Callable[[Callable[[int], int], int], Fraction] = lambda F, k: Fraction(
        F(2 * k + 2), F(2 * k + 1)
    ),
    push: Callable[[Callable[[int], int], int], Fraction] = lambda F, k: Fraction(-F(2 * k), F(2 * k + 1)),
    left: Callable[[Callable[[int], int], int], Fraction] = lambda F, N: Fraction(1, F(2 * N + 1)),
    limit: float = (1 + 5**0.5) / 2,
) -> None:
    """The sweep of the package on the cart, for horizons up to 12."""
    for N in range(1, 13):
        plan = lqr.solve(lqr.Problem.repeated(N, A=1, B=1, Q=1, R=1), 1.0)
        for i in range(N + 1):
            assert abs(plan.P[i].item() - price(_fibonacci, N - i)) < 1e-14
        for i in range(N):
            assert abs(plan.K[i].item() - push(_fibonacci, N - i)) < 1e-14
        assert abs(plan.x[-1].item() - left(_fibonacci, N)) < 1e-14
    assert abs(plan.P[0].item() - limit) < 1e-9


def _same(problem: lqr.Problem) -> lqr.Problem:
    return problem


def _without_cross_terms(problem: lqr.Problem) -> lqr.Problem:
    return replace(problem, M=tuple(0 * M for M in problem.M))


def _plan_cost(sweep: lqr.Sweep, problem: lqr.Problem, u: list[Array], x0: Array) -> float:
    """V_0(x_0) + 1/2 sum (u - K x - k)' R~ (u - K x - k)."""
    total = float(x0 @ sweep.P[0] @ x0 / 2 + sweep.p[0] @ x0) + sweep.constant
    x = lqr.rollout(problem, u, x0)
    for u_i, x_i, K, k, R in zip(u, x, sweep.K, sweep.k, sweep.R_tilde, strict=False):
        v = u_i - K @ x_i - k
        total += float(v @ R @ v) / 2
    return total


@mutation("the cross terms M are ignored in the sweep", sweep=_without_cross_terms)
@mutation("the value has no constant", value=lambda solution: solution.value - solution.constant)
@mutation("the residual is taken of the problem without cross terms", judged=_without_cross_terms)
@mutation(
    "what a plan loses is |u - K x - k|^2/2",
    plan_cost=lambda sweep, problem, u, x0: _plan_cost(
        replace(sweep, R_tilde=tuple(np.eye(len(R)) for R in sweep.R_tilde)), problem, u, x0
    ),
)
def test_thm_riccati(
    sweep: Callable[[lqr.Problem], lqr.Problem] = _same,
    value: Callable[[lqr.Solution], float] = lambda solution: solution.value,
    judged: Callable[[lqr.Problem], lqr.Problem] = _same,
    plan_cost: Callable[[lqr.Sweep, lqr.Problem, list[Array], Array], float] = _plan_cost,
) -> None:
    """20 random problems, most of them indefinite: controls, value, optimality conditions, and any other plan."""
    rng = np.random.default_rng(410)
    for _ in range(20):
        problem = lqr.random_problem(5, 3, 2, rng, definite=False)
        matrix, slope = lqr.dense(problem)
        u = -np.linalg.solve(matrix, slope)
        solution = lqr.stationary_point(sweep(problem))
        assert relative(solution.step, u) < 1e-8
        assert abs(value(solution) - 0.5 * slope @ u) < 1e-8 * abs(slope @ u)
        assert lqr.kkt_residual(judged(problem), solution) < 1e-8
        other, x0 = [rng.standard_normal(2) for _ in range(5)], rng.standard_normal(3)
        truth = lqr.cost(problem, other, x0)
        scale = abs(truth) + abs(solution.constant) + abs(float(x0 @ solution.P[0] @ x0))
        assert abs(plan_cost(solution, problem, other, x0) - truth) < 1e-8 * scale


def _costates(problem: lqr.Problem, u: list[Array], x: tuple[Array, ...]) -> list[Array]:
    prices = [problem.Q[-1] @ x[-1] + problem.q[-1]]
    for i in reversed(range(problem.horizon)):
        here = problem.Q[i] @ x[i] + problem.M[i].T @ u[i] + problem.q[i]
        prices.insert(0, here + problem.A[i].T @ prices[0])
    return prices


@mutation(
    "the costates forget the cross cost",
    costates=lambda problem, u, x: _costates(_without_cross_terms(problem), u, x),
)
@mutation("at the optimum the costate is P x", at_optimum=lambda P, p, x: P @ x)
def test_prop_kkt_costates(
    costates: Callable[[lqr.Problem, list[Array], tuple[Array, ...]], list[Array]] = _costates,
    at_optimum: Callable[[Array, Array, Array], Array] = lambda P, p, x: P @ x + p,
) -> None:
    """The derivative of the cost at random plans against the dense form; the costates of the optimum."""
    rng = np.random.default_rng(420)
    for _ in range(20):
        problem, x0 = lqr.random_problem(5, 3, 2, rng), rng.standard_normal(3)
        u = [rng.standard_normal(2) for _ in range(5)]
        x = lqr.rollout(problem, u, x0)
        ahead = costates(problem, u, x)[1:]
        slope = [
            problem.R[i] @ u[i] + problem.M[i] @ x[i] + problem.r[i] + problem.B[i].T @ ahead[i]
            for i in range(5)
        ]
        G, g = lqr.dense(problem, x0)
        assert relative(np.concatenate(slope), G @ np.concatenate(u) + g) < 1e-12
        best = lqr.solve(problem, x0)
        prices = _costates(problem, list(best.u), best.x)
        stated = [at_optimum(P, p, x_i) for P, p, x_i in zip(best.P, best.p, best.x, strict=True)]
        assert relative(np.concatenate(stated), np.concatenate(prices)) < 1e-10
