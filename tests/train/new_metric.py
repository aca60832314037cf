"""A metric that the package does not have, in a file of its own, as a user writes it."""

from __future__ import annotations

from typing import ClassVar

from llqr_sam_ref.optim import Metric
from llqr_sam_ref.optim.metric import Ascent, Direction


class Power(Metric):
    """G = diag(|g| + floor)^power, perturbations of length rho; with power 0 plain SAM.

    Args:
        power: the exponent.
        floor: added to |g|.
    """

    default_norm: ClassVar[str] = "euclidean"

    def __init__(self, power: float = 0.0, floor: float = 1e-3) -> None:
        self.power, self.floor = power, floor

    def direction(self, ascent: Ascent) -> Direction:
        """G^-1 v."""
        pairs = zip(ascent.vectors, ascent.gradients, strict=True)
        return Direction([v * (g.abs() + self.floor).pow(-self.power) for v, g in pairs])
