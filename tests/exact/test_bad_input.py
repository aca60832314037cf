"""What bad input gets: a ValueError that names the argument, what is wrong with it, and the remedy."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest

from llqr_sam_ref.exact import dynamics, geometry, landscapes, orbits, pnorms, stability, trust_region

G = np.array([3.0, 4.0])
NAN = np.array([3.0, np.nan])
I2 = np.eye(2)
BANANA = landscapes.banana()
SAM = dynamics.sam(0.1, 0.1)

# What is called; what the message must say of the argument; what it must say of the remedy.
CASES: list[tuple[Callable[[], object], str, str]] = [
    # geometry
    (lambda: geometry.ascent_step(G, -0.1), "rho=-0.1", "pass a finite number in [0, inf)"),
    (lambda: geometry.ascent_step(G, float("nan")), "rho=nan", "pass a finite number"),
    (lambda: geometry.ascent_step(G, float("inf")), "rho=inf", "pass a finite number"),
    (lambda: geometry.ascent_step(NAN, 0.1), "vector holds nan at index (1,)", "pass finite numbers"),
    (lambda: geometry.ascent_step(G * np.inf, 0.1), "vector holds inf", "pass finite numbers"),
    (lambda: geometry.ascent_step(np.array(3.0), 0.1), "vector has shape ()", "shape (..., d)"),
    (lambda: geometry.ascent_step(np.zeros((2, 0)), 0.1), "vector has shape (2, 0)", "shape (..., d)"),
    (lambda: geometry.ascent_step(G * 1j, 0.1), "not an array of real numbers", "pass real numbers"),
    (lambda: geometry.ascent_step(G, 0.1, norm="duel"), "norm='duel' is unknown", "did you mean 'dual'?"),
    (lambda: geometry.ascent_step(G, 0.1, geometry.Monge(np.ones(3))), "v has shape (2,)", "(..., 3)"),
    (
        lambda: geometry.ascent_step(G, 0.1, geometry.PositiveDefinite(np.eye(3))),
        "v has shape (2,)",
        "(..., 3)",
    ),
    (lambda: geometry.ascent_step(G, 0.1, geometry.Adaptive(np.ones(3))), "v has shape (2,)", "(..., 3)"),
    (
        lambda: geometry.ascent_step(G, 0.1, geometry.Preconditioned(np.ones(3))),
        "v has shape (2,)",
        "(..., 3)",
    ),
    (lambda: geometry.ascent_gain(NAN, 0.1), "gradient holds nan", "pass finite numbers"),
    (lambda: geometry.ascent_gain(G, -1), "rho=-1", "pass a finite number in [0, inf)"),
    (lambda: geometry.metric_length(NAN), "v holds nan", "pass finite numbers"),
    (lambda: pnorms.pnorm_step(G, 0.1, 0.5), "p=0.5", "pass a finite number in [1, inf)"),
    (lambda: pnorms.pnorm_step(G, 0.1, float("nan")), "p=nan", "pass a finite number in [1, inf)"),
    (lambda: pnorms.pnorm_step(G, -0.1, 2), "rho=-0.1", "pass a finite number in [0, inf)"),
    (lambda: pnorms.spectral_step(G, 0.1), "gradient has shape", "pass a matrix of shape (m, n)"),
    (lambda: pnorms.spectral_step(np.eye(2), -0.1), "rho=-0.1", "pass a finite number in [0, inf)"),
    (lambda: pnorms.dual_norm(NAN, 2), "gradient holds nan", "pass finite numbers"),
    (lambda: geometry.Monge(G, alpha=-1), "alpha=-1", "pass a finite number in [0, inf)"),
    (lambda: geometry.Monge(NAN), "gradient holds nan", "pass finite numbers"),
    (lambda: geometry.Adaptive(G, eta=-0.01), "eta=-0.01", "pass a finite number in [0, inf)"),
    (lambda: geometry.Adaptive(G, bias=np.array([True])), "bias has shape (1,)", "shape (2,)"),
    (lambda: geometry.Fisher(I2, damping=-1), "damping=-1", "pass a finite number in [0, inf)"),
    (lambda: geometry.Fisher(np.zeros(2)), "fisher is not positive definite", "add a damping larger than 0"),
    (lambda: geometry.Fisher(np.array([1.0, -2.0])), "smallest eigenvalue is -2", "damping larger than 2"),
    (lambda: geometry.Fisher(np.zeros((2, 2, 2))), "fisher has shape (2, 2, 2)", "pass a matrix"),
    (lambda: geometry.PositiveDefinite(np.diag([1.0, -3.0])), "G is not positive definite", "larger than 3"),
    (lambda: geometry.PositiveDefinite(np.array([[1.0, 1], [0, 1]])), "G is not symmetric", "(G + G.T) / 2"),
    (lambda: geometry.PositiveDefinite(np.ones((2, 3))), "G has shape (2, 3)", "pass a square matrix"),
    (lambda: geometry.PositiveDefinite(np.diag(NAN)), "G holds nan at index (1, 1)", "pass finite numbers"),
    (lambda: geometry.Preconditioned(np.array([1.0, 0.0])), "U[1]=0.0 is not positive", "positive entries"),
    (lambda: geometry.Preconditioned(-I2), "U is not positive definite", "add a damping larger than 1"),
    # the exact worst neighbor
    (lambda: trust_region.trust_region_step(G, np.eye(3), 0.1), "hessian has shape (3, 3)", "shape (2, 2)"),
    (lambda: trust_region.trust_region_step(G, I2, -0.1), "rho=-0.1", "pass a finite number in [0, inf)"),
    (lambda: trust_region.trust_region_step(NAN, I2, 0.1), "gradient holds nan", "pass finite numbers"),
    # landscapes
    (lambda: landscapes.bowl(np.array([1.0, 0.0])), "curvatures=[1.0, 0.0]", "use quadratic(H)"),
    (lambda: landscapes.quadratic(np.ones((2, 3))), "H has shape (2, 3)", "pass a square matrix"),
    (lambda: landscapes.quadratic(np.array([[0.0, 1], [0, 0]])), "H is not symmetric", "(H + H.T) / 2"),
    (lambda: landscapes.saddle(h_down=-1), "h_down=-1", "pass a finite number in (0, inf)"),
    (lambda: landscapes.hilltop(0), "h=0", "pass a finite number in (0, inf)"),
    (lambda: landscapes.hilltop(1, dimension=0), "dimension=0", "pass an integer of at least 1"),
    (lambda: landscapes.double_well_saddle(-20), "h=-20", "pass a finite number in (0, inf)"),
    (lambda: landscapes.flat_maximum(0), "height=0", "pass a finite number in (0, inf)"),
    (lambda: landscapes.pothole(width=0), "width=0", "pass a finite number in (0, inf)"),
    (lambda: landscapes.pothole(hole=-1), "hole=-1", "pass a finite number in (0, inf)"),
    (lambda: landscapes.pothole(center=float("nan")), "center=nan", "pass a finite number"),
    (lambda: landscapes.pothole_road(flat=0), "flat=0", "pass an integer of at least 1"),
    (lambda: landscapes.pothole_road(stiff=2.5), "stiff=2.5", "pass an integer of at least 0"),  # type: ignore[arg-type]
    (lambda: landscapes.pothole_road(period=0), "period=0", "pass a finite number in (0, inf)"),
    (lambda: landscapes.minima_manifold(-1), "first=-1", "pass a finite number in [0, inf)"),
    (lambda: BANANA.value(np.ones(3)), "w has shape (3,)", "pass points of shape (..., 2) to 'banana'"),
    (lambda: BANANA.hessian(np.array(1.0)), "w has shape ()", "pass points of shape (..., 2) to 'banana'"),
    # dynamics
    (lambda: dynamics.gd(-0.1), "eta=-0.1", "pass a finite number in [0, inf)"),
    (lambda: dynamics.gd(float("nan")), "eta=nan", "pass a finite number"),
    (lambda: dynamics.sam(0.1, -0.1), "rho=-0.1", "pass a finite number in [0, inf)"),
    (lambda: dynamics.sam(0.1, 0.1, beta=1.0), "beta=1.0", "pass a finite number in [0, 1)"),
    (lambda: dynamics.monge_sam(0.1, 0.1, alpha=-1), "alpha=-1", "pass a finite number in [0, inf)"),
    (lambda: dynamics.llqr_sam(0.1, 0.1, G, norm="euclid"), "norm='euclid'", "did you mean 'euclidean'?"),
    (lambda: dynamics.llqr_sam(0.1, 0.1, -G), "U[1]=-4.0 is not positive", "positive entries"),
    (
        lambda: dynamics.preconditioned_gd(0.1, np.diag([1.0, -2.0])),
        "U is not positive definite",
        "larger than 2",
    ),
    (
        lambda: dynamics.Normalized(0.1, geometry.Preconditioned(-I2)),
        "U is not positive definite",
        "larger than 1",
    ),
    (lambda: dynamics.perturbation(SAM, NAN), "g holds nan", "pass finite numbers"),
    (
        lambda: dynamics.perturbation(dynamics.llqr_sam(0.1, 0.1, G), np.ones(3)),
        "g has shape (3,)",
        "(..., 2)",
    ),
    (lambda: dynamics.step(SAM, BANANA, np.ones(3)), "w has shape (3,)", "shape (..., 2)"),
    (lambda: dynamics.step(SAM, BANANA, G, noise=np.ones(3)), "noise has shape (3,)", "shape (..., 2)"),
    (lambda: dynamics.trajectory(SAM, BANANA, NAN, 5), "start holds nan", "pass finite numbers"),
    (lambda: dynamics.trajectory(SAM, BANANA, G, -5), "steps=-5", "pass an integer of at least 0"),
    (
        lambda: dynamics.trajectory(SAM, BANANA, G, 5, noise=np.ones((4, 2))),
        "noise has shape (4, 2)",
        "pass draws of shape (5, 2) for the 5 steps",
    ),
    (
        lambda: dynamics.trajectory(SAM, BANANA, G, 1, noise=np.array([NAN])),
        "noise holds nan at index (0, 1)",
        "pass finite numbers",
    ),
    (
        lambda: dynamics.trajectory(dynamics.preconditioned_gd(0.1, np.ones(3)), BANANA, G, 5),
        "U has shape (3,) but 'banana' has 2 weights",
        "pass a U for 2 weights",
    ),
    # closed forms
    (lambda: stability.step_limit(0), "h=0", "pass a finite number in (0, inf)"),
    (lambda: stability.step_limit(4, beta=1), "beta=1", "pass a finite number in [0, 1)"),
    (lambda: stability.sam_cycle_amplitude(4, 0.5, 0.1), "eta=0.5", "pass a finite number in (0, 0.5)"),
    (lambda: stability.sam_cycle_amplitude(4, 0.1, -0.1), "rho=-0.1", "pass a finite number in [0, inf)"),
    (lambda: stability.sam_cycle_amplitude(np.ones(2), 0.1, 0.1), "is not a number", "pass a number"),  # type: ignore[arg-type]
    (lambda: stability.monge_cycle_amplitude(4, 0.1, 0.1, -1), "alpha=-1", "pass a finite number"),
    (lambda: stability.cycle_multipliers(2, 4, 0.6), "eta=0.6", "pass a finite number in (0, 0.5)"),
    (lambda: stability.cycle_multipliers(2, 0, 0.1), "h_k=0", "pass a finite number in (0, inf)"),
    (lambda: stability.cycle_multipliers(-2, 4, 0.1), "h_j=-2", "pass a finite number in (0, inf)"),
    (lambda: stability.contrast(1, 0, 0), "hbar + mu=0.0", "pass a finite number in (0, inf)"),
    (lambda: stability.contrast(1, -1, 2), "hbar=-1", "pass a finite number in [0, inf)"),
    (lambda: stability.contrast(1, 1, -0.1), "mu=-0.1", "pass a finite number in [0, inf)"),
    (lambda: stability.contrast_limit(0, 0.1), "eta=0", "pass a finite number in (0, inf)"),
    (lambda: stability.pothole_multiplier(float("nan"), 1, 1, 0.1, 0.1), "h=nan", "pass a finite number"),
    (lambda: stability.unnormalized_saddle_threshold(0), "|h|=0", "pass a finite number in (0, inf)"),
    (lambda: stability.sam_basin_radius(2, -1), "rho=-1", "pass a finite number in [0, inf)"),
    (lambda: stability.valley_drift(4, 1, 0.6, 0.1), "eta=0.6", "pass a finite number in (0, 0.5)"),
    (lambda: stability.smoothing_radius(1, 20, 0.1, 0.4), "force=0.1", "pass a finite number in [0.4, inf)"),
    # finders
    (lambda: orbits.find_cycle(SAM, BANANA, G, steps=3), "steps=3", "pass an integer of at least 16"),
    (lambda: orbits.find_cycle(SAM, BANANA, np.ones((4, 2))), "start has shape (4, 2)", "shape (2,)"),
    (lambda: orbits.find_basin_radius(SAM, BANANA, -1), "high=-1", "pass a finite number in (0, inf)"),
    (lambda: orbits.find_basin_radius(SAM, BANANA, 1, np.ones(3)), "direction has shape (3,)", "shape (2,)"),
    (lambda: orbits.step_jacobian(SAM, BANANA, G, 0.0), "difference=0.0", "pass a finite number in (0, inf)"),
    (lambda: orbits.bisect(lambda x: True, 0.0, 1.0), "high=1", "must fail there; move high"),
]


@pytest.mark.parametrize(("call", "says", "remedy"), CASES, ids=[says for _, says, _ in CASES])
def test_bad_input_is_refused_with_its_name_and_the_remedy(
    call: Callable[[], object], says: str, remedy: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(says)) as refusal:
        call()
    assert remedy in str(refusal.value)


def test_a_zero_gradient_is_not_bad_input() -> None:
    for metric in (
        geometry.Euclidean(),
        geometry.Adaptive(G),
        geometry.Fisher(I2),
        geometry.Monge(np.zeros(2)),
    ):
        assert not geometry.ascent_step(np.zeros(2), 0.1, metric).any()
    for p in (1, 2, 3, np.inf):
        assert not pnorms.pnorm_step(np.zeros(2), 0.1, p).any()
