"""The closed form on stacks of blocks: what is remembered of the curvature, and the U that minimizes J over it.

With k probes V_j (gradients of the mean loss on micro-batches of m terms) and E the eigenvectors of their Gram
matrices, drawn at refits 1, 2 and every b-th:

    c <- average of (m/k) sum_j (E_Psi^T V_j E_Phi)^{o2},       U = E diag(1/(c + mu)) E^T,

mu a fraction of the mean of c over all weights. A scalar keeps the mean of c, a dense block the whole matrix. All
averages are bias-corrected. Tensors carry the blocks of a stack along their first axis; V has shape (b, k, ...).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from llqr_sam_ref.optim.structures import EKFAC, Dense, Diagonal, Factors, Scalar, SeparableEKFAC, Structure
from llqr_sam_ref.optim.structures.side import Side

SEPARABLE_SWEEPS = 5
RIDGE = 1e-7


def average_gain(decay: float, count: int) -> float:
    """How far a bias-corrected average moves to its count-th sample: (1 - decay)/(1 - decay^count).

    Args:
        decay: beta in [0, 1).
        count: 1 for the first sample, which is then taken whole.

    Returns:
        The gain a of  average <- average + a (sample - average).

    Source: Kingma and Ba 2015 (arXiv 1412.6980), bias correction, written as a recursion.
    """
    return (1 - decay) / (1 - decay**count)


def basis_due(refit: int, basis_every: int) -> bool:
    """Whether refit number ``refit`` (the first is 1) computes bases: at 1, at 2 and at multiples of b."""
    return refit <= 2 or refit % basis_every == 0


@dataclass(frozen=True)
class Estimator:
    """What the closed form remembers of blocks of one structure, beside the arrays of U.

    Args:
        structure: of the blocks, in plain factors (not ``positive``).

    Source: George et al. 2018 (arXiv 1806.03884), section 3; the book, thm-random-probe-optimum.
    """

    structure: Structure

    @property
    def sides(self) -> dict[str, Side]:
        """The sides that have a basis, by the name of the basis."""
        if not isinstance(self.structure, EKFAC):
            return {}
        named = {"E_Psi": self.structure.psi, "E_Phi": self.structure.phi}
        return {name: side for name, side in named.items() if side.count}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of what is remembered: the curvature c, and a Gram matrix for each basis."""
        c = {Scalar: (1,), Dense: (self.structure.size,) * 2}.get(type(self.structure), self.structure.shape)
        return {"c": c, **{_gram(name): side.shape for name, side in self.sides.items()}}

    def gram_samples(self, V: Float[Tensor, "b k *shape"], scale: float) -> Factors:
        """(scale/k) sum_j V_j V_j^T and (scale/k) sum_j V_j^T V_j, for the sides that have a basis.

        Args:
            V: k probes for each of b blocks.
            scale: m, terms in a micro-batch (m n for a summed loss).

        Returns:
            One Gram matrix for each basis, by the name of its average.
        """
        found = {}
        for name, side in self.sides.items():
            wide = V.movedim(1 if name == "E_Psi" else -1, -2 if name == "E_Psi" else 1).flatten(2)
            found[_gram(name)] = side.outer(wide, wide) * (scale / V.shape[1])
        return found

    def update_grams(self, kept: Factors, samples: Factors, gain: float) -> Factors:
        """Average the Gram matrices and return the bases: their eigenvectors; the old basis where a Gram is 0.

        Args:
            kept: arrays and memory of the stack; the Gram matrices are changed in place.
            samples: of ``gram_samples``.
            gain: of the average.

        Returns:
            New bases, by name.
        """
        found = {}
        for name in self.sides:
            gram = kept[_gram(name)]
            gram.lerp_(samples[_gram(name)], gain)
            found[name] = eigenbasis(gram, kept[name])
        return found

    def turn(self, kept: Factors, bases: Factors) -> None:
        """Take new bases and carry c over: c <- (E_new^T E_old)^{o2} c, side by side, in place.

        The off-diagonals of the curvature are unknown; its trace is kept.

        Args:
            kept: arrays and memory of the stack.
            bases: the new ones, by name.
        """
        c = kept["c"]
        for name, side in self.sides.items():
            turn = (bases[name].mT @ kept[name]).square()
            c.copy_(side.left(turn, c) if name == "E_Psi" else side.right(c, turn))
            kept[name].copy_(bases[name])

    def sample(self, kept: Factors, V: Float[Tensor, "b k *shape"], scale: float) -> Float[Tensor, "b ..."]:
        """What k probes say of c: (scale/k) sum_j (E_Psi^T V_j E_Phi)^{o2} and its kin.

        Args:
            kept: arrays and memory of the stack, the bases among them.
            V: k probes for each of b blocks.
            scale: as in ``gram_samples``.

        Returns:
            The sample, shaped as c.
        """
        scale = scale / V.shape[1]
        if isinstance(self.structure, Dense):
            flat = V.flatten(2)
            return flat.mT @ flat * scale
        if isinstance(self.structure, EKFAC):
            V = self.structure.rotate({name: kept[name].unsqueeze(1) for name in self.sides}, V)
        squares = V.square().sum(1) * scale
        if isinstance(self.structure, Scalar):
            return squares.flatten(1).mean(1, keepdim=True)
        return squares

    def traces(self, kept: Factors) -> Float[Tensor, " b"]:
        """The trace of the curvature on each block."""
        c = kept["c"]
        if isinstance(self.structure, Scalar):
            return c[:, 0] * self.structure.size
        if isinstance(self.structure, Dense):
            return c.diagonal(dim1=-2, dim2=-1).sum(-1)
        return c.flatten(1).sum(1)

    def minimizer(self, kept: Factors, mu: Float[Tensor, ""]) -> Factors:
        """The minimizer of E J, white probes: u = 1/(c + mu), (F + mu I)^{-1}, or d_Psi d_Phi^T.

        Args:
            kept: arrays and memory of the stack.
            mu: damping, in units of curvature, positive.

        Returns:
            New arrays; the bases, which do not change, are not among them.

        Source: the book, thm-random-probe-optimum.
        """
        c = kept["c"]
        if isinstance(self.structure, Dense):
            inverse = torch.linalg.inv(c + mu * torch.eye(c.shape[-1], dtype=c.dtype, device=c.device))
            return {"U": (inverse + inverse.mT) / 2}
        damped = c + mu
        if isinstance(self.structure, SeparableEKFAC):
            d_Psi, d_Phi = separable_minimizer(damped)
            return {"d_Psi": d_Psi, "d_Phi": d_Phi}
        name = {Scalar: "u", Diagonal: "d", EKFAC: "D"}[type(self.structure)]
        return {name: damped.reciprocal()}


