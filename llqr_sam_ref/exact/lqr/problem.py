"""The linear-quadratic problem, before anyone solves it: what a plan leads to, what it costs, its dense form.

    minimize over u_0, ..., u_{N-1}
        sum_i [ 1/2 x_i' Q_i x_i + 1/2 u_i' R_i u_i + u_i' M_i x_i + q_i' x_i + r_i' u_i ]
        + 1/2 x_N' Q_N x_N + q_N' x_N
    subject to x_{i+1} = A_i x_i + B_i u_i, x_0 given.

Stages are i = 0, ..., N-1. ``sweep`` solves it; both are reached through ``lqr``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from llqr_sam_ref.errors import check_count, check_number
from llqr_sam_ref.exact._arrays import Array, check_matrix, check_symmetric, check_vector

Arrays = tuple[Array, ...]


@dataclass(frozen=True, eq=False, init=False)
class Problem:
    """A linear-quadratic problem: 1/2 x'Q x + 1/2 u'R u + u'M x + q'x + r'u per stage, x_{i+1} = A x + B u.

    Stages may differ in size, and a stage may have no control (a passive stage).

    Attributes:
        A: N matrices A_i (x_{i+1}, x_i), what the next state takes from the state.
        B: N matrices B_i (x_{i+1}, u_i), what the next state takes from the control.
        Q: N+1 symmetric matrices Q_i (x_i, x_i), the state costs; the last one is paid at the end.
        R: N symmetric matrices R_i (u_i, u_i), the control costs, damping included.
        M: N matrices M_i (u_i, x_i), the cross costs.
        q: N+1 vectors q_i, slopes in the state; the last one at the end.
        r: N vectors r_i, slopes in the control.

    Source: Anderson and Moore (1990), chapter 2; LLQR, arXiv 2605.04230, section 4.
    """

    A: Arrays
    B: Arrays
    Q: Arrays
    R: Arrays
    M: Arrays
    q: Arrays
    r: Arrays

    def __init__(
        self,
        A: Sequence[ArrayLike],
        B: Sequence[ArrayLike],
        Q: Sequence[ArrayLike],
        R: Sequence[ArrayLike],
        M: Sequence[ArrayLike] | None = None,
        q: Sequence[ArrayLike] | None = None,
        r: Sequence[ArrayLike] | None = None,
    ) -> None:
        """Check the shapes and keep read-only float64 copies; a number stands for a 1 x 1 matrix.

        Args:
            A: N matrices (x_{i+1}, x_i).
            B: N matrices (x_{i+1}, u_i).
            Q: N+1 symmetric matrices (x_i, x_i).
            R: N symmetric matrices (u_i, u_i).
            M: N matrices (u_i, x_i), zero if left out.
            q: N+1 vectors (x_i), zero if left out.
            r: N vectors (u_i), zero if left out.

        Raises:
            ValueError: a count or shape does not fit, an entry is not finite, a Q_i or R_i is not symmetric.
        """
        stages = len(A)
        if stages == 0:
            raise ValueError("A=() has no stage; give one matrix A_i per stage, at least one.")
        A_given = [_array(f"A[{i}]", value, 2) for i, value in enumerate(A)]
        B_given = [_array(f"B[{i}]", value, 2) for i, value in enumerate(B)]
        states = [value.shape[1] for value in A_given] + [len(A_given[-1])]
        controls = [value.shape[1] for value in B_given] + [0] * (stages - len(B))  # counts are checked below
        here, there = range(stages), range(stages + 1)
        M = [np.zeros((controls[i], states[i])) for i in here] if M is None else M
        q = [np.zeros(states[i]) for i in there] if q is None else q
        r = [np.zeros(controls[i]) for i in here] if r is None else r
        shapes: dict[str, tuple[Sequence[ArrayLike], list[tuple[int, ...]]]] = {
            "A": (A_given, [(states[i + 1], states[i]) for i in here]),
            "B": (B_given, [(states[i + 1], controls[i]) for i in here]),
            "Q": (Q, [(states[i], states[i]) for i in there]),
            "R": (R, [(controls[i], controls[i]) for i in here]),
            "M": (M, [(controls[i], states[i]) for i in here]),
            "q": (q, [(states[i],) for i in there]),
            "r": (r, [(controls[i],) for i in here]),
        }
        for letter, (values, wanted) in shapes.items():
            if len(values) != len(wanted):
                raise ValueError(
                    f"{letter} has {len(values)} entries; with {stages} stages it needs {len(wanted)}"
                    + (" (one per state, the last state included)." if letter in "Qq" else ".")
                )
            kept = tuple(
                _entry(f"{letter}[{i}]", value, shape, symmetric=letter in "QR")
                for i, (value, shape) in enumerate(zip(values, wanted, strict=True))
            )
            object.__setattr__(self, letter, kept)

    @classmethod
    def repeated(
        cls,
        stages: int,
        *,
        A: ArrayLike,
        B: ArrayLike,
        Q: ArrayLike,
        R: ArrayLike,
        M: ArrayLike | None = None,
        q: ArrayLike | None = None,
        r: ArrayLike | None = None,
        Q_end: ArrayLike | None = None,
        q_end: ArrayLike | None = None,
    ) -> Problem:
        """The same stage N times: a time-invariant problem.

        Args:
            stages: N, the number of stages, at least 1.
            A: the square matrix A of every stage.
            B: the matrix B of every stage.
            Q: the state cost Q of every stage.
            R: the control cost R of every stage.
            M: the cross cost, zero if left out.
            q: the slope in the state, zero if left out.
            r: the slope in the control, zero if left out.
            Q_end: Q_N; Q if left out.
            q_end: q_N; q if left out.

        Returns:
            The problem with N stages.
        """
        check_count("stages", stages)
        if q is None and q_end is not None:
            q = np.zeros(np.atleast_2d(np.asarray(A)).shape[-1])
        return cls(
            A=[A] * stages,
            B=[B] * stages,
            Q=[Q] * stages + [Q if Q_end is None else Q_end],
            R=[R] * stages,
            M=None if M is None else [M] * stages,
            q=None if q is None else [q] * stages + [q if q_end is None else q_end],
            r=None if r is None else [r] * stages,
        )

    @property
    def horizon(self) -> int:
        """N, the number of stages."""
        return len(self.A)

    @property
    def controls(self) -> tuple[int, ...]:
        """The sizes of u_0, ..., u_{N-1}."""
        return tuple(b.shape[1] for b in self.B)

    def split(self, step: ArrayLike) -> Arrays:
        """One vector of all controls, cut into u_0, ..., u_{N-1}.

        Args:
            step: Delta (d,), d the sum of ``controls``.

        Returns:
            The N controls.
        """
        flat = _entry("step", step, (sum(self.controls),))
        return tuple(np.split(flat, np.cumsum(self.controls)[:-1]))


def rollout(problem: Problem, u: Sequence[ArrayLike], x0: ArrayLike | None = None) -> Arrays:
    """The states that controls lead to: x_{i+1} = A_i x_i + B_i u_i.

    Args:
        problem: the problem with N stages.
        u: N controls u_i (u_i,).
        x0: the first state (x_0,); zero if left out.

    Returns:
        The N+1 states x_0, ..., x_N.

    Source: the constraint of the LQ problem (book, chapter 13).
    """
    controls = _controls(problem, u)
    x = [first_state(problem, x0)]
    for A, B, u_i in zip(problem.A, problem.B, controls, strict=True):
        x.append(A @ x[-1] + B @ u_i)
    return tuple(x)


def cost(problem: Problem, u: Sequence[ArrayLike], x0: ArrayLike | None = None) -> float:
    """What a plan costs: sum_i 1/2 x'Q x + 1/2 u'R u + u'M x + q'x + r'u, plus the end.

    Args:
        problem: the problem with N stages.
        u: N controls u_i (u_i,).
        x0: the first state (x_0,); zero if left out.

    Returns:
        The total cost.

    Source: the objective of the LQ problem (book, chapter 13).
    """
    controls = _controls(problem, u)
    x = rollout(problem, controls, x0)
    total = sum(0.5 * x_i @ Q @ x_i + q @ x_i for x_i, Q, q in zip(x, problem.Q, problem.q, strict=True))
    for i, u_i in enumerate(controls):
        total += 0.5 * u_i @ problem.R[i] @ u_i + u_i @ problem.M[i] @ x[i] + problem.r[i] @ u_i
    return float(total)


def dense(problem: Problem, x0: ArrayLike | None = None) -> tuple[Array, Array]:
    """The same problem with the states eliminated: cost(u) = 1/2 u'G u + g'u + constant.

    x_i = J_i u + (what x_0 does alone), so G = sum_i J_i'Q_i J_i + R + M J + (M J)' and the slope collects
    q, r and x_0. Its size is the sum of all controls; a dense solve costs the cube of that.

    Args:
        problem: the problem with N stages.
        x0: the first state (x_0,); zero if left out.

    Returns:
        The symmetric matrix G (d, d) and the slope g (d,), in the order of ``Solution.step``.

    Source: book, chapter 15 (equivalence theorem).
    """
    ends = np.cumsum((0, *problem.controls))
    free = first_state(problem, x0)
    J = np.zeros((free.size, 0))  # x_i knows the controls before i only
    G, g = np.zeros((ends[-1], ends[-1])), np.zeros(ends[-1])
    for i in range(problem.horizon):
        before, block = slice(0, ends[i]), slice(ends[i], ends[i + 1])
        cross = problem.M[i] @ J
        G[before, before] += J.T @ problem.Q[i] @ J
        G[block, before] += cross
        G[before, block] += cross.T
        G[block, block] += problem.R[i]
        g[before] += J.T @ (problem.Q[i] @ free + problem.q[i])
        g[block] += problem.M[i] @ free + problem.r[i]
        J = np.hstack((problem.A[i] @ J, problem.B[i]))
        free = problem.A[i] @ free
    G += J.T @ problem.Q[-1] @ J
    g += J.T @ (problem.Q[-1] @ free + problem.q[-1])
    return symmetric_part(G), g


def curvature_product(problem: Problem, step: ArrayLike) -> Array:
    """G Delta without G: one rollout from x_0 = 0 and one adjoint sweep.

    y_N = Q_N x_N,  y_i = A_i'y_{i+1} + Q_i x_i + M_i'u_i,  (G Delta)_i = B_i'y_{i+1} + M_i x_i + R_i u_i.

    Args:
        problem: the problem with N stages; its slopes q, r play no part.
        step: Delta (d,), all controls in one vector.

    Returns:
        G Delta (d,), with G the matrix of ``dense``.

    Source: LLQR, arXiv 2605.04230, section 5; book, chapter 16.
    """
    u = problem.split(step)
    x = rollout(problem, u)
    y = problem.Q[-1] @ x[-1]
    product = []
    for i in reversed(range(problem.horizon)):
        product.append(problem.B[i].T @ y + problem.M[i] @ x[i] + problem.R[i] @ u[i])
        y = problem.A[i].T @ y + problem.Q[i] @ x[i] + problem.M[i].T @ u[i]
    return np.concatenate(product[::-1])


def damped(problem: Problem, mu: float) -> Problem:
    """The problem with mu I added to every R_i, which adds mu I to the dense matrix.

    Args:
        problem: the problem with N stages.
        mu: damping, at least 0, in units of curvature.

    Returns:
        The damped problem.

    Source: the damped step -(G + mu I)^{-1} g (book, chapters 3 and 15).
    """
    check_number("mu", mu, low=0.0)
    return replace(problem, R=tuple(R + mu * np.eye(len(R)) for R in problem.R))


def random_problem(
    stages: int, state: int, control: int, rng: np.random.Generator, *, definite: bool = True
) -> Problem:
    """A random well-scaled problem with all terms present, to test or to time the sweep.

    Args:
        stages: N, the number of stages.
        state: the size of every x_i.
        control: the size of every u_i.
        rng: the source of randomness.
        definite: make every stage cost positive definite (so that ``solve`` succeeds), or only symmetric.

    Returns:
        The problem; A_i has norm about 1, so that it stays well scaled at any depth.

    Source: book, chapter 15 (time against depth).
    """
    for name, count in (("stages", stages), ("state", state), ("control", control)):
        check_count(name, count)
    both = state + control
    A, B, Q, R, M = [], [], [], [], []
    for _ in range(stages):
        A.append(rng.standard_normal((state, state)) / (2.0 * math.sqrt(state)))
        B.append(rng.standard_normal((state, control)) / math.sqrt(control))
        root = rng.standard_normal((both, both)) / math.sqrt(both)
        stage = root @ root.T + 0.1 * np.eye(both) if definite else root + root.T
        Q.append(stage[:state, :state])
        R.append(stage[state:, state:])
        M.append(stage[state:, :state])
    root = rng.standard_normal((state, state)) / math.sqrt(state)
    Q.append(root @ root.T if definite else root + root.T)
    q = [rng.standard_normal(state) for _ in range(stages + 1)]
    return Problem(A, B, Q, R, M, q, [rng.standard_normal(control) for _ in range(stages)])


def _controls(problem: Problem, u: Sequence[ArrayLike]) -> Arrays:
    """The plan as N checked vectors."""
    if len(u) != problem.horizon:
        raise ValueError(
            f"u has {len(u)} entries; the problem has {problem.horizon} stages, one control each."
        )
    return tuple(
        _entry(f"u[{i}]", u_i, (size,)) for i, (u_i, size) in enumerate(zip(u, problem.controls, strict=True))
    )


def first_state(problem: Problem, x0: ArrayLike | None) -> Array:
    """x_0 as a checked vector, zero if not given."""
    size = problem.A[0].shape[1]
    return np.zeros(size) if x0 is None else _entry("x0", x0, (size,))


def _array(name: str, value: ArrayLike, ndim: int) -> Array:
    """A checked float64 vector or matrix; a number becomes 1 x 1, an empty array (no control) stays empty."""
    if np.isscalar(value):
        value = np.full((1,) * ndim, value)
    if isinstance(value, np.ndarray) and value.ndim == ndim and value.size == 0:
        return value.astype(float)
    return check_vector(name, value) if ndim == 1 else check_matrix(name, value)


def _entry(name: str, value: ArrayLike, shape: tuple[int, ...], *, symmetric: bool = False) -> Array:
    """One checked, read-only array of the shape that its neighbors ask for."""
    array = _array(name, value, len(shape))
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}; its neighbors ask for {shape}.")
    if symmetric and array.size:
        array = check_symmetric(name, array)
    array.setflags(write=False)
    return array


def symmetric_part(matrix: Array) -> Array:
    """Remove the asymmetry that rounding leaves."""
    symmetric: Array = 0.5 * (matrix + matrix.T)
    return symmetric
