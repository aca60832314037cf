"""The relaxed objective: learn the inverse instead of solving with it.

Instead of the controls u, the unknown is a matrix U of a fixed structure, u = -U g:

    J(U) = -g'U g + 1/2 (U g)'(G + mu I)(U g),       s = U g,  z = (G + mu I) s - g,

one curvature product per gradient: dJ = z' dU g. The inner loop runs it as the authors' code does: non-finite
entries replaced, each stored array clipped on its own, heavy ball, warm start, then a moving average.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from llqr_sam_ref.errors import check_count, check_number
from llqr_sam_ref.exact._arrays import Array, check_spd, check_symmetric, check_vector
from llqr_sam_ref.exact.preconditioner import Preconditioner

Product = Callable[[Float[np.ndarray, " d"]], Float[np.ndarray, " d"]]
Curvature = Float[np.ndarray, "d d"] | Product

SIGN_FLOOR = 1e-8


def curvature_product(curvature: Curvature, mu: float = 0.0, *, size: int | None = None) -> Product:
    """The product v -> (G + mu I) v of a curvature given as a matrix or as a product.

    Args:
        curvature: G, a symmetric matrix (d, d) or a function v -> G v.
        mu: damping, in units of curvature.
        size: d, to be checked against a matrix.

    Returns:
        A function of a vector (d,).

    Raises:
        ValueError: a negative damping, or a matrix that is not symmetric, finite and of the right size.

    Source: the book, (16.1).
    """
    mu = check_number("mu", mu, low=0.0)
    if callable(curvature):
        multiply = curvature
        return lambda v: multiply(v) + mu * v
    G = check_symmetric("curvature", curvature, size)
    return lambda v: G @ v + mu * v


def check_probes(
    probes: Float[np.ndarray, " d"] | Float[np.ndarray, "k d"], size: int
) -> Float[np.ndarray, "k d"]:
    """One probe (d,) or several (k, d) as a float64 array (k, d).

    Args:
        probes: one probe (d,) or several (k, d), in units of the gradient.
        size: d, the number of weights.

    Returns:
        The probes, shape (k, d).

    Raises:
        ValueError: another shape, no probe at all, or an entry that is not finite.
    """
    array = np.atleast_2d(np.asarray(probes))
    if array.ndim != 2 or array.shape[0] < 1:
        raise ValueError(f"probes has shape {array.shape}; pass one probe ({size},) or several (k, {size}).")
    return np.stack([check_vector("probes", probe, size) for probe in array])


def relaxed_objective(
    U: Preconditioner,
    probes: Float[np.ndarray, " d"] | Float[np.ndarray, "k d"],
    curvature: Curvature,
    mu: float = 0.0,
) -> float:
    """J(U) = -g'U g + 1/2 (U g)'(G + mu I)(U g), averaged over the probes.

    Args:
        U: preconditioner on d weights.
        probes: g, one gradient (d,) or several (k, d).
        curvature: G, a symmetric matrix or a function v -> G v.
        mu: damping, in units of curvature.

    Returns:
        J, in units of the loss. (Complex arrays in U give a complex J: that is how its gradient is checked.)

    Raises:
        ValueError: shapes that do not fit, entries that are not finite, a negative damping.

    Source: LLQR, arXiv 2605.04230, relaxed problem; the book, (16.1).
    """
    multiply = curvature_product(curvature, mu, size=U.size)
    total: float = 0.0
    probes = check_probes(probes, U.size)
    for g in probes:
        s = U.apply(g)
        total += -g @ s + s @ multiply(s) / 2
    return total / len(probes)


def relaxed_gradient(
    U: Preconditioner,
    probes: Float[np.ndarray, " d"] | Float[np.ndarray, "k d"],
    curvature: Curvature,
    mu: float = 0.0,
) -> list[dict[str, Array]]:
    """The gradient of J in every stored array: pull z = (G + mu I) U g - g back through s = U g.

    Args:
        U: preconditioner on d weights.
        probes: g, one gradient (d,) or several (k, d); the gradient is the average over them.
        curvature: G, a symmetric matrix or a function v -> G v.
        mu: damping, in units of curvature.

    Returns:
        One mapping per block of U, with the names and shapes of its stored arrays.

    Raises:
        ValueError: shapes that do not fit, entries that are not finite, a negative damping.

    Source: LLQR, arXiv 2605.04230, relaxed problem; the book, (16.2).
    """
    return _gradient(U, check_probes(probes, U.size), curvature_product(curvature, mu, size=U.size))


def _gradient(
    U: Preconditioner, probes: Float[np.ndarray, "k d"], multiply: Product
) -> list[dict[str, Array]]:
    total = [{name: np.zeros_like(array) for name, array in block.arrays.items()} for block in U.blocks]
    for g in probes:
        pulled = U.pullback(g, multiply(U.apply(g)) - g)
        for block, part in zip(total, pulled, strict=True):
            for name in block:
                block[name] += part[name] / len(probes)
    return total


def clip_array(array: Array, clip: float | None) -> Array:
    """A stored array's gradient, made finite and then no longer than ``clip``.

    NaN becomes 0 and +-infinity becomes +-1; then the array is scaled to the norm ``clip`` if it is longer.

    Args:
        array: gradient of one stored array.
        clip: largest Frobenius norm; None does not clip.

    Returns:
        The array that the inner step uses.

    Source: the authors' code for LLQR (arXiv 2605.04230), inner solver.
    """
    finite: Array = np.nan_to_num(array, nan=0.0, posinf=1.0, neginf=-1.0)
    length = float(np.linalg.norm(finite))
    if clip is None or length <= clip:
        return finite
    clipped: Array = finite * (clip / length)
    return clipped


def inner_loop(
    U: Preconditioner,
    probes: Float[np.ndarray, " d"] | Float[np.ndarray, "k d"],
    curvature: Curvature,
    mu: float = 0.0,
    *,
    steps: int = 50,
    eta_U: float = 1e-3,
    beta: float = 0.9,
    clip: float | None = 5.0,
) -> Preconditioner:
    """Run ``steps`` steps of clipped heavy ball on J, from U, probes and curvature frozen.

    For every stored array a:  v <- beta v + clip(dJ/da),  a <- a - eta_U v,  with v = 0 at the start.

    Args:
        U: where to start (the current U: warm start; or the identity).
        probes: g, one gradient (d,) or several (k, d).
        curvature: G, a symmetric matrix or a function v -> G v.
        mu: damping, in units of curvature.
        steps: T, number of inner steps.
        eta_U: inner learning rate, in units of the stored array per unit of its clipped gradient.
        beta: inner momentum, 0 <= beta < 1.
        clip: largest Frobenius norm of each stored array's gradient; None does not clip.

    Returns:
        U_T, before any averaging.

    Raises:
        ValueError: shapes that do not fit, entries that are not finite, or a setting out of its range.

    Source: the authors' code for LLQR (arXiv 2605.04230), inner solver; the book, thm-travel-budget.
    """
    check_count("steps", steps, low=0)
    check_number("eta_U", eta_U, low=0.0)
    check_number("beta", beta, low=0.0, high=1.0, open_high=True)
    if clip is not None:
        check_number("clip", clip, low=0.0, open_low=True)
    probes = check_probes(probes, U.size)
    multiply = curvature_product(curvature, mu, size=U.size)
    velocity = [{name: np.zeros_like(array) for name, array in block.arrays.items()} for block in U.blocks]
    for _ in range(steps):
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is replaced, as in the original
            gradient = _gradient(U, probes, multiply)
        velocity = [
            {name: beta * v[name] + clip_array(part[name], clip) for name in v}
            for v, part in zip(velocity, gradient, strict=True)
        ]
        U = U.with_arrays([
            {name: array - eta_U * v[name] for name, array in block.arrays.items()}
            for block, v in zip(U.blocks, velocity, strict=True)
        ])
    return U


def average(old: Preconditioner, new: Preconditioner, gamma: float) -> Preconditioner:
    """Move from old to new by 1 - gamma: gamma old + (1 - gamma) new, stored array by stored array.

    With a warm start (new grown from old) this is the relaxed step old + (1 - gamma)(new - old), not a mean
    of independent estimates; and averaging factors is not averaging their product.

    Args:
        old: U before the refit.
        new: U_T after the inner loop.
        gamma: decay of the average, in [0, 1]; 1 keeps the old U.

    Returns:
        The averaged U.

    Raises:
        ValueError: gamma outside [0, 1].

    Source: LLQR, arXiv 2605.04230; the book, thm-ema-relaxed-step, cex-ema-of-factors.
    """
    check_number("gamma", gamma, low=0.0, high=1.0)
    return old.with_arrays([
        {name: gamma * array + (1 - gamma) * b.arrays[name] for name, array in a.arrays.items()}
        for a, b in zip(old.blocks, new.blocks, strict=True)
    ])


def guard_signs(U: Preconditioner) -> Preconditioner:
    """Raise every entry of scalar and diagonal blocks to at least 1e-8: no learning rate below zero.

    Args:
        U: unconstrained preconditioner on d weights.

    Returns:
        U with max(u, 1e-8) and max(d, 1e-8) in the structures that guard signs; others are left as they are.

    Source: the authors' code for LLQR (arXiv 2605.04230), sign guard.
    """
    return U.with_arrays([
        {name: np.maximum(array, SIGN_FLOOR) for name, array in block.arrays.items()}
        if block.structure.guards_signs
        else block.arrays
        for block in U.blocks
    ])


def condition_left(U: ArrayLike, G: ArrayLike) -> float:
    """The condition number that descent preconditioned by U meets on curvature G: that of U^{1/2} G U^{1/2}.

    Args:
        U: symmetric positive definite matrix (d, d).
        G: symmetric positive definite matrix (d, d).

    Returns:
        Largest over smallest eigenvalue of U G; 1 is a round bowl.

    Raises:
        ValueError: U or G is not symmetric positive definite.

    Source: the book, chapter 17.
    """
    root = np.linalg.cholesky(check_spd("U", U))
    stretched = np.linalg.eigvalsh(root.T @ check_spd("G", G, len(root)) @ root)
    return float(stretched[-1] / stretched[0])