def _gram(basis: str) -> str:
    return basis.replace("E_", "gram_")


def eigenbasis(gram: Float[Tensor, "*b w w"], old: Float[Tensor, "*b w w"]) -> Float[Tensor, "*b w w"]:
    """The eigenvectors of Gram matrices, as columns, eigenvalues rising; the old basis where the matrix is 0.

    Args:
        gram: symmetric, positive semidefinite.
        old: basis to fall back to.

    Returns:
        Orthogonal matrices. Each Gram matrix is divided by its trace first, so that its scale does not matter, and
        gets a diagonal that rises from 1e-7 to 2e-7: where an eigenvalue occurs more than once (directions that no
        gradient has had yet), rounding would choose the vectors, and two machines would train apart.
    """
    trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    ridge = RIDGE * torch.linspace(1, 2, gram.shape[-1], dtype=gram.dtype, device=gram.device)
    scaled = gram / torch.where(trace > 0, trace, 1.0) + torch.diag(ridge)
    return torch.where(trace > 0, torch.linalg.eigh(scaled)[1], old)


def separable_minimizer(c: Float[Tensor, "*b m n"]) -> tuple[Float[Tensor, "*b m"], Float[Tensor, "*b n"]]:
    """The minimizer d_Psi d_Phi^T of E J over rank-one diagonals, by five alternating sweeps from ones.

        d_Psi_i = sum_j d_Phi_j / sum_j c_ij d_Phi_j^2,        d_Phi_j = sum_i d_Psi_i / sum_i c_ij d_Psi_i^2.

    Args:
        c: damped curvature, positive.

    Returns:
        d_Psi and d_Phi, both positive; exact after one sweep where c has rank one.

    Source: block coordinate descent on the objective of thm-random-probe-optimum.
    """
    a, b = torch.ones_like(c[..., :, 0]), torch.ones_like(c[..., 0, :])
    for _ in range(SEPARABLE_SWEEPS):
        a = b.sum(-1, keepdim=True) / (c @ b.square().unsqueeze(-1)).squeeze(-1)
        b = a.sum(-1, keepdim=True) / (c.mT @ a.square().unsqueeze(-1)).squeeze(-1)
    return a, b
