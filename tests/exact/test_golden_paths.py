"""The golden numbers of the live figures, one after the other (hence the length), by the package's dynamics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import cos, log, pi, sqrt

import numpy as np
import pytest

from llqr_sam_ref.exact import dynamics, landscapes, stability
from llqr_sam_ref.exact._arrays import Array
from llqr_sam_ref.exact.dynamics import Method, Normalized, perturbation, step, trajectory
from llqr_sam_ref.exact.geometry import Adaptive, Euclidean, Monge, Preconditioned, ascent_step

BANANA = landscapes.banana()
NINE_DIGITS = 6e-9  # nine significant digits, half a unit in the last


def assert_path(path: Array, golden: Mapping[int, tuple[float, ...]], rtol: float = NINE_DIGITS) -> None:
    for t, point in golden.items():
        np.testing.assert_allclose(path[t], point, rtol=rtol, err_msg=f"step {t}")


# The ravine ---


def test_the_ravine_path() -> None:
    path = trajectory(dynamics.gd(0.18), landscapes.ravine(), np.array([1.0, 3.0]), 40)
    golden = {
        1: (-0.8, 2.46),
        2: (0.64, 2.0172),
        3: (-0.512, 1.654104),
        10: (0.107374182, 0.412344094),
        20: (0.011529215, 0.056675884),
        40: (0.0001329228, 0.00107071861),
    }
    assert_path(path, golden)
    rate = max(abs(1 - 0.18 * 10), abs(1 - 0.18 * 1))
    assert rate == pytest.approx(0.82)
    assert log(1e-6) / log(rate) == pytest.approx(69.6167559, rel=NINE_DIGITS)


# One step on the two-weight network ---


def test_the_anatomy_of_one_step() -> None:
    w, sam = np.array([2.0, 1.0]), dynamics.sam(0.05, 0.1)
    e = perturbation(sam, BANANA.gradient(w))
    np.testing.assert_allclose(e, (0.0447213595, 0.0894427191), rtol=NINE_DIGITS)
    np.testing.assert_allclose(BANANA.gradient(w + e), (2.67481458, 5.02022768), rtol=NINE_DIGITS)
    np.testing.assert_allclose(BANANA.value(w + e), 1.50701845, rtol=NINE_DIGITS)
    np.testing.assert_allclose(step(sam, BANANA, w), (1.86625927, 0.748988616), rtol=NINE_DIGITS)
    np.testing.assert_allclose(step(dynamics.gd(0.05), BANANA, w), (1.9, 0.8), rtol=1e-14)
    angles = 2 * pi * np.arange(3600) / 3600
    around = BANANA.value(w + 0.1 * np.stack([np.cos(angles), np.sin(angles)], axis=-1))
    assert around.max() == pytest.approx(1.50720276, rel=NINE_DIGITS)
    assert np.rad2deg(angles[np.argmax(around)]) == pytest.approx(62)


@pytest.mark.parametrize(
    ("mu", "gauss_newton", "move", "after"),
    [
        (2.0, False, (1.0, -1.0), 1.0),
        (1.0, False, (-2 / 3, 0.0), 1 / 9),
        (1.0, True, (-0.181818182, -0.363636364), 0.0246567857),
    ],
)
def test_the_damped_steps_of_the_two_weight_network(
    mu: float, gauss_newton: bool, move: tuple[float, float], after: float
) -> None:
    w = np.array([2.0, 1.0])
    g = BANANA.gradient(w)
    H = np.outer(g, g) / 2 if gauss_newton else BANANA.hessian(w)  # (x_2 - 1)^2 has curvature 2, slope 2 here
    damped = -np.linalg.solve(H + mu * np.eye(2), g)
    np.testing.assert_allclose(damped, move, rtol=NINE_DIGITS, atol=1e-15)
    np.testing.assert_allclose(BANANA.value(w + damped), after, rtol=NINE_DIGITS)


# The twin, and a renaming of its weights ---


@pytest.mark.parametrize(
    ("a", "top", "worst"),
    [(1, 4, 0.0214392136), (2, 8.5, 0.043550852), (5, 50.08, 0.250898868), (10, 200.02, 1.00039929)],
)
def test_the_twin_is_sharper_in_the_round_ball_only(a: float, top: float, worst: float) -> None:
    w, angles = np.array([a, 1 / a]), 2 * pi * np.arange(3600) / 3600
    circle = 0.1 * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    assert np.linalg.eigvalsh(BANANA.hessian(w))[-1] == pytest.approx(top, rel=1e-13)
    assert BANANA.value(w + circle).max() == pytest.approx(worst, rel=NINE_DIGITS)
    assert BANANA.value(w * (1 + circle)).max() == pytest.approx(0.0214392136, rel=NINE_DIGITS)


@pytest.mark.parametrize(
    ("rule", "here", "there", "change"),
    [
        ("euclidean", (0.0447213595, 0.0894427191), (0.980580676, 0.0196116135), 9.38460997),
        ("monge", (0.00975900073, 0.0195180015), (0.0480192423, 0.000960384846), 1.9486625),
        ("adaptive", (0.141421356, 0.0707106781), (0.141421356, 0.0707106781), 0.0),
    ],
)
def test_renaming_the_weights_changes_the_step(
    rule: str, here: tuple[float, float], there: tuple[float, float], change: float
) -> None:
    w, A = np.array([2.0, 1.0]), np.array([10.0, 1.0])
    g = BANANA.gradient(w)

    def epsilon(g: Array, w: Array) -> Array:
        metrics = {"euclidean": Euclidean(), "monge": Monge(g), "adaptive": Adaptive(w)}
        return ascent_step(g, 0.1, metrics[rule])

    ours, renamed = epsilon(g, w), A * epsilon(A * g, w / A)
    np.testing.assert_allclose(ours, here, rtol=NINE_DIGITS)
    np.testing.assert_allclose(renamed, there, rtol=NINE_DIGITS)
    moved = np.linalg.norm(renamed - ours) / np.linalg.norm(ours)
    assert moved == pytest.approx(change, rel=NINE_DIGITS, abs=1e-15)


# The cycle ---


def test_sams_path_into_its_cycle() -> None:
    path = trajectory(dynamics.sam(0.1, 0.1), landscapes.bowl(np.array([4.0])), np.ones(1), 40)
    golden = {1: 0.56, 2: 0.296, 3: 0.1376, 4: 0.04256, 5: -0.014464, 6: 0.0313216}
    golden |= {10: 0.0258192794, 20: 0.0250049539, 40: 0.0250000002}
    assert_path(path, {t: (x,) for t, x in golden.items()})
    assert stability.sam_cycle_amplitude(4.0, 0.1, 0.1) == pytest.approx(0.025, rel=1e-15)


def test_monge_sams_path_into_its_cycle() -> None:
    path = trajectory(dynamics.monge_sam(0.1, 0.1), landscapes.bowl(np.array([4.0])), np.ones(1), 40)
    golden = {1: 0.590298575, 2: 0.338579876, 3: 0.17938794, 10: -0.026468543, 40: -0.0248771381}
    assert_path(path, {t: (x,) for t, x in golden.items()})
    assert stability.monge_cycle_amplitude(4.0, 0.1, 0.1) == pytest.approx(0.0248771373, rel=NINE_DIGITS)


# The curved valley ---


def test_rolling_along_a_level_floor() -> None:
    valley, start = landscapes.curved_valley(), np.array([1.5, 0.5])
    golden = {
        1: (1.42540014, 0.264649036),
        2: (1.39429867, 0.120953741),
        3: (1.37984752, 0.0255322663),
        10: (1.32829442, -0.0331047659),
        100: (0.842514052, -0.0187781313),
        500: (0.136898374, -0.0107360282),
    }
    assert_path(trajectory(dynamics.sam(0.1, 0.2), valley, start, 500), golden)
    plain = trajectory(dynamics.gd(0.1), valley, start, 500)
    assert_path(plain, {1: (1.4625, 0.3375), 10: (1.43104382, 0.0124897309)})
    assert plain[500, 0] == pytest.approx(1.43100061, rel=NINE_DIGITS)


@pytest.mark.parametrize(("rho", "steps"), [(0.1, 857), (0.2, 212), (0.4, 52)])
def test_the_clock_of_the_drift_is_rho_squared(rho: float, steps: int) -> None:
    path = trajectory(dynamics.sam(0.1, rho), landscapes.curved_valley(), np.array([1.5, 0.5]), 900)
    assert np.argmax(path[:, 0] < 0.5) == steps


# The hilltop that holds ---


def test_the_trap_of_the_double_well() -> None:
    well, start = landscapes.double_well_saddle(20.0), np.array([0.5, 0.3])
    held = trajectory(dynamics.sam(0.0025, 0.5), well, start, 400)
    golden = {
        1: (0.453057644, 0.303008462),
        2: (0.409037528, 0.305176292),
        10: (0.155244424, 0.285868558),
    }
    assert_path(held, golden)
    assert held[100, 0] == pytest.approx(0.0131687203, rel=NINE_DIGITS)
    assert abs(held[100, 1]) < 1e-6
    assert np.abs(held[300:, 1]).max() < 1e-12
    free = trajectory(dynamics.monge_sam(0.0025, 0.5), well, start, 100)
    golden = {
        1: (0.473081507, 0.312866036),
        2: (0.447486751, 0.326135733),
        10: (0.284235148, 0.446973167),
    }
    assert_path(free, golden)
    assert free[50, 1] == pytest.approx(0.951680301, rel=NINE_DIGITS)
    assert free[100, 1] == pytest.approx(1.01279589, rel=NINE_DIGITS)
    assert stability.sam_basin_radius(20.0, 0.5) == pytest.approx(0.5, rel=1e-15)
    assert stability.monge_basin_radius(20.0, 0.5) == pytest.approx(0.154211642, rel=NINE_DIGITS)


# The race on the banana ---

RACE: list[tuple[Method, dict[int, tuple[float, ...]], float | None]] = [
    (
        dynamics.gd(0.01),
        {
            1: (-1.4825, 0.4475),
            10: (-1.41089557, 0.0849704618),
            50: (-1.5060065, -0.544547161),
            100: (-1.54335739, -0.640839621),
            200: (-1.54586816, -0.646863684),
        },
        0.0,
    ),
    (
        dynamics.sam(0.01, 1.0),
        {
            1: (-1.3947926, 0.368100497),
            10: (-0.937666607, -0.152678267),
            50: (-0.431493927, -0.343968407),
            100: (-0.0323588475, -0.0309335443),
            200: (-0.00374593264, -0.00277610631),
        },
        1.0,
    ),
    (
        dynamics.monge_sam(0.01, 1.0),
        {
            1: (-1.47270853, 0.436485592),
            10: (-1.32188856, -0.00342479355),
            50: (-1.11850904, -0.786402072),
            100: (-1.04162737, -0.968403116),
            200: (-0.945418516, -0.941308233),
        },
        0.896349197,
    ),
    (
        dynamics.clipped_sam(0.01, 1.0),
        {
            1: (-1.47253172, 0.436296968),
            10: (-1.31754537, -0.00706197162),
            50: (-1.07093578, -0.81299471),
            100: (-1.00484396, -0.949015131),
            200: (-0.967342051, -0.964493334),
        },
        0.931514512,
    ),
    (
        dynamics.sam(0.01, 0.6),
        {
            1: (-1.43998132, 0.405148887),
            10: (-1.16311163, -0.0949410875),
            200: (-1.01106869, -0.972749437),
        },
        None,
    ),
]


@pytest.mark.parametrize(
    ("method", "golden", "radius"), RACE, ids=["GD", "SAM", "M-SAM", "clipped SAM", "SAM of radius 0.6"]
)
def test_the_race(method: Method, golden: dict[int, tuple[float, ...]], radius: float | None) -> None:
    path = trajectory(method, BANANA, np.array([-1.5, 0.5]), 200)
    assert_path(path, golden)
    if radius is not None:
        realized = np.linalg.norm(perturbation(method, BANANA.gradient(path[:-1])), axis=-1)
        assert realized.mean() == pytest.approx(radius, rel=NINE_DIGITS)


# Who is thrown out of which hole ---


@pytest.mark.parametrize(
    ("hbar", "h", "chi", "limits", "multipliers"),
    [
        (0.2, 0.2, 0.8, (40, 10, 8.82782219, 2.20695555), (0.99, 0.96, 0.9892, 0.9472)),
        (0.2, 3.0, 12.0, (40, 10, 8.82782219, 2.20695555), (0.85, 0.4, 0.67, -2.48)),
        (10.0, 10.0, 0.995024876, (40, 402, 8.82782219, 88.719613), (0.5, 0.950248756, -1.5, 0.930447266)),
    ],
)
def test_the_contrast_table(
    hbar: float, h: float, chi: float, limits: tuple[float, ...], multipliers: tuple[float, ...]
) -> None:
    eta, rho, mu = 0.05, 0.4, 0.05
    U = np.array([1 / (hbar + mu)])
    assert stability.contrast(h, hbar, mu) == pytest.approx(chi, rel=NINE_DIGITS)
    plain, both = stability.contrast_limit(eta, 0.0), stability.contrast_limit(eta, rho)
    np.testing.assert_allclose((plain, plain / U[0], both, both / U[0]), limits, rtol=NINE_DIGITS)
    parabola = landscapes.quadratic(np.array([[h]]))
    methods = (
        dynamics.gd(eta),
        dynamics.preconditioned_gd(eta, U),
        dynamics.unnormalized_sam(eta, rho),
        dynamics.unnormalized_llqr_sam(eta, rho, U),
    )
    moved = [step(method, parabola, np.ones(1))[0] for method in methods]
    np.testing.assert_allclose(moved, multipliers, rtol=NINE_DIGITS)
    assert stability.pothole_multiplier(h, hbar, mu, eta, rho) == pytest.approx(moved[-1], rel=1e-14)


def test_the_contrast_limits() -> None:
    assert stability.contrast_limit(0.05, 0.4) == pytest.approx(8.82782219, rel=NINE_DIGITS)
    assert stability.contrast_limit(0.05, 0.4, beta=0.9) == pytest.approx(12.5906105, rel=NINE_DIGITS)
    assert stability.contrast_limit(0.555556, 0.4) == pytest.approx(2.0, abs=1e-5)


# The road with potholes ---


def mulberry32(seed: int) -> Iterator[float]:
    """Uniform numbers in [0, 1), as the figure's script draws them."""
    a, word = seed, 0xFFFFFFFF
    while True:
        a = (a + 0x6D2B79F5) & word
        t = (a ^ (a >> 15)) * (a | 1) & word
        t ^= (t + ((t ^ (t >> 7)) * (t | 61) & word)) & word
        yield (t ^ (t >> 14)) / 2**32


