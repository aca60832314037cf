"""Each landscape's gradient and Hessian against complex steps, and what each is there to show."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llqr_sam_ref.exact import landscapes
from llqr_sam_ref.exact.landscapes import Landscape

ALL = [
    landscapes.quadratic(np.array([[2.0, 1.0, 0.0], [1.0, -3.0, 0.5], [0.0, 0.5, 1.0]])),
    landscapes.bowl(np.array([4.0, 2.0, 1.0, 0.5])),
    landscapes.ravine(),
    landscapes.saddle(3.0, 0.5),
    landscapes.hilltop(2.0, dimension=2),
    landscapes.banana(),
    landscapes.curved_valley(),
    landscapes.double_well_saddle(20.0),
    landscapes.flat_maximum(),
    landscapes.pothole(width=0.3, center=0.4),
    landscapes.pothole_road(stiff=1, flat=2, period=0.7),
    landscapes.minima_manifold(),
    landscapes.minima_manifold(2.0, 0.0),
]
every_landscape = pytest.mark.parametrize("landscape", ALL, ids=lambda landscape: landscape.name)
points = st.integers(0, 2**32 - 1)
laws = settings(max_examples=40, deadline=None, derandomize=True)
STEP = 1e-30  # a complex step has no cancellation: it may be as small as one likes


@every_landscape
@laws
@given(seed=points, scale=st.sampled_from([0.01, 0.3, 1.0, 3.0]))
def test_the_gradient_is_the_complex_step_of_the_loss(landscape: Landscape, seed: int, scale: float) -> None:
    w = scale * np.random.default_rng(seed).normal(size=landscape.dimension)
    shifted = landscape.value(w + 1j * STEP * np.eye(landscape.dimension))
    np.testing.assert_allclose(landscape.gradient(w), shifted.imag / STEP, rtol=1e-11, atol=1e-13)


@every_landscape
@laws
@given(seed=points, scale=st.sampled_from([0.01, 0.3, 1.0, 3.0]))
def test_the_hessian_is_the_complex_step_of_the_gradient(
    landscape: Landscape, seed: int, scale: float
) -> None:
    w = scale * np.random.default_rng(seed).normal(size=landscape.dimension)
    shifted = landscape.gradient(w + 1j * STEP * np.eye(landscape.dimension))
    H = landscape.hessian(w)
    np.testing.assert_allclose(H, shifted.imag / STEP, rtol=1e-10, atol=1e-11)
    np.testing.assert_array_equal(H, H.T)


@every_landscape
def test_a_batch_is_a_loop(landscape: Landscape, rng: np.random.Generator) -> None:
    d = landscape.dimension
    w = rng.normal(size=(3, 2, d))
    assert landscape.value(w).shape == (3, 2)
    assert landscape.gradient(w).shape == (3, 2, d)
    assert landscape.hessian(w).shape == (3, 2, d, d)
    for index in np.ndindex(3, 2):
        np.testing.assert_allclose(landscape.value(w)[index], landscape.value(w[index]), rtol=1e-14)
        np.testing.assert_allclose(landscape.gradient(w)[index], landscape.gradient(w[index]), rtol=1e-14)
        np.testing.assert_allclose(landscape.hessian(w)[index], landscape.hessian(w[index]), rtol=1e-14)


@every_landscape
def test_points_are_not_changed_and_integers_are_numbers(landscape: Landscape) -> None:
    w = np.ones(landscape.dimension)
    H = landscape.hessian(w).copy()
    for _ in range(2):  # a second call sees the same landscape
        np.testing.assert_array_equal(landscape.gradient(w), landscape.gradient(w.astype(int)))
        np.testing.assert_array_equal(landscape.hessian(w), H)
    np.testing.assert_array_equal(w, np.ones(landscape.dimension))


@every_landscape
def test_a_point_of_another_dimension_is_refused(landscape: Landscape) -> None:
    with pytest.raises(
        ValueError, match=rf"w has shape \(7,\); pass points of shape .*{landscape.dimension}"
    ):
        landscape.gradient(np.ones(7))


def test_the_ravine_has_condition_number_ten() -> None:
    eigenvalues = np.linalg.eigvalsh(landscapes.ravine().hessian(np.zeros(2)))
    assert eigenvalues.max() / eigenvalues.min() == pytest.approx(10)
    assert landscapes.ravine().value(np.array([1.0, 3.0])) == pytest.approx(9.5)


def test_the_banana_is_the_two_weight_network() -> None:
    banana = landscapes.banana()
    home = np.array([2.0, 1.0])
    assert banana.value(home) == 1
    np.testing.assert_array_equal(banana.gradient(home), [2, 4])
    np.testing.assert_array_equal(banana.hessian(home), [[2, 6], [6, 8]])
    np.testing.assert_allclose(np.linalg.eigvalsh(banana.hessian(home)), (-1.708204, 11.708204), atol=5e-7)


@pytest.mark.parametrize("a", [1.0, 2.0, 5.0, 10.0, 100.0])
def test_the_banana_is_as_sharp_as_its_twin_is_far(a: float) -> None:
    H = landscapes.banana().hessian(np.array([a, 1 / a]))
    np.testing.assert_allclose(np.linalg.eigvalsh(H)[-1], 2 * (a**2 + 1 / a**2), rtol=1e-14)


def test_the_bananas_saddle_has_curvatures_two_and_minus_two() -> None:
    np.testing.assert_array_equal(np.linalg.eigvalsh(landscapes.banana().hessian(np.zeros(2))), [-2, 2])


def test_the_double_wells_saddle_and_minima() -> None:
    well = landscapes.double_well_saddle(20.0)
    np.testing.assert_array_equal(well.hessian(np.zeros(2)), np.diag([20.0, -20.0]))
    for y in (-1.0, 1.0):
        assert not well.gradient(np.array([0.0, y])).any()
        np.testing.assert_array_equal(well.hessian(np.array([0.0, y])), np.diag([20.0, 40.0]))


def test_the_flat_maximum_is_a_maximum_without_curvature() -> None:
    hill = landscapes.flat_maximum()
    np.testing.assert_array_equal(hill.hessian(np.zeros(2)), np.zeros((2, 2)))
    assert hill.value(np.zeros(2)) == 5
    r = 0.1
    assert hill.value(np.array([r, 0.0])) == pytest.approx(5 - 5 / 6 * r**4, abs=1e-8)


@pytest.mark.parametrize("radius", [1 - 1e-12, 1 + 1e-12])
def test_the_flat_maximums_series_meets_its_closed_form(radius: float) -> None:
    hill, w = landscapes.flat_maximum(), radius * np.array([0.6, 0.8])
    q = radius**2
    slope = 10 * (q * np.cos(q) - np.sin(q)) / q**2
    assert hill.value(w) == pytest.approx(5 * np.sin(q) / q, rel=1e-14)
    np.testing.assert_allclose(hill.gradient(w), slope * w, rtol=1e-14)


def test_the_curved_valleys_floor_is_level_and_flattest_in_the_middle() -> None:
    valley = landscapes.curved_valley()
    floor = np.stack([np.linspace(-2, 2, 9), np.zeros(9)], axis=-1)
    assert not valley.value(floor).any()
    np.testing.assert_allclose(valley.hessian(floor)[:, 1, 1], 1 + floor[:, 0] ** 2, rtol=1e-15)


def test_the_potholes_bottom_is_sharp_and_its_surroundings_are_not() -> None:
    road = landscapes.pothole((10.0, 0.2), hole=2.8, width=0.05)
    np.testing.assert_allclose(road.hessian(np.zeros(2)), np.diag([10.0, 3.0]), rtol=1e-15)
    np.testing.assert_allclose(road.hessian(np.array([0.0, 1.0])), np.diag([10.0, 0.2]), rtol=1e-12)
    y = np.stack([np.zeros(20001), np.linspace(-1, 1, 20001)], axis=-1)
    assert road.hessian(y)[:, 1, 1].mean() == pytest.approx(0.2, abs=1e-3)  # flat on average


def test_the_roads_pits_average_to_nothing() -> None:
    road = landscapes.pothole_road(stiff=5, flat=20)
    assert road.dimension == 25
    one_period = np.zeros((100, 25))
    one_period[:, 5:] = np.arange(100)[:, None] / 100
    H = road.hessian(one_period)
    np.testing.assert_allclose(np.diagonal(H, axis1=1, axis2=2).mean(0), [100.0] * 5 + [0.1] * 20, rtol=1e-12)
    np.testing.assert_allclose(H[0, 5, 5], 20.1, rtol=1e-15)
    assert road.value(one_period[50]) == pytest.approx(20 * (0.05 * 0.25 + 2 * 20 / (2 * np.pi) ** 2))


def test_the_manifolds_samples_average_to_it(rng: np.random.Generator) -> None:
    first, second = landscapes.minima_manifold(2.0, 0.0), landscapes.minima_manifold(0.0, 2.0)
    w = rng.normal(size=(50, 4))
    mean = (first.gradient(w) + second.gradient(w)) / 2
    np.testing.assert_allclose(mean, landscapes.minima_manifold().gradient(w), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("at", "measured", "least"),
    [((1.0, 0.0), [1.0, 0.0], 6.0), ((2 / 3, 1 / 6), [1.0, 1.0], 29 / 3)],
    ids=["top eigenvalue", "trace"],
)
def test_where_on_the_manifold_the_curvature_is_least(
    at: tuple[float, float], measured: list[float], least: float
) -> None:
    u = np.stack(np.meshgrid(np.linspace(-1, 1, 41), np.linspace(-1, 1, 41)), axis=-1)
    whole = landscapes.minima_manifold()
    around = np.concatenate([u + np.array(at), np.zeros_like(u)], axis=-1)
    assert not whole.value(around).any()
    curvatures = np.diagonal(whole.hessian(around), axis1=-2, axis2=-1)[..., 2:]
    assert (curvatures[..., 0] > curvatures[..., 1]).all()
    index = np.unravel_index(np.argmin(curvatures @ np.array(measured)), (41, 41))
    np.testing.assert_allclose(u[index], 0, atol=1e-15)
    assert (curvatures @ np.array(measured)).min() == pytest.approx(least, rel=1e-14)
