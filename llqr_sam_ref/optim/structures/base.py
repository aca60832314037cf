"""What every structure of a learned preconditioner knows: how U acts, what it remembers, and which U is best."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from llqr_sam_ref.optim.structures.side import Cut, Side

Factors = dict[str, Tensor]
Shape = tuple[int, ...]


class Cost(NamedTuple):
    """What a structure costs for one block.

    Args:
        apply: floating-point operations of S = U X.
        pullback: floating-point operations of the gradient in the stored arrays.
        entries: numbers stored.
    """

    apply: int
    pullback: int
    entries: int


@dataclass(frozen=True)
class Structure(ABC):
    """One family of matrices U for blocks of one shape.

    Args:
        shape: of the block: (p,), or (output side m, input side n).
        positive: store logarithms of scales and roots of matrices, u = exp(stored), Phi = stored stored^T, so
            that U is positive definite whatever the stored arrays become (as long as bases and roots stay
            nonsingular).
    """

    shape: Shape
    positive: bool = False

    scales: ClassVar[tuple[str, ...]] = ()
    """Arrays that multiply entries."""
    matrices: ClassVar[tuple[str, ...]] = ()
    """Arrays whose symmetric part should be positive."""
    joins_layers: ClassVar[bool] = True
    """Whether the inner loop takes a layer's parameters together, as one vector."""
    cuts: ClassVar[bool] = False
    """Whether a part of a block is a block, once Gram matrices have been added up: it may be cut between ranks."""
    guards_signs: ClassVar[bool] = False
    """Whether the published method keeps its unconstrained scales from turning negative."""

    @classmethod
    def for_shape(
        cls,
        shape: Shape,
        *,
        positive: bool = False,
        max_side: int | None = None,
        wide: str = "identity",
        cut: Cut | None = None,
    ) -> Structure:
        """The structure that this kind gives to blocks of a shape.

        Args:
            shape: (p,) or (m, n).
            positive: see Structure.
            max_side: see TwoSided; without effect on structures without sides.
            wide: see TwoSided.
            cut: see TwoSided.

        Returns:
            One of this kind, or a simpler one where this kind cannot act on the shape.
        """
        return cls(shape, positive)

    @property
    def size(self) -> int:
        """Entries of a block."""
        return math.prod(self.shape)

    def axis_of(self, name: str) -> int | None:
        """The side, 0 or 1, that an array or a Gram matrix belongs to; None for what has one number per entry."""
        return None

    # How U acts.

    @abstractmethod
    def array_shapes(self) -> dict[str, Shape]:
        """Names and shapes of the stored arrays; what would be the identity of a wide side is absent."""

    @abstractmethod
    def cost(self) -> Cost:
        """Operations and memory for one block."""

    @abstractmethod
    def _apply(self, factors: Factors, X: Tensor) -> Tensor: ...

    @abstractmethod
    def _pullback(self, factors: Factors, X: Tensor, Z: Tensor) -> Factors: ...

    @abstractmethod
    def _dense(self, factors: Factors) -> Tensor: ...

    @abstractmethod
    def _squared_distance(self, factors: Factors) -> Tensor: ...

    def identity(
        self,
        batch: Shape = (),
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Factors:
        """The stored arrays of U = I.

        Args:
            batch: leading axes.
            dtype: of the arrays.
            device: of the arrays.

        Returns:
            New arrays, by name.
        """
        arrays = {}
        for name, shape in self.array_shapes().items():
            if name in self.scales:
                fill = 0.0 if self.positive else 1.0
                arrays[name] = torch.full((*batch, *shape), fill, dtype=dtype, device=device)
            else:
                eye = torch.eye(shape[-1], dtype=dtype, device=device)
                arrays[name] = eye.expand(*batch, *shape).clone()
        return arrays

    def factors(self, arrays: Factors) -> Factors:
        """What the stored arrays stand for: themselves, or exponentials and squares if ``positive``."""
        if not self.positive:
            return arrays
        factors = dict(arrays)
        factors.update({name: arrays[name].exp() for name in self.scales if name in arrays})
        factors.update({name: arrays[name] @ arrays[name].mT for name in self.matrices if name in arrays})
        return factors

    def apply(self, arrays: Factors, X: Float[Tensor, "*b m n"]) -> Float[Tensor, "*b m n"]:
        """S = U X.

        Args:
            arrays: the stored arrays.
            X: a block, or a stack of blocks.

        Returns:
            S, shaped as X.

        Source: LLQR, arXiv 2605.04230; the book, chapter 17.
        """
        return self._apply(self.factors(arrays), X)

    def pullback(self, arrays: Factors, X: Float[Tensor, "*b m n"], Z: Float[Tensor, "*b m n"]) -> Factors:
        """The gradient of <Z, U X> in every stored array, X and Z held fixed.

        With X the gradient and Z = (G + mu I) U X - X this is the gradient of the relaxed objective.

        Args:
            arrays: the stored arrays.
            X: what U acts on.
            Z: what is pulled back.

        Returns:
            One array for each stored one.

        Source: the book, thm-relaxed-gradients.
        """
        factors = self.factors(arrays)
        gradients = self._pullback(factors, X, Z)
        if self.positive:
            gradients.update({
                name: gradients[name] * factors[name] for name in self.scales if name in gradients
            })
            gradients.update({
                name: (gradients[name] + gradients[name].mT) @ arrays[name]
                for name in self.matrices
                if name in gradients
            })
        return gradients

    def to_dense(self, arrays: Factors) -> Float[Tensor, "*b p p"]:
        """U as a matrix on the block's entries in row-major order, on the arrays' device and in their precision."""
        return self._dense(self.factors(arrays))

    def squared_distance_to_identity(self, arrays: Factors) -> Float[Tensor, "*b"]:
        """|U - I|^2 (Frobenius), from the factors, without building a matrix.

        Differences from the identity are taken before they are squared, so that a U close to I loses no digits.

        Args:
            arrays: the stored arrays.

        Returns:
            One number per block, in float64; a single 0 where nothing is stored.
        """
        wide = {name: array.double() for name, array in arrays.items()}
        return self._squared_distance(self.factors(wide))

    def project(self, arrays: Factors, floor: float) -> Factors:
        """Arrays with the scales at least ``floor``: the sign guard of unconstrained structures.

        Args:
            arrays: the stored arrays.
            floor: smallest scale allowed.

        Returns:
            The same arrays where nothing is to be done; all of them if ``positive``.
        """
        if self.positive:
            return arrays
        return {n: a.clamp_min(floor) if n in self.scales else a for n, a in arrays.items()}

    def product_sides(self) -> tuple[tuple[str, Side], tuple[str, Side]] | None:
        """A and B of S = A X B^T where that is how U acts, so that the inner loop need not touch the larger; else None.

        Returns:
            Name and side of the stored array A, then of B.
        """
        return None

    # What it remembers of the curvature, and the U that is best for it: the closed form.

    def closed_form(self) -> Structure:
        """The structure, in plain factors, whose closed form stands for this one's: the same family of matrices."""
        return replace(self, positive=False)

    @property
    def curvature_shape(self) -> Shape:
        """Of the remembered curvature c."""
        raise self._no_closed_form()

    def curvature_sample(
        self, arrays: Factors, V: Float[Tensor, "b k *shape"], weight: float
    ) -> Float[Tensor, "b ..."]:
        """What k probes say of c: weight sum_j V_j V_j^T, as far as the structure sees it.

        Args:
            arrays: the stored arrays of the stack, bases among them.
            V: k probes for each of b blocks, in the bases where there are some.
            weight: m/k, with m terms per micro-batch (m n for a summed loss).

        Returns:
            The sample, shaped as c.
        """
        raise self._no_closed_form()

    def trace(self, c: Float[Tensor, "b ..."]) -> Float[Tensor, " b"]:
        """The trace of the curvature on each block."""
        raise self._no_closed_form()

    def minimizer(self, c: Float[Tensor, "b ..."], mu: Float[Tensor, ""]) -> Factors:
        """The arrays of the U that minimizes E J over white probes.

        Args:
            c: remembered curvature; may be overwritten.
            mu: damping, in units of curvature, positive.

        Returns:
            New arrays; the bases, which do not change, are not among them.

        Source: the book, thm-random-probe-optimum.
        """
        raise self._no_closed_form()

    def bases(self) -> dict[str, str]:
        """The stored arrays that are eigenvectors of a Gram matrix of the probes, and the names of those; here none."""
        return {}

    def gram_samples(self, V: Float[Tensor, "b k *shape"], weight: float) -> Factors:
        """What k probes say of the Gram matrices: weight sum_j V_j V_j^T on each side that has a basis.

        Args:
            V: k probes for each of b blocks.
            weight: as in ``curvature_sample``.

        Returns:
            The samples, by the names of the Gram matrices.
        """
        return {}

    def in_bases(self, arrays: Factors, X: Float[Tensor, "*b *shape"]) -> Float[Tensor, "*b *shape"]:
        """X in the bases: E_Psi^T X E_Phi; X itself without bases."""
        return X

    def out_of_bases(self, arrays: Factors, Y: Float[Tensor, "*b *shape"]) -> Float[Tensor, "*b *shape"]:
        """Back from the bases: E_Psi Y E_Phi^T; Y itself without bases."""
        return Y

    def apply_in_bases(self, arrays: Factors, Y: Float[Tensor, "*b *shape"]) -> Float[Tensor, "*b *shape"]:
        """U X from X in the bases."""
        return self.apply(arrays, self.out_of_bases(arrays, Y))

    def turned_vectors(self, Y: Float[Tensor, "b m n"], turns: Factors) -> Float[Tensor, "b m n"]:
        """X in new bases from X in the old: T_Psi Y T_Phi^T.

        Args:
            Y: in the old bases.
            turns: T = E_new^T E_old, by the names of the bases.

        Returns:
            Y in the new bases.
        """
        return Y

    def turned(self, c: Float[Tensor, "b ..."], turns: Factors) -> Float[Tensor, "b ..."]:
        """The curvature carried over to new bases: c <- (E_new^T E_old)^{o2} c; its trace is kept.

        Args:
            c: in the old bases; the off-diagonals there are unknown.
            turns: E_new^T E_old, by the names of the bases.

        Returns:
            c in the new bases.
        """
        return c

    def memory_shapes(self) -> dict[str, Shape]:
        """Names and shapes of what the closed form remembers: the curvature c, and a Gram matrix for each basis."""
        shapes = self.array_shapes()
        return {"c": self.curvature_shape, **{gram: shapes[basis] for basis, gram in self.bases().items()}}

    def _no_closed_form(self) -> NotImplementedError:
        return NotImplementedError(
            f"{type(self).__name__} has no closed form; define curvature_shape, curvature_sample, trace and "
            "minimizer, or learn it by the inner loop."
        )


def sum_of_squares(V: Float[Tensor, "b k ..."], weight: float) -> Float[Tensor, "b ..."]:
    """Weight sum_j V_j^{o2}, without a pass that changes nothing."""
    squares = V.square()
    return times(squares.squeeze(1) if V.shape[1] == 1 else squares.sum(1), weight)


def times(new: Tensor, weight: float) -> Tensor:
    """A tensor that nobody else has, times a number, in place."""
    return new if weight == 1 else new.mul_(weight)