def road_noise(seed: int, steps: int, dimension: int, sigma: float = 1.0) -> Array:
    """The cosine branch of Box-Muller, in the order in which the figure's script consumes it."""
    u = mulberry32(seed)
    draws = [sqrt(-2 * log(1 - next(u))) * cos(2 * pi * next(u)) for _ in range(steps * dimension)]
    return sigma * np.array(draws).reshape(steps, dimension)


ROAD = landscapes.pothole_road()
START = np.concatenate([np.zeros(5), np.full(20, 4.0)])
U_ROAD = np.concatenate([np.full(5, 1 / 100), np.full(20, 1 / 0.1)])
CARS = {
    "GD": dynamics.gd(0.01),
    "preconditioned": dynamics.preconditioned_gd(0.005, U_ROAD),
    "SAM": dynamics.sam(0.01, 1.5),
    "LLQR+SAM": dynamics.llqr_sam(0.005, 1.5, U_ROAD),
}


def bowl_loss(w: Array) -> Array:
    return np.asarray(np.sum(w**2 / (2 * U_ROAD), axis=-1))


def escaped(w: Array) -> Array:
    return np.asarray(np.mean(np.abs(w[..., 5:] - 4) > 0.5, axis=-1))


@pytest.fixture(scope="module")
def noise() -> Array:
    """Noise of the figure's seeds 1 to 8, shape (3000, 8, 25)."""
    return np.stack([road_noise(seed, 3000, 25) for seed in range(1, 9)], axis=1)


