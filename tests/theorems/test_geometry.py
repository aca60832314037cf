"""Part 1, geometry: the steepest step under a metric, with the mutation that its test must catch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from llqr_sam_ref.exact import geometry
from llqr_sam_ref.exact._arrays import Array
from tests.theorems.catalogue import mutation


@mutation(
    "the step points along g instead of G^-1 g",
    step=lambda g, rho, metric: rho * g / np.sqrt(g @ metric.solve(g)),
)
def test_thm_steepest_ascent_metric(step: Callable[..., Array] = geometry.ascent_step) -> None:
    """Length, gain and optimality on 50 random (G, g, rho) against 400 random points of each ball."""
    rng = np.random.default_rng(101)
    for _ in range(50):
        d, rho = int(rng.integers(1, 8)), float(rng.uniform(0.05, 3.0))
        root = rng.standard_normal((d, d))
        G, g = root @ root.T + 0.1 * np.eye(d), rng.standard_normal(d)
        metric = geometry.PositiveDefinite(G)
        epsilon = step(g, rho, metric)
        gain = rho * np.sqrt(g @ np.linalg.solve(G, g))
        np.testing.assert_allclose(epsilon @ G @ epsilon, rho**2, rtol=1e-12)
        np.testing.assert_allclose(g @ epsilon, gain, rtol=1e-12)
        np.testing.assert_allclose(geometry.ascent_gain(g, rho, metric), gain, rtol=1e-12)

        directions = rng.standard_normal((400, d))
        lengths = np.sqrt(np.einsum("ki,ij,kj->k", directions, G, directions))
        feasible = rho * directions * (rng.uniform(0.0, 1.0, 400) / lengths)[:, None]
        on_the_sphere = rho * directions / lengths[:, None]
        assert np.max(feasible @ g) <= g @ epsilon * (1 + 1e-12)
        assert np.max(on_the_sphere @ g) <= g @ epsilon * (1 + 1e-12)
