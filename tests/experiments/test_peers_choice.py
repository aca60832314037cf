"""How settings are chosen and methods are compared: on objectives and numbers whose answer is known."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t as student

from book.experiments.peers.compare import holm, one_rate, paired
from book.experiments.peers.search import Axis, Point, Search

THREE = (Axis(0.1), Axis(0.125, low=0, off=True), Axis(0.1, below=1.0))
Loss = Callable[[Point, int], float]


def bowl(center: Point, noise: float = 0.0) -> Loss:
    """A bowl with a lowest point; seeds differ by some noise that is always the same."""

    def loss(point: Point, seed: int) -> float:
        rng = np.random.default_rng(abs(hash((point, seed))))
        return 1.0 + sum((a - b) ** 2 for a, b in zip(point, center, strict=True)) + noise * rng.random()

    return loss


# Axes.


def test_values_double_from_level_to_level_and_zero_is_the_end_of_an_axis_that_can_be_off() -> None:
    lr, decay, own = THREE
    assert [lr.value(level) for level in (-2, 0, 3)] == pytest.approx([0.025, 0.1, 0.8])
    assert [decay.value(level) for level in range(4)] == [0.0, 0.125, 0.25, 0.5]
    assert not decay.allows(-1)
    assert own.allows(3)
    assert not own.allows(4)  # 1.6 is no "1 - momentum"


# The walk.


@pytest.mark.parametrize("center", [(0, 0, 0), (5, 0, -3), (-4, 3, 2), (1, 1, 1)])
def test_the_grid_is_extended_until_the_optimum_is_inside(center: Point) -> None:
    search = Search(THREE, bowl(center), range(3), least=7, most=60).run()
    assert search.best == center
    assert search.inner
    for axis, move in itertools.product(range(3), (-1, 1)):
        neighbor = tuple(level + move * (i == axis) for i, level in enumerate(center))
        assert (neighbor in search.scores) == THREE[axis].allows(neighbor[axis])


def test_a_natural_end_of_an_axis_needs_no_neighbor_beyond_it() -> None:
    search = Search(
        THREE, lambda point, seed: 10.0 - point[2] + point[0] ** 2 + point[1], range(2), 1, 60
    ).run()
    assert search.best == (0, 0, 3)
    assert search.inner


def test_an_optimum_at_the_edge_of_the_budget_is_said_to_be_there() -> None:
    search = Search(THREE, lambda point, seed: 100.0 - point[0], range(2), least=4, most=9).run()
    assert len(search.scores) == 9
    assert not search.inner


@pytest.mark.parametrize("least", [1, 15, 40])
def test_what_is_left_of_the_budget_is_spent_around_the_best(least: int) -> None:
    search = Search(THREE, bowl((0, 0, 0)), range(2), least, most=60).run()
    assert len(search.scores) == max(
        least, 6
    )  # the start and its five neighbors: decay cannot be less than none
    reach = max(max(map(abs, point)) for point in search.scores)
    assert reach == (1 if least <= 18 else 2)


def test_a_better_point_found_around_the_best_is_walked_from() -> None:
    def ridge(point: Point, seed: int) -> float:
        """Better in no single direction from the start, much better along the diagonal."""
        lr, _, own = point
        return 1.0 + 10.0 * abs(lr - own) + (lr - 3) ** 2 + point[1]

    search = Search(THREE, ridge, range(1), least=60, most=100).run()
    assert search.best == (3, 0, 3)
    assert search.inner


def test_where_everything_diverges_the_learning_rate_goes_down_until_something_does_not() -> None:
    def loss(point: Point, seed: int) -> float:
        return math.inf if point[0] > -3 else 5.0 - point[0]

    search = Search(THREE, loss, range(2), least=1, most=30).run()
    assert search.best == (-3, 0, 0)
    assert search.inner
    assert (
        sum(score.diverged for score in search.scores.values()) == 3
    )  # at levels 0, -1 and -2, one seed each
    assert not Search(THREE, lambda point, seed: math.inf, range(2), 1, 5).run().inner


def test_a_setting_is_judged_by_its_worst_seed() -> None:
    def loss(point: Point, seed: int) -> float:
        """Twice the rate is better on average, and with one seed in five it is bad."""
        if point[1:] != (0, 0):
            return 9.0
        return {0: 1.0, 1: 5.0 if seed == 3 else 0.1}.get(point[0], 9.0)

    assert (
        np.mean([loss((1, 0, 0), seed) for seed in range(5)])
        > 1.0
        > np.median([loss((1, 0, 0), seed) for seed in range(5)])
    )
    assert Search(THREE, loss, range(3), 7, 30).run().best == (1, 0, 0)  # three seeds do not see it
    assert Search(THREE, loss, range(5), 7, 30).run().best == (0, 0, 0)


@settings(max_examples=30, deadline=None)
@given(
    center=st.tuples(st.integers(-3, 3), st.integers(0, 3), st.integers(-3, 3)),
    noise=st.floats(0.0, 3.0),
    seeds=st.integers(1, 5),
    least=st.integers(1, 30),
)
def test_giving_up_early_changes_no_choice(center: Point, noise: float, seeds: int, least: int) -> None:
    loss, calls = bowl(center, noise), []

    def counted(point: Point, seed: int) -> float:
        calls.append((point, seed))
        return loss(point, seed)

    search = Search(THREE, counted, range(seeds), least, most=40).run()
    worst = {point: max(loss(point, seed) for seed in range(seeds)) for point in search.scores}
    assert search.best == min(worst, key=worst.__getitem__)
    assert search.scores[search.best].worst == worst[search.best]
    assert search.scores[search.best].complete
    assert len(calls) == len(set(calls)) <= seeds * len(search.scores)
    for point, score in search.scores.items():
        assert search.scores[search.best].worst <= score.worst <= worst[point]
        assert not score.complete or score.worst == worst[point]


# Comparisons.


def test_the_paired_test_is_that_of_the_logarithms() -> None:
    rng = np.random.default_rng(0)
    a, b = np.exp(rng.normal(0.3, 0.4, 10)), np.exp(rng.normal(0.0, 0.4, 10))
    difference = np.log(a / b)
    statistic = difference.mean() / (difference.std(ddof=1) / math.sqrt(10))
    comparison = paired(a.tolist(), b.tolist())
    assert comparison.t == pytest.approx(2 * student.sf(abs(statistic), 9), rel=1e-10)
    assert comparison.ratio == pytest.approx(np.exp(difference.mean()), rel=1e-12)


def test_the_signed_rank_test_is_the_exact_one() -> None:
    a, b = [1.0, 2.0, 3.5, 1.2, 0.9, 4.0], [0.8, 2.4, 2.0, 1.1, 0.3, 2.9]
    difference = np.log(np.array(a) / np.array(b))
    ranks = np.abs(difference).argsort().argsort() + 1
    seen = ranks[difference > 0].sum()
    sums = np.array([(ranks * np.array(signs)).sum() for signs in itertools.product((0, 1), repeat=6)])
    exact = 2 * min((sums <= seen).mean(), (sums >= seen).mean())
    assert paired(a, b).wilcoxon == pytest.approx(min(1.0, exact), rel=1e-12)


def test_a_run_that_diverged_is_the_worst_of_all() -> None:
    comparison = paired([1.0, 2.0, math.inf, 4.0, 5.0], [0.5, 1.0, 2.0, 1.0, 0.1])
    assert comparison.ratio == math.inf
    assert comparison.t is None
    assert comparison.wilcoxon == pytest.approx(2 / 2**5)  # all five on one side
    assert paired([1.0, 2.0], [math.inf, 3.0]).ratio == 0.0
    same = paired([1.0, math.inf], [1.0, math.inf])
    assert (same.ratio, same.t, same.wilcoxon) == (1.0, None, None)
    with pytest.raises(ValueError, match=r"3 losses and 2 of the reference"):
        paired([1.0, 2.0, 3.0], [1.0, 2.0])


def test_holm_corrects_the_textbook_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=12))
def test_holm_rejects_what_the_step_down_rule_rejects(p_values: list[float]) -> None:
    corrected = holm(p_values)
    for level in (0.01, 0.05, 0.2):
        rejected = set()
        for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
            if p_values[i] * (len(p_values) - rank) > level:
                break
            rejected.add(i)
        assert {i for i, p in enumerate(corrected) if p <= level} == rejected


def test_one_rate_for_all_tasks_is_the_middle_of_the_extremes() -> None:
    rate, factor = one_rate([0.002, 0.008, 0.004, 0.008])
    assert rate == pytest.approx(0.004)
    assert factor == pytest.approx(2.0)
    assert max(max(rate / best, best / rate) for best in (0.002, 0.008)) == pytest.approx(factor)