@pytest.mark.parametrize(
    ("car", "at_10", "at_30", "rtol_30", "end"),
    [
        (
            "GD",
            (0.00369515205, 3.99988972, 3.97843773, 15.8884577),
            (0.00298118953, 4.00365757, 3.9653648, 15.8361071),
            NINE_DIGITS,
            15.8938251,
        ),
        (
            "preconditioned",
            (-0.000244488413, 3.96262868, 4.02929663, 15.868601),
            (-0.000208906746, 4.00610983, 3.9060175, 15.8102257),
            NINE_DIGITS,
            16.0497953,
        ),
        (
            "SAM",
            (0.939472549, 4.00288678, 3.97753554, 128.206849),
            (0.936864497, 4.00382693, 3.96446841, 128.288921),
            NINE_DIGITS,
            129.003154,
        ),
        (
            "LLQR+SAM",
            (-0.000249347574, 4.44604608, 3.478352, 14.0267956),
            (-0.000212294203, 4.43458738, 3.60980316, 13.8579996),
            1e-7,
            None,
        ),
    ],
    ids=list(CARS),
)
def test_the_cars_on_the_road(
    car: str,
    at_10: tuple[float, ...],
    at_30: tuple[float, ...],
    rtol_30: float,
    end: float | None,
    noise: Array,
) -> None:
    path = trajectory(CARS[car], ROAD, START, 3000, noise=noise[:, 0])
    for t, golden, rtol in ((10, at_10, NINE_DIGITS), (30, at_30, rtol_30)):
        w = path[t]
        np.testing.assert_allclose((w[0], w[5], w[24], bowl_loss(w)), golden, rtol=rtol, err_msg=f"step {t}")
    if end is None:  # chaotic from here on: only the share counts
        assert escaped(path[-1]) == 1
    else:
        assert escaped(path[-1]) == 0
        assert bowl_loss(path[-1]) == pytest.approx(end, rel=NINE_DIGITS)


