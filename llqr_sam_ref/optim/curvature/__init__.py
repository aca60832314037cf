"""Curvature products of a module and its loss at one point: set up once, then many exact products.

``Linearization`` is the one door; the modules behind it are private.
"""

from llqr_sam_ref.optim.curvature.linearization import Linearization

__all__ = ["Linearization"]
