"""The LQ solver against a dense solve, its own optimality conditions, and pencil and paper."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llqr_sam_ref.exact import lqr
from llqr_sam_ref.exact._arrays import Array
from tests.exact.numerical import relative


def ragged_problem(sizes: list[tuple[int, int]], rng: np.random.Generator, *, definite: bool) -> lqr.Problem:
    """A problem whose stages have different sizes (state, control); control 0 is a passive stage."""
    states = [state for state, _ in sizes]
    A, B, Q, R, M = [], [], [], [], []
    for i, (state, control) in enumerate(sizes):
        after = states[(i + 1) % len(states)]
        A.append(rng.standard_normal((after, state)))
        B.append(rng.standard_normal((after, control)))
        root = rng.standard_normal((state + control, state + control))
        stage = root @ root.T + 0.1 * np.eye(len(root)) if definite else root + root.T
        Q.append(stage[:state, :state])
        R.append(stage[state:, state:])
        M.append(stage[state:, :state])
    root = rng.standard_normal((states[0], states[0]))
    Q.append(root @ root.T if definite else root + root.T)
    q = [rng.standard_normal(len(cost)) for cost in Q]
    return lqr.Problem(A, B, Q, R, M, q, [rng.standard_normal(len(cost)) for cost in R])


def cholesky_solve(matrix: Array, vector: Array) -> Array:
    L = np.linalg.cholesky(matrix)
    solution: Array = np.linalg.solve(L.T, np.linalg.solve(L, vector))
    return solution


SIZES = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 4)), min_size=1, max_size=6).filter(
    lambda sizes: any(control for _, control in sizes)
)


def test_cart_prices_are_ratios_of_fibonacci_numbers() -> None:
    cart = lqr.Problem.repeated(5, A=1, B=1, Q=1, R=1)
    plan = lqr.solve(cart, 1.0)
    truth = [
        Fraction(144, 89),
        Fraction(55, 34),
        Fraction(21, 13),
        Fraction(8, 5),
        Fraction(3, 2),
        Fraction(1),
    ]
    for P, price in zip(plan.P, truth, strict=True):
        assert abs(P.item() - float(price)) < 1e-15 * 4
    for K, price in zip(plan.K, truth[1:], strict=True):
        assert abs(K.item() + float(price / (1 + price))) < 1e-15 * 4
    for x, ratio in zip(plan.x, (89, 34, 13, 5, 2, 1), strict=True):
        assert abs(x.item() - ratio / 89) < 1e-15 * 4
    assert abs(plan.value - 72 / 89) < 1e-15 * 4


def test_cart_price_tends_to_the_golden_ratio_and_effortless_control_goes_home_at_once() -> None:
    golden = (1 + math.sqrt(5)) / 2
    long = lqr.riccati(lqr.Problem.repeated(40, A=1, B=1, Q=1, R=1))
    assert abs(long.P[0].item() - golden) < 1e-15 * 4
    assert abs(long.K[0].item() - (1 - golden)) < 1e-15 * 4
    free = lqr.solve(lqr.Problem.repeated(3, A=1, B=1, Q=1, R=0), 1.0)
    assert [K.item() for K in free.K] == [-1.0] * 3
    assert [P.item() for P in free.P] == [1.0] * 4


def test_cart_rivals_cost_what_chapter_13_says() -> None:
    cart = lqr.Problem.repeated(5, A=1, B=1, Q=1, R=1)
    assert lqr.cost(cart, [0.0] * 5, 1.0) == 3.0
    assert lqr.cost(cart, [-1.0, 0.0, 0.0, 0.0, 0.0], 1.0) == 1.0
    halving = [-(0.5 ** (i + 1)) for i in range(5)]
    greedy = lqr.cost(cart, halving, 1.0)
    assert abs(greedy - 0.833008) < 5e-7
    assert abs(greedy / lqr.solve(cart, 1.0).value - 1.029690) < 5e-7
    doubled = lqr.cost(cart, [2 * u for u in halving], 2.0) / lqr.solve(cart, 2.0).value
    assert abs(doubled - 1.029690) < 5e-7


@settings(max_examples=60, deadline=None)
@given(sizes=SIZES, seed=st.integers(0, 2**31))
def test_solution_equals_the_dense_cholesky_solve(sizes: list[tuple[int, int]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    problem = ragged_problem(sizes, rng, definite=True)
    x0 = rng.standard_normal(sizes[0][0])
    solution = lqr.solve(problem, x0)
    G, g = lqr.dense(problem, x0)
    assert relative(solution.step, -cholesky_solve(G, g)) < 1e-10
    assert lqr.kkt_residual(problem, solution) < 1e-10
    assert abs(solution.value - lqr.cost(problem, solution.u, x0)) < 1e-10 * (
        1 + abs(solution.value) + np.abs(G).max()
    )
    assert solution.is_minimum
    assert min(solution.stage_eigenvalues) > 0


@settings(max_examples=60, deadline=None)
@given(sizes=SIZES, seed=st.integers(0, 2**31))
def test_dense_form_and_product_are_the_cost(sizes: list[tuple[int, int]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    problem = ragged_problem(sizes, rng, definite=False)
    x0 = rng.standard_normal(sizes[0][0])
    G, g = lqr.dense(problem, x0)
    step = rng.standard_normal(len(g))
    rise = lqr.cost(problem, problem.split(step), x0) - lqr.cost(problem, problem.split(0 * step), x0)
    scale = 1 + np.abs(G).sum() + np.abs(g).sum()
    assert abs(rise - (0.5 * step @ G @ step + g @ step)) < 1e-12 * scale
    assert np.linalg.norm(lqr.curvature_product(problem, step) - G @ step) < 1e-12 * scale


@settings(max_examples=60, deadline=None)
@given(sizes=SIZES, seed=st.integers(0, 2**31))
def test_costates_are_the_price_of_the_state(sizes: list[tuple[int, int]], seed: int) -> None:
    """lambda_0 is the derivative of the optimal value by x_0."""
    rng = np.random.default_rng(seed)
    problem = ragged_problem(sizes, rng, definite=True)
    x0, move = rng.standard_normal((2, sizes[0][0]))
    ahead, behind = lqr.solve(problem, x0 + move).value, lqr.solve(problem, x0 - move).value
    price = lqr.solve(problem, x0).costates[0] @ move  # the value is quadratic: central differences are exact
    assert abs((ahead - behind) / 2 - price) < 1e-10 * (1 + abs(ahead) + abs(behind))


def test_indefinite_problems_are_flat_at_the_stationary_point(rng: np.random.Generator) -> None:
    for _ in range(20):
        problem = lqr.random_problem(5, 4, 3, rng, definite=False)
        solution = lqr.stationary_point(problem)
        G, g = lqr.dense(problem)
        eigenvalues, directions = np.linalg.eigh(G)
        assert np.linalg.norm(G @ solution.step + g) < 1e-8 * (np.linalg.norm(g) + np.abs(G).max())
        assert abs(solution.value - lqr.cost(problem, solution.u)) < 1e-8 * (1 + abs(solution.value))
        assert list(solution.inertia) == [(eigenvalues < 0).sum(), (eigenvalues > 0).sum()]
        assert solution.is_minimum == (eigenvalues[0] > 0)
        if not solution.is_minimum:  # a saddle: there is a way down
            lower = lqr.cost(problem, problem.split(solution.step + directions[:, 0]))
            assert abs(lower - solution.value - 0.5 * eigenvalues[0]) < 1e-6 * (1 + abs(solution.value))
            assert lower < solution.value


def test_certificate_agrees_with_dense_eigenvalues_and_damping_does_what_it_says(
    rng: np.random.Generator,
) -> None:
    definite = 0
    for _ in range(200):
        problem = lqr.random_problem(3, 3, 2, rng, definite=False)
        smallest = float(np.linalg.eigvalsh(lqr.dense(problem)[0])[0])
        problem = lqr.damped(problem, max(0.0, -smallest * rng.uniform(0.5, 1.5)))
        truth = float(np.linalg.eigvalsh(lqr.dense(problem)[0])[0])
        definite += truth > 0
        if truth > 0:
            assert min(lqr.solve(problem).stage_eigenvalues) > 0
            continue
        with pytest.raises(
            ValueError, match=r"stage \d of 3 is indefinite: the smallest eigenvalue"
        ) as error:
            lqr.solve(problem)
        advised = re.search(r"damping of (\S+) on every", str(error.value))
        named = re.search(r"stage (\d).*of its R~ is (\S+),", str(error.value))
        assert advised is not None
        assert named is not None
        assert lqr.solve(lqr.damped(problem, float(advised[1]))).is_minimum
        stage = lqr.riccati(problem).stage_eigenvalues[int(named[1])]
        assert stage < 0
        assert abs(float(named[2]) / stage - 1) < 1e-5
    assert 40 < definite < 160


def test_without_cross_terms_the_answer_is_another_one(rng: np.random.Generator) -> None:
    problem = lqr.random_problem(4, 3, 3, rng)
    careless = lqr.solve(replace(problem, M=tuple(0 * M for M in problem.M)))
    assert relative(careless.step, lqr.solve(problem).step) > 0.01


def test_kkt_residual_sees_a_wrong_control_state_or_costate(rng: np.random.Generator) -> None:
    problem = lqr.random_problem(4, 3, 2, rng)
    solution = lqr.solve(problem)
    wrong = [
        replace(solution, u=tuple(u + 1e-3 for u in solution.u)),
        replace(solution, x=tuple(x + 1e-3 for x in solution.x)),
        replace(solution, costates=tuple(costate + 1e-3 for costate in solution.costates)),
    ]
    assert all(lqr.kkt_residual(problem, solution) > 1e-5 for solution in wrong)


@pytest.mark.parametrize(
    ("problem", "stage"),
    [
        (lqr.Problem([1, 1], [1, 1], [0, 0, 0], [0, 0], M=[0, 1]), 1),  # nonsingular as a whole
        (lqr.Problem.repeated(2, A=1, B=0, Q=1, R=0), 1),  # cannot be steered
        (lqr.Problem([1, 1], [1, 2], [0, 0, 2], [0, 0]), 0),  # rank one: the second stage has done it all
        (lqr.Problem([1, 0.7], [1, 0.3], [0, 0, 1 / 3], [0, 0]), 0),  # the same where rounding hides the zero
    ],
)
def test_singular_stage_raises_and_names_itself(problem: lqr.Problem, stage: int) -> None:
    for solver in (lqr.riccati, lqr.solve, lqr.stationary_point):
        with pytest.raises(ValueError, match=f"stage {stage} of 2 is singular") as error:
            solver(problem)
        advised = re.search(r"damping of (\S+) on every", str(error.value))
        assert advised is not None
        assert lqr.solve(lqr.damped(problem, float(advised[1]))).is_minimum


def test_sizes_may_change_and_a_problem_is_read_only(rng: np.random.Generator) -> None:
    problem = ragged_problem([(2, 3), (4, 0), (1, 2)], rng, definite=True)
    solution = lqr.solve(problem)
    assert problem.controls == (3, 0, 2)
    assert [x.size for x in solution.x] == [2, 4, 1, 2]
    assert solution.step.size == 5
    with pytest.raises(ValueError, match="read-only"):
        problem.A[0][0, 0] = 1.0


def test_repeated_problem_equals_the_written_out_one() -> None:
    short = lqr.Problem.repeated(2, A=2, B=1, Q=3, R=4, M=0.5, r=1, Q_end=5, q_end=6)
    long = lqr.Problem([2, 2], [1, 1], [3, 3, 5], [4, 4], [0.5, 0.5], [0, 0, 6], [1, 1])
    for letter in "ABQRMqr":
        for one, other in zip(getattr(short, letter), getattr(long, letter), strict=True):
            np.testing.assert_array_equal(one, other)
