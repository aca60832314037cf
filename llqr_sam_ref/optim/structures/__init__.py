"""The shapes a learned preconditioner may have: U as a few small factors, applied to a matrix of gradients.

X is a weight's gradient as a matrix: output side by input side, a convolution's (out, in * height * width);
vectors stay vectors. Psi acts on the output side, Phi on the input side:

    Scalar           S = u X                    Diagonal   S = d o X               Dense   vec S = U vec X
    Kronecker        S = Psi X Phi^T            EKFAC      S = E_Psi (D o (E_Psi^T X E_Phi)) E_Phi^T
    SeparableEKFAC   E-KFAC with D = d_Psi d_Phi^T

A structure is a description without state; its stored arrays travel in a dict. Every method broadcasts over
leading axes, so that layers of equal shape are stacked and handled by one batched product. Nothing here reads
a value back to the host. One more structure is one subclass of ``Structure`` under ``@register_structure("its-name")``:
from then on ``LLQRConfig``, parameter groups and the command line know the name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from llqr_sam_ref.config import CHOICES
from llqr_sam_ref.errors import check_choice
from llqr_sam_ref.optim.structures.base import Cost, Factors, Shape, Structure
from llqr_sam_ref.optim.structures.dense import Dense
from llqr_sam_ref.optim.structures.ekfac import EKFAC, SeparableEKFAC
from llqr_sam_ref.optim.structures.elementwise import Diagonal, Scalar
from llqr_sam_ref.optim.structures.kronecker import Kronecker
from llqr_sam_ref.optim.structures.side import Cut, Side
from llqr_sam_ref.optim.structures.two_sided import TwoSided

__all__ = [
    "EKFAC",
    "STRUCTURES",
    "Cost",
    "Cut",
    "Dense",
    "Diagonal",
    "Factors",
    "Kronecker",
    "Scalar",
    "SeparableEKFAC",
    "Shape",
    "Side",
    "Structure",
    "TwoSided",
    "make_structure",
    "register_structure",
]

STRUCTURES: dict[str, type[Structure]] = {
    "scalar": Scalar,
    "diagonal": Diagonal,
    "kronecker": Kronecker,
    "ekfac": EKFAC,
    "separable-ekfac": SeparableEKFAC,
    "dense": Dense,
}
Kind = TypeVar("Kind", bound=type[Structure])


def register_structure(name: str) -> Callable[[Kind], Kind]:
    """Give a structure a name, by which configurations and parameter groups then ask for it.

    Args:
        name: new, and not "identity".

    Returns:
        A decorator of a subclass of ``Structure``, which it returns as it is.

    Raises:
        ValueError: the name is taken.
    """
    if name in {"identity", *STRUCTURES}:
        raise ValueError(
            f"name={name!r} is taken; choose one that is not in {sorted(('identity', *STRUCTURES))}."
        )

    def register(kind: Kind) -> Kind:
        STRUCTURES[name] = kind
        CHOICES["structure"] = (*CHOICES["structure"], name)
        return kind

    return register


def make_structure(
    name: str,
    shape: tuple[int, ...],
    *,
    positive: bool = False,
    max_side: int | None = None,
    wide: str = "identity",
    cut: Cut | None = None,
) -> Structure:
    """The structure of a name for blocks of a shape; a vector has no two sides and gets a diagonal.

    Args:
        name: one of ``STRUCTURES``.
        shape: of the block: (p,) or (m, n).
        positive: see Structure.
        max_side: see TwoSided; without effect on the others.
        wide: see TwoSided.
        cut: see TwoSided.

    Returns:
        The structure.

    Raises:
        ValueError: an unknown name.
    """
    kind = STRUCTURES[check_choice("structure", name, STRUCTURES)]
    return kind.for_shape(shape, positive=positive, max_side=max_side, wide=wide, cut=cut)
