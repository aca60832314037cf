"""Sharpness in six ways: on networks small enough to know the answer, and on twins."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from book.experiments import digits_noise, questions
from book.experiments import flatness as study
from book.experiments.digits_noise import Data, losses

SHAPES = [(5, 4), (5,), (3, 5), (3,)]  # 4-5-3, 43 weights


@pytest.fixture
def networks() -> tuple[list[Tensor], Data]:
    """Two networks, each with its own data."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(2, *shape, generator=generator, dtype=torch.float64) for shape in SHAPES]
    inputs = torch.randn(2, 30, 4, generator=generator, dtype=torch.float64)
    return weights, Data(inputs, torch.randint(3, (2, 30), generator=generator))


def hessian(weights: list[Tensor], data: Data, run: int) -> Tensor:
    """Of one run's loss."""
    sizes = [w[run].numel() for w in weights]

    def loss(vector: Tensor) -> Tensor:
        parts = [p.view(1, *w.shape[1:]) for p, w in zip(vector.split(sizes), weights, strict=True)]
        return losses(parts, data.inputs[run : run + 1], data.labels[run : run + 1])[0]

    H: Tensor = torch.autograd.functional.hessian(loss, torch.cat([w[run].flatten() for w in weights]))
    return H


def test_the_trace_is_that_of_the_whole_hessian(
    networks: tuple[list[Tensor], Data], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "DRAWS", 4000)
    found = study.trace(*networks)
    for run in range(2):
        H = hessian(*networks, run)
        spread = float(((H - H.diag().diag()).square().sum() * 2 / 4000).sqrt())
        assert abs(float(found[run] - H.trace())) < 4 * spread


def test_the_ball_holds_no_higher_point_than_it_finds(networks: tuple[list[Tensor], Data]) -> None:
    weights, data = networks
    start = losses(weights, *data)
    for relative in (False, True):
        found = study.ball(weights, data, relative=relative)
        generator = torch.Generator().manual_seed(1)
        for _ in range(200):
            v = [torch.randn(w.shape, generator=generator, dtype=w.dtype) for w in weights]
            scale = study.RADIUS / study.length(v)
            there = [
                w + scale.view(-1, *[1] * (w.ndim - 1)) * x * (w.abs() if relative else 1.0)
                for w, x in zip(weights, v, strict=True)
            ]
            assert bool((losses(there, *data) - start <= found).all())
        # To first order the rise is the radius times the slope, and the loss bends upward from there.
        if not relative:
            assert bool((found > 0.9 * study.RADIUS * study.slope(weights, data)).all())


def test_the_average_rise_is_half_the_trace_over_the_dimension_for_small_radii(
    networks: tuple[list[Tensor], Data], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "DRAWS", 4000)
    monkeypatch.setattr(study, "RADIUS", 1e-3)
    found = study.average(*networks) / (0.5 * 1e-6 / 43)
    for run in range(2):
        H = hessian(*networks, run)
        assert float(found[run]) == pytest.approx(float(H.trace()), abs=0.1 * float(H.norm()))


def test_twins_compute_the_same_and_only_the_relative_ball_knows(networks: tuple[list[Tensor], Data]) -> None:
    weights, data = networks
    other = study.twins(weights, torch.Generator().manual_seed(2))
    torch.testing.assert_close(losses(other, *data), losses(weights, *data), rtol=1e-13, atol=0)
    for name, measure in study.MEASURES.items():
        change = (measure(other, data) / measure(weights, data)).log().abs()
        assert bool((change < 1e-9).all() if name == "relative ball" else (change > 1e-2).any()), name


def test_what_predicts_is_seen_within_groups_and_what_only_tells_them_apart_is_not() -> None:
    rng = np.random.default_rng(0)
    groups = [name for name in "abc" for _ in range(10)]
    level = np.repeat([0.0, 10.0, 20.0], 10)
    inner = rng.normal(size=30)
    loss = list(level + inner)
    knows, tells = (
        study.predicts(loss, loss, groups),
        study.predicts(list(level + rng.normal(size=30)), loss, groups),
    )
    assert knows["all"] == pytest.approx(1.0) == knows["within"]
    assert tells["all"] > 0.8 > abs(tells["within"]) + 0.3
    for row in (knows, tells):
        for kind in ("all", "within"):
            low, high = row[f"{kind}_interval"]
            assert low <= high
    low, high = tells["within_interval"]
    assert low < 0 < high


def test_a_network_is_kept_at_its_first_step_below_each_level(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = digits_noise.batches
    monkeypatch.setattr(questions, "batches", lambda seed: whole(seed)[:120])
    found = study.kept("sgd", 300, (2.2, 1.9, 0.1))
    assert sorted(found) == [1.9, 2.2]
    clean = digits_noise.splits()[0]
    labels = digits_noise.wrong_labels(clean.labels, 300)
    for level, weights in found.items():
        loss = float(losses([w[None] for w in weights], clean.inputs[None], labels[None])[0])
        assert level - 0.2 < loss <= level
