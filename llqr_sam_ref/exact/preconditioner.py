"""U as a whole: blocks along the flat weight vector, each a structure with its stored arrays.

The arrays are the factors themselves, or (``positive``) stored so that U cannot fail to be positive: scalars
and diagonals as logarithms, u = exp(stored), matrices as roots, Phi = stored stored'. Bases E stay free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from llqr_sam_ref.errors import check_choice
from llqr_sam_ref.exact._arrays import Array
from llqr_sam_ref.exact.structures import (
    STRUCTURES,
    Arrays,
    Layers,
    Shape,
    Structure,
    entries,
    structure_for,
)


@dataclass(frozen=True, eq=False)
class Block:
    """The part of U that acts on one stretch of the flat weight vector.

    Args:
        structure: which family of matrices.
        shape: shape of the block, (p,) or (output side, input side).
        arrays: the stored arrays, by factor name.
        positive: whether the arrays are logarithms and roots (see the module) instead of the factors.
    """

    structure: Structure
    shape: Shape
    arrays: Arrays
    positive: bool = False

    @property
    def factors(self) -> dict[str, Array]:
        """The factors that the stored arrays stand for."""
        factors = dict(self.arrays)
        if self.positive:
            factors.update({name: np.exp(factors[name]) for name in self.structure.scales})
            factors.update({name: factors[name] @ factors[name].T for name in self.structure.matrices})
        return factors

    def apply(self, g: Float[np.ndarray, " p"]) -> Float[np.ndarray, " p"]:
        """U g for the block's stretch of the flat vector."""
        return self.structure.apply(self.factors, g.reshape(self.shape)).ravel()

    def pullback(self, g: Float[np.ndarray, " p"], z: Float[np.ndarray, " p"]) -> dict[str, Array]:
        """The gradient of z'U g in every stored array: d exp = exp d, d(root root') by the product rule."""
        factors = self.factors
        slopes = self.structure.pullback(factors, g.reshape(self.shape), z.reshape(self.shape))
        if self.positive:
            slopes.update({name: slopes[name] * factors[name] for name in self.structure.scales})
            slopes.update({
                name: (slopes[name] + slopes[name].T) @ self.arrays[name] for name in self.structure.matrices
            })
        return slopes

    def to_dense(self) -> Float[np.ndarray, "p p"]:
        """The block as a matrix on its entries in row-major order."""
        return self.structure.to_dense(self.factors, self.shape)


@dataclass(frozen=True, eq=False)
class Preconditioner:
    """U: a block-diagonal matrix, each block with a structure of its own.

    Args:
        blocks: in the order of the flat weight vector.
    """

    blocks: tuple[Block, ...]

    @property
    def size(self) -> int:
        """The number of weights, d."""
        return sum(entries(block.shape) for block in self.blocks)

    def split(self, v: Float[np.ndarray, " d"]) -> list[Float[np.ndarray, " p"]]:
        """The stretches of v that the blocks act on.

        Args:
            v: flat vector (d,).

        Returns:
            One vector per block.

        Raises:
            ValueError: v does not have d entries.
        """
        if np.shape(v) != (self.size,):
            raise ValueError(
                f"v has shape {np.shape(v)}, but U acts on {self.size} weights; pass a vector ({self.size},)."
            )
        stops = np.cumsum([entries(block.shape) for block in self.blocks])
        return np.split(v, stops[:-1])

    def apply(self, g: Float[np.ndarray, " d"]) -> Float[np.ndarray, " d"]:
        """The preconditioned vector s = U g.

        Args:
            g: flat vector (d,).

        Returns:
            s, shape (d,).

        Source: the book, (17.1) to (17.5).
        """
        return np.concatenate([
            block.apply(part) for block, part in zip(self.blocks, self.split(g), strict=True)
        ])

    def pullback(self, g: Float[np.ndarray, " d"], z: Float[np.ndarray, " d"]) -> list[dict[str, Array]]:
        """The gradient of z'U g in every stored array of every block, z and g held fixed.

        Args:
            g: the vector that U acts on, flat (d,).
            z: the vector that is pulled back, flat (d,); for the relaxed objective z = (G + mu I) s - g.

        Returns:
            One mapping per block, with the names and shapes of its stored arrays.

        Source: the book, thm-relaxed-gradients.
        """
        parts = zip(self.blocks, self.split(g), self.split(z), strict=True)
        return [block.pullback(part_g, part_z) for block, part_g, part_z in parts]

    def to_dense(self) -> Float[np.ndarray, "d d"]:
        """U as a matrix, shape (d, d)."""
        dense = np.zeros((self.size, self.size))
        start = 0
        for block in self.blocks:
            stop = start + entries(block.shape)
            dense[start:stop, start:stop] = block.to_dense()
            start = stop
        return dense

    def identity(self) -> Preconditioner:
        """U = I with the same structures and parametrization."""
        return self.with_arrays([
            _neutral(block.structure, block.shape, block.positive) for block in self.blocks
        ])

    def with_arrays(self, arrays: Sequence[Arrays]) -> Preconditioner:
        """The same structures holding other stored arrays."""
        return Preconditioner(
            tuple(replace(block, arrays=new) for block, new in zip(self.blocks, arrays, strict=True))
        )


def identity_preconditioner(
    layers: Layers, structure: str, *, per_layer: bool = False, positive: bool = False
) -> Preconditioner:
    """U = I in the given structure.

    Args:
        layers: for each layer the shapes of its arrays, in the order of the flat weight vector.
        structure: "scalar", "diagonal", "kronecker", "ekfac", "separable-ekfac" or "dense".
        per_layer: whether scalar, diagonal and dense act on all arrays of a layer joined, as in the authors'
            code; the two-sided structures act on one array at a time in any case.
        positive: store logarithms and roots, so that U stays positive whatever the stored arrays become.

    Returns:
        The identity, with all stored arrays at their neutral values.

    Raises:
        ValueError: an unknown structure, or an array that is neither a vector nor a matrix.
    """
    check_choice("structure", structure, STRUCTURES)
    shapes = [tuple(shape) for layer in layers for shape in layer]
    if per_layer and not STRUCTURES[structure].two_sided:
        shapes = [(sum(entries(shape) for shape in layer),) for layer in layers]
    blocks = []
    for shape in shapes:
        kind = structure_for(structure, shape)
        blocks.append(Block(kind, shape, _neutral(kind, shape, positive), positive))
    return Preconditioner(tuple(blocks))


def _neutral(kind: Structure, shape: Shape, positive: bool) -> dict[str, Array]:
    """The stored arrays of the identity: its factors, but log 1 = 0 where logarithms are stored."""
    arrays = kind.identity(shape)
    return arrays | {name: np.zeros_like(arrays[name]) for name in kind.scales if positive}
