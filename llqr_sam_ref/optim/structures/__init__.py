"""The shapes a learned preconditioner may have: U as a few small factors, applied to a matrix of gradients.

X is a weight's gradient as a matrix: output side by input side, a convolution's (out, in * height * width);
vectors stay vectors. Psi acts on the output side, Phi on the input side:

    Scalar           S = u X                    Diagonal   S = d o X               Dense   vec S = U vec X
    Kronecker        S = Psi X Phi^T            EKFAC      S = E_Psi (D o (E_Psi^T X E_Phi)) E_Phi^T
    SeparableEKFAC   E-KFAC with D = d_Psi d_Phi^T

A structure is a description without state; its stored arrays travel in a dict. Every method broadcasts over
leading axes, so that layers of equal shape are stacked and handled by one batched product. Nothing here reads
a value back to the host.
"""

from __future__ import annotations

from llqr_sam_ref.errors import check_choice
from llqr_sam_ref.optim.structures.base import Cost, Factors, Structure
from llqr_sam_ref.optim.structures.plain import Dense, Diagonal, Scalar
from llqr_sam_ref.optim.structures.two_sided import EKFAC, Kronecker, SeparableEKFAC, TwoSided

__all__ = [
    "EKFAC",
    "STRUCTURES",
    "Cost",
    "Dense",
    "Diagonal",
    "Factors",
    "Kronecker",
    "Scalar",
    "SeparableEKFAC",
    "Structure",
    "TwoSided",
    "make_structure",
]

STRUCTURES: dict[str, type[Structure]] = {
    "scalar": Scalar,
    "diagonal": Diagonal,
    "kronecker": Kronecker,
    "ekfac": EKFAC,
    "separable-ekfac": SeparableEKFAC,
    "dense": Dense,
}


def make_structure(
    name: str,
    shape: tuple[int, ...],
    *,
    positive: bool = False,
    max_side: int | None = None,
    wide: str = "identity",
) -> Structure:
    """The structure of a name for blocks of a shape; a vector has no two sides and gets a diagonal.

    Args:
        name: "scalar", "diagonal", "kronecker", "ekfac", "separable-ekfac" or "dense".
        shape: of the block: (p,) or (m, n).
        positive: see Structure.
        max_side: see TwoSided; without effect on the others.
        wide: see TwoSided.

    Returns:
        The structure.

    Raises:
        ValueError: an unknown name.
    """
    kind = STRUCTURES[check_choice("structure", name, STRUCTURES)]
    if not issubclass(kind, TwoSided):
        return kind(shape, positive)
    return Diagonal(shape, positive) if len(shape) == 1 else kind(shape, positive, max_side, wide)
