"""The linear-quadratic problem, solved exactly: one sweep backwards and one forwards.

The sweep backwards turns ``Problem`` into N small problems, stage i = N-1 first; the sweep forwards reads the
controls off:

    R~_i = R_i + B_i' P_{i+1} B_i        M~_i = M_i + B_i' P_{i+1} A_i
    K_i  = -R~_i^{-1} M~_i               k_i  = -R~_i^{-1} (r_i + B_i' p_{i+1})
    P_i  = Q_i + A_i' P_{i+1} A_i + M~_i' K_i
    p_i  = q_i + A_i' p_{i+1} + M~_i' k_i        u_i = K_i x_i + k_i,

with P_N = Q_N, p_N = q_N. The tilde reads "tomorrow's price included". The controls minimize iff every
R~_i is positive definite; their numbers of negative eigenvalues add up to that of the whole problem.

Source: Anderson and Moore, Optimal Control: Linear Quadratic Methods (1990), chapter 2, here with cross and
affine terms; as a step of deep learning: LLQR, arXiv 2605.04230, Theorem 4.1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from llqr_sam_ref.exact._arrays import Array
from llqr_sam_ref.exact.lqr.problem import Arrays, Problem, dense, first_state, symmetric_part

TRUSTED = 1e-10  # the largest KKT residual that ``solve`` lets pass


class Inertia(NamedTuple):
    """How many eigenvalues of a nonsingular symmetric matrix lie on each side of zero."""

    negative: int
    positive: int


@dataclass(frozen=True, eq=False)
class Sweep:
    """What the backward sweep finds; indices run over stages, those of P and p over states (N+1 entries).

    Attributes:
        R_tilde: R~_i, the stage matrices: Hessians in u_i of all that follows.
        M_tilde: M~_i, the cross terms with tomorrow's price included.
        K: feedback gains, u_i = K_i x_i + k_i.
        k: feedforward controls k_i (u_i,).
        P: value matrices, V_i(x) = 1/2 x'P_i x + p_i'x + constant.
        p: value slopes p_i (x_i,).
        constant: the constant of V_0, -1/2 sum_i r~_i' R~_i^{-1} r~_i with r~_i = r_i + B_i'p_{i+1}.
        stage_inertia: signs of the eigenvalues of each R~_i.
    """

    R_tilde: Arrays
    M_tilde: Arrays
    K: Arrays
    k: Arrays
    P: Arrays
    p: Arrays
    constant: float
    stage_inertia: tuple[Inertia, ...]

    @property
    def inertia(self) -> Inertia:
        """Eigenvalue signs of the whole problem: the stages' signs add up (Sylvester's law of inertia)."""
        return Inertia(
            sum(stage.negative for stage in self.stage_inertia),
            sum(stage.positive for stage in self.stage_inertia),
        )

    @property
    def is_minimum(self) -> bool:
        """The certificate: every R~_i is positive definite, hence so is the whole problem."""
        return self.inertia.negative == 0

    @cached_property
    def stage_eigenvalues(self) -> tuple[float, ...]:
        """The smallest eigenvalue of each R~_i; infinity for a stage without control."""
        return tuple(float(np.linalg.eigvalsh(R).min(initial=math.inf)) for R in self.R_tilde)


@dataclass(frozen=True, eq=False)
class Solution(Sweep):
    """A sweep together with the trajectory it steers.

    Attributes:
        u: controls u_0, ..., u_{N-1}.
        x: states x_0, ..., x_N.
        costates: lambda_i = P_i x_i + p_i, the price of a change of x_i along the trajectory.
        value: the cost of the trajectory, V_0(x_0).
    """

    u: Arrays
    x: Arrays
    costates: Arrays
    value: float

    @property
    def step(self) -> Array:
        """All controls in one vector Delta = (u_0, ..., u_{N-1})."""
        return np.concatenate(self.u)


def riccati(problem: Problem) -> Sweep:
    """The backward sweep, from the last stage to the first.

    R~ = R + B'PB, M~ = M + B'PA, K = -R~^{-1}M~, k = -R~^{-1}(r + B'p), P <- Q + A'PA + M~'K,
    p <- q + A'p + M~'k. It needs every R~_i to be nonsingular, not positive definite; what an indefinite
    sweep leads to is a stationary point (see ``stationary_point``), and ``solve`` refuses it.

    Args:
        problem: the problem with N stages.

    Returns:
        Stage matrices, gains, value functions and the stage certificate.

    Raises:
        ValueError: a stage is singular; the message names it and the damping that would do.

    Source: Anderson and Moore (1990), chapter 2; LLQR, arXiv 2605.04230, section 4.
    """
    P, p, size = problem.Q[-1], problem.q[-1], float(np.linalg.norm(problem.Q[-1]))
    stages: list[_Stage] = []
    for i in reversed(range(problem.horizon)):
        stages.insert(0, _backward_stage(problem, i, P, p, size))
        P, p, size = stages[0].P, stages[0].p, stages[0].size
    return Sweep(
        R_tilde=tuple(stage.R_tilde for stage in stages),
        M_tilde=tuple(stage.M_tilde for stage in stages),
        K=tuple(stage.K for stage in stages),
        k=tuple(stage.k for stage in stages),
        P=(*(stage.P for stage in stages), problem.Q[-1]),
        p=(*(stage.p for stage in stages), problem.q[-1]),
        constant=-0.5 * sum(stage.saved for stage in stages),
        stage_inertia=tuple(stage.inertia for stage in stages),
    )


class _Stage(NamedTuple):
    """What one backward step finds."""

    R_tilde: Array
    M_tilde: Array
    K: Array
    k: Array
    P: Array
    p: Array
    saved: float
    inertia: Inertia
    size: float


def _backward_stage(problem: Problem, i: int, P: Array, p: Array, size: float) -> _Stage:
    """Complete the square in u_i: from tomorrow's price to today's gains and today's price.

    Args:
        problem: the problem.
        i: index of the stage.
        P: P_{i+1}, tomorrow's value matrix.
        p: p_{i+1}, tomorrow's value slope.
        size: norm of the terms that were added up in P_{i+1}. It is known to eps * size, and a pivot of R~_i
            smaller than what this rounding makes of it is no pivot.

    Returns:
        All of stage i.

    Raises:
        ValueError: R~_i is singular.
    """
    A, B, Q, R = problem.A[i], problem.B[i], problem.Q[i], problem.R[i]
    R_tilde = symmetric_part(R + B.T @ P @ B)
    M_tilde = problem.M[i] + B.T @ P @ A
    slope = problem.r[i] + B.T @ p
    F, signs, pivot = _factor(R_tilde)  # R~ = F diag(signs) F'
    B_squared = np.linalg.norm(B, 1) * np.linalg.norm(B, np.inf) if B.size else 0.0  # bounds |B|^2 from above
    if pivot <= 100 * np.finfo(float).eps * (np.linalg.norm(R) + B_squared * size):
        raise ValueError(_no_minimum(problem, i, "singular", R_tilde))
    gains, V = _stage_gains(R_tilde, F, signs, np.column_stack((M_tilde, slope)))
    saved = V.T @ (
        signs[:, None] * V
    )  # (M~, slope)' R~^{-1} (M~, slope), symmetric: what the best control saves
    APA = A.T @ P @ A
    return _Stage(
        R_tilde=R_tilde,
        M_tilde=M_tilde,
        K=gains[:, :-1],
        k=gains[:, -1],
        P=symmetric_part(Q + APA - saved[:-1, :-1]),
        p=problem.q[i] + A.T @ p - saved[:-1, -1],
        saved=float(saved[-1, -1]),
        inertia=Inertia(int((signs < 0).sum()), int((signs > 0).sum())),
        size=float(np.linalg.norm(Q) + np.linalg.norm(APA)),
    )


def _stage_gains(R_tilde: Array, F: Array, signs: Array, H: Array) -> tuple[Array, Array]:
    """Solve with R~ = F diag(signs) F' once, where that is as accurate as solving with F and F' in turn.

    V = F' gains is as good as a solution of its own as long as its residual is at the level of rounding; where R~
    is badly conditioned it is not.

    Args:
        R_tilde: the stage matrix R~ (u, u).
        F: its factor (u, u).
        signs: the signs between the factors.
        H: right-hand sides as columns (u, columns).

    Returns:
        The gains -R~^{-1} H, and V with F diag(signs) V = -H.
    """
    gains = -np.linalg.solve(R_tilde, H)
    V = F.T @ gains
    rounding = len(F) * np.finfo(float).eps * np.linalg.norm(F) * np.linalg.norm(V)
    if np.linalg.norm(F @ (signs[:, None] * V) + H) <= rounding:
        return gains, V
    # Reversed, a Cholesky factor is upper triangular, on which LAPACK's LU is plain back-substitution.
    V = -signs[:, None] * np.linalg.solve(F[::-1, ::-1], H[::-1])[::-1]
    return np.linalg.solve(F.T, V), V


def solve(problem: Problem, x0: ArrayLike | None = None) -> Solution:
    """The optimal controls, by one sweep backwards and one forwards, certified to be the minimum.

    u_i = K_i x_i + k_i from ``riccati``. Every R~_i went through a Cholesky factorization, which exists iff
    the problem has a unique minimum; the KKT residual says that the numbers found are that minimum.

    Args:
        problem: the problem with N stages.
        x0: the first state (x_0,); zero if left out.

    Returns:
        Controls, states, gains, value functions, costates, the optimal value and the stage certificate.

    Raises:
        ValueError: a stage is indefinite or singular, or so close to it that rounding leaves a KKT residual
            above 1e-10; the message names the stage, its smallest eigenvalue and a damping that suffices,
            from the smallest eigenvalue of the dense form.

    Source: LLQR, arXiv 2605.04230, Theorem 4.1; book, chapters 13 and 15.
    """
    sweep = riccati(problem)
    for i in reversed(range(problem.horizon)):
        if sweep.stage_inertia[i].negative:
            raise ValueError(_no_minimum(problem, i, "indefinite", sweep.R_tilde[i]))
    solution = _steer(problem, sweep, x0)
    if kkt_residual(problem, solution) > TRUSTED:
        i = int(np.argmin(sweep.stage_eigenvalues))
        raise ValueError(_no_minimum(problem, i, "singular to working precision", sweep.R_tilde[i]))
    return solution


def stationary_point(problem: Problem, x0: ArrayLike | None = None) -> Solution:
    """The only point where the cost is flat: a minimum if ``is_minimum``, otherwise a saddle (or a maximum).

    The same sweeps as ``solve`` without its certificate; ``inertia`` says what was found. A small KKT
    residual is no evidence of a good step.

    Args:
        problem: the problem with N stages; all R~_i must be nonsingular.
        x0: the first state (x_0,); zero if left out.

    Returns:
        The stationary controls and what the sweeps found on the way.

    Source: book, chapter 15 (inertia adds over stages).
    """
    return _steer(problem, riccati(problem), x0)


def _steer(problem: Problem, sweep: Sweep, x0: ArrayLike | None) -> Solution:
    """The forward sweep u_i = K_i x_i + k_i, x_{i+1} = A_i x_i + B_i u_i."""
    x, u = [first_state(problem, x0)], []
    for A, B, K, k in zip(problem.A, problem.B, sweep.K, sweep.k, strict=True):
        u.append(K @ x[-1] + k)
        x.append(A @ x[-1] + B @ u[-1])
    return Solution(
        **{f.name: getattr(sweep, f.name) for f in fields(sweep)},
        u=tuple(u),
        x=tuple(x),
        costates=tuple(P @ x_i + p for P, p, x_i in zip(sweep.P, sweep.p, x, strict=True)),
        value=float(0.5 * x[0] @ sweep.P[0] @ x[0] + sweep.p[0] @ x[0] + sweep.constant),
    )


def kkt_residual(problem: Problem, solution: Solution) -> float:
    """How far controls, states and costates are from the first-order conditions, relative to their terms.

    R u + M x + r + B'lambda_next = 0,  lambda = Q x + M'u + q + A'lambda_next (lambda_N = Q_N x_N + q_N),
    x_next = A x + B u. It is zero at every stationary point, also at a saddle.

    Args:
        problem: the problem with N stages.
        solution: the u, x and costates to judge.

    Returns:
        The largest of the three residual norms, each over all stages and divided by the norm of its terms;
        for the first, prices count as they were before they cancelled.

    Source: Karush-Kuhn-Tucker conditions of the LQ problem (book, chapter 13).
    """
    u, x, costate = solution.u, solution.x, solution.costates
    price = [[costate[-1], -(problem.Q[-1] @ x[-1]), -problem.q[-1]]]
    control, motion = [], []
    for i in range(problem.horizon):
        A, B, ahead = problem.A[i], problem.B[i], costate[i + 1]
        control.append([problem.R[i] @ u[i], problem.M[i] @ x[i], problem.r[i], B.T @ ahead])
        cross = problem.M[i].T @ u[i]
        price.append([costate[i], -(problem.Q[i] @ x[i]), -cross, -problem.q[i], -(A.T @ ahead)])
        motion.append([x[i + 1], -(A @ x[i]), -(B @ u[i])])
    price_gap, price_size = _gap(price)
    control_gap, control_size = _gap(control)
    motion_gap, motion_size = _gap(motion)
    reach = max(float(np.linalg.norm(B)) for B in problem.B)
    sizes = (price_size, max(control_size, reach * price_size), motion_size)
    gaps = (price_gap, control_gap, motion_gap)
    return max(gap / size if size else 0.0 for gap, size in zip(gaps, sizes, strict=True))


def _gap(equations: list[list[Array]]) -> tuple[float, float]:
    """The norm of the sums, which should be zero, and of the summands."""
    gap = math.sqrt(sum(float(np.linalg.norm(sum(terms))) ** 2 for terms in equations))
    size = math.sqrt(sum(float(np.linalg.norm(term)) ** 2 for terms in equations for term in terms))
    return gap, size


def _factor(matrix: Array) -> tuple[Array, Array, float]:
    """F and signs s with matrix = F diag(s) F', and the smallest pivot: Cholesky, else eigenvectors."""
    try:
        L = np.linalg.cholesky(matrix)
        return L, np.ones(len(matrix)), float(np.min(np.diag(L), initial=math.inf)) ** 2
    except np.linalg.LinAlgError:  # indefinite or singular: only stationary_point goes on from here
        e, E = np.linalg.eigh(matrix)
        return E * np.sqrt(np.abs(e)), np.sign(e), float(np.abs(e).min())


def _no_minimum(problem: Problem, stage: int, what: str, R_tilde: Array) -> str:
    """What to say of a stage that is not positive definite, with a damping that suffices for all stages."""
    weakest = np.linalg.eigvalsh(R_tilde).min()
    eigenvalues = np.linalg.eigvalsh(dense(problem)[0])
    # G + mu I is positive definite for every mu above -min; the margin keeps it so after rounding.
    enough = max(0.0, -eigenvalues.min()) + 1e-3 * max(np.abs(eigenvalues).max(), 1e-6)
    unit = 10.0 ** (math.floor(math.log10(enough)) - 2)
    return (
        f"stage {stage} of {problem.horizon} is {what}: the smallest eigenvalue of its R~ is {weakest:.6g},"
        f" so the problem has no unique minimum. The smallest eigenvalue of its dense form is"
        f" {eigenvalues.min():.6g}; a further damping of {math.ceil(enough / unit) * unit:.3g} on every R_i"
        f" makes it positive definite (lqr.damped)."
    )
