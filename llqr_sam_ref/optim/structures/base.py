"""What every structure of a learned preconditioner has: stored arrays, apply, pull-back, its dense matrix."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

Factors = dict[str, Tensor]


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

    shape: tuple[int, ...]
    positive: bool = False

    scales: ClassVar[tuple[str, ...]] = ()  # arrays that multiply entries
    matrices: ClassVar[tuple[str, ...]] = ()  # arrays whose symmetric part should be positive

    @property
    def size(self) -> int:
        """Entries of a block."""
        return math.prod(self.shape)

    @abstractmethod
    def array_shapes(self) -> dict[str, tuple[int, ...]]:
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

    def identity(
        self,
        batch: tuple[int, ...] = (),
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
        found = dict(arrays)
        found.update({name: arrays[name].exp() for name in self.scales if name in arrays})
        found.update({name: arrays[name] @ arrays[name].mT for name in self.matrices if name in arrays})
        return found

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
        found = self._pullback(factors, X, Z)
        if self.positive:
            found.update({name: found[name] * factors[name] for name in self.scales if name in found})
            found.update({
                name: (found[name] + found[name].mT) @ arrays[name] for name in self.matrices if name in found
            })
        return found

    def to_dense(self, arrays: Factors) -> Float[Tensor, "*b p p"]:
        """U as a matrix on the block's entries in row-major order."""
        return self._dense(self.factors(arrays))

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
