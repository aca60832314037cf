"""The metrics and the seam: lengths, gains, limits, digits, and the numbers of the first chapter."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llqr_sam_ref.exact._arrays import Array
from llqr_sam_ref.exact.geometry import (
    Adaptive,
    Euclidean,
    Fisher,
    Metric,
    Monge,
    PositiveDefinite,
    Preconditioned,
    ascent_gain,
    ascent_step,
    metric_length,
)
from llqr_sam_ref.exact.pnorms import dual_norm, pnorm_step, spectral_step
from llqr_sam_ref.exact.trust_region import trust_region_step
from tests.exact.relaxed import random_spd

laws = settings(max_examples=60, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(1, 7)


BUILDERS: dict[str, Callable[[np.random.Generator, Array], Metric]] = {
    "euclidean": lambda rng, g: Euclidean(),
    "adaptive": lambda rng, g: Adaptive(rng.normal(size=g.size), eta=0.01),
    "adaptive with biases": lambda rng, g: Adaptive(
        rng.normal(size=g.size), 0.01, np.arange(g.size) % 2 == 0
    ),
    "fisher": lambda rng, g: Fisher(random_spd(rng, g.size), damping=0.3),
    "fisher diagonal": lambda rng, g: Fisher(rng.random(g.size), damping=0.3),
    "monge": lambda rng, g: Monge(g),
    "monge with another gradient": lambda rng, g: Monge(rng.normal(size=g.size), alpha=2.0),
    "preconditioned": lambda rng, g: Preconditioned(random_spd(rng, g.size)),
    "preconditioned diagonal": lambda rng, g: Preconditioned(rng.random(g.size) + 0.1),
    "positive definite": lambda rng, g: PositiveDefinite(random_spd(rng, g.size)),
}
every_metric = pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)


# The seam ---


@every_metric
@laws
@given(seed=seeds, d=sizes, rho=st.floats(1e-3, 1e3))
def test_the_step_has_length_rho_and_rises_by_the_gain(
    build: Callable[[np.random.Generator, Array], Metric], seed: int, d: int, rho: float
) -> None:
    rng = np.random.default_rng(seed)
    g = rng.normal(size=d)
    metric = build(rng, g)
    step = ascent_step(g, rho, metric)
    assert metric_length(step, metric) == pytest.approx(rho, rel=1e-12)
    assert g @ step == pytest.approx(rho * np.sqrt(g @ metric.solve(g)), rel=1e-12)
    assert ascent_gain(g, rho, metric) == pytest.approx(float(g @ step), rel=1e-12)
    assert np.linalg.norm(ascent_step(g, rho, metric, norm="euclidean")) == pytest.approx(rho, rel=1e-12)


@every_metric
@laws
@given(seed=seeds, d=sizes)
def test_no_feasible_point_rises_more(
    build: Callable[[np.random.Generator, Array], Metric], seed: int, d: int
) -> None:
    rng = np.random.default_rng(seed)
    g = rng.normal(size=d)
    metric = build(rng, g)
    rivals = rng.normal(size=(200, d))
    rivals /= metric_length(rivals, metric)[:, None]
    assert (rivals @ g).max() <= ascent_gain(g, 1.0, metric) * (1 + 1e-12)


@every_metric
@laws
@given(seed=seeds, d=sizes)
def test_product_solution_and_matrix_are_one_metric(
    build: Callable[[np.random.Generator, Array], Metric], seed: int, d: int
) -> None:
    rng = np.random.default_rng(seed)
    g, v = rng.normal(size=(2, d))
    metric = build(rng, g)
    G = metric.matrix(d)
    np.testing.assert_allclose(G, G.T, rtol=1e-9, atol=1e-12)
    assert np.linalg.eigvalsh(G)[0] > 0
    np.testing.assert_allclose(metric.multiply(v), G @ v, rtol=1e-9, atol=1e-9 * np.abs(G).max())
    np.testing.assert_allclose(metric.solve(metric.multiply(v)), v, rtol=1e-8, atol=1e-10)


@every_metric
def test_a_batch_is_a_loop(
    build: Callable[[np.random.Generator, Array], Metric], rng: np.random.Generator
) -> None:
    metric = build(rng, rng.normal(size=3))
    vectors = rng.normal(size=(4, 2, 3))
    batch = ascent_step(vectors, 0.1, metric)
    for index in np.ndindex(4, 2):
        np.testing.assert_allclose(batch[index], ascent_step(vectors[index], 0.1, metric), rtol=1e-14)
        assert ascent_gain(vectors, 0.1, metric)[index] == pytest.approx(
            float(ascent_gain(vectors[index], 0.1, metric)), rel=1e-14
        )


def test_a_batch_of_monge_metrics_is_a_loop(rng: np.random.Generator) -> None:
    g = rng.normal(size=(5, 3))
    batch = ascent_step(g, 0.1, Monge(g))
    assert Monge(g).matrix(3).shape == (5, 3, 3)
    for one, step in zip(g, batch, strict=True):
        np.testing.assert_allclose(step, ascent_step(one, 0.1, Monge(one)), rtol=1e-14)


@every_metric
def test_zero_gives_zero(
    build: Callable[[np.random.Generator, Array], Metric], rng: np.random.Generator
) -> None:
    metric = build(rng, np.zeros(3))
    for norm in ("dual", "euclidean"):
        assert not ascent_step(np.zeros(3), 0.1, metric, norm).any()
        assert not ascent_step(rng.normal(size=3), 0.0, metric, norm).any()
    assert ascent_gain(np.zeros(3), 0.1, metric) == 0
    assert metric_length(np.zeros(3), metric) == 0
    mixed = ascent_step(np.array([[0.0, 0, 0], [0, 0, 2]]), 0.1, Euclidean())
    np.testing.assert_array_equal(mixed, [[0, 0, 0], [0, 0, 0.1]])


@laws
@given(seed=seeds, d=sizes, scale=st.floats(1e-150, 1e150))
def test_a_fixed_metric_ignores_the_length_of_the_vector(seed: int, d: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    g, G = rng.normal(size=d), PositiveDefinite(random_spd(rng, d))
    np.testing.assert_allclose(ascent_step(scale * g, 0.1, G), ascent_step(g, 0.1, G), rtol=1e-13, atol=1e-16)
    assert ascent_gain(scale * g, 0.1, G) == pytest.approx(scale * float(ascent_gain(g, 0.1, G)), rel=1e-13)


@laws
@given(seed=seeds, d=sizes)
def test_a_transported_metric_gives_the_same_step_in_any_linear_coordinates(seed: int, d: int) -> None:
    rng = np.random.default_rng(seed)
    g, G, A = rng.normal(size=d), random_spd(rng, d), rng.normal(size=(d, d)) + 3 * np.eye(d)
    there = A @ ascent_step(A.T @ g, 0.1, PositiveDefinite(A.T @ G @ A))
    np.testing.assert_allclose(there, ascent_step(g, 0.1, PositiveDefinite(G)), rtol=1e-8, atol=1e-10)


# Single metrics ---


@laws
@given(seed=seeds, d=st.integers(2, 6), log_slope=st.floats(-8, 8), alpha=st.floats(0.1, 10))
def test_monge_keeps_its_digits_from_flat_to_steep(seed: int, d: int, log_slope: float, alpha: float) -> None:
    rng = np.random.default_rng(seed)
    unit = rng.normal(size=d)
    unit /= np.linalg.norm(unit)
    g = 10.0**log_slope * unit
    slope = np.linalg.norm(g)
    stretch = np.hypot(1, alpha * slope)
    metric = Monge(g, alpha)
    for ascent in (g, 3 * g, -g / 7):
        step = ascent_step(ascent, 0.1, metric)
        np.testing.assert_allclose(step, np.sign(ascent @ g) * 0.1 * unit / stretch, rtol=1e-12, atol=1e-28)
        assert metric_length(step, metric) == pytest.approx(0.1, rel=1e-12)
    assert ascent_gain(g, 0.1, metric) == pytest.approx(0.1 * slope / stretch, rel=1e-12)
    across = rng.normal(size=d)
    across -= unit * (unit @ across)
    np.testing.assert_allclose(metric.solve(across), across, rtol=1e-12, atol=1e-15)


@laws
@given(seed=seeds, d=st.integers(1, 5), log_slope=st.floats(-8, 4))
def test_monge_solution_is_sherman_morrison_in_exact_arithmetic(seed: int, d: int, log_slope: float) -> None:
    rng = np.random.default_rng(seed)
    g, v = 10.0**log_slope * rng.normal(size=d), rng.normal(size=d)
    G, V = [Fraction(x) for x in g], [Fraction(x) for x in v]
    share = sum((a * b for a, b in zip(G, V, strict=True)), Fraction(0)) / (1 + sum(a * a for a in G))
    exact = np.array([float(b - a * share) for a, b in zip(G, V, strict=True)])
    solved = Monge(g).solve(v)
    if d == 1:  # everything lies along g, so that nothing may be lost
        np.testing.assert_allclose(solved, exact, rtol=1e-14)
    np.testing.assert_allclose(solved, exact, rtol=0, atol=1e-14 * np.abs(v).max())


def test_monge_with_alpha_zero_is_sam(rng: np.random.Generator) -> None:
    g = rng.normal(size=4)
    np.testing.assert_allclose(ascent_step(g, 0.1, Monge(g, 0.0)), ascent_step(g, 0.1), rtol=1e-15)
    near = ascent_step(g, 0.1, Monge(g, 1e-9))
    np.testing.assert_allclose(near, ascent_step(g, 0.1), rtol=1e-15)


def test_monge_is_the_metric_of_the_graph(rng: np.random.Generator) -> None:
    g, v = rng.normal(size=(2, 4))
    on_graph = np.append(v, 0.7 * (g @ v))  # the displacement and the rise of 0.7 L
    assert metric_length(v, Monge(g, 0.7)) == pytest.approx(float(np.linalg.norm(on_graph)), rel=1e-14)


def test_adaptive_rescales_weights_and_leaves_biases() -> None:
    metric = Adaptive(np.array([2.0, -0.5, 3.0]), eta=0.01, bias=np.array([False, False, True]))
    np.testing.assert_allclose(metric.matrix(3), np.diag([2.01**-2, 0.51**-2, 1.0]), rtol=1e-15)
    Tg = np.array([2.01 * 3, 0.51 * 4, 1])
    expected = 0.1 * np.array([2.01, 0.51, 1]) * Tg / np.linalg.norm(Tg)
    np.testing.assert_allclose(ascent_step(np.array([3.0, 4.0, 1.0]), 0.1, metric), expected, rtol=1e-15)


def test_a_zero_weight_is_not_perturbed_by_adaptive() -> None:
    metric = Adaptive(np.array([2.0, 0.0]))
    np.testing.assert_allclose(ascent_step(np.array([3.0, 4.0]), 0.1, metric), [0.2, 0], rtol=1e-15)
    with pytest.raises(ValueError, match=r"weights\[1\]=0 has no finite length with eta=0"):
        metric.multiply(np.ones(2))


def test_fisher_takes_a_matrix_or_its_diagonal() -> None:
    f = np.array([9.0, 16.0])
    np.testing.assert_allclose(Fisher(f, 0.1).matrix(2), Fisher(np.diag(f), 0.1).matrix(2), rtol=1e-15)
    np.testing.assert_allclose(Fisher(f, 0.1).matrix(2), np.diag([9.1, 16.1]), rtol=1e-15)


def test_preconditioned_is_the_inverse_metric(rng: np.random.Generator) -> None:
    U, g = random_spd(rng, 4), rng.normal(size=4)
    inverse = PositiveDefinite(np.linalg.inv(U))
    np.testing.assert_allclose(
        ascent_step(g, 0.1, Preconditioned(U)), ascent_step(g, 0.1, inverse), rtol=1e-9
    )
    u = rng.random(4) + 0.1
    np.testing.assert_allclose(
        ascent_step(g, 0.1, Preconditioned(u)), ascent_step(g, 0.1, Preconditioned(np.diag(u))), rtol=1e-14
    )
    euclidean = ascent_step(g, 0.1, Preconditioned(U), "euclidean")
    np.testing.assert_allclose(euclidean, 0.1 * U @ g / np.linalg.norm(U @ g), rtol=1e-14)
    np.testing.assert_allclose(ascent_step(g, 0.1, Preconditioned(7 * U), "euclidean"), euclidean, rtol=1e-14)


# Balls that are not ellipses ---

orders = st.one_of(st.just(1.0), st.just(np.inf), st.floats(1.01, 50))


@laws
@given(seed=seeds, d=sizes, p=orders, rho=st.floats(0.01, 100))
def test_the_p_norm_step_is_feasible_and_rises_by_the_dual_norm(
    seed: int, d: int, p: float, rho: float
) -> None:
    rng = np.random.default_rng(seed)
    g = rng.normal(size=d)
    step = pnorm_step(g, rho, p)
    assert np.linalg.norm(step, p) == pytest.approx(rho, rel=1e-12)
    assert g @ step == pytest.approx(rho * float(dual_norm(g, p)), rel=1e-12)
    rivals = rng.normal(size=(200, d))
    rivals /= np.linalg.norm(rivals, p, axis=-1, keepdims=True)
    assert (rivals @ g).max() <= dual_norm(g, p) * (1 + 1e-12)


def test_the_p_norm_step_knows_its_friends(rng: np.random.Generator) -> None:
    g = rng.normal(size=(3, 5))
    np.testing.assert_allclose(pnorm_step(g, 0.1, 2), ascent_step(g, 0.1), rtol=1e-14)
    np.testing.assert_array_equal(pnorm_step(g, 0.1, np.inf), 0.1 * np.sign(g))
    np.testing.assert_array_equal(pnorm_step(np.array([2.0, -2.0, 0.0]), 1.0, 1), [1, 0, 0])
    for p in (1, 1.5, 2, np.inf):
        assert not pnorm_step(np.zeros(3), 1.0, p).any()
        assert dual_norm(np.zeros(3), p) == 0
        np.testing.assert_allclose(
            pnorm_step(1e-200 * g, 0.1, p), pnorm_step(g, 0.1, p), rtol=1e-12, err_msg=str(p)
        )


def test_the_spectral_step_moves_all_directions_that_the_gradient_has_and_no_other(
    rng: np.random.Generator,
) -> None:
    Y = rng.normal(size=(5, 3)) @ np.diag([1.0, 1e-3, 0.0]) @ rng.normal(size=(3, 4))
    step = spectral_step(Y, 0.2)
    np.testing.assert_allclose(np.linalg.svd(step)[1], [0.2, 0.2, 0, 0], atol=1e-12)
    np.testing.assert_allclose(step @ Y.T, Y @ step.T, atol=1e-12)  # the same singular vectors
    np.testing.assert_allclose(spectral_step(1e-200 * Y, 0.2), step, atol=1e-10)
    assert not spectral_step(np.zeros((2, 3)), 0.2).any()


# The trust region ---


@laws
@given(seed=seeds, d=sizes, rho=st.floats(0.01, 10), shift=st.floats(-6, 2))
def test_the_trust_region_step_is_a_stationary_point_that_nobody_beats(
    seed: int, d: int, rho: float, shift: float
) -> None:
    rng = np.random.default_rng(seed)
    g, H = rng.normal(size=d), random_spd(rng, d) + shift * np.eye(d)
    e = trust_region_step(g, H, rho)
    length = float(np.linalg.norm(e))
    assert length <= rho * (1 + 1e-12)
    nu = (g + H @ e) @ e / (e @ e)  # the multiplier of the constraint
    np.testing.assert_allclose(g + H @ e, nu * e, rtol=0, atol=1e-8 * (1 + np.abs(H).max()) * (1 + rho))
    assert nu > -1e-8
    assert length == pytest.approx(rho, rel=1e-10) or nu == pytest.approx(0, abs=1e-8)
    rivals = rng.normal(size=(500, d))
    rivals *= rho * rng.random((500, 1)) ** (1 / d) / np.linalg.norm(rivals, axis=-1, keepdims=True)
    rise = rivals @ g + np.sum(rivals * (rivals @ H), axis=-1) / 2
    best = g @ e + e @ H @ e / 2
    assert rise.max() <= best + 1e-10 * (1 + abs(best))


def test_the_trust_region_step_without_a_part_along_the_top_direction() -> None:
    e = trust_region_step(np.array([1.0, 0.0]), np.diag([1.0, 3.0]), 2.0)
    assert np.linalg.norm(e) == pytest.approx(2.0, rel=1e-14)
    assert e[0] == pytest.approx(0.5, rel=1e-12)  # g_1/(h_2 - h_1), the rest goes up the second axis
    np.testing.assert_allclose(
        np.abs(trust_region_step(np.zeros(2), np.diag([1.0, 3.0]), 2.0)), [0, 2], atol=1e-15
    )
    np.testing.assert_array_equal(trust_region_step(np.ones(2), np.eye(2), 0.0), [0, 0])
    np.testing.assert_allclose(
        trust_region_step(np.array([1.0]), np.array([[-4.0]]), 2.0), [0.25], rtol=1e-15
    )


# Numbers of the first chapter ---

HILLSIDE = np.array([3.0, 4.0])


def rotated(d: tuple[float, float], degrees: float) -> PositiveDefinite:
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    R = np.array([[c, -s], [s, c]])
    return PositiveDefinite(R @ np.diag(d) @ R.T)


@pytest.mark.parametrize(
    ("degrees", "step", "gain", "angle"),
    [
        (0, (0.832050294, 0.277350098), 3.60555128, 34.6951535),
        (15, (0.851875003, 0.417375058), 4.22512524, 27.0276182),
        (30, (0.794707251, 0.579414388), 4.70177931, 17.0346262),
        (45, (0.680120175, 0.730499447), 4.96235831, 6.08469387),
        (60, (0.525132782, 0.849425539), 4.97310051, 5.14466676),
        (90, (0.175561721, 0.936329178), 4.27200187, 26.2502424),
    ],
)
def test_the_compass_turns_with_its_ruler(
    degrees: float, step: tuple[float, float], gain: float, angle: float
) -> None:
    metric = rotated((1.0, 4.0), degrees)
    epsilon = ascent_step(HILLSIDE, 1.0, metric)
    np.testing.assert_allclose(epsilon, step, rtol=5e-9)
    assert ascent_gain(HILLSIDE, 1.0, metric) == pytest.approx(gain, rel=5e-9)
    cosine = epsilon @ HILLSIDE / (5 * np.linalg.norm(epsilon))
    assert np.rad2deg(np.arccos(cosine)) == pytest.approx(angle, rel=5e-9)


@pytest.mark.parametrize(
    ("metric", "step", "gain"),
    [
        (Euclidean(), (0.6, 0.8), 5.0),
        (Adaptive(np.array([2.0, 0.5])), (1.8973666, 0.158113883), 6.32455532),
        (Fisher(HILLSIDE**2, 0.1), (0.234121031, 0.176439038), 1.40811925),
        (Monge(HILLSIDE), (0.117669681, 0.156892908), 0.980580676),
        (Preconditioned(np.array([0.1, 1.0])), (0.0729756383, 0.973008511), 4.11096096),
    ],
    ids=["euclidean", "relative", "fisher", "monge", "learned"],
)
def test_five_rulers_on_one_hillside(metric: Metric, step: tuple[float, float], gain: float) -> None:
    np.testing.assert_allclose(ascent_step(HILLSIDE, 1.0, metric), step, rtol=5e-9)
    assert ascent_gain(HILLSIDE, 1.0, metric) == pytest.approx(gain, rel=5e-9)


def test_each_hiker_beats_the_other_at_home() -> None:
    hers = PositiveDefinite(np.diag([1.0, 4.0]))
    ours = ascent_step(HILLSIDE, 1.0)
    assert metric_length(ours, hers) == pytest.approx(1.708801, abs=5e-7)
    assert HILLSIDE @ ours / metric_length(ours, hers) == pytest.approx(2.926029, abs=5e-7)
    np.testing.assert_allclose(
        ascent_step(HILLSIDE, 1.0, PositiveDefinite(np.diag([4.0, 1.0]))), (0.175562, 0.936329), atol=5e-7
    )


@pytest.mark.parametrize(("p", "gain"), [(1, 4.0), (2, 5.0), (3, 5.584250), (np.inf, 7.0)])
def test_the_gain_of_four_balls(p: float, gain: float) -> None:
    assert dual_norm(HILLSIDE, p) == pytest.approx(gain, abs=5e-7)
    if p == 3:
        np.testing.assert_allclose(pnorm_step(HILLSIDE, 1.0, p), (0.732957, 0.846345), atol=5e-7)
