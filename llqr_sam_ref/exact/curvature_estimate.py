"""The defended preconditioner: the closed-form minimizer of J over white probes in the probes' eigenbasis.

With probes v white in an orthogonal basis E (v v' averages to I),

    E J(U) = 1/2 |F^{1/2} U - F^{-1/2}|^2 + const,

and over U = E diag(d) E' the minimizer is d_i = 1/(E'F E)_ii: no inner loop, positive by construction. F is
the Fisher matrix of the mean loss. Gradients V_j of the mean loss on m examples against labels drawn from the
model have E V V' = F/m, so that m (E'V)^2 averages to diag(E'F E): squares, never negative.
What is kept is an E-KFAC curvature whose bases come from gradients; what LLQR adds is the derivation.
Everything here is per array of weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from llqr_sam_ref.config import CHOICES
from llqr_sam_ref.errors import check_choice, check_count, check_number
from llqr_sam_ref.exact._arrays import Array
from llqr_sam_ref.exact.bases import (
    Bases,
    Basis,
    Width,
    block_diagonal,
    block_width,
    carry_diagonal,
    renewed_basis,
)
from llqr_sam_ref.exact.preconditioner import Block, Preconditioner
from llqr_sam_ref.exact.relaxation import check_probes
from llqr_sam_ref.exact.structures import STRUCTURES, Shape, Structure, entries, structure_for


@dataclass(frozen=True, eq=False)
class Estimate:
    """What is known of one array's curvature.

    Args:
        shape: shape of the array, (p,) or (output side, input side).
        structure: how U will act on it.
        c: the curvature: a mean (1,) for scalar, F (p, p) for dense, else diag(E'F E) in the array's shape.
        bases: E_Psi (output side) and E_Phi (input side); None stands for the identity.
        grams: averages of V V' and V'V, one per side that has a basis, else None.
        widths: of the diagonal blocks of bases and grams, one per side that has a basis, else None.
    """

    shape: Shape
    structure: Structure
    c: Array
    bases: Bases = (None, None)
    grams: Bases = (None, None)
    widths: tuple[Width, Width] = (None, None)

    @property
    def trace(self) -> float:
        """The trace of F on this array's weights."""
        return self.structure.trace(self.c, self.shape)


@dataclass(frozen=True, eq=False)
class CurvatureEstimate:
    """The curvature of all arrays, averaged over refits.

    Args:
        estimates: one per array, in the order of the flat weight vector.
        refits: how often it was updated.
        bases_drawn: how often the eigenbases were computed.
    """

    estimates: tuple[Estimate, ...]
    refits: int = 0
    bases_drawn: int = 0

    @property
    def size(self) -> int:
        """The number of weights, d."""
        return sum(entries(estimate.shape) for estimate in self.estimates)

    @property
    def trace(self) -> float:
        """The trace of F over all weights."""
        return sum(estimate.trace for estimate in self.estimates)


def no_curvature(
    shapes: Sequence[Shape], structure: str, max_side: int | None = None, wide: str = "identity"
) -> CurvatureEstimate:
    """The state before the first refit: zero curvature, identity bases.

    Args:
        shapes: of the arrays, in the order of the flat weight vector.
        structure: "scalar", "diagonal", "kronecker", "ekfac", "separable-ekfac" or "dense".
        max_side: the widest side, in rows, that gets a full basis; None for no limit.
        wide: what a wider side gets: the "identity", or equal diagonal "blocks" no wider than ``max_side``.

    Returns:
        The state.

    Raises:
        ValueError: an unknown name, an array that is neither vector nor matrix, a negative max_side.
    """
    check_choice("structure", structure, STRUCTURES)
    check_choice("wide", wide, CHOICES["wide"])
    if max_side is not None:
        check_count("max_side", max_side, low=0)
    estimates = []
    for shape in map(tuple, shapes):
        kind = structure_for(structure, shape)
        c = np.zeros(kind.curvature_shape(shape))
        estimate = Estimate(shape, kind, c)
        if kind.two_sided:
            (m, n), (rows, columns) = shape, (block_width(side, max_side, wide) for side in shape)
            estimate = replace(
                estimate,
                bases=(None if rows is None else np.eye(m), None if columns is None else np.eye(n)),
                grams=(
                    None if rows is None else np.zeros((m, m)),
                    None if columns is None else np.zeros((n, n)),
                ),
                widths=(rows, columns),
            )
        estimates.append(estimate)
    return CurvatureEstimate(tuple(estimates))


def average_gain(decay: float, count: int) -> float:
    """How far a bias-corrected average moves to its count-th sample: (1 - decay)/(1 - decay^count).

    Args:
        decay: weight of the past, in [0, 1).
        count: 1 for the first sample, which is then taken whole.

    Returns:
        The gain a of  average <- average + a (sample - average).

    Raises:
        ValueError: a decay outside [0, 1) or a count below 1.

    Source: Kingma and Ba 2015 (arXiv 1412.6980), bias correction, written as a recursion.
    """
    decay = check_number("decay", decay, low=0.0, high=1.0, open_high=True)
    return (1 - decay) / (1 - decay ** check_count("count", count))


def due(refit: int, every: int) -> bool:
    """Whether refit number ``refit`` (the first is 1) does what is done every so often: at 1, at 2 and at multiples.

    Args:
        refit: number of the refit, from 1.
        every: the number of refits from one time to the next.

    Returns:
        True if it does.
    """
    return refit <= 2 or refit % every == 0


def times(refit: int, every: int) -> int:
    """How often that was done by refit number ``refit``, it included.

    Args:
        refit: number of the refit, from 1.
        every: the number of refits from one time to the next.

    Returns:
        The count.
    """
    return min(refit, 2) + max(0, refit // every - 2 // every)


def update_curvature(
    curvature: CurvatureEstimate,
    probes: Float[np.ndarray, "k d"],
    scale: float,
    *,
    curvature_ema: float = 0.95,
    basis_ema: float = 0.8,
    gram_every: int = 5,
    basis_every: int = 5,
    iterate: bool = False,
    bases: Sequence[Bases] | None = None,
) -> CurvatureEstimate:
    """One refit of the curvature estimate from k probe gradients V_j.

    If Grams are due:  Grams <- average of (scale/k) sum_j V_j V_j' and V_j'V_j.
    If bases are due:  E <- their eigenvectors;  c carried over.
    Always:            c <- average of (scale/k) sum_j (E_Psi' V_j E_Phi)^{o2}.
    Averages are bias-corrected.

    Args:
        curvature: the estimate so far.
        probes: V_j, gradients of the mean loss on micro-batches, shape (k, d).
        scale: what makes E V V' the Fisher matrix: m, the examples in a micro-batch (m n for a summed loss).
        curvature_ema: decay of the average of c, per refit.
        basis_ema: decay of the average of the Gram matrices, per sample of them.
        gram_every: g; the Gram matrices are sampled at refits 1, 2 and every multiple of g.
        basis_every: b; bases are computed at refits 1, 2 and every multiple of b.
        iterate: renew bases by one step of orthogonal iteration from the last ones, at first from the identity.
        bases: take these instead of computing eigenvectors, one pair per array, when bases are due: two
            implementations agree only in one basis, for eigenvectors of equal eigenvalues are free to turn.

    Returns:
        The new estimate.

    Raises:
        ValueError: probes or bases that do not fit or are not finite, a setting out of its range.

    Source: George et al. 2018 (arXiv 1806.03884), E-KFAC, with Shampoo's bases (arXiv 1802.09568).
    """
    probes = check_probes(probes, curvature.size)
    check_number("scale", scale, low=0.0, open_low=True)
    check_count("gram_every", gram_every)
    check_count("basis_every", basis_every)
    refit = curvature.refits + 1
    draw = due(refit, basis_every)
    drawn = curvature.bases_drawn + draw
    gain = average_gain(curvature_ema, refit)
    gain_gram = average_gain(basis_ema, times(refit, gram_every))
    if bases is not None and len(bases) != len(curvature.estimates):
        raise ValueError(
            f"bases holds {len(bases)} pairs; pass one (E_Psi, E_Phi) for each array, "
            f"{len(curvature.estimates)} in all."
        )
    stops = np.cumsum([entries(estimate.shape) for estimate in curvature.estimates])
    estimates = []
    for index, (estimate, flat) in enumerate(
        zip(curvature.estimates, np.split(probes, stops[:-1], axis=1), strict=True)
    ):
        V = flat.reshape(-1, *estimate.shape)
        if estimate.structure.two_sided:
            if due(refit, gram_every):
                estimate = _with_grams(estimate, V, scale / len(V), gain_gram)
            if draw:
                given = None if bases is None else bases[index]
                estimate = _turn(estimate, given, iterate=iterate)
        sample = estimate.structure.curvature_sample(V, estimate.bases) * (scale / len(V))
        estimates.append(replace(estimate, c=estimate.c + gain * (sample - estimate.c)))
    return CurvatureEstimate(tuple(estimates), refit, drawn)


def _with_grams(estimate: Estimate, V: Float[np.ndarray, "k m n"], weight: float, gain: float) -> Estimate:
    """Average the Gram matrices."""
    samples = (np.einsum("kij,klj->il", V, V), np.einsum("kij,kil->jl", V, V))
    grams = [
        None
        if gram is None or width is None
        else gram + gain * (block_diagonal(sample, width) * weight - gram)
        for gram, sample, width in zip(estimate.grams, samples, estimate.widths, strict=True)
    ]
    return replace(estimate, grams=(grams[0], grams[1]))


def _turn(estimate: Estimate, given: Bases | None, *, iterate: bool) -> Estimate:
    """Take new bases, carry c over."""
    bases: list[Basis] = []
    for side in range(2):
        old, gram, width = estimate.bases[side], estimate.grams[side], estimate.widths[side]
        if old is None or gram is None or width is None:
            bases.append(None)
            continue
        new = renewed_basis(gram, old, width, iterate=iterate) if given is None else given[side]
        if new is not None and new.shape != old.shape:
            raise ValueError(
                f"bases holds a matrix of shape {new.shape}; pass an orthogonal one of shape {old.shape}."
            )
        bases.append(old if new is None else new)
    turned: Bases = (bases[0], bases[1])
    return replace(
        estimate,
        c=carry_diagonal(estimate.c, estimate.bases, turned),
        bases=turned,
    )


def relative_damping(curvature: CurvatureEstimate, delta: float) -> float:
    """Delta times the mean curvature, mu = delta tr(F)/d: one number for all weights.

    Args:
        curvature: the estimate so far.
        delta: relative damping, a multiple of the mean curvature; no unit.

    Returns:
        mu, in units of curvature.

    Raises:
        ValueError: a negative delta.

    Source: the book, chapter 18.
    """
    return check_number("delta", delta, low=0.0) * curvature.trace / curvature.size


def in_own_units(curvature: CurvatureEstimate) -> CurvatureEstimate:
    """Every array's curvature as a multiple of its own mean, so that its trace is its number of weights.

    Args:
        curvature: the estimate so far.

    Returns:
        The same estimate in these units; an array without curvature stays as it is.

    Source: the book, thm-own-units.
    """
    return replace(
        curvature,
        estimates=tuple(
            replace(e, c=e.c * (entries(e.shape) / e.trace)) if e.trace > 0 else e
            for e in curvature.estimates
        ),
    )


def minimizer(curvature: CurvatureEstimate, mu: float) -> Preconditioner:
    """The U of each structure that the curvature c asks for: U = E diag(1/(c + mu)) E' and its kin.

    With E given and free of the probes, this minimizes E J over white probes where U has its own number per entry of
    c: for scalar, diagonal, ekfac and dense. For separable-ekfac and kronecker the minimum over two factors is found
    by ``separable_minimizer`` (a local one: E J is not convex in the pair).

    scalar 1/(mean c + mu); diagonal, ekfac 1/(c + mu); dense (F + mu I)^{-1}; separable-ekfac d_Psi d_Phi' by
    ``separable_minimizer``; kronecker the same U multiplied out, Phi = E_Phi diag(d_Phi) E_Phi'.

    Args:
        curvature: the state after at least one refit.
        mu: damping, in units of curvature, positive.

    Returns:
        U, symmetric positive definite.

    Raises:
        ValueError: a damping that is not positive.

    Source: the book, cor-closed-form and thm-random-probe-optimum.
    """
    mu = check_number("mu", mu, low=0.0, open_low=True)
    return Preconditioner(
        tuple(
            Block(
                estimate.structure,
                estimate.shape,
                estimate.structure.minimizer(estimate.c, mu, estimate.bases),
            )
            for estimate in curvature.estimates
        )
    )
