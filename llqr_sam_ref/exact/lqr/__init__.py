"""The linear-quadratic regulator: a problem, and the backward sweep that solves it.

``lqr.Problem`` describes the problem in the control literature's letters, ``lqr.solve`` solves it. Everything else of
both files is reached through here.
"""

from llqr_sam_ref.exact.lqr.problem import (
    Problem,
    cost,
    curvature_product,
    damped,
    dense,
    first_state,
    random_problem,
    rollout,
    symmetric_part,
)
from llqr_sam_ref.exact.lqr.sweep import (
    Inertia,
    Solution,
    Sweep,
    kkt_residual,
    riccati,
    solve,
    stationary_point,
)

__all__ = [
    "Inertia",
    "Problem",
    "Solution",
    "Sweep",
    "cost",
    "curvature_product",
    "damped",
    "dense",
    "first_state",
    "kkt_residual",
    "random_problem",
    "riccati",
    "rollout",
    "solve",
    "stationary_point",
    "symmetric_part",
]