def test_on_eight_roads_only_one_car_gets_home(noise: Array) -> None:
    starts = np.tile(START, (8, 1))
    for name, method in CARS.items():
        end = trajectory(method, ROAD, starts, 3000, noise=noise)[-1]
        if name == "LLQR+SAM":
            assert (escaped(end) == 1).all()
            # the paths are chaotic: the range of the bowl loss is a statistic, not a number
            assert 0.5 < bowl_loss(end).min() < bowl_loss(end).max() < 2.0
        else:
            assert (escaped(end) == 0).all()


def test_a_stronger_plain_preconditioned_step_gets_home_too(noise: Array) -> None:
    end = trajectory(dynamics.preconditioned_gd(0.0149, U_ROAD), ROAD, START, 3000, noise=noise[:, 0])[-1]
    assert escaped(end) >= 0.9
    assert bowl_loss(end) < 3


def test_the_roads_ablation(noise: Array) -> None:
    """At the same radius: U in the perturbation only, in the step only, in both; and the metric norm."""
    variants = {
        "perturbation only": Method("", 0.01, Normalized(1.5, Preconditioned(U_ROAD))),
        "step only": Method("", 0.005, Normalized(1.5), U=U_ROAD),
        "both": CARS["LLQR+SAM"],
        "metric norm": dynamics.llqr_sam(0.005, 0.5, U_ROAD, norm="dual"),
    }
    starts = np.tile(START, (4, 1))
    share = {
        name: float(escaped(trajectory(method, ROAD, starts, 3000, noise=noise[:, :4])[-1]).mean())
        for name, method in variants.items()
    }
    assert share["perturbation only"] == pytest.approx(0.80, abs=0.1)
    assert share["step only"] >= 0.95
    assert share["both"] == share["metric norm"] == 1
