"""The golden network in our layout: what the released code computed, and the map between the two orders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from llqr_sam_ref.exact._arrays import Array
from llqr_sam_ref.exact.network import Network

WIDTHS = (6, 5, 4, 3)


def numbers() -> dict[str, Array]:
    """All arrays of the fixture by name."""
    with np.load(Path(__file__).parents[1] / "golden" / "official_llqr_mlp.npz") as archive:
        return {name: archive[name] for name in archive.files}


def order() -> Int[np.ndarray, " d"]:
    """Where our weight vector holds the fixture's entries: ``ours[order()]`` is in the fixture's order."""
    network = Network(WIDTHS)
    parts = [
        np.concatenate((bias, kernel.T.ravel()))
        for kernel, bias in network.unflatten(np.arange(network.dimension))
    ]
    return np.concatenate(parts).astype(int)


def ours(vector: Array) -> Float[np.ndarray, " d"]:
    """A vector of the fixture in our order."""
    result = np.empty_like(vector)
    result[order()] = vector
    return result


def ours_matrix(matrix: Array) -> Float[np.ndarray, "d d"]:
    """A matrix of the fixture with rows and columns in our order."""
    result = np.empty_like(matrix)
    result[np.ix_(order(), order())] = matrix
    return result
