"""Curvature products of a module and its loss at one point: set up once, then many exact products.

``Linearization`` is the door, ``observed`` lets one count and time what goes through it; the modules behind it are
private.
"""

from llqr_sam_ref.optim.curvature.linearization import Linearization, observed

__all__ = ["Linearization", "observed"]
